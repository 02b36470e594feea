"""`submit` and `map` give what plain Dask gives, and large arguments do not enter the graph."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
import weakref
from collections import OrderedDict, namedtuple
from typing import Any

import dask
import numpy as np
import pytest
from dask_tasks import (
    Counter,
    OnlyForDask,
    Unpicklable,
    add_one,
    change_in_place,
    change_the_first,
    fail,
    fail_once,
    identity,
    kinds,
    submit_from_task,
    through_the_c_api,
    total,
    total_in_the_loop,
    total_of_nested,
    value_of,
    wait_for,
)
from distributed import Client as DaskClient
from distributed import LocalCluster, wait

from proxystore.connectors.exceptions import StorageFullError
from proxystore.connectors.file import FileConnector
from proxystore.proxy import is_resolved
from proxystore.store import Store, unregister_store
from proxystore.store.exceptions import ProxyResolveMissingKeyError, StoreConfigError
from proxystore.store.utils import get_key
from proxystore.workflow import ThresholdError, UnpicklableArgumentError, embedded_store
from proxystore_dask import Client, attach

pytestmark = pytest.mark.dask

Pair = namedtuple("Pair", "first second")


@pytest.fixture
def small_graphs() -> Any:
    """Dask warns, and the test fails, when a graph takes more than 8 kB."""
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "8 kB"}):
        yield


@pytest.mark.usefixtures("small_graphs")
class TestGraphsStaySmall:
    def test_the_measure_works(self, client, array):
        with (
            DaskClient(client.cluster, set_as_default=False) as plain,
            pytest.warns(UserWarning, match="Sending large graph"),
        ):
            plain.submit(total, array).result()

    def test_positional(self, client, array):
        assert client.submit(total, array).result() == array.sum()

    def test_keyword(self, client, array):
        assert client.submit(total, array=array, times=2).result() == 2 * array.sum()

    def test_nested(self, client, array):
        value = {"arrays": [array, array + 1], "name": "x"}
        assert client.submit(total_of_nested, value).result() == 2 * array.sum() + len(array)

    def test_named_tuple(self, client, array):
        back = client.submit(kinds, Pair(array, 1)).result()
        assert back == ["Pair"]

    def test_many_small_values_that_are_large_together(self, client):
        numbers = [float(i) for i in range(20_000)]
        assert client.submit(total, numbers).result() == sum(numbers)

    def test_map(self, client, array):
        arrays = [array, array + 1, array + 2]
        assert client.gather(client.map(total, arrays)) == [a.sum() for a in arrays]

    def test_map_with_a_keyword_shared_by_all_calls(self, client, array):
        futures = client.map(kinds, range(3), array=array)
        assert client.gather(futures) == [["int", "ndarray"]] * 3

    def test_map_with_batches(self, client, array, objects):
        arrays = [array + i for i in range(5)]
        futures = client.map(total, arrays, batch_size=2, times=3)
        assert client.gather(futures) == [3 * a.sum() for a in arrays]

    def test_map_with_batches_and_a_large_shared_keyword(self, client, array, objects):
        futures = client.map(kinds, range(5), batch_size=2, array=array)
        assert client.gather(futures) == [["int", "ndarray"]] * 5
        assert len(objects.log("put")) - 1 == 1  # one is the probe at the start

    def test_partial(self, client, array):
        assert client.submit(functools.partial(total, array), array).result() == 2 * array.sum()
        futures = client.map(functools.partial(total, array, times=2), [1, 2])
        assert client.gather(futures) == [2 * array.sum() + 1, 2 * array.sum() + 2]

    def test_actor(self, client, array):
        counter = client.submit(Counter, array, actor=True).result()
        assert counter.add(1).result() == array.sum() + len(array)
        assert counter.add(1).result() == array.sum() + 2 * len(array)

    def test_with_futures(self, client, array):
        first = client.submit(add_one, 1)
        future = client.submit(total, array, [first], first)
        assert future.result() == array.sum() + 4


class TestValues:
    def test_functions_get_real_objects(self, client, array):
        values = ["x" * 60_000, b"x" * 60_000, array, {str(i): i for i in range(20_000)}]
        assert client.submit(kinds, *values).result() == ["str", "bytes", "ndarray", "dict"]

    def test_the_c_api_takes_them(self, client):
        table = {str(i): i for i in range(20_000)}
        data, text = b"x" * 60_000, "x" * 60_000
        assert client.submit(through_the_c_api, data, text, table).result()[:2] == (60_000, 60_001)

    def test_a_task_may_return_its_argument(self, client, array):
        assert np.array_equal(client.submit(identity, array).result(), array)

    def test_tasks_that_change_an_argument_do_not_see_each_other(self, client, array):
        (worker, *_) = client.scheduler_info()["workers"]
        futures = client.map(change_in_place, [array] * 4, range(4), workers=[worker])
        assert client.gather(futures) == [1.0] * 4
        assert array[0] == 0

    @pytest.mark.parametrize("processes", [True, False])
    def test_one_array_is_one_and_equal_arrays_are_two(self, objects, array, processes):
        """What a function writes into an argument it sees where plain Dask would show it."""
        with (
            LocalCluster(
                n_workers=1, threads_per_worker=1, processes=processes, dashboard_address=":0"
            ) as cluster,
            DaskClient(cluster) as plain,
            Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client,
        ):
            for each in (plain, client, client):  # twice: nothing is left from the first time
                own = array.copy()  # without processes plain Dask hands over the caller's own
                args = (own, own.copy(), [own])
                future = each.submit(change_the_first, *args, pure=False)
                assert future.result() == [1, 0, 1]
            assert client.ps_stats().puts <= 2

    def test_a_function_that_runs_in_the_event_loop(self, client, array):
        assert client.submit(total_in_the_loop, array).result() == array.sum()

    def test_a_proxy_of_unknown_class_is_not_resolved_on_its_way(self, client, array, objects):
        """Plain Dask resolves it twice: to look at it here, and to call the function there."""
        key = objects.store.put(array)
        bare, promised = objects.store.proxy_from_key(key), objects.store.future()
        pending = promised.proxy()
        futures = client.map(total, [bare, pending], pure=False)
        futures.append(client.submit(total_of_nested, {"arrays": [bare]}, pure=False))
        assert futures[0].result() == futures[2].result() == array.sum()
        assert not futures[1].done()
        promised.set_result(array + 1)
        assert futures[1].result() == array.sum() + len(array)
        assert not is_resolved(bare)
        assert not is_resolved(pending)
        assert os.getpid() not in objects.log("get")
        for proxy in (bare, pending):
            objects.store.evict(get_key(proxy))

    def test_an_argument_does_not_stay_in_the_clients_memory(self, client, objects, tmp_path):
        array = np.arange(20_000.0)
        gone = weakref.ref(array)
        started, go = tmp_path / "started", tmp_path / "go"
        future = client.submit(wait_for, array, str(started), str(go))
        del array
        gc.collect()
        assert gone() is None
        assert not future.done()
        go.touch()
        assert future.result() == np.arange(20_000.0).sum()

    def test_what_is_small_stays_in_the_graph(self, client, objects):
        assert client.submit(total, np.ones(10), times=2).result() == 20
        assert client.gather(client.map(total, [np.ones(10)] * 3)) == [10] * 3
        assert client.ps_stats().puts == 0

    def test_a_container_subclass_that_holds_a_future_is_left_to_dask(self, client, array):
        value = OrderedDict(future=client.submit(identity, 1), array=array)
        back = client.submit(identity, value).result()
        assert back["future"] == 1
        assert np.array_equal(back["array"], array)

    def test_an_object_that_only_dask_can_serialize(self, client, array):
        assert client.submit(value_of, OnlyForDask(3), array).result() == 3 + array.sum()

    def test_threads_instead_of_processes(self, objects, array):
        with (
            LocalCluster(
                n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
            ) as cluster,
            Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client,
        ):
            futures = client.map(change_in_place, [array] * 2, range(2))
            assert client.gather(futures) == [1.0] * 2
            assert client.ps_stats().puts == 1


class TestAsDask:
    """What Dask promises about submit and map holds."""

    def test_map_over_nothing(self, client):
        assert client.map(total, []) == []

    def test_map_over_iterables_of_unlike_lengths(self, client, array, objects):
        futures = client.map(total, [array, array + 1, array + 2], [1, 2])
        assert client.gather(futures) == [array.sum() + 1, array.sum() + len(array) + 2]
        assert client.ps_stats().puts == 2

    @pytest.mark.parametrize("iterables", [(iter([1]),), (), ([1], iter([1]))], ids=str)
    def test_map_refuses_what_dask_refuses(self, client, iterables):
        with pytest.raises(TypeError) as ours:
            client.map(total, *iterables)
        with (
            DaskClient(client.cluster, set_as_default=False) as plain,
            pytest.raises(TypeError) as theirs,
        ):
            plain.map(total, *iterables)
        assert str(ours.value) == str(theirs.value)

    def test_what_is_no_function_is_refused_before_anything_is_stored(self, client, array):
        with pytest.raises(TypeError, match="callable"):
            client.submit("total", array)
        with pytest.raises(TypeError, match="callable"):
            client.map("total", [array])
        assert client.ps_stats().puts == 0

    def test_a_call_that_dask_refuses_leaves_nothing(self, client, array, objects):
        with pytest.raises(ValueError, match="allow_other_workers"):
            client.submit(total, array, allow_other_workers=True)
        objects.wait_until_empty()

    def test_map_with_list_of_keys(self, client, array):
        futures = client.map(total, [array, array + 1], key=["first", "second"])
        assert [f.key for f in futures] == ["first", "second"]

    def test_pure_keys_depend_on_the_content(self, client, array):
        first = client.submit(total, array)
        assert client.submit(total, array.copy()).key == first.key
        assert client.submit(total, array + 1).key != first.key
        assert first.key.startswith("total-")
        (mapped,) = client.map(total, [array])
        assert client.map(total, [array.copy()])[0].key == mapped.key

    def test_impure_calls_are_different_tasks(self, client, array):
        first, second = (client.submit(total, array, pure=False) for _ in range(2))
        assert first.key != second.key

    def test_retries(self, client, array, tmp_path):
        marker = str(tmp_path / "failed")
        assert client.submit(fail_once, array, marker, retries=1).result() == array.sum()

    def test_retrying_by_hand(self, client, array, tmp_path):
        future = client.submit(fail_once, array, str(tmp_path / "failed"))
        wait(future)
        assert future.status == "error"
        future.retry()
        assert future.result() == array.sum()

    def test_workers_and_priority(self, client, array):
        (worker, *_) = client.scheduler_info()["workers"]
        future = client.submit(total, array, workers=[worker], priority=3)
        wait(future)
        assert client.who_has(future)[future.key] == (worker,)

    def test_resources_that_nobody_has(self, client, array, objects):
        future = client.submit(total, array, resources={"none": 1})
        assert len(objects) == 1
        future.cancel()
        del future
        objects.wait_until_empty()

    def test_errors_arrive(self, client, array):
        with pytest.raises(ZeroDivisionError):
            client.submit(fail, array).result()

    @pytest.mark.parametrize("size", [20_000, 200_000])
    def test_map_keywords_that_dask_cannot_carry(self, client, size):
        """Below our threshold and above Dask's own limit."""
        with Client(client.cluster, ps_store=client.ps_store, ps_threshold="1 GB") as lazy:
            futures = lazy.map(kinds, range(2), numbers=list(range(size)))
            assert lazy.gather(futures) == [["int", "list"]] * 2
            assert lazy.ps_stats().puts == 0

    def test_map_keywords_that_hold_futures_and_much_else(self, client):
        value = {"future": client.submit(identity, 1), "text": "x" * 200_000}
        with Client(client.cluster, ps_store=client.ps_store, ps_threshold="1 GB") as lazy:
            value["future"] = lazy.submit(identity, 1)
            (back,) = lazy.gather(lazy.map(lambda i, value: kinds(**value), [0], value=value))
            assert back == ["int", "str"]


