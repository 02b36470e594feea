"""Workers that get objects for tasks that still wait for a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from dask_tasks import change_in_place, look_and_use, total, wait_for
from distributed import LocalCluster

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.workflow import Ref, ThresholdError, store_object
from proxystore_dask import Client
from proxystore_dask.measures import PREFETCH
from proxystore_dask.prefetch import Ahead


def held(client: Client) -> int:
    """The bytes that the only worker holds for tasks to come; -1: it has no such plugin."""

    def look(dask_worker: Any) -> int:
        plugin = dask_worker.plugins.get(PREFETCH)
        return -1 if plugin is None else plugin.ahead.nbytes

    (nbytes,) = client.run(look).values()
    return int(nbytes)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.mark.dask
class TestOnACluster:
    """One worker with one thread, which the first task keeps until the test says so."""

    @pytest.fixture
    def client(self, cluster, objects) -> Iterator[Client]:
        cluster.wait_for_workers(1, timeout=30)
        with (
            dask.config.set({"proxystore.prefetch": "1 MB"}),
            Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client,
        ):
            yield client

    @pytest.fixture
    def busy(self, client, array, tmp_path, wait_until) -> Iterator[tuple[Any, Path]]:
        """A running task, and what to touch for it to end."""
        started, go = tmp_path / "started", tmp_path / "go"
        future = client.submit(wait_for, array, str(started), str(go))
        wait_until(started.exists)
        yield future, go
        go.touch()

    def test_a_waiting_task_has_its_own_copy_already(
        self, client, busy, array, objects, wait_until
    ):
        running, go = busy
        arrays = [array + 1, array + 2, array + 1]
        futures = client.map(change_in_place, arrays, range(3), workers=here(client))
        wait_until(lambda: len(objects.log("get")) >= 5)  # one by the running task, one to see
        assert held(client) == 3 * objects_size(client)
        go.touch()
        assert client.gather(futures) == [2, 3, 2]
        assert running.result() == array.sum()
        assert len(objects.log("get")) == 5
        wait_until(lambda: held(client) == 0)

    def test_what_is_cancelled_is_dropped(self, client, busy, array, wait_until):
        future = client.submit(total, array + 1)
        wait_until(lambda: held(client) != 0)
        future.cancel()
        wait_until(lambda: held(client) == 0)

    def test_no_more_than_the_budget(self, client, busy, array, objects, wait_until):
        _, go = busy
        futures = client.map(total, [array + i for i in range(1, 20)], workers=here(client))
        wait_until(lambda: held(client) > 800_000)
        assert held(client) <= 1_000_000
        go.touch()
        assert client.gather(futures) == [(array + i).sum() for i in range(1, 20)]
        assert len(objects.log("get")) == 21
        wait_until(lambda: held(client) == 0)

    def test_proxies_are_left_alone(self, client, busy, array, objects):
        _, go = busy
        proxied = client.submit(look_and_use, array + 1, False, ps_arguments="proxy")
        go.touch()
        assert proxied.result()[:2] == (True, False)
        assert len(objects.log("get")) == 2

    def test_a_worker_that_dies_with_it(self, client, busy, array, kill_worker, wait_until):
        _, go = busy
        future = client.submit(total, array + 1)
        wait_until(lambda: held(client) != 0)
        kill_worker(client, next(iter(client.scheduler_info()["workers"])))
        go.touch()
        assert future.result() == (array + 1).sum()

    def test_it_is_off_unless_asked_for(self, objects, array):
        with Client(
            n_workers=1, processes=False, ps_store=objects.store, dashboard_address=":0"
        ) as client:
            assert held(client) == -1

    def test_a_wrong_size(self):
        with (
            dask.config.set({"proxystore.prefetch": "much"}),
            pytest.raises(ThresholdError, match=r"proxystore\.prefetch in Dask's configuration"),
        ):
            Client()


def here(client: Client) -> list[str]:
    """The workers. Tasks that may run anywhere stay with the scheduler until one has a thread."""
    return list(client.scheduler_info()["workers"])


def objects_size(client: Client) -> int:
    """The size of one of the client's objects, which are equally large."""
    stats = client.ps_stats()
    return stats.put_bytes // stats.puts


class Gated(FileConnector):
    """A connector whose `get` waits until it may go on."""

    go = threading.Event()
    asked = threading.Event()

    def get(self, key: Any) -> Any:
        self.asked.set()
        assert self.go.wait(10)
        return super().get(key)


class TestAhead:
    @pytest.fixture
    def store(self, tmp_path) -> Iterator[Store[Any]]:
        Gated.go.clear()
        Gated.asked.clear()
        with Store("ahead", Gated(str(tmp_path / "objects")), cache_size=0) as store:
            yield store
            Gated.go.set()

    @pytest.fixture
    def refs(self, store) -> list[Ref]:
        return [store_object(store, np.full(1000, float(i))) for i in range(3)]

    @pytest.fixture
    def ahead(self, refs) -> Iterator[Ahead]:
        ahead = Ahead(2 * refs[0].nbytes)
        yield ahead
        Gated.go.set()
        ahead.close()

    def test_a_task_waits_for_what_is_on_its_way(self, ahead, refs):
        ahead.want("a", refs[:1])
        assert Gated.asked.wait(10)
        threading.Timer(0.05, Gated.go.set).start()
        assert ahead.take("a", refs[0].id, None)[0] == 0
        assert ahead.take("a", refs[0].id, None) is None, "it has been taken"
        assert ahead.nbytes == 0

    def test_what_is_not_on_its_way_the_task_gets_itself(self, ahead, refs):
        ahead.want("a", refs[:2])
        assert Gated.asked.wait(10)
        assert ahead.take("a", refs[1].id, "itself") == "itself"
        assert ahead.take("b", refs[0].id, "itself") == "itself", "it is of another task"

    def test_what_does_not_fit_waits_for_room(self, ahead, refs, wait_until):
        ahead.want("a", refs)
        assert ahead.nbytes == 2 * refs[0].nbytes
        Gated.go.set()
        assert ahead.take("a", refs[0].id, None)[0] == 0
        assert ahead.nbytes == 2 * refs[0].nbytes
        ahead.drop("a")
        wait_until(lambda: ahead.nbytes == 0)

    def test_what_is_dropped_on_its_way_counts_until_it_is_here(self, ahead, refs, wait_until):
        ahead.want("a", refs[:2])
        assert Gated.asked.wait(10)
        ahead.drop("a")
        assert ahead.nbytes == refs[0].nbytes
        Gated.go.set()
        wait_until(lambda: ahead.nbytes == 0)

    def test_a_task_that_runs_begins_nothing_more(self, ahead, refs, wait_until):
        ahead.want("a", refs)
        assert Gated.asked.wait(10)
        ahead.give_up("a")
        assert ahead.nbytes == refs[0].nbytes
        Gated.go.set()
        assert ahead.take("a", refs[0].id, None)[0] == 0
        assert ahead.nbytes == 0

    def test_what_cannot_be_got_the_task_will_report(self, ahead, refs, store):
        store.evict(refs[0].factory.key)
        Gated.go.set()
        ahead.want("a", refs[:1])
        assert ahead.take("a", refs[0].id, "itself") == "itself"
        assert ahead.nbytes == 0

    def test_nothing_is_begun_once_it_is_closed(self, ahead, refs):
        ahead.close()
        ahead.want("a", refs)
        assert ahead.nbytes == 0
