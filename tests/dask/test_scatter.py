"""What is scattered survives every worker that holds it."""

from __future__ import annotations

import queue
from collections import namedtuple
from typing import Any

import dask
import numpy as np
import pytest
from dask_tasks import (
    Unpicklable,
    add_one,
    fail,
    identity,
    scatter_and_submit,
    total,
)
from distributed import Client as DaskClient
from distributed import LocalCluster, wait

from proxystore.workflow import UnpicklableArgumentError
from proxystore_dask import Client

pytestmark = pytest.mark.dask

Point = namedtuple("Point", "x y")


class TestWorkersThatDie:
    def test_the_only_holder_before_it_is_used(self, client, array, kill_worker):
        future = client.scatter(array)
        ((worker,),) = client.who_has(future).values()
        kill_worker(client, worker)
        assert client.submit(total, future).result() == array.sum()

    def test_every_holder_after_its_task_is_done(self, client, array, kill_worker):
        used = client.submit(add_one, client.scatter(array))
        wait(used)
        for worker in list(client.scheduler_info()["workers"]):
            kill_worker(client, worker)
        assert client.submit(total, used).result() == array.sum() + len(array)

    def test_the_worker_that_was_asked_for(self, client, array, kill_worker):
        (worker, *_) = client.scheduler_info()["workers"]
        future = client.scatter(array, workers=[worker])
        assert client.who_has(future)[future.key] == (worker,)
        kill_worker(client, worker)
        assert np.array_equal(future.result(), array)


class TestAsDask:
    @pytest.mark.parametrize(
        "make",
        [
            lambda x: x,
            lambda x: [x, 1, x + 1],
            lambda x: (x, x),
            lambda x: {"x": x, "y": 1},
            lambda x: {1: 2, ("a", 0): x},
            lambda x: {x.tobytes(), "text"},
            lambda x: Point(x, 1),
            lambda x: [[x, {"more": x}]],
            lambda x: range(3),
        ],
        ids=[
            *("array", "list", "tuple", "named", "other names", "set", "named tuple", "nested"),
            "range",
        ],
    )
    def test_futures_come_as_the_data_did(self, client, array, make):
        data = make(array)
        with DaskClient(client.cluster, set_as_default=False) as plain:
            try:
                theirs = plain.scatter(data)
            except TypeError:
                pytest.skip("plain Dask cannot do it: 2025.7 with named tuples")
            ours = client.scatter(data)
            assert type(ours) is type(theirs)
            back, expected = client.gather(ours), plain.gather(theirs)
        assert dask.tokenize.tokenize(back) == dask.tokenize.tokenize(expected)

    def test_futures_are_done(self, client, array):
        futures = client.scatter([array, 1])
        assert [future.status for future in futures] == ["finished"] * 2

    def test_keys_are_made_of_the_content(self, client, array):
        first, second, other = client.scatter([array, array.copy(), array + 1])
        assert first.key == second.key != other.key
        assert first.key.startswith("ndarray-")
        assert client.ps_stats().puts == 2

    def test_keys_are_not_made_of_the_content_if_so_asked(self, client, array):
        first, second = client.scatter([array, array], hash=False)
        assert first.key != second.key
        assert client.gather([first, second])[1].sum() == array.sum()
        assert client.ps_stats().puts == 1

    @pytest.mark.parametrize("broadcast", [True, 2])
    def test_broadcast(self, client, array, broadcast):
        future = client.scatter(array, broadcast=broadcast)
        assert len(client.who_has(future)[future.key]) == 2

    def test_direct(self, client, array):
        ours, small = client.scatter([array, 1], direct=True)
        assert client.submit(total, ours, small).result() == array.sum() + 1

    def test_a_name_that_is_known(self, client, array):
        first = client.scatter({"the-name": 1})["the-name"]
        second = client.scatter({"the-name": array})["the-name"]
        assert first.key == second.key
        assert client.ps_stats().puts == 0

    @pytest.mark.parametrize("data", [iter([1]), queue.Queue()], ids=["iterator", "queue"])
    def test_what_is_refused(self, client, data):
        with pytest.raises(TypeError, match="Iterators or Queues"):
            client.scatter(data)

    def test_no_worker_in_time(self, objects, array):
        with (
            LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
            Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client,
        ):
            with pytest.raises(TimeoutError):
                client.scatter(array, timeout="50 ms")
            objects.wait_until_empty()

    def test_asynchronous(self, in_event_loop, array):
        async def program(client: Any) -> None:
            future, one = await client.scatter([array, 1])
            assert await client.submit(total, future, one) == array.sum() + 1
            assert client.ps_stats().puts == 1

        in_event_loop(program)

    @pytest.mark.parametrize("processes", [True, False])
    def test_in_a_task(self, objects, array, processes):
        """The task goes on: it holds the only thread that could load the value."""
        with (
            LocalCluster(
                n_workers=1, threads_per_worker=1, processes=processes, dashboard_address=":0"
            ) as cluster,
            Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client,
        ):
            future = client.submit(scatter_and_submit, array)
            assert future.result(timeout=20) == 2 * array.sum()


class TestObjects:
    def test_a_value_that_is_small_is_not_stored(self, client):
        assert client.submit(total, client.scatter(np.ones(3))).result() == 3
        assert client.ps_stats().puts == 0

    def test_it_goes_with_the_last_task_that_needs_it(self, client, array, objects):
        future = client.scatter(array)
        used = client.submit(add_one, future)
        wait(used)
        del future
        assert len(objects) == 1
        assert client.submit(total, used).result() == array.sum() + len(array)
        del used
        objects.wait_until_empty()

    def test_the_scheduler_does_not_see_the_value(self, client, array):
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "5 kB"}):
            assert client.submit(fail, client.scatter([array, [array]])[1]).exception().args == (1,)

    def test_a_value_that_cannot_be_pickled(self, client, array):
        with pytest.raises(UnpicklableArgumentError, match=r"argument 'x'\[1\] is a .*Unpick"):
            client.scatter({"y": 1, "x": [array, Unpicklable()]})
        assert client.ps_stats().puts == 0

    def test_tasks_on_one_worker_share_it_as_in_plain_dask(self, client, array, objects):
        asked = len(objects.log("get"))  # each worker, whether it reaches the store
        future: Any = client.scatter(array)
        results = [client.submit(identity, future, pure=False) for _ in range(3)]
        assert all(np.array_equal(r, array) for r in client.gather(results))
        assert len(objects.log("get")) == asked + 1