class TestBadInput:
    @pytest.mark.parametrize("threshold", ["a lot", -1, 1.5, "1 parsec"])
    def test_a_threshold_that_is_no_size(self, threshold):
        # No address: Dask would start a cluster, if it came to that.
        before = threading.enumerate()
        with pytest.raises(ThresholdError, match="ps_threshold"):
            Client(ps_threshold=threshold)
        assert threading.enumerate() == before

    def test_a_store_that_is_none(self, tmp_path):
        with pytest.raises(TypeError, match="int"):
            Client(ps_store=5)
        with pytest.raises(StoreConfigError, match=r"missing\.toml"):
            Client(ps_store=tmp_path / "missing.toml")
        (tmp_path / "bad.toml").write_text("name = ")
        with pytest.raises(StoreConfigError, match=r"bad\.toml"):
            Client(ps_store=str(tmp_path / "bad.toml"))

    def test_a_store_that_cannot_be_written_to(self, cluster, objects):
        with DaskClient(cluster, set_as_default=False) as plain:
            before = set(plain.run_on_scheduler(_clients))
            broken = Store("broken", _Full(objects.directory), register=True)
            with pytest.raises(StorageFullError):
                Client(cluster, ps_store=broken)
            unregister_store("broken")
            assert set(plain.run_on_scheduler(_clients)) == before

    def test_an_argument_that_cannot_be_pickled(self, client, array):
        with pytest.raises(UnpicklableArgumentError, match=r"argument 2 is a .*Unpicklable"):
            client.submit(total, array, Unpicklable())
        with pytest.raises(UnpicklableArgumentError, match=r"argument more\[0\] is a "):
            client.submit(total, array, more=[Unpicklable()])
        with pytest.raises(UnpicklableArgumentError, match=r"argument 2\[1\] is a "):
            client.map(total, [array, array], [1, Unpicklable()])
        with pytest.raises(UnpicklableArgumentError, match=r"argument 1\[0\]\['a'\] is a "):
            client.map(functools.partial(total, array), [{"a": Unpicklable()}])
        assert client.ps_stats().puts == 0

    def test_an_object_that_is_gone(self, client, array, objects, tmp_path, wait_until):
        """The task says which; the worker lives."""
        started, go = tmp_path / "started", tmp_path / "go"
        gate = client.submit(wait_for, 0, str(started), str(go))
        future = client.submit(total, array, gate)
        wait_until(started.exists)
        (path,) = objects.directory.iterdir()
        path.unlink()
        go.touch()
        with pytest.raises(ProxyResolveMissingKeyError, match=path.name):
            future.result()
        workers = list(client.scheduler_info()["workers"])
        assert client.gather([client.submit(identity, w, workers=[w]) for w in workers]) == workers


