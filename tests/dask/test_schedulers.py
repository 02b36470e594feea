"""Schedulers elsewhere: in a process of their own, dying, coming back, or of no help."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask_tasks
import numpy as np
import pytest
from dask_tasks import KeysOfItsOwn, add_one, total, wait_for
from distributed import Client as DaskClient
from distributed import LocalCluster, fire_and_forget, wait

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore_dask import Client, StoreLifetimes
from proxystore_dask import client as client_module

pytestmark = pytest.mark.dask

# Results that workers leave in the store.
STORED = ("large", "durable")

SEARCH_PATH = str(Path(dask_tasks.__file__).parent)


class Processes:
    """A scheduler and a worker, each in a process of its own."""

    def __init__(self, directory: Path, wait_until: Callable[..., None], stack: ExitStack) -> None:
        self._directory = directory
        self._wait_until = wait_until
        self._stack = stack
        self.port = 0
        self.scheduler: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start_scheduler(self, search_path: str = SEARCH_PATH) -> None:
        path = self._directory / "scheduler.json"
        path.unlink(missing_ok=True)
        self.scheduler = self._start(
            "dask_scheduler",
            *("--port", str(self.port), "--scheduler-file", str(path)),
            search_path=search_path,
        )

        def has_written() -> bool:
            return path.exists() and path.read_text().endswith("}")

        self._wait_until(has_written, timeout=30)
        self.port = int(json.loads(path.read_text())["address"].rpartition(":")[2])

    def start_worker(self) -> None:
        self._start("dask_worker", self.address, "--no-nanny", "--nthreads", "1")

    def kill_scheduler(self) -> None:
        assert self.scheduler is not None
        self.scheduler.send_signal(signal.SIGKILL)
        self.scheduler.wait()

    def _start(self, module: str, *args: str, search_path: str = SEARCH_PATH) -> Any:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", f"distributed.cli.{module}", *args),
                *("--host", "127.0.0.1", "--no-dashboard"),
            ],
            cwd=self._directory,
            env={**os.environ, "PYTHONPATH": search_path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(_end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def processes(tmp_path: Path, wait_until: Callable[..., None]) -> Iterator[Processes]:
    with ExitStack() as stack:
        yield Processes(tmp_path, wait_until, stack)


class TestInAProcessOfItsOwn:
    def test_it_evicts_and_never_reads(self, processes, objects, array):
        processes.start_scheduler()
        processes.start_worker()
        with Client(processes.address, ps_store=objects.store, ps_threshold="50 kB") as client:
            assert client.ps_stats().lifetimes == "graph"
            assert client.gather(client.map(total, [array, array + 1])) == [
                array.sum(),
                (array + 1).sum(),
            ]
            objects.wait_until_empty()
            scheduler = client.run_on_scheduler(os.getpid)
        assert scheduler != os.getpid()
        # It has asked a worker that came late whether it sees an object.
        asked = objects.log("put").count(scheduler)
        assert objects.log("evict").count(scheduler) == 2 + asked
        assert scheduler not in objects.log("get")
        assert asked <= 1

    def test_its_memory_does_not_grow_with_what_tasks_need(self, processes, objects):
        psutil = pytest.importorskip("psutil")
        processes.start_scheduler()
        processes.start_worker()
        with Client(processes.address, ps_store=objects.store) as client:

            def memory() -> int:
                return int(psutil.Process(processes.scheduler.pid).memory_info().rss)

            assert client.submit(total, np.ones(1_000_000)).result() == 1_000_000
            before = memory()
            futures = [client.submit(total, np.full(1_000_000, float(i))) for i in range(16)]
            assert client.gather(futures) == [1e6 * i for i in range(16)]
            assert len(objects) >= 16
            assert memory() - before < 16_000_000, "of 128 MB that tasks mention"
            del futures

    def test_its_end_and_that_of_its_successor(self, processes, objects, array, wait_until):
        """The objects of a scheduler that was killed go with its successor's first client."""
        processes.start_scheduler()
        with Client(processes.address, ps_store=objects.store, ps_threshold="50 kB") as client:
            lost = client.submit(total, array)
            wait_until(lambda: len(objects) == 1)
            processes.kill_scheduler()
            wait_until(lambda: lost.cancelled())
            processes.start_scheduler()
            processes.start_worker()
            wait_until(lambda: client.ps_stats().lifetimes == "graph", timeout=30)
            objects.wait_until_empty()
            again = client.submit(total, array)
            assert again.result() == array.sum()
            assert client.ps_stats().puts == 2

    def test_a_client_that_closes_after_it_evicts_what_is_left(
        self, processes, objects, array, wait_until
    ):
        """Results of tasks, too: nobody else will, and nobody can need them."""
        processes.start_scheduler()
        processes.start_worker()
        client = Client(
            processes.address, ps_store=objects.store, ps_threshold="50 kB", timeout="2 s"
        )
        wait([client.submit(add_one, array + i, ps_results=of) for i, of in enumerate(STORED)])
        assert len(objects) >= len(STORED)
        processes.kill_scheduler()
        wait_until(lambda: client.status == "closed", timeout=30)
        objects.wait_until_empty()

    def test_a_client_that_closes_after_it_says_what_may_be_left(
        self, processes, objects, array, wait_until, caplog
    ):
        """Where nobody can say for sure that it is dead: it runs on another host."""
        processes.start_scheduler()
        client = Client(
            processes.address, ps_store=objects.store, ps_threshold="50 kB", timeout="2 s"
        )
        client._ps_process = "elsewhere 7d1c pid:[1] 1 1"
        future = client.submit(total, array)
        wait_until(lambda: len(objects) == 1)
        processes.kill_scheduler()
        wait_until(lambda: "1 objects may be left" in caplog.text, timeout=30)
        assert client.status == "closed"
        assert future.cancelled()
        for ref in objects.directory.iterdir():
            ref.unlink()

    def test_its_death_while_a_client_closes(self, processes, objects, array, monkeypatch):
        processes.start_scheduler()
        processes.start_worker()
        say_goodbye = client_module.say_goodbye

        async def then(*args):
            processes.kill_scheduler()
            await say_goodbye(*args)

        monkeypatch.setattr(client_module, "say_goodbye", then)
        with Client(
            processes.address, ps_store=objects.store, ps_threshold="50 kB", timeout="2 s"
        ) as client:
            wait([client.submit(add_one, array + i, ps_results=of) for i, of in enumerate(STORED)])
        assert len(objects) == 0


