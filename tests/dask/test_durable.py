"""Results that outlive their workers: no task runs again, and nothing is left."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from dask_tasks import add_one, identity, total, wait_for
from distributed import LocalCluster, as_completed, wait

from proxystore.connectors.file import FileConnector
from proxystore.connectors.multi import MultiConnector, Policy
from proxystore.store import Store
from proxystore_dask import Client, attach
from proxystore_dask.results import KEPT

pytestmark = [pytest.mark.dask, pytest.mark.timeout(120)]


@pytest.fixture
def durable(cluster: LocalCluster, objects: Any) -> Any:
    with Client(
        cluster, ps_store=objects.store, ps_threshold="50 kB", ps_results="durable"
    ) as client:
        yield client


class Runs:
    """What tasks have run, from a file that they write to."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __call__(self) -> list[str]:
        return Path(self.path).read_text().split() if os.path.exists(self.path) else []


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


@pytest.fixture
def swept(objects: Any, wait_until: Any) -> Any:
    """Do something that kills a worker, and wait until results of which nobody knows are gone."""
    connector = objects.store.connector

    def after(client: Client, what: Any) -> Any:
        left = connector.named_key(f"{client._ps_group}.{KEPT}-left")
        connector.set(left, b"left")
        found = what()
        wait_until(lambda: not connector.exists(left))
        return found

    return after


@pytest.fixture
def kill_holders(kill_worker: Any) -> Any:
    def kill(client: Client, *futures: Any) -> None:
        wait(futures)
        holders = client.who_has(futures).values()
        for address in {address for addresses in holders for address in addresses}:
            kill_worker(client, address)

    return kill


class TestNothingRunsAgain:
    def test_of_a_chain(self, durable, array, runs, kill_holders):
        first = durable.submit(_noted_add, array, runs.path, "A")
        second = durable.submit(_noted_add, first, runs.path, "B")
        kill_holders(durable, first, second)
        assert durable.submit(total, second).result() == array.sum() + 2 * len(array)
        assert (first.result() == array + 1).all()
        assert runs() == ["A", "B"]

    def test_of_a_chain_of_which_the_end_is_held(self, durable, array, runs, kill_holders):
        first = durable.submit(_noted_add, array, runs.path, "A")
        second = durable.submit(_noted_add, first, runs.path, "B")
        wait(second)
        del first
        kill_holders(durable, second)
        assert (second.result() == array + 2).all()
        assert runs() == ["A", "B"]

    def test_of_small_results(self, durable, runs, kill_holders):
        """Else a task that took an hour would run again for the sake of one that depends on it."""
        small = durable.submit(_noted, 7, runs.path, "small")
        nothing = durable.submit(_noted, None, runs.path, "nothing")
        large = durable.submit(_noted_ones, small, runs.path, "large")
        kill_holders(durable, small, nothing, large)
        assert durable.gather([small, nothing]) == [7, None]
        assert large.result().sum() == 20_007
        assert sorted(runs()) == ["large", "nothing", "small"]

    def test_of_a_map(self, durable, array, runs, kill_holders):
        futures = durable.map(
            _noted_add, [array + i for i in range(6)], path=runs.path, name="map", batch_size=2
        )
        kill_holders(durable, *futures)
        found = {future.key: result for future, result in as_completed(futures, with_results=True)}
        assert [float(found[future.key][0]) for future in futures] == [1, 2, 3, 4, 5, 6]
        assert runs() == ["map"] * 6

    def test_in_a_graph_that_takes_them(self, durable, array, runs, kill_holders):
        first = durable.submit(_noted_add, array, runs.path, "A")
        node = dask.delayed(add_one)(first)
        kill_holders(durable, first)
        assert durable.compute(dask.delayed(total)(node)).result() == array.sum() + 2 * len(array)
        assert runs() == ["A"]

    def test_that_was_taken_as_it_is(self, durable, cluster, array, runs, kill_holders):
        first = durable.submit(_noted_add, array, runs.path, "A")
        second = durable.submit(identity, {"a": [first]})
        kill_holders(durable, first, second)
        del first
        assert (second.result()["a"][0] == array + 1).all()
        assert runs() == ["A"]

    def test_when_the_worker_dies_before_it_has_told(self, durable, runs, tmp_path):
        future = durable.submit(_die_before_telling, runs.path)
        assert future.result().sum() == 20_000
        assert runs() == ["made"]

    def test_of_an_asynchronous_client(self, in_event_loop, array, runs):
        async def program(client: Any) -> None:
            future = client.submit(_noted_add, array, runs.path, "A")
            await wait(future)
            ((worker,),) = (await client.who_has(future)).values()
            pid = (await client.run(os.getpid, workers=[worker]))[worker]
            os.kill(pid, signal.SIGKILL)
            assert await client.submit(total, future) == array.sum() + len(array)
            del future

        in_event_loop(program, ps_results="durable")
        assert runs() == ["A"]