class TestLooking:
    def test_repr_says_where_objects_are(self, client, objects):
        assert f"{client!r}".startswith("<Client: 'tcp://127.0.0.1:")
        assert str(objects.directory) in repr(client)
        assert str(objects.directory) in client._repr_html_()

    def test_stats(self, client, array, objects):
        futures = [client.submit(total, array, i) for i in range(3)]
        stats = client.ps_stats()
        assert (stats.store, stats.threshold) == (objects.store.name, 50_000)
        assert (stats.puts, stats.reused, stats.live) == (1, 2, 1)
        assert stats.put_bytes > array.nbytes
        assert stats.lifetimes == "graph"
        del futures

    def test_stats_do_not_count_what_the_line_before_has_dropped(self, client, array):
        for i in range(20):
            client.gather(client.map(total, [array + i, array + i + 0.5]))
            assert client.ps_stats().live == 0

    def test_the_store_without_being_asked(self, cluster, array):
        with Client(cluster, ps_threshold="50 kB") as client:
            assert client.submit(total, array).result() == array.sum()
            assert client.ps_stats().puts == 1
            assert client.ps_store.connector.store_dir in repr(client)

    def test_settings_in_dasks_configuration(self, cluster, objects, tmp_path, array):
        path = tmp_path / "store.toml"
        objects.store.config().write_toml(path)
        settings = {"proxystore.store": str(path), "proxystore.threshold": "20 kB"}
        with dask.config.set(settings), Client(cluster) as client:
            assert client.ps_store is objects.store
            assert client.ps_stats().threshold == 20_000


