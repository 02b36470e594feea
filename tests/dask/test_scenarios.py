"""What plain Dask gets right, with large data in it; and a few things that it does not.

Every test ends with an empty store. `SCENARIOS` says where the others are.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask_tasks
import numpy as np
import pytest
from dask.base import tokenize
from dask_tasks import (
    Counter,
    add_one,
    die_once,
    fail,
    fail_once,
    identity,
    kinds,
    total,
    wait_for,
)
from distributed import (
    LocalCluster,
    Variable,
    as_completed,
    fire_and_forget,
    futures_of,
    wait,
)

from proxystore_dask import Client

pytestmark = pytest.mark.dask

# What a program must get, and the tests that say so.
SCENARIOS = {
    "a large keyword shared by the calls of a map": [
        "test_client.py::test_map_with_a_keyword_shared_by_all_calls",
        "test_client.py::test_map_keywords_that_dask_cannot_carry",
    ],
    "a worker dies after the task: result, dependents, retries": [
        "test_lifetimes.py::test_after_the_task",
        "test_lifetimes.py::test_after_the_task_with_a_dependent",
        "test_lifetimes.py::test_after_the_task_when_only_a_dependent_is_left",
        "test_scenarios.py::test_after_the_task",
    ],
    "the same with what was scattered": [
        "test_scatter.py::test_every_holder_after_its_task_is_done",
        "test_scatter.py::test_the_only_holder_before_it_is_used",
    ],
    "a worker dies with a stored result": [
        "test_results.py::test_its_worker_dies",
        "test_durable.py::test_of_a_chain",
        "test_durable.py::test_of_a_chain_of_which_the_end_is_held",
    ],
    "a result is read twice": ["test_lifetimes.py::test_a_result_is_there_for_all_who_read_it"],
    "a task returns its argument; chains, maps of futures, variables, published data": [
        "test_scenarios.py::test_of_tasks_that_return_their_argument",
        "test_scenarios.py::test_as_they_complete",
        "test_scenarios.py::test_in_a_variable",
        "test_scenarios.py::test_published_collections",
        "test_lifetimes.py::test_published_data_outlives_its_client",
    ],
    "an actor uses what it was made from; a task is tried again": [
        "test_lifetimes.py::test_an_actor_needs_what_it_was_made_from",
        "test_scenarios.py::test_actors_of_a_collection",
        "test_client.py::test_retrying_by_hand",
        "test_client.py::test_retries",
    ],
    "tasks write into an argument that they share": [
        "test_client.py::test_tasks_that_change_an_argument_do_not_see_each_other",
        "test_graphs.py::test_tasks_that_change_a_literal_do_not_see_each_other",
    ],
    "functions of C libraries": ["test_client.py::test_the_c_api_takes_them"],
    "every way into a graph": [
        "test_graphs.py::test_with",
        "test_graphs.py::test_from_pandas",
        "test_graphs.py::test_frames_as_arguments",
        "test_graphs.py::test_xarray",
        "test_graphs.py::test_annotations_are_kept",
    ],
    "the scheduler's memory, with 16 arrays held": [
        "test_schedulers.py::test_its_memory_does_not_grow_with_what_tasks_need"
    ],
    "one array in many tasks is stored once": [
        "test_lifetimes.py::test_across_calls",
        "test_graphs.py::test_the_same_array_in_many_tasks_is_stored_once",
    ],
    "an event loop goes on": [
        "test_asynchronous.py::test_while_arguments_are_stored",
    ],
    "a random load with workers that die": [
        "test_stress.py::test_random_load_with_dying_workers",
        "test_chaos.py::test_short_chaos",
    ],
    "each end of a task, a client and a cluster": [
        "test_lifetimes.py::test_client_that_is_killed",
        "test_lifetimes.py::test_client_that_is_killed_and_has_not_told",
        "test_lifetimes.py::test_cancelled",
        "test_lifetimes.py::test_dropped_before_it_has_run",
        "test_lifetimes.py::test_fire_and_forget",
        "test_lifetimes.py::test_restart",
        "test_lifetimes.py::test_shutdown",
        "test_lifetimes.py::test_two_clients_with_equal_content",
        "test_scenarios.py::test_client_that_is_killed",
    ],
    "results that do not fit into a worker's memory": [
        "test_scenarios.py::test_that_are_more_than_fits_into_a_worker"
    ],
    "the key of large bytes": ["test_scenarios.py::test_a_key_of_large_bytes_takes_no_time"],
    "clients in tasks, and programs that do not know of us": [
        "test_preload.py::test_the_one_in_a_task",
        "test_preload.py::test_a_program_that_does_not_know_of_us",
        "test_client.py::test_in_a_task",
    ],
    "small arguments are sent as they are": [
        "test_client.py::test_what_is_small_stays_in_the_graph",
        "test_graphs.py::test_a_graph_without_large_literals_is_sent_as_it_is",
    ],
    "threads of a worker wait for bytes, and not for each other": [
        "../store/test_races.py::test_sixty_four_threads_that_get_one_object_fetch_it_once",
        "../store/test_races.py::test_sixty_four_threads_that_get_other_objects_get_their_own",
    ],
    "what map, submit and compute promise": [
        "test_client.py::test_map_over_nothing",
        "test_client.py::test_map_refuses_what_dask_refuses",
        "test_client.py::test_map_with_batches",
        "test_client.py::test_map_with_list_of_keys",
        "test_client.py::test_workers_and_priority",
        "test_client.py::test_resources_that_nobody_has",
        "test_scenarios.py::test_retries",
    ],
    "nobody gets an object by looking": [
        "test_lifetimes.py::test_the_scheduler_never_reads_an_object",
        "test_proxies.py::test_looking_does_not_resolve_what_knows_its_class",
    ],
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_has_its_tests(scenario):
    for name in SCENARIOS[scenario]:
        file, test = name.split("::")
        source = (Path(__file__).parent / file).read_text()
        assert re.search(rf"^ *(async )?def {test}\(", source, re.MULTILINE), name


class TestResults:
    """A task's result is what it returned, for everybody, as often as they like."""

    def test_of_tasks_that_return_their_argument(self, client, array):
        first = client.submit(identity, array)
        second = client.submit(identity, first)
        nested = client.submit(identity, {"a": [second]})
        mapped = client.map(identity, [first, second])
        for back in (*client.gather([first, second, *mapped]), nested.result()["a"][0]):
            assert np.array_equal(back, array)

    def test_as_they_complete(self, client, array):
        futures = client.map(identity, [array, array + 1])
        found = {f.key: result for f, result in as_completed(futures, with_results=True)}
        assert np.array_equal(found[futures[1].key], array + 1)

    def test_in_a_variable(self, client, array):
        variable = Variable(client=client)
        variable.set(client.submit(add_one, array))
        gc.collect()
        for _ in range(2):
            assert client.submit(total, variable.get()).result() == array.sum() + len(array)
        variable.delete()

    def test_published_collections(self, client, array):
        client.publish_dataset(kept=client.persist(da.from_array(array, chunks=10_000)))
        gc.collect()
        assert client.get_dataset("kept").sum().compute() == array.sum()
        client.unpublish_dataset("kept")

    def test_that_are_more_than_fits_into_a_worker(self, objects):
        """Its nanny would kill it, or it would write them to its disk."""
        with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=1,
                memory_limit="400 MB",
                host="127.0.0.1",
                dashboard_address=":0",
            ) as cluster,
            Client(cluster, ps_store=objects.store, ps_results="large") as client,
        ):
            (process,) = client.run(os.getpid).values()
            futures = client.map(np.full, [5_000_000] * 10, range(10))
            wait(futures)
            assert client.submit(total, futures[7]).result() == 35e6
            assert futures[8].result()[-1] == 8
            assert list(client.run(os.getpid).values()) == [process]
            assert client.run(_spilled) == {next(iter(client.scheduler_info()["workers"])): 0}
            del futures