class _LookedAt:
    """An argument that Dask looks at when the large ones have been stored."""

    @staticmethod
    def then() -> None:
        pass

    def __dask_tokenize__(self) -> str:
        self.then()
        return "looked at"


def break_connection(
    client: Client, cluster: LocalCluster, wait_until: Callable[..., None]
) -> None:
    """Return once the client is connected again, and may still ask about its store."""
    before = client.submit(total, 1, pure=False)
    cluster.loop.add_callback(cluster.scheduler.client_comms[client.id].abort)
    wait_until(before.cancelled)
    wait_until(lambda: client.status == "running")


async def _no_answer(self: Client, handler: str, **what: Any) -> dict[str, Any]:
    return {}


class TestConnections:
    def test_a_connection_that_breaks(self, client, cluster, array, objects, wait_until):
        """The scheduler has ended our leases, so nothing from before may be used again."""
        before = client.submit(total, array)
        assert before.result() == array.sum()
        cluster.loop.add_callback(cluster.scheduler.client_comms[client.id].abort)
        wait_until(before.cancelled)
        wait_until(lambda: client.ps_stats().lifetimes == "graph")
        after = client.submit(total, array)
        assert after.result() == array.sum()
        assert client.ps_stats().puts == 2

    def test_one_that_breaks_while_a_call_is_on_its_way(
        self, client, cluster, array, objects, wait_until, monkeypatch
    ):
        """What was stored before it is gone: not for this call only, nobody may get it again."""

        def break_off() -> None:
            monkeypatch.undo()
            before = client._ps.leases.prefix
            cluster.loop.add_callback(cluster.scheduler.client_comms[client.id].abort)
            wait_until(lambda: client._ps.leases.prefix != before)
            wait_until(lambda: client.ps_stats().lifetimes == "graph")

        with Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as other:
            monkeypatch.setattr(_LookedAt, "then", staticmethod(break_off))
            broken = client.submit(total, array, times=_LookedAt())
            assert isinstance(broken.exception(), ProxyResolveMissingKeyError)
            assert client.submit(total, array).result() == array.sum()
            assert other.submit(total, array, times=2).result() == 2 * array.sum()
            del broken

    @pytest.mark.parametrize("what", ["look", "answer"])
    def test_a_scheduler_that_cannot_at_the_moment(
        self, client, cluster, objects, monkeypatch, wait_until, array, what
    ):
        """Others go on as they were, and this client keeps its objects itself."""
        with Client(
            cluster, ps_store=objects.store, ps_threshold="50 kB", ps_results="large"
        ) as other:
            theirs = other.submit(add_one, array, key="theirs")
            wait(theirs)
            if what == "look":
                plugin = cluster.scheduler.plugins["proxystore"]
                seen = {"reachable": False, "unreadable": ""}
                monkeypatch.setattr(plugin._stores, "_see", lambda probe: seen)
            else:
                monkeypatch.setattr(Client, "_ps_ask", _no_answer)
            cluster.loop.add_callback(cluster.scheduler.client_comms[client.id].abort)
            wait_until(lambda: client.ps_stats().lifetimes == "client")
            monkeypatch.undo()
            # A known key: its task mentions another object, and `held` needs this one.
            known = [client.submit(total, array + i, key="known") for i in range(2)]
            held = known[1]
            assert client.submit(total, array + 1, times=2).result() == 2 * (array + 1).sum()
            wait_until(lambda: "known" in cluster.scheduler.tasks)
            wait_until(lambda: len(cluster.scheduler.tasks) == 2)
            assert client.submit(total, array + 1, times=3).result() == 3 * (array + 1).sum()
            assert np.array_equal(theirs.result(), array + 1)
            del known, held, theirs

    @pytest.mark.parametrize("then", ["it answers", "it breaks again", "the client closes"])
    def test_one_that_breaks_while_a_worker_does_not_answer(
        self, then, client, cluster, array, tmp_path, wait_until
    ):
        """What is asked of all workers keeps nobody from hearing of tasks on the others."""
        silent, other = cluster.scheduler.workers
        started, go = tmp_path / "started", tmp_path / "go"

        async def keep_silent() -> None:
            wait_for([], str(started), str(go))

        def works() -> bool:
            result = client.submit(total, array, workers=[other], pure=False).result(timeout=10)
            return bool(result == array.sum())

        client.run(keep_silent, workers=[silent], wait=False)
        wait_until(started.exists)
        try:
            break_connection(client, cluster, wait_until)
            assert works()
            if then == "it breaks again":
                break_connection(client, cluster, wait_until)
                assert works()
            if then == "the client closes":
                client.close(timeout=10)
            else:
                assert client.ps_stats().lifetimes is None
        finally:
            go.touch()
        if then != "the client closes":
            wait_until(lambda: client.ps_stats().lifetimes == "graph")
            assert works()
            assert client.ps_stats().puts == 1

    def test_one_that_breaks_while_the_client_asks_the_next_one(
        self, client, cluster, objects, monkeypatch, wait_until
    ):
        """It leaves nothing of what it asked with."""
        asks, go, has_asked = threading.Event(), threading.Event(), threading.Event()
        put = objects.store.put_dumped

        def put_slowly_once(*args: Any, **kwargs: Any) -> Any:
            if asks.is_set():
                return put(*args, **kwargs)
            asks.set()
            assert go.wait(30)
            key = put(*args, **kwargs)
            has_asked.set()
            return key

        monkeypatch.setattr(objects.store, "put_dumped", put_slowly_once)
        break_connection(client, cluster, wait_until)
        assert asks.wait(20)
        break_connection(client, cluster, wait_until)
        wait_until(lambda: client.ps_stats().lifetimes == "graph")
        go.set()
        assert has_asked.wait(20)
        objects.wait_until_empty()

    def test_closed_while_it_connects_again(
        self, cluster, array, tmp_path, wait_until, monkeypatch
    ):
        """The scheduler keeps what a task needs that the program does not wait for."""
        started, go = tmp_path / "started", tmp_path / "go"
        store = Store("closed-again", FileConnector(tmp_path / "kept"))
        client = Client(cluster, ps_store=store, ps_threshold="50 kB")
        future = client.submit(wait_for, array, str(started), str(go))
        fire_and_forget(future)
        wait_until(started.exists)
        task = cluster.scheduler.tasks[future.key]
        wait_until(lambda: len(task.who_wants) == 2)  # the client, and nobody
        asking = threading.Event()

        async def ask(self: Client, probe: bytes) -> Any:
            asking.set()
            await asyncio.sleep(30)

        monkeypatch.setattr(Client, "_ps_ask_workers", ask)
        cluster.loop.add_callback(cluster.scheduler.client_comms[client.id].abort)
        assert asking.wait(10)
        client.close()
        store.close()
        assert [path for path in (tmp_path / "kept").iterdir() if path.name[0] != "."]
        go.touch()
        wait_until(lambda: not (tmp_path / "kept").exists())


