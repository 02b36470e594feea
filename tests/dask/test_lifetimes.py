"""An object lives until no task can need it again: no shorter, no longer.

Each test ends with the fixture `objects` waiting for the store to be empty, while the cluster
goes on.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask_tasks
import pytest
from dask_tasks import (
    Counter,
    Unusual,
    add_one,
    die_once,
    fail,
    fail_unusually,
    identity,
    total,
    wait_for,
)
from distributed import Client as DaskClient
from distributed import LocalCluster, fire_and_forget, wait

from proxystore.connectors import file
from proxystore.connectors.file import FileConnector
from proxystore.store import Store, get_store
from proxystore_dask import Client
from proxystore_dask.leases import Leases, Lifetimes

pytestmark = pytest.mark.dask


def needed(client: Client) -> int:
    """How many objects the scheduler keeps, once it has heard all that the client has to say."""
    gc.collect()
    client._ps.leases.ledger.flush()
    client.submit(identity, 1, pure=False).result()
    stats: dict[str, int] = client.sync(client.scheduler.proxystore_stats)
    return stats["objects"]


class TestOnce:
    """The same bytes are stored once while anybody needs them."""

    def test_in_one_call(self, client, array, objects):
        future = client.submit(total, array, array, [array.copy()])
        assert future.result() == 3 * array.sum()
        assert client.ps_stats().puts == len(objects) == 1

    def test_across_calls(self, client, array, objects):
        futures = [client.submit(total, array.copy(), i) for i in range(8)]
        futures += client.map(total, [array.copy()] * 3, range(3))
        assert client.gather(futures) == [array.sum() + i for i in [*range(8), *range(3)]]
        assert client.ps_stats().puts == len(objects) == 1

    def test_an_array_that_changes_between_calls_is_two_objects(self, client, array, objects):
        before, was = client.submit(total, array), array.sum()
        array += 1
        after = client.submit(total, array)
        assert client.gather([before, after]) == [was, array.sum()]
        assert client.ps_stats().puts == len(objects) == 2

    def test_again_after_it_is_gone(self, client, array, objects):
        assert client.submit(total, array).result() == array.sum()
        objects.wait_until_empty()
        assert client.submit(total, array).result() == array.sum()
        assert client.ps_stats().puts == 2

    def test_from_many_threads(self, client, array, objects, at_once):
        def submit(i: int) -> Any:
            return client.submit(total, array.copy(), i)

        futures = at_once(*(lambda i=i: submit(i) for i in range(8)))
        assert client.gather(futures) == [array.sum() + i for i in range(8)]
        assert client.ps_stats().puts == 1


class TestOnceForSeveralClients:
    @pytest.fixture
    def other(self, client, objects):
        with Client(client.cluster, ps_store=objects.store, ps_threshold="50 kB") as other:
            yield other

    def test_in_either_direction(self, client, other, array, objects, wait_until):
        mine = client.submit(total, array)
        assert mine.result() == array.sum()
        theirs = other.submit(total, array.copy(), pure=False)
        assert theirs.result() == array.sum()
        assert len(objects) == 1
        wait_until(lambda: client._ps.leases.has_company)
        also_theirs = other.submit(total, array + 1)
        assert also_theirs.result() == (array + 1).sum()
        also_mine = client.submit(total, array + 1, pure=False)
        assert also_mine.result() == (array + 1).sum()
        assert (client.ps_stats().puts, other.ps_stats().puts) == (1, 1)
        assert len(objects) == 2

    def test_several_that_come_at_once_are_company(self, client, objects, at_once, wait_until):
        others = at_once(
            *[lambda: Client(client.cluster, ps_store=objects.store, ps_threshold="50 kB")] * 4
        )
        wait_until(lambda: all(each._ps.leases.has_company for each in [client, *others]))
        for other in others:
            other.close()

    def test_it_stays_until_the_last_one_needs_it_no_more(self, client, other, array, objects):
        mine = client.submit(total, array)
        mine.result()
        theirs = other.submit(identity, array.copy(), pure=False)
        del mine
        gc.collect()
        assert (theirs.result() == array).all()
        assert other.submit(total, array).result() == array.sum()
        assert other.ps_stats().puts == 0
        del theirs
        objects.wait_until_empty()
        assert other.submit(total, array, pure=False).result() == array.sum()
        assert other.ps_stats().puts == 1

    def test_who_has_stored_it_closes(self, client, array, objects, wait_until):
        with Client(client.cluster, ps_store=objects.store, ps_threshold="50 kB") as other:
            theirs = other.submit(total, array)
            theirs.result()
            wait_until(lambda: client._ps.leases.has_company)
            mine = client.submit(identity, array)
            assert client.ps_stats().puts == 0
        assert (client.submit(identity, mine).result() == array).all()
        del mine

    def test_ends_of_older_leases_may_be_heard_later(self, client, other, array, objects, at_once):
        """They go another way than what is asked."""
        held = client.submit(total, array)
        held.result()

        def again(i: int) -> None:
            for j in range(20):
                assert other.submit(total, array, i, j).result() == array.sum() + i + j

        at_once(*(lambda i=i: again(i) for i in range(4)))
        assert other.ps_stats().puts == 0
        del held

    def test_in_other_stores_there_is_nothing_to_share(self, client, array, tmp_path):
        with (
            Store("elsewhere", FileConnector(tmp_path / "there"), register=True) as store,
            Client(client.cluster, ps_store=store, ps_threshold="50 kB") as other,
        ):
            mine = client.submit(total, array)
            assert other.submit(total, array, pure=False).result() == mine.result()
            assert (client.ps_stats().puts, other.ps_stats().puts) == (1, 1)
            del mine


class TestEnd:
    """Every way a task can end."""

    def test_a_future_that_is_held_keeps_the_object(self, client, array, objects):
        future = client.submit(total, array)
        wait(future)
        assert needed(client) == 1
        del future
        objects.wait_until_empty()

    def test_a_dependent_that_is_held_keeps_the_object(self, client, array, objects):
        """Its worker may die: then all of it is computed again."""
        dependent = client.submit(total, client.submit(add_one, array))
        wait(dependent)
        assert needed(client) == 1
        assert client.ps_stats().live == 0  # it is the task that needs it, not we
        del dependent
        objects.wait_until_empty()

    def test_dropped_before_it_has_run(self, client, array, objects, tmp_path):
        blocker = client.submit(identity, 1)
        client.submit(total, array, blocker)
        objects.wait_until_empty()

    def test_cancelled(self, client, array, objects, tmp_path, wait_until):
        started, go = tmp_path / "started", tmp_path / "go"
        future = client.submit(wait_for, array, str(started), str(go))
        wait_until(started.exists)
        future.cancel()
        assert future.cancelled()
        del future
        objects.wait_until_empty()
        go.touch()

    def test_failed(self, client, array, objects):
        future = client.submit(fail, array)
        wait(future)
        assert future.status == "error"
        assert needed(client) == 1  # it may be retried
        del future
        objects.wait_until_empty()

    def test_failed_and_raised(self, client, array, objects):
        """The exception's traceback refers to the future, which refers to the exception."""
        with pytest.raises(ZeroDivisionError):
            client.submit(fail, array).result()
        with pytest.raises(ZeroDivisionError):
            client.gather([client.submit(fail, array, pure=False)])
        objects.wait_until_empty()

    def test_failed_with_an_exception_that_cannot_be_copied(self, client, array, objects):
        with pytest.raises(Unusual) as caught:
            client.submit(fail_unusually, array).result()
        assert caught.value.length == len(array)
        del caught
        objects.wait_until_empty()

    def test_fire_and_forget(self, client, array, objects, tmp_path, wait_until):
        started, go = tmp_path / "started", tmp_path / "go"
        fire_and_forget(client.submit(wait_for, array, str(started), str(go)))
        # Distributed 2026.8 never releases a task that was done before it heard this.
        wait_until(lambda: client.run_on_scheduler(_forgets_after_firing))
        assert needed(client) == 1
        go.touch()
        objects.wait_until_empty()

    def test_each_future_of_a_map_by_itself(self, client, array, objects, wait_until):
        futures = client.map(total, [array, array + 1, array + 2])
        wait(futures)
        assert len(objects) == 3
        del futures[0]
        wait_until(lambda: len(objects) == 2)
        del futures
        objects.wait_until_empty()

    def test_a_keyword_shared_by_a_map_ends_with_its_last_future(self, client, array, objects):
        futures = client.map(total, [1, 2, 3], [array] * 3)
        wait(futures)
        del futures[1:]
        assert needed(client) == 1
        futures.clear()
        objects.wait_until_empty()

    def test_an_actor_needs_what_it_was_made_from(self, client, array, objects):
        counter = client.submit(Counter, array, actor=True).result()
        assert needed(client) == 1
        assert counter.add(0).result() == array.sum()
        del counter
        objects.wait_until_empty()

    def test_a_key_that_the_scheduler_knows_keeps_its_first_task(self, client, array, objects):
        first = client.submit(total, array, key="the-key")
        assert first.result() == array.sum()
        second = client.submit(total, array + 1, key="the-key")
        assert second.result() == array.sum()
        # No task mentions the second array; that it was sent under a living key says nothing.
        del second
        third = client.submit(total, array + 1)
        assert third.result() == (array + 1).sum()

    def test_colliding_keys_of_two_clients(self, client, array, objects):
        with Client(client.cluster, ps_store=objects.store, ps_threshold="50 kB") as other:
            mine = client.submit(total, array, key="everybodys")
            wait(mine)
            theirs = other.submit(total, array + 1, key="everybodys")
            assert theirs.result() == array.sum()
            del mine
            assert other.submit(total, array + 1).result() == (array + 1).sum()
            assert theirs.result() == array.sum()

    def test_two_clients_with_equal_content(self, client, array, objects):
        with Client(client.cluster, ps_store=objects.store, ps_threshold="50 kB") as other:
            mine, theirs = client.submit(total, array), other.submit(total, array.copy())
            assert mine.key == theirs.key
            assert mine.result() == theirs.result() == array.sum()
            del mine
            gc.collect()
            assert other.submit(identity, theirs).result() == array.sum()

    def test_published_data_outlives_its_client(self, client, array, objects, wait_until):
        with Client(client.cluster, ps_store=objects.store, ps_threshold="50 kB") as other:
            other.publish_dataset(data=other.submit(total, array))
        assert needed(client) == 1
        assert client.get_dataset("data").result() == array.sum()
        client.unpublish_dataset("data")
        objects.wait_until_empty()

    def test_published_data_outlives_its_store(self, cluster, array, tmp_path, wait_until):
        """Which the scheduler then clears, also one in the process that has closed it."""
        directory = tmp_path / "store"
        with (
            Store("published", FileConnector(directory)) as store,
            Client(cluster, ps_store=store, ps_threshold="50 kB") as client,
        ):
            store.put("by hand")
            client.publish_dataset(data=client.submit(identity, array))
        with DaskClient(cluster) as plain:
            data = plain.get_dataset("data")
            plain.restart_workers(list(plain.scheduler_info()["workers"]))  # so that it runs again
            assert (data.result() == array).all()
            del data
            plain.unpublish_dataset("data")
            wait_until(lambda: not directory.exists())

    def test_published_data_of_two_stores_of_one_name(self, cluster, array, tmp_path, wait_until):
        directories = [tmp_path / "one", tmp_path / "two"]
        for directory in directories:
            with (
                Store("same", FileConnector(directory)) as store,
                Client(cluster, ps_store=store, ps_threshold="50 kB") as client,
            ):
                future = client.submit(identity, array, key=directory.name)
                client.publish_dataset(future, name=directory.name)
        assert all(directory.exists() for directory in directories)
        with DaskClient(cluster) as plain:
            plain.unpublish_dataset("one")
            plain.unpublish_dataset("two")
        wait_until(lambda: not any(directory.exists() for directory in directories))

    def test_a_store_outlives_what_its_tasks_need(self, cluster, array, tmp_path, wait_until):
        with Store("published", FileConnector(tmp_path / "store")) as store:
            by_hand = store.put("by hand")
            with Client(cluster, ps_store=store, ps_threshold="50 kB") as client:
                client.publish_dataset(data=client.submit(identity, array))
            with DaskClient(cluster) as plain:
                plain.unpublish_dataset("data")
            wait_until(lambda: len(os.listdir(tmp_path / "store")) == 1)
            assert store.get(by_hand) == "by hand"
        assert not (tmp_path / "store").exists()

    def test_a_users_own_object_is_never_evicted(self, client, array, objects):
        key = objects.store.put(array)
        proxy = objects.store.proxy_from_key(key)
        assert client.submit(total, proxy).result() == array.sum()
        assert client.gather(client.map(total, [proxy, proxy], [1, 2])) == [
            array.sum() + 1,
            array.sum() + 2,
        ]
        gc.collect()
        client.submit(identity, 1).result()
        assert objects.store.exists(key)
        objects.store.evict(key)

    def test_a_result_is_there_for_all_who_read_it(self, client, array, objects):
        first = client.submit(identity, array)
        for _ in range(2):
            assert client.submit(total, first, pure=False).result() == array.sum()
            assert (first.result() == array).all()
        again = client.submit(identity, array)
        assert again.key == first.key
        assert (again.result() == array).all()
        assert (client.gather([first, again])[1] == array).all()