class TestAttach:
    def test_a_client_that_exists(self, cluster, objects, array):
        with cluster.get_client() as plain:
            client = attach(plain, ps_store=objects.store, ps_threshold="50 kB")
            assert client is plain
            assert isinstance(client, Client)
            assert client.submit(total, array).result() == array.sum()
            assert client.ps_stats().puts == 1
            assert attach(client, ps_store=objects.store, ps_threshold=50_000) is client
            with pytest.raises(ValueError, match="threshold"):
                attach(client, ps_threshold=1)
            with pytest.raises(ValueError, match="already"):
                attach(client, ps_store=embedded_store())

    def test_bad_input_leaves_the_client_alone(self, cluster):
        with DaskClient(cluster, set_as_default=False) as plain:
            with pytest.raises(ThresholdError):
                attach(plain, ps_threshold="a lot")
            assert type(plain) is DaskClient

    def test_a_client_of_another_class(self, cluster, objects, array):
        class Special(DaskClient):
            def special(self) -> str:
                return "special"

        with Special(cluster, set_as_default=False) as special:
            client = attach(special, ps_store=objects.store, ps_threshold="50 kB")
            assert isinstance(client, Client)
            assert client.special() == "special"
            assert client.submit(total, array).result() == array.sum()
            assert client.ps_stats().puts == 1

    def test_in_a_task(self, client, array, objects):
        """The task uses the client's store: its own would go with its worker."""
        result, store = client.submit(submit_from_task, array).result()
        assert result == 2 * array.sum()
        assert store == objects.store.name
        assert len(objects.log("put")) == 1 + 1 + 1 + 1  # a probe and an object of each client

    def test_restart_of_an_attached_client(self, cluster, objects, array):
        with DaskClient(cluster, set_as_default=False) as plain:
            client = attach(plain, ps_store=objects.store, ps_threshold="50 kB")
            future = client.submit(total, array)
            future.result()  # a graph that arrives after the restart is not affected by it
            client.restart()
            objects.wait_until_empty()
            assert future.cancelled()


