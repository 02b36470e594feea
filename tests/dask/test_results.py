"""Results that stay in the store: what everybody gets, and how long they live."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from dask_tasks import (
    SmallConnector,
    add_one,
    change_in_place,
    fail,
    identity,
    kinds,
    memoryview_total,
    total,
    total_in_the_loop,
    wait_for,
)
from distributed import Client as DaskClient
from distributed import (
    Future,
    LocalCluster,
    Variable,
    as_completed,
    get_client,
    get_worker,
    secede,
    wait,
)

from proxystore.proxy import Proxy
from proxystore.store import Store
from proxystore_dask import Client, attach

pytestmark = [pytest.mark.dask, pytest.mark.timeout(120)]


@pytest.fixture
def storing(cluster: LocalCluster, objects: Any) -> Any:
    with Client(
        cluster, ps_store=objects.store, ps_threshold="50 kB", ps_results="large"
    ) as client:
        yield client


def in_memory(client: DaskClient, future: Future) -> tuple[str, int]:
    """What a worker keeps of a result: its class, and what Dask takes for its size."""

    wait(future)
    key = future.key

    def look(dask_worker: Any) -> tuple[str, int] | None:
        if key not in dask_worker.data:
            return None
        return type(dask_worker.data[key]).__name__, dask_worker.state.tasks[key].nbytes

    found = client.run(look)
    return next(each for each in found.values() if each is not None)


class TestWhatTheClientGets:
    def test_result(self, storing, array, objects):
        future = storing.submit(add_one, array)
        for _ in range(2):
            result = future.result()
            assert type(result) is np.ndarray
            assert (result == array + 1).all()
        assert in_memory(storing, future) == ("Proxy", pytest.approx(500, abs=500))
        assert len(objects) == 2  # the argument, and the result

    def test_each_result_is_a_copy(self, storing, array):
        future = storing.submit(add_one, array)
        future.result()[:] = 0
        assert (future.result() == array + 1).all()

    def test_gather(self, storing, array):
        futures = storing.map(add_one, [array, array + 1, array + 2])
        nested = {"all": futures, "one": (futures[0], 1)}
        found = storing.gather(nested)
        assert [float(each[0]) for each in found["all"]] == [1, 2, 3]
        assert type(found["one"][0]) is np.ndarray
        direct = storing.gather(futures, direct=True)
        assert [type(each) for each in direct] == [np.ndarray] * 3

    def test_as_completed(self, storing, array):
        futures = storing.map(add_one, [array, array + 1], batch_size=1)
        found = {future.key: result for future, result in as_completed(futures, with_results=True)}
        assert [float(found[future.key][0]) for future in futures] == [1, 2]

    def test_others_stay_in_dask(self, storing, array, objects):
        small = storing.submit(total, array)
        wait(small)
        assert in_memory(storing, small)[0] == "float"
        coroutine = storing.submit(total_in_the_loop, array)
        assert coroutine.result() == array.sum()
        graph = storing.compute(dask.delayed(add_one)(array))
        wait(graph)
        assert in_memory(storing, graph)[0] == "ndarray"

    @pytest.mark.parametrize(
        ("results", "kind"),
        [("never", "ndarray"), ("large", "Proxy"), ("1 kB", "Proxy"), (10**6, "ndarray")],
    )
    def test_per_call(self, client, array, results, kind):
        future = client.submit(add_one, array, ps_results=results)
        assert float(future.result()[0]) == 1
        assert in_memory(client, future)[0] == kind
        (future,) = client.map(add_one, [array], ps_results=results, pure=False)
        assert float(future.result()[0]) == 1
        assert in_memory(client, future)[0] == kind

    def test_results_that_cannot_be_pickled(self, storing):
        assert storing.submit(_refuses_to_be_pickled).result() == "made anew"

    def test_errors(self, storing, array, objects):
        future = storing.submit(fail, array)
        with pytest.raises(ZeroDivisionError):
            future.result()

    def test_errors_can_be_had_again_in_this_process(self, storing, array):
        future = storing.submit(fail, storing.submit(add_one, array))
        wait(future)
        with pytest.raises(ZeroDivisionError):
            storing.recreate_error_locally(future)

    def test_names_in_the_dashboard_stay(self, storing, array):
        future = storing.submit(add_one, array)
        assert future.key.startswith("add_one-")


class TestTasksThatTakeThem:
    def test_arguments(self, storing, array):
        future = storing.submit(add_one, array)
        assert storing.submit(total, future).result() == array.sum() + len(array)
        assert storing.submit(kinds, future, a=future).result() == ["ndarray", "ndarray"]
        nested = storing.submit(_kinds_inside, [future, {"a": (future,)}])
        assert nested.result() == ["ndarray", "ndarray"]
        mapped = storing.map(total, [future, future], times=2, pure=False)
        assert storing.gather(mapped) == [2 * (array.sum() + len(array))] * 2

    def test_each_task_has_a_copy(self, storing, array):
        future = storing.submit(add_one, array)
        changed = [storing.submit(change_in_place, future, i) for i in range(4)]
        assert storing.gather(changed) == [2.0] * 4
        assert in_memory(storing, future)[0] == "Proxy"

    def test_graphs(self, storing, array):
        future = storing.submit(add_one, array)
        assert dask.delayed(kinds)(future, [future]).compute() == ["ndarray", "list"]
        assert dask.delayed(_kinds_inside)([future]).compute() == ["ndarray"]

    def test_chain(self, storing, array, objects, wait_until):
        future = storing.submit(add_one, array)
        for _ in range(5):
            future = storing.submit(add_one, future)
        assert float(future.result()[0]) == 6
        wait_until(lambda: len(objects) == 2)  # the first argument, and the last result

    def test_a_task_returns_what_it_was_given(self, storing, array, objects, wait_until):
        first = storing.submit(add_one, array)
        second = storing.submit(identity, first)
        wait(second)
        del first
        wait_until(lambda: len(objects) == 2)
        assert (second.result() == array + 1).all()

    def test_in_tasks_that_submit(self, storing, array):
        assert storing.submit(_submit_and_use, array).result() == (
            ["ndarray"],
            "ndarray",
        )


class TestClientsThatDoNotKnow:
    @pytest.mark.parametrize("came_first", [True, False])
    def test_of_another_client(self, cluster, client, array, objects, wait_until, came_first):
        """A task gets the object, however its client has come by the future."""
        with (
            Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as maker,
            ExitStack() as stack,
        ):
            settings = {"ps_store": objects.store, "ps_threshold": "50 kB"}
            if came_first:
                other = stack.enter_context(Client(cluster, **settings))
            variable = Variable("made-by-another", client=maker)
            made = maker.submit(add_one, array, ps_results="large")
            variable.set(made)
            wait(made)
            if came_first:
                wait_until(lambda: other._ps_others_results)
            else:
                other = stack.enter_context(Client(cluster, **settings))
            taken = Variable("made-by-another", client=other).get()
            found = other.submit(kinds, taken, a=[taken])
            assert found.result() == ["ndarray", "list"]
            assert other.submit(memoryview_total, taken).result() == (array + 1).sum()
            node = dask.delayed(memoryview_total)(taken)
            assert other.compute(node).result() == (array + 1).sum()
            variable.delete()
            del made, taken, found

    def test_of_two_that_want_the_same(self, cluster, client, objects, tmp_path, wait_until):
        """The one that has not asked for it gets a result that is in the store."""
        started, go = tmp_path / "started", tmp_path / "go"
        with Client(
            cluster, ps_store=objects.store, ps_threshold="50 kB", ps_results="large"
        ) as maker:
            made = maker.submit(_made_later, str(started), str(go))
            wait_until(started.exists)
            same = client.submit(_made_later, str(started), str(go))
            assert same.key == made.key
            client.run_on_scheduler(lambda: None)  # it has heard of the second one
            go.touch()
            wait([made, same])
            wait_until(lambda: client._ps_others_results)
            assert client.submit(kinds, same).result() == ["ndarray"]
            del made, same

    def test_of_another_client_while_this_one_connects(
        self, cluster, client, objects, array, monkeypatch, wait_until
    ):
        """It hears of that before its workers have answered, and does not forget it."""
        made = []
        ask = Client._ps_ask_workers

        def make(other: Client) -> None:
            made.append(client.submit(add_one, array, ps_results="large"))
            wait(made)
            Variable("meanwhile", client=client).set(made[0])
            wait_until(lambda: other._ps_others_results)

        async def and_meanwhile(self: Client, probe: bytes) -> Any:
            monkeypatch.undo()
            await asyncio.get_running_loop().run_in_executor(None, make, self)
            return await ask(self, probe)

        monkeypatch.setattr(Client, "_ps_ask_workers", and_meanwhile)
        with Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as other:
            theirs = Variable("meanwhile", client=other).get()
            assert other.submit(kinds, theirs).result() == ["ndarray"]
            Variable("meanwhile", client=client).delete()
            del theirs
            made.clear()

    def test_own_ones_that_it_has_forgotten(self, storing, array, wait_until):
        """A future may come back from a variable when thousands have come and gone."""
        variable = Variable("forgotten", client=storing)
        made = storing.submit(add_one, array)
        variable.set(made)
        del made
        storing.gather(storing.map(identity, range(1_100)))
        wait_until(lambda: not storing.futures)
        assert storing.submit(identity, -1).result() == -1
        back = variable.get()
        assert storing.submit(kinds, back).result() == ["ndarray"]
        variable.delete()
        del back

    @pytest.mark.parametrize("results", ["large", "durable"])
    def test_what_only_looks_like_an_array(self, client, results):
        future = client.submit(_layer, ps_results=results, pure=False)
        assert future.result().strides == (1, 1)

    @pytest.mark.parametrize("kind", ["memoryview", "broadcast"])
    def test_what_would_come_back_as_something_else_stays_in_dask(self, storing, kind):
        found = storing.submit(_unusual, kind, ps_results="1 kB").result()
        if kind == "memoryview":
            assert type(found) is memoryview
        else:
            assert found.strides == (0, 0)
        assert len(storing.submit(_newaxis).result()) == 20_000

    def test_a_plain_client_gets_a_proxy(self, cluster, storing, array):
        future = storing.submit(add_one, array)
        Variable("stored", client=storing).set(future)
        with DaskClient(cluster, set_as_default=False) as plain:
            theirs = Variable("stored", client=plain).get()
            result = theirs.result()
            assert type(result) is Proxy
            assert isinstance(result, np.ndarray)
            assert (result == array + 1).all()
            assert plain.submit(total, theirs).result() == array.sum() + len(array)
            del theirs
        Variable("stored", client=storing).delete()

    def test_one_that_returns_what_it_was_given(self, cluster, storing, array, objects, wait_until):
        """Then the proxy is in another task's result, and needs the object still."""
        first = storing.submit(add_one, array)
        Variable("stored", client=storing).set(first)
        with DaskClient(cluster, set_as_default=False) as plain:
            theirs = Variable("stored", client=plain).get()
            second = plain.submit(identity, theirs, key="second")
            wait(second)
            Variable("stored", client=storing).delete()
            del first, theirs
            wait_until(lambda: _state(storing, second.key, 0) == "released")
            # Whatever was to be evicted by now goes before this one.
            wait(storing.submit(np.ones, 30_000))
            wait_until(lambda: len(objects) == 2)
            assert float(second.result()[0]) == 1
            second.release()
        objects.wait_until_empty()