class TestCluster:
    def test_restart(self, client, array, objects):
        held = client.submit(total, array)
        assert held.result() == array.sum()
        client.restart()
        objects.wait_until_empty()
        assert client.submit(total, array).result() == array.sum()

    def test_client_that_closes_with_work_in_flight(
        self, cluster, array, objects, tmp_path, wait_until
    ):
        started, go = tmp_path / "started", tmp_path / "go"
        with Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client:
            running = client.submit(wait_for, array, str(started), str(go))
            wait_until(started.exists)
        objects.wait_until_empty()
        go.touch()
        del running

    def test_closed_in_the_middle_of_a_put(self, cluster, array, objects, monkeypatch, at_once):
        """In another thread, of which `close` does not know."""
        inside, go = threading.Event(), threading.Event()
        put = objects.store.put_dumped

        def slow(*args: Any, **kwargs: Any) -> Any:
            inside.set()
            assert go.wait(30)
            return put(*args, **kwargs)

        client = Client(cluster, ps_store=objects.store, ps_threshold="50 kB")
        monkeypatch.setattr(objects.store, "put_dumped", slow)

        def submit() -> None:
            with pytest.raises(RuntimeError, match="closed"):
                client.submit(total, array)

        def close() -> None:
            assert inside.wait(30)
            client.close()
            go.set()

        at_once(submit, close)
        assert len(objects) == 0

    def test_looking_at_a_client_that_has_closed_takes_no_time(self, cluster, array, objects):
        with Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client:
            held = client.submit(total, array)
            held.result()
        start = time.monotonic()
        for _ in range(5):
            repr(client)
        assert time.monotonic() - start < 4
        del held

    def test_a_cluster_that_ends_in_order_leaves_nothing_to_warn_of(self, array, objects, caplog):
        with LocalCluster(n_workers=1, dashboard_address=":0", host="127.0.0.1") as cluster:
            client = Client(cluster.scheduler_address, ps_store=objects.store, ps_threshold="50 kB")
            held = client.submit(total, array)
            held.result()
        client.close()
        assert "may be left" not in caplog.text
        del held

    def test_nothing_is_left_when_a_client_has_closed(self, cluster, array, objects):
        """So its scheduler may die, and its store be closed, at any moment from then on."""
        with Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client:
            held = client.map(add_one, [array, array + 1], ps_results="durable")
            client.gather(held)
            assert len(objects) == 4
        assert len(objects) == 0

    def test_the_needs_of_others_do_not_keep_a_client_from_closing(self, cluster, array, objects):
        with Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as other:
            held = other.submit(total, array)
            with Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client:
                assert client.submit(total, array + 1).result() == array.sum() + len(array)
            # Not the file that keeps it beyond the close of the first one's store.
            assert len(list(objects.store.connector.keys())) == 1
            assert held.result() == array.sum()

    def test_client_that_is_killed(self, cluster, array, objects, wait_until):
        code = f"""
import time
import numpy as np
from dask_tasks import total
from proxystore_dask import Client
from proxystore.store import Store
from proxystore.connectors.file import FileConnector

store = Store({objects.store.name!r}, FileConnector({str(objects.directory)!r}))
client = Client({cluster.scheduler_address!r}, ps_store=store, ps_threshold="50 kB")
futures = [client.submit(total, np.arange(20_000.0) + i, resources={{"none": 1}}) for i in range(6)]
client.gather(client.map(total, [np.arange(20_000.0) - i for i in range(1, 3)]))
print("submitted", flush=True)
time.sleep(600)
"""
        env = {**os.environ, "PYTHONPATH": str(Path(dask_tasks.__file__).parent)}
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) as it:
            assert it.stdout.readline() == b"submitted\n"
            wait_until(lambda: len(objects) >= 6)
            it.send_signal(signal.SIGKILL)
        objects.wait_until_empty()

    @pytest.mark.parametrize("when", ["while it writes", "before it can say so"])
    def test_client_that_is_killed_and_has_not_told(self, cluster, objects, wait_until, when):
        code = f"""
import os
import signal
import numpy as np
from dask_tasks import total
from proxystore_dask import Client
from proxystore.store import Store
from proxystore.connectors.file import FileConnector

plainly = FileConnector.set_buffers

def deadly(self, key, parts):
    plainly(self, key, Killing(parts) if {when!r} == "while it writes" else parts)
    os.kill(os.getpid(), signal.SIGKILL)

class Killing(tuple):
    def __len__(self):  # asked for when there is a file
        os.kill(os.getpid(), signal.SIGKILL)

store = Store({objects.store.name!r}, FileConnector({str(objects.directory)!r}))
client = Client({cluster.scheduler_address!r}, ps_store=store, ps_threshold="50 kB")
FileConnector.set_buffers = deadly
client.submit(total, np.arange(20_000.0))
"""
        env = {**os.environ, "PYTHONPATH": str(Path(dask_tasks.__file__).parent)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        objects.wait_until_empty()

    def test_a_connection_that_breaks_while_a_client_writes(
        self, client, cluster, array, monkeypatch, wait_until
    ):
        writing, go = threading.Event(), threading.Event()
        plainly = file._write_all

        def wait_and_write(fd, parts):
            monkeypatch.setattr(file, "_write_all", plainly)
            writing.set()
            assert go.wait(30)
            plainly(fd, parts)

        monkeypatch.setattr(file, "_write_all", wait_and_write)
        prefix = client._ps.leases.prefix
        with ThreadPoolExecutor(1) as pool:
            submitting = pool.submit(client.submit, total, array)
            assert writing.wait(10)
            client.loop.add_callback(client.scheduler_comm.comm.abort)
            wait_until(lambda: client._ps.leases.prefix != prefix)
            plugin = cluster.scheduler.plugins["proxystore"]
            plugin._stores._pool.submit(bool).result()  # it has looked for what there is
            go.set()
            submitting.result()
        wait_until(lambda: client._ps.leases.lifetimes is Lifetimes.GRAPH)
        assert client.submit(total, array).result() == array.sum()

    def test_a_store_that_is_closed_with_its_client(self, cluster, array, tmp_path, wait_until):
        """The scheduler, in this process, evicts a little later, and must not make it anew."""
        with (
            Store("with-its-client", FileConnector(tmp_path / "store"), register=True) as store,
            Client(cluster, ps_store=store, ps_threshold="50 kB") as client,
        ):
            future = client.submit(total, array)
            assert future.result() == array.sum()
            evicted = client.sync(client.scheduler.proxystore_stats)["evicted"]
        plugin = cluster.scheduler.plugins["proxystore"]
        wait_until(lambda: plugin.figures.evicted == evicted + 1)
        assert get_store("with-its-client") is None
        assert not (tmp_path / "store").exists()

    def test_adaptive_scaling(self, array, objects, wait_until):
        """A worker goes; what it has made stays, wherever that is."""
        with (
            LocalCluster(
                n_workers=0, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1"
            ) as cluster,
            Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client,
        ):
            adaptive = cluster.adapt(minimum=2, maximum=2, interval="100 ms", wait_count=2)
            client.wait_for_workers(2)
            workers = list(client.scheduler_info()["workers"])
            futures = [
                client.submit(add_one, array + i, workers=[workers[i % 2]], ps_results=results)
                for i, results in enumerate(["never", "large", "durable", "never"])
            ]
            wait(futures)
            adaptive.minimum = 1
            wait_until(lambda: len(client.scheduler_info()["workers"]) == 1, timeout=30)
            assert [float(each[0]) for each in client.gather(futures)] == [1, 2, 3, 4]
            sums = client.map(total, futures)
            assert client.gather(sums) == [array.sum() + (i + 1) * len(array) for i in range(4)]
            del futures, sums
            objects.wait_until_empty()

    def test_shutdown(self, array, objects):
        with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
            client = Client(cluster, ps_store=objects.store, ps_threshold="50 kB")
            future = client.submit(total, array)
            wait(future)
            client.shutdown()
        assert len(objects) == 0
        client.close()

    def test_cluster_that_closes_before_its_client(self, array, objects):
        with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
            client = Client(cluster, ps_store=objects.store, ps_threshold="50 kB")
            future = client.submit(total, array)
            wait(future)
        objects.wait_until_empty()
        client.close()


class TestWorkersThatDie:
    """Everything plain Dask recovers from, it still recovers from."""

    def test_after_the_task(self, client, array, kill_worker):
        future = client.submit(total, array)
        wait(future)
        ((worker,),) = client.who_has(future).values()
        kill_worker(client, worker)
        assert future.result() == array.sum()

    def test_after_the_task_with_a_dependent(self, client, array, kill_worker):
        future = client.submit(add_one, array)
        wait(future)
        ((worker,),) = client.who_has(future).values()
        kill_worker(client, worker)
        assert client.submit(total, future).result() == array.sum() + len(array)

    def test_in_the_middle_of_the_task(self, client, array, tmp_path):
        assert client.submit(die_once, array, str(tmp_path / "died")).result() == array.sum()

    def test_after_the_task_when_only_a_dependent_is_left(self, client, array, kill_worker):
        """Both tasks run again, and nobody but the first one's run spec knows the object."""
        dependent = client.submit(total, client.submit(add_one, array))
        wait(dependent)
        assert needed(client) == 1
        ((worker,),) = client.who_has(dependent).values()
        kill_worker(client, worker)
        assert dependent.result() == array.sum() + len(array)


class TestScheduler:
    def test_the_scheduler_never_reads_an_object(self, client, array, objects):
        asked = len(objects.log("get"))  # each worker, whether it reaches the store
        client.gather([client.submit(total, array, i) for i in range(4)])
        client.gather(client.map(total, [array + i for i in range(4)]))
        assert os.getpid() not in objects.log("get")  # client and scheduler are this process
        assert set(objects.log("put")) == {os.getpid()}
        assert len(objects.log("get")) == asked + 8

    def test_objects_are_evicted_once_each(self, client, array, objects, wait_until):
        probes = len(objects.log("evict"))
        futures = client.map(total, [array + i for i in range(4)])
        wait(futures)
        del futures
        objects.wait_until_empty()
        assert len(objects.log("evict")) - probes == 4


def _forgets_after_firing(dask_scheduler: Any) -> bool:
    return bool(dask_scheduler.clients["fire-and-forget"].wants_what)


def test_a_scheduler_that_does_not_answer_is_asked_once(objects, array):
    asked = []

    def ask(digest, lease):
        asked.append(digest)
        raise TimeoutError

    leases = Leases(objects.store, lambda message: None, ask)
    leases.start(Lifetimes.GRAPH)
    leases.has_company = True
    holds = [leases.ledger.hold(array + i) for i in range(3)]
    assert len(asked) == 1
    assert len(objects) == 3
    for hold in holds:
        hold.ref.evict()
    leases.close()


def test_a_forked_child_stores_nothing_over_what_its_parent_has_stored(objects):
    leases = Leases(objects.store, lambda message: None, lambda *asked: None)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_store_in_child, args=(leases, sender))
    child.start()
    assert receiver.poll(30)
    theirs, ours = receiver.recv(), leases.ledger.hold("the parent's")
    assert (theirs.resolve(), ours.ref.resolve()) == ("the child's", "the parent's")
    child.join()
    theirs.evict()
    ours.ref.evict()


def _store_in_child(leases, pipe):
    hold = leases.ledger.hold("the child's")
    pipe.send(hold.ref)