class TestOfNoHelp:
    def test_one_that_cannot_read_references(self, processes, array, tmp_path, caplog):
        """Graphs with them would not survive there."""
        processes.start_scheduler(search_path="")
        processes.start_worker()
        with (
            Store("own-keys", KeysOfItsOwn(tmp_path / "objects")) as store,
            Client(processes.address, ps_store=store, ps_threshold="50 kB") as client,
        ):
            assert "as in plain Dask" in caplog.text
            assert "No module named 'dask_tasks'" in caplog.text
            assert client.submit(np.sum, array).result() == array.sum()
            assert client.ps_stats().puts == 0

    def test_one_that_cannot_import_us(self, processes, objects, array, tmp_path, caplog):
        """Arguments travel as in plain Dask: load nodes would not survive there."""
        without = tmp_path / "without" / "proxystore_dask"
        without.mkdir(parents=True)
        (without / "__init__.py").write_text("raise ImportError('not installed here')")
        processes.start_scheduler(f"{without.parent}{os.pathsep}{SEARCH_PATH}")
        processes.start_worker()
        with Client(processes.address, ps_store=objects.store, ps_threshold="50 kB") as client:
            assert "as in plain Dask" in caplog.text
            assert "not installed here" in caplog.text
            assert "none in use" in repr(client)
            assert client.submit(total, array).result() == array.sum()
            assert client.gather(client.map(total, [array], [1])) == [array.sum() + 1]
            assert client.ps_stats().puts == 0

    def test_one_that_allows_no_plugins(self, strict_cluster, objects, array, caplog):
        """Objects stay until the client closes, and the client says so."""
        with Client(strict_cluster, ps_store=objects.store, ps_threshold="50 kB") as client:
            assert "until this client closes" in caplog.text
            assert "until the client closes" in repr(client)
            assert client.submit(total, array).result() == array.sum()
            assert client.submit(total, array + 1).result() == (array + 1).sum()
            client._ps.leases.ledger.flush()
            assert len(objects) == 2
        assert len(objects) == 0

    def test_one_that_has_the_plugin_and_allows_no_others(self, strict_cluster, objects, array):
        async def preload() -> None:
            scheduler = strict_cluster.scheduler
            await scheduler.register_scheduler_plugin(StoreLifetimes(), idempotent=True)

        loop = strict_cluster.loop.asyncio_loop
        asyncio.run_coroutine_threadsafe(preload(), loop).result(10)
        with Client(strict_cluster, ps_store=objects.store, ps_threshold="50 kB") as client:
            assert client.ps_stats().lifetimes == "graph"
            assert client.submit(total, array).result() == array.sum()
            objects.wait_until_empty()

    @pytest.fixture
    def strict_cluster(self) -> Iterator[LocalCluster]:
        """One that takes no plugin from a client."""
        with LocalCluster(
            n_workers=1,
            processes=False,
            dashboard_address=":0",
            scheduler_kwargs={"blocked_handlers": ["register_scheduler_plugin"]},
        ) as cluster:
            yield cluster