class TestLifetimes:
    def test_it_goes_with_the_result(self, storing, array, objects):
        future = storing.submit(np.ones, 20_000)
        wait(future)
        assert len(objects) == 1
        del future
        objects.wait_until_empty()

    def test_intermediates_go_while_the_last_is_held(self, storing, objects, wait_until):
        first = storing.submit(np.ones, 20_000)
        last = storing.submit(total, first)
        del first
        assert last.result() == 20_000
        objects.wait_until_empty()

    def test_its_worker_dies(self, storing, array, kill_worker):
        future = storing.submit(add_one, array)
        wait(future)
        ((worker,),) = storing.who_has(future).values()
        kill_worker(storing, worker)
        assert storing.submit(total, future).result() == array.sum() + len(array)
        assert (future.result() == array + 1).all()

    def test_its_worker_retires(self, objects):
        """What it keeps goes to another one, and the objects stay."""
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1"
            ) as cluster,
            Client(
                cluster, ps_store=objects.store, ps_threshold="50 kB", ps_results="large"
            ) as client,
        ):
            workers = list(client.scheduler_info()["workers"])
            futures = [
                client.submit(np.ones, 20_000 + i, workers=[worker])
                for i, worker in enumerate(workers)
            ]
            wait(futures)
            puts = objects.log("put")
            client.retire_workers(workers[:1])
            assert [len(result) for result in client.gather(futures)] == [20_000, 20_001]
            assert objects.log("put") == puts
            del futures

    def test_the_worker_dies_after_storing_and_before_telling(
        self, storing, tmp_path, objects, wait_until
    ):
        future = storing.submit(_die_before_telling, str(tmp_path / "died"))
        assert future.result().sum() == 20_000
        wait_until(lambda: len(objects) == 1)

    @pytest.mark.parametrize("results", ["large", "durable"])
    def test_a_full_store_has_room_for_what_follows(self, cluster, array, tmp_path, results):
        """Objects stay a moment when nobody needs them any more."""
        with (
            Store(f"full-{results}", SmallConnector(tmp_path / "store"), cache_size=0) as store,
            Client(cluster, ps_store=store, ps_threshold="50 kB", ps_results=results) as client,
        ):
            for i in range(3):
                made = client.submit(np.full, 20_000, float(i))
                assert in_memory(client, made)[0] == "Proxy"
                del made
                assert client.submit(total, array + i).result() == (array + i).sum()

    def test_cancelled(self, storing, array, objects, tmp_path, wait_until):
        started, go = tmp_path / "started", tmp_path / "go"
        future = storing.submit(_wait_and_make, str(started), str(go))
        wait_until(started.exists)
        future.cancel()
        go.touch()
        objects.wait_until_empty()

    @pytest.mark.parametrize("results", ["large", "durable"])
    def test_the_client_goes(self, cluster, objects, array, results):
        with Client(
            cluster, ps_store=objects.store, ps_threshold="50 kB", ps_results=results
        ) as client:
            futures = client.map(add_one, [array, array + 1])
            wait(futures)
        objects.wait_until_empty()

    @pytest.mark.parametrize("results", ["large", "durable"])
    def test_restart(self, client, array, objects, results):
        future = client.submit(add_one, array, ps_results=results)
        wait(future)
        client.restart()
        objects.wait_until_empty()