class TestFuturesAndLiterals:
    def test_in_a_call(self, client, array):
        one = client.submit(identity, 1)
        future = client.submit(kinds, [one, array], {"a": (array, one)}, one, array)
        assert future.result() == ["list", "dict", "int", "ndarray"]

    def test_in_a_collection(self, client, array):
        value = dask.delayed(total)(client.submit(add_one, array), array)
        assert value.compute() == 2 * array.sum() + len(array)

    def test_without_another_owner(self, client, array):
        """The future is only in the arguments, and they are replaced."""
        value = client.compute(
            dask.delayed(total)([client.submit(identity, array, pure=False)], array)
        )
        graph = {"sum": (total, client.submit(identity, array, pure=False), array)}
        assert value.result() == client.get(graph, "sum") == 2 * array.sum()

    def test_persisted_collections(self, client, array):
        kept = da.from_array(array, chunks=10_000).persist()
        assert (kept + array).sum().compute() == 2 * array.sum()


class TestOptions:
    def test_a_key_of_large_bytes_takes_no_time(self, client):
        """Nothing like what plain Dask takes to look at them, which here is done by the digest."""

        def submitted(data: bytes) -> float:
            start = time.perf_counter()
            future = client.submit(len, data)
            taken = time.perf_counter() - start
            assert future.result() == len(data)
            return taken

        def tokenized(data: bytes) -> float:
            start = time.perf_counter()
            tokenize(data)
            return time.perf_counter() - start

        # The least of each: what else the machine does only adds to it.
        data = [os.urandom(1_000) * 30_000 for _ in range(3)]
        assert min(map(submitted, data)) < min(map(tokenized, data))

    def test_actors_of_a_collection(self, client, array):
        counter = client.compute(dask.delayed(Counter)(array), actors=True).result()
        assert counter.add(1).result() == array.sum() + len(array)
        assert counter.add(1).result() == array.sum() + 2 * len(array)

    def test_retries(self, client, array, tmp_path):
        values = [
            dask.delayed(fail_once)(array, str(tmp_path / f"{i}"), pure=False) for i in range(2)
        ]
        with dask.annotate(retries=2):
            annotated = dask.delayed(fail_once)(array, str(tmp_path / "annotated"))
        assert client.compute(annotated, optimize_graph=False).result() == array.sum()
        assert client.compute(values[0], retries=1).result() == array.sum()
        with pytest.raises(ZeroDivisionError):
            client.compute(values[1]).result()

    def test_workers(self, client, array):
        (worker, *_) = client.scheduler_info()["workers"]
        future = client.compute(dask.delayed(total)(array), workers=[worker])
        wait(future)
        assert client.who_has(future)[future.key] == (worker,)

    def test_priorities(self, client, cluster, array, wait_until):
        with dask.annotate(resources={"none": 1}):
            values = [dask.delayed(total)(array, i) for i in range(3)]
        with dask.annotate(priority=7):
            values.append(dask.delayed(total)(array, 3))
        futures = [
            client.compute(value, priority=i, resources={"none": 1}, optimize_graph=False)
            for i, value in enumerate(values)
        ]
        tasks = cluster.scheduler.tasks
        wait_until(lambda: all(future.key in tasks for future in futures))
        assert [-tasks[future.key].priority[0] for future in futures] == [0, 1, 2, 7]

    def test_resources(self, objects, array):
        with (
            LocalCluster(
                n_workers=1, processes=False, resources={"GPU": 1}, dashboard_address=":0"
            ) as cluster,
            Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client,
        ):
            with dask.annotate(resources={"GPU": 1}):
                value = dask.delayed(total)(array)
            assert client.compute(value, optimize_graph=False).result() == array.sum()
            future = client.compute(value, resources={"GPU": 1})
            assert future.result() == array.sum()