class TestStoresOfProgramsThatEnd:
    """A store is its process's; a scheduler keeps it on while tasks need it."""

    PROGRAM = """
import os, sys, time
import numpy as np
from dask_tasks import add_one, total, wait_for
from distributed import fire_and_forget, wait
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore_dask import Client
if __name__ == "__main__":
    address, directory, ends = sys.argv[1:]
    store = None
    if ends == "closes its own":
        store = Store("own", FileConnector(os.path.join(directory, "store")))
    client = Client(address, ps_store=store, ps_threshold="50 kB")
    array = np.arange(20_000.0)
    made = [
        client.submit(add_one, array, ps_results=of, pure=False) for of in ("large", "durable")
    ]
    wait(made)
    client.publish_dataset(made=made)
    started, go = (os.path.join(directory, name) for name in ("started", "go"))
    fire_and_forget(client.submit(wait_for, array, started, go, key="fired"))
    while not os.path.exists(started):
        time.sleep(0.01)
    print(client.ps_store.connector.store_dir, flush=True)
    if ends == "killed":
        os.kill(os.getpid(), 9)
    if ends.startswith("closes"):
        client.close()
    if store is not None:
        store.close()
"""

    @pytest.mark.parametrize("ends", ["closes", "closes its own", "just ends", "killed"])
    def test_what_tasks_still_need(self, processes, array, tmp_path, wait_until, ends):
        processes.start_scheduler()
        processes.start_worker()
        program = tmp_path / "program.py"
        program.write_text(self.PROGRAM)
        ended = subprocess.run(
            [sys.executable, str(program), processes.address, str(tmp_path), ends],
            env={**os.environ, "PYTHONPATH": SEARCH_PATH},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert ended.returncode == (-signal.SIGKILL if ends == "killed" else 0)
        directory = Path(ended.stdout.strip())

        def keys(dask_scheduler: Any) -> list[str]:
            return list(dask_scheduler.tasks)

        def places(dask_scheduler: Any) -> int:
            return len(dask_scheduler.plugins["proxystore"]._places)

        with DaskClient(processes.address) as plain:
            wait_until(lambda: not plain.run_on_scheduler(places))
            assert directory.exists()
            (tmp_path / "go").touch()
            published = plain.get_dataset("made")
            assert plain.gather(plain.map(total, published)) == [(array + 1).sum()] * 2
            wait_until(lambda: "fired" not in plain.run_on_scheduler(keys))
            del published
            plain.unpublish_dataset("made")
            wait_until(lambda: not directory.exists())
            assert not directory.with_suffix(".owner").exists()

    def test_of_a_last_task_that_has_stored_nothing(self, processes, tmp_path, wait_until):
        processes.start_scheduler()
        processes.start_worker()
        program = tmp_path / "program.py"
        program.write_text("""
import os, sys, time
from dask_tasks import fail, wait_for
from distributed import fire_and_forget
from proxystore_dask import Client
if __name__ == "__main__":
    address, directory = sys.argv[1:]
    started, go = (os.path.join(directory, name) for name in ("started", "go"))
    with Client(address) as client:
        waiting = client.submit(wait_for, 1, started, go)
        fire_and_forget(client.submit(fail, waiting, ps_results="durable"))
        while not os.path.exists(started):
            time.sleep(0.01)
        print(client.ps_store.connector.store_dir, flush=True)
""")
        ended = subprocess.run(
            [sys.executable, str(program), processes.address, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": SEARCH_PATH},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        directory = Path(ended.stdout.strip())
        assert directory.exists()  # its program has ended, and a task may want to store something
        (tmp_path / "go").touch()
        wait_until(lambda: not directory.with_suffix(".owner").exists())
        assert not directory.exists()

    def test_what_they_need_when_the_scheduler_ends(self, processes, tmp_path, wait_until):
        """Then no task will, and the store that the program has closed is cleared."""
        processes.start_scheduler()
        processes.start_worker()
        program = tmp_path / "program.py"
        program.write_text(self.PROGRAM)
        subprocess.run(
            [sys.executable, str(program), processes.address, str(tmp_path), "closes its own"],
            env={**os.environ, "PYTHONPATH": SEARCH_PATH},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        assert (tmp_path / "store").exists()
        processes.scheduler.terminate()
        processes.scheduler.wait()
        assert not (tmp_path / "store").exists()

    def test_a_scheduler_that_was_killed_before(self, processes, objects, tmp_path):
        """A program that closes nothing evicts in its place when it exits."""
        processes.start_scheduler()
        processes.start_worker()
        program = tmp_path / "program.py"
        program.write_text(f"""
import os, sys, time
import numpy as np
from dask_tasks import add_one
from distributed import wait
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore_dask import Client
if __name__ == "__main__":
    store = Store("left", FileConnector({str(objects.directory)!r}, clear=False))
    client = Client({processes.address!r}, ps_store=store, ps_threshold="50 kB")
    array = np.arange(20_000.0)
    made = [client.submit(add_one, array + i, ps_results=of) for i, of in enumerate({STORED!r})]
    wait(made)
    print(len(os.listdir({str(objects.directory)!r})), flush=True)
    sys.stdin.readline()
""")
        with subprocess.Popen(
            [sys.executable, str(program)],
            env={**os.environ, "PYTHONPATH": SEARCH_PATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as running:
            assert int(running.stdout.readline()) == 4
            processes.kill_scheduler()
            running.communicate("go on\n")
        assert len(objects) == 0

    def test_the_scheduler_ends_first(self, processes, array, tmp_path, wait_until):
        """Then nobody keeps the store but its process."""
        processes.start_scheduler()
        processes.start_worker()
        with Client(processes.address, ps_threshold="50 kB", timeout="2 s") as client:
            assert client.submit(total, array).result() == array.sum()
            directory = Path(client.ps_store.connector.store_dir)
            processes.scheduler.terminate()
            processes.scheduler.wait()
        assert directory.exists()
        assert directory.with_suffix(".owner").exists()