class TestSettings:
    @pytest.mark.parametrize("value", ["some", -1, 1.5, "10 pounds"])
    def test_what_is_no_setting(self, value):
        with pytest.raises(ValueError, match=r"'never'.*'large'.*got"):
            Client("tcp://127.0.0.1:1", ps_results=value)

    def test_of_a_call(self, client):
        with pytest.raises(ValueError, match="ps_results"):
            client.submit(add_one, 1, ps_results="some")
        with pytest.raises(ValueError, match="ps_results"):
            client.map(add_one, [1], ps_results="some")

    def test_configuration(self, cluster, objects, array):
        with dask.config.set({"proxystore.results": "1 kB"}):
            client = Client(cluster, ps_store=objects.store, ps_threshold="50 kB")
        with client:
            future = client.submit(np.ones, 500)
            wait(future)
            assert in_memory(client, future)[0] == "Proxy"
            del future

    def test_attached_with_others(self, client):
        assert attach(client, ps_results="never") is client
        with pytest.raises(ValueError, match="ps_results='never' already, not 'large'"):
            attach(client, ps_results="large")


class _MadeAnew:
    nbytes = 10**6

    def __init__(self) -> None:
        self.refused = False

    def __reduce__(self) -> Any:
        # By us first, in the task; by Dask then.
        if not self.refused:
            self.refused = True
            raise TypeError("not now")
        return str, ("made anew",)