class TestWhatRunsAgain:
    def test_a_call_of_which_nothing_is_left(self, durable, runs, objects):
        for _ in range(2):
            future = durable.submit(_noted_ones, 0, runs.path, "A")
            wait(future)
            del future
            objects.wait_until_empty()
        assert runs() == ["A", "A"]

    def test_what_has_failed(self, durable, runs):
        future = durable.submit(_fail_once, runs.path)
        with pytest.raises(ZeroDivisionError):
            future.result()
        future.retry()
        assert future.result() == 5
        assert durable.submit(_fail_once, runs.path, pure=False, retries=1).result() == 5

    def test_what_cannot_be_pickled(self, durable, runs, kill_holders):
        future = durable.submit(_noted_generator, runs.path)
        assert durable.submit(next, future).result() == 1
        kill_holders(durable, future)
        assert durable.submit(next, future, pure=False).result() == 1
        assert runs() == ["generator"] * 2

    def test_what_is_damaged(self, durable, runs, objects, kill_holders):
        future = durable.submit(_noted_ones, 0, runs.path, "A")
        wait(future)
        (stored,) = objects.directory.iterdir()
        stored.write_bytes(stored.read_bytes()[:50])
        kill_holders(durable, future)
        assert durable.submit(total, future).result() == 20_000
        assert runs() == ["A", "A"]


class TestNothingIsLeft:
    def test_it_stays_until_the_task_is_forgotten(self, durable, objects):
        first = durable.submit(np.ones, 20_000)
        last = durable.submit(add_one, first)
        wait(last)
        del first
        assert durable.submit(total, last).result() == 40_000
        assert len(objects) == 3  # the sum is one of them
        del last
        objects.wait_until_empty()

    def test_small_ones_stay_in_dask_too(self, durable, objects):
        future = durable.submit(sum, [1, 2])
        wait(future)
        assert len(objects) == 1
        key = future.key
        found = durable.run(lambda dask_worker: type(dask_worker.data.get(key)).__name__)
        assert "int" in found.values()
        del future

    def test_cancelled_while_it_runs(self, durable, objects, tmp_path, wait_until):
        started, go = tmp_path / "started", tmp_path / "go"
        future = durable.submit(_wait_and_make, str(started), str(go))
        wait_until(started.exists)
        future.cancel()
        go.touch()
        wait_until(lambda: objects.log("evict"))
        objects.wait_until_empty()

    def test_its_worker_dies_while_it_writes(self, durable, runs, objects, swept):
        """Half of it stays no longer than its task."""
        future = durable.submit(_die_while_writing, runs.path)
        assert swept(durable, future.result).sum() == 20_000
        assert runs() == ["made", "made"]
        assert len(objects) == 2  # one of them is a half
        del future
        objects.wait_until_empty()

    def test_its_worker_dies_while_it_writes_for_nobody(
        self, durable, runs, objects, tmp_path, wait_until
    ):
        started, go = tmp_path / "started", tmp_path / "go"
        future = durable.submit(_die_while_writing, runs.path, str(started), str(go))
        wait_until(started.exists)
        future.cancel()
        go.touch()
        wait_until(lambda: objects.log("put"))
        objects.wait_until_empty()

    def test_another_one_is_writing_when_a_worker_dies(
        self, durable, objects, tmp_path, wait_until, kill_worker, swept
    ):
        one, other = durable.scheduler_info()["workers"]
        started, go = tmp_path / "started", tmp_path / "go"
        future = durable.submit(
            _write_slowly, str(started), str(go), workers=[one], allow_other_workers=True
        )
        wait_until(started.exists)
        swept(durable, lambda: kill_worker(durable, other))
        go.touch()
        assert future.result().sum() == 20_000
        durable.wait_for_workers(2)  # Dask never runs a task for which there was none at all
        kill_worker(durable, one)
        assert future.result().sum() == 20_000  # and not made again: it would be 20,001

    @pytest.mark.parametrize("results", ["large", "durable"])
    def test_what_a_scheduler_has_left_that_is_gone(self, client, objects, results, wait_until):
        """But not the results of graphs that were on their way to it, and came to the next one."""
        former = str(uuid.uuid4())
        client._ps_group = former
        future = client.submit(np.ones, 20_000, ps_results=results)
        wait(future)
        connector = objects.store.connector
        left = [connector.named_key(f"{former}.{name}") for name in (f"{KEPT}-0", "0123abc-0")]
        for key in left:
            connector.set(key, b"left")
        (objects.directory / f".{uuid.uuid4()}.{former}.0123abc-1").touch()
        client.sync(client._ps_connected)
        wait_until(lambda: len(objects) == 1)
        assert future.result().sum() == 20_000
        future.release()
        objects.wait_until_empty()

    def test_figures(self, durable, objects):
        future = durable.submit(np.ones, 20_000)
        wait(future)

        def figures(dask_scheduler: Any) -> tuple[float, list[str]]:
            plugin = dask_scheduler.plugins["proxystore"]
            return plugin.totals()["objects"], [key for key, _ in plugin.results()]

        assert durable.run_on_scheduler(figures) == (1, [future.key])
        del future
        objects.wait_until_empty()
        assert durable.run_on_scheduler(figures) == (0, [])