class TestAsynchronous:
    def test_client(self, in_event_loop, array):
        async def program(client: Any) -> None:
            first = client.submit(total, array)
            assert await first == array.sum()
            futures = client.map(total, [array, array + 1])
            assert await client.gather(futures) == [array.sum(), (array + 1).sum()]
            assert client.ps_stats().puts == 2

        in_event_loop(program)

    def test_attached(self, cluster, objects, array):
        async def main() -> None:
            async with DaskClient(cluster.scheduler_address, asynchronous=True) as plain:
                client = await attach(plain, ps_store=objects.store, ps_threshold="50 kB")
                assert client is plain
                assert await client.submit(total, array) == array.sum()
                assert client.ps_stats().puts == 1

        asyncio.run(main())

    def test_before_it_is_connected(self, cluster, objects, array):
        """Nobody knows yet what the scheduler can do, so arguments travel as in plain Dask."""

        async def main() -> None:
            client = Client(
                cluster.scheduler_address,
                asynchronous=True,
                ps_store=objects.store,
                ps_threshold="50 kB",
            )
            future = client.submit(total, array)
            await client
            assert await future == array.sum()
            assert client.ps_stats().puts == 0
            await client.close()

        asyncio.run(main())


def _clients(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.clients)


class _Full(FileConnector):
    def put_buffers(self, parts: Any) -> Any:
        raise StorageFullError(self.store_dir, 1, 0)

    def set_buffers(self, key: Any, parts: Any) -> None:
        raise StorageFullError(self.store_dir, 1, 0)