def _refuses_to_be_pickled() -> Any:
    return _MadeAnew()


def _unusual(kind: str) -> Any:
    return memoryview(bytes(5000)) if kind == "memoryview" else np.broadcast_to(1.0, (500, 500))


class _Layer:
    """As of a neural network: its strides are not those of an array."""

    strides = (1, 1)
    nbytes = 10**6

    @property
    def shape(self) -> None:
        raise RuntimeError("not built yet")


def _layer() -> Any:
    return _Layer()


def _newaxis() -> Any:
    return np.ones(20_000)[:, None]


def _kinds_inside(value: list[Any]) -> list[str]:
    found = []
    for each in value:
        inner = each["a"][0] if isinstance(each, dict) else each
        found.append(type(inner).__name__)
    return found


def _submit_and_use(array: Any) -> Any:
    client = attach(get_client(), ps_results="large", ps_threshold="50 kB")
    # Here: what a client of a task finds in its own worker, it takes from there.
    future = client.submit(add_one, array, workers=[get_worker().address])
    taken = client.submit(kinds, future)
    secede()
    return taken.result(), type(client.gather(future)).__name__


def _state(client: Client, dependent: str, number: int) -> str:
    """The state of what a task was made from."""

    def look(dask_scheduler: Any) -> str:
        return sorted(dask_scheduler.tasks[dependent].dependencies, key=str)[number].state

    return client.run_on_scheduler(look)


def _die_before_telling(marker: str) -> Any:
    if os.path.exists(marker):
        return np.ones(20_000)
    Path(marker).touch()
    from proxystore_dask import results

    def die(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    results._tell = die
    return np.ones(20_000)


def _wait_and_make(started: str, go: str) -> Any:
    wait_for(np.ones(1), started, go)
    return np.ones(20_000)


def _made_later(started: str, go: str) -> Any:
    wait_for(np.ones(1), started, go)
    return np.ones(20_000)