class TestSettings:
    def test_of_a_call(self, client, array, runs, kill_holders):
        future = client.submit(_noted_add, array, runs.path, "A", ps_results="durable")
        kill_holders(client, future)
        assert (future.result() == array + 1).all()
        assert runs() == ["A"]

    def test_configuration(self, cluster, objects, runs, kill_holders):
        with (
            dask.config.set({"proxystore.results": "durable"}),
            Client(cluster, ps_store=objects.store) as client,
        ):
            future = client.submit(_noted, 1, runs.path, "A")
            kill_holders(client, future)
            assert future.result() == 1
            assert runs() == ["A"]
            assert attach(client, ps_results="durable") is client
            with pytest.raises(ValueError, match="ps_results='durable' already, not 'large'"):
                attach(client, ps_results="large")
            del future

    def test_a_store_without_names(self, cluster, array, tmp_path):
        connector = MultiConnector({"files": (FileConnector(tmp_path / "objects"), Policy())})
        with Store(f"multi-{uuid.uuid4().hex}", connector) as store:
            with pytest.raises(ValueError, match=r"'durable' needs .* MultiConnector"):
                Client(cluster, ps_store=store, ps_results="durable")
            with Client(cluster, ps_store=store) as client:
                with pytest.raises(ValueError, match=r"'durable' needs .* MultiConnector"):
                    client.submit(add_one, array, ps_results="durable")
                with pytest.raises(ValueError, match=r"'durable' needs .* MultiConnector"):
                    client.map(add_one, [array], ps_results="durable")

    def test_a_scheduler_without_the_plugin(self, tmp_path, caplog):
        with (
            dask.config.set({"distributed.scheduler.pickle": True}),
            Store(f"alone-{uuid.uuid4().hex}", FileConnector(tmp_path / "objects")) as store,
            LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
            Client(cluster, ps_store=store, ps_results="durable") as client,
        ):
            client.unregister_scheduler_plugin("proxystore")
            client._ps_group = None
            with caplog.at_level("WARNING", logger="proxystore_dask"):
                assert client.submit(sum, [1, 2]).result() == 3
                assert client.submit(sum, [1, 3]).result() == 4
        said = [each.getMessage() for each in caplog.records if "stay in Dask" in each.getMessage()]
        assert len(said) == 1


def _note(path: str, name: str) -> None:
    with open(path, "a") as file:
        file.write(f"{name} ")


def _noted(value: Any, path: str, name: str) -> Any:
    _note(path, name)
    return value


def _noted_add(array: Any, path: str, name: str) -> Any:
    _note(path, name)
    return array + 1


def _noted_ones(more: int, path: str, name: str) -> Any:
    _note(path, name)
    array = np.ones(20_000)
    array[0] += more
    return array


def _noted_generator(path: str) -> Any:
    _note(path, "generator")
    return iter(each for each in [1, 2])


def _fail_once(path: str) -> int:
    if not os.path.exists(path):
        Path(path).touch()
        raise ZeroDivisionError
    os.remove(path)
    return 5


def _die(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_before_telling(path: str) -> Any:
    from proxystore_dask import results

    _note(path, "made")
    results._tell = lambda *args, **kwargs: _die()
    return np.ones(20_000)


def _die_while_writing(path: str, started: str = "", go: str = "") -> Any:
    first = not os.path.exists(path)
    _note(path, "made")
    if started:
        wait_for(np.ones(1), started, go)
    if first:
        os.rename = _die
    return np.ones(20_000)


def _write_slowly(started: str, go: str) -> Any:
    rename = os.rename
    array = np.ones(20_000)
    array[0] += os.path.exists(started)

    def slow(*args: Any) -> None:
        os.rename = rename
        wait_for(np.ones(1), started, go)
        rename(*args)

    os.rename = slow
    return array


def _wait_and_make(started: str, go: str) -> Any:
    wait_for(np.ones(1), started, go)
    return np.ones(20_000)