class TestWorkersThatDie:
    """Where plain Dask computes again, so do we: also what came from a graph."""

    def test_after_the_task(self, client, array, kill_worker):
        future = client.compute(dask.delayed(add_one)(array), retries=2)
        wait(future)
        ((worker,),) = client.who_has(future).values()
        kill_worker(client, worker)
        assert client.submit(total, future).result() == array.sum() + len(array)
        assert np.array_equal(future.result(), array + 1)

    def test_in_the_middle_of_it(self, client, array, tmp_path):
        assert dask.delayed(die_once)(array, str(tmp_path / "died")).compute() == array.sum()

    def test_with_all_that_was_loaded(self, client, array, kill_worker):
        value = dask.delayed(array)
        futures = client.compute([dask.delayed(total)(value, i) for i in range(3)])
        wait(futures)
        for worker in list(client.scheduler_info()["workers"]):
            kill_worker(client, worker)
        assert client.gather(futures) == [array.sum() + i for i in range(3)]


class TestEnds:
    """Nothing is left, however a graph ends."""

    def test_cancelled(self, client, array, objects, tmp_path, wait_until):
        """Also while the caller still has the future."""
        started, go = tmp_path / "started", tmp_path / "go"
        future = client.compute(dask.delayed(wait_for)(array, str(started), str(go)))
        submitted = client.submit(total, array + 1, future)
        wait_until(started.exists)
        client.cancel([future, submitted])
        objects.wait_until_empty()
        go.touch()
        assert future.cancelled()
        assert submitted.cancelled()
        assert client.submit(total, array).result() == array.sum()

    def test_dropped_before_it_has_run(self, client, array, objects):
        with dask.annotate(resources={"none": 1}):
            value = dask.delayed(total)(array)
        future = client.compute(value, optimize_graph=False)
        assert len(objects) == 1
        del future
        objects.wait_until_empty()

    def test_failed(self, client, array, objects):
        with pytest.raises(ZeroDivisionError):
            dask.delayed(fail)(array).compute()
        with pytest.raises(ZeroDivisionError):
            client.get({"x": (fail, array)}, "x")
        objects.wait_until_empty()

    def test_fire_and_forget(self, client, array, objects, tmp_path, wait_until):
        started, go = tmp_path / "started", tmp_path / "go"
        fire_and_forget(client.compute(dask.delayed(wait_for)(array, str(started), str(go))))
        wait_until(lambda: client.run_on_scheduler(_is_wanted))
        gc.collect()
        assert len(objects) == 1
        go.touch()
        objects.wait_until_empty()

    def test_restart(self, client, array, objects):
        kept = client.persist(da.from_array(array, chunks=10_000))
        scattered = client.scatter(array)
        wait([*futures_of(kept), scattered])
        client.restart()
        objects.wait_until_empty()
        assert scattered.cancelled()

    def test_two_clients(self, client, array, objects):
        value = dask.delayed(total)(dask.delayed(array))
        with Client(client.cluster, ps_store=objects.store, ps_threshold="50 kB") as other:
            mine, theirs = client.compute(value), other.compute(value)
            assert mine.key == theirs.key
            assert mine.result() == theirs.result() == array.sum()
            del mine
            gc.collect()
            assert other.submit(identity, theirs).result() == array.sum()

    def test_client_that_is_killed(self, cluster, objects, wait_until):
        code = f"""
import time
import dask, dask.array as da, numpy as np
from dask_tasks import total
from proxystore_dask import Client
from proxystore.store import Store
from proxystore.connectors.file import FileConnector

store = Store({objects.store.name!r}, FileConnector({str(objects.directory)!r}))
client = Client({cluster.scheduler_address!r}, ps_store=store, ps_threshold="50 kB")
kept = client.persist(da.from_array(np.arange(40_000.0), chunks=20_000))
with dask.annotate(resources={{"none": 1}}):
    value = dask.delayed(total)(np.arange(30_000.0))
waiting = client.compute(value, optimize_graph=False)
scattered = client.scatter(np.arange(50_000.0))
print("sent", flush=True)
time.sleep(600)
"""
        env = {**os.environ, "PYTHONPATH": str(Path(dask_tasks.__file__).parent)}
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) as it:
            assert it.stdout.readline() == b"sent\n"
            wait_until(lambda: len(objects) == 4)
            it.send_signal(signal.SIGKILL)
        objects.wait_until_empty()


def _spilled(dask_worker: Any) -> int:
    return len(dask_worker.data.slow)


def _is_wanted(dask_scheduler: Any) -> bool:
    return bool(dask_scheduler.clients["fire-and-forget"].wants_what)
