"""The messages of docs/troubleshooting.md are those that are raised, word for word.

Each is raised here for real, and compared with a block of the page, which stands after
a comment ``<!-- raised by: NAME -->``; ``…`` in the block is whatever varies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.redis import RedisConnector
from proxystore.proxy import ProxyResolveError
from proxystore.store import Store, StoreConfig
from proxystore.testing.redis_server import RedisServer

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
BLOCKS = dict(
    re.findall(
        r"^ *<!-- raised by: (\w+) -->\n *```text\n(.*?)\n *```$", PAGE, re.DOTALL | re.MULTILINE
    )
)
# Whoever pickles with dill, as Parsl does, gets through with a lock or a file.
UNPICKLABLE = sqlite3.connect(":memory:")


def check(name: str, found: str | BaseException) -> None:
    """Assert that the page's block of a name is what is found: a message, or an error."""
    if isinstance(found, BaseException):
        found = "".join(traceback.format_exception_only(found))
    parts = (re.escape(part) for part in " ".join(BLOCKS[name].split()).split("…"))
    assert re.fullmatch("(.+?)".join(parts), " ".join(found.split())), found


def raised(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Call a function and assert that it raises what the page says."""
    try:
        function(*args, **options)
    except Exception as error:  # noqa: BLE001 - which it is, is compared
        check(name, error)
    else:
        pytest.fail(f"{name}: nothing was raised")


def test_every_message_is_raised_here() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    named = re.findall(r'(?:check|raised)\(\s*"(\w+)"', tests)
    assert sorted(named) == sorted(BLOCKS)
    assert PAGE.count("```text") == len(BLOCKS)


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store[Any]]:
    # A name for each test: workers remember the stores that they have opened.
    name = f"campaign-{tmp_path.name}"
    with Store(name, FileConnector(tmp_path / "objects"), register=True) as store:
        yield store


# ------------------------------------------------------------------------ without a cluster


def test_object_is_gone(store: Store[Any]) -> None:
    proxy = store.proxy([1, 2, 3], populate_target=False)
    store.evict(proxy.__proxy_factory__.key)
    with pytest.raises(ProxyResolveError) as caught:
        proxy[0]
    check("object_is_gone", caught.value)


def test_store_is_closed(tmp_path: Path) -> None:
    store = Store("campaign", FileConnector(tmp_path / "objects"))
    store.close()
    raised("store_is_closed", store.put, [1, 2, 3])


def test_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs to be root")
    try:
        with Store("campaign", FileConnector(small, clear=False)) as store:
            raised("full", store.put, np.ones(1_000_000))
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_connector_of_a_script(tmp_path: Path) -> None:
    config = StoreConfig(
        name="campaign",
        connector={"kind": "__main__.MyConnector", "options": {"store_dir": str(tmp_path)}},
    )
    raised("connector_of_a_script", Store.from_config, config)


def test_two_stores_of_one_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = StoreConfig(
        name="campaign", connector={"kind": "file", "options": {"store_dir": str(tmp_path / "a")}}
    )
    with Store.from_config(config) as there:
        proxy = there.proxy([1, 2, 3], populate_target=False)
        with Store("campaign", FileConnector(tmp_path / "b"), register=True):
            assert proxy[0] == 1
    check("two_stores_of_one_name", caplog.messages[-1])


def test_c_functions(store: Store[Any]) -> None:
    raised("json", json.dumps, store.proxy({"a": 1}))
    raised("memoryview", memoryview, store.proxy(b"abc"))  # type: ignore[arg-type] # its error
    raised("join", "".join, [store.proxy("abc")])
    raised("constants", store.proxy, None)
    array = np.ones(3)
    raised("out", np.add, array, array, out=store.proxy(array))


def test_module_that_is_not_here(store: Store[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("only_there")
    module.Thing = type("Thing", (), {"__module__": "only_there"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "only_there", module)
    key = store.put(module.Thing())
    monkeypatch.delitem(sys.modules, "only_there")
    raised("not_here", store.get, key)


def test_redis_is_out_of_reach(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    store = Store("campaign", RedisConnector(url=f"unix://{socket}"))
    raised("redis_is_out_of_reach", store.put, [1, 2, 3])


def test_redis_without_a_password_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_PASSWORD", raising=False)
    raised("redis_password", RedisConnector, "login1", 6379, password_env="REDIS_PASSWORD")


@pytest.mark.redis
def test_redis_with_another_password(own_redis_server: RedisServer) -> None:
    import redis

    server = own_redis_server
    with redis.Redis(port=server.port) as admin:
        admin.config_set("requirepass", "right")
        connector = RedisConnector("127.0.0.1", server.port, password="wrong")
        raised("redis_other_password", Store("campaign", connector).put, [1, 2, 3])


@pytest.mark.redis
def test_redis_is_full(own_redis_server: RedisServer) -> None:
    import redis

    server = own_redis_server
    with redis.Redis(port=server.port) as admin:
        admin.config_set("maxmemory", 1)
        store = Store("campaign", RedisConnector("127.0.0.1", server.port))
        raised("redis_is_full", store.put, np.ones(250_000))


@pytest.mark.skipif(not importlib.util.find_spec("distributed"), reason="needs distributed")
def test_the_other_distribution(tmp_path: Path) -> None:
    """It has the same import name, and not all of the same modules."""
    for package in ("proxystore", "proxystore/store", "proxystore/connectors"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("Store = StoreConfig = None\n")
    (tmp_path / "proxystore/store/exceptions.py").write_text("ProxyResolveMissingKeyError = None\n")
    done = subprocess.run(
        [sys.executable, "-c", "import proxystore_dask"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    check("the_other_distribution", done.stderr.splitlines()[-1])


LEFT_BEHIND = """
import logging, os, signal
logging.basicConfig(level=logging.INFO)
from proxystore.workflow import open_store
open_store(None).put("left behind")
if os.environ.get("DIE"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_programs(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(LEFT_BEHIND)
    for die in ("yes", ""):
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env={**os.environ, "DIE": die, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    (line,) = (line for line in done.stderr.splitlines() if "keeping large objects" in line)
    check("killed_programs", line)


# ------------------------------------------------------------------------------------- Dask


def total(data: Any, scale: Any = 1) -> float:
    return float(data.sum())


def own_process_dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def a_connection() -> Any:
    import sqlite3

    return sqlite3.connect(":memory:")


def log_into(path: str) -> None:
    logging.getLogger("proxystore_dask").addHandler(logging.FileHandler(path))


@pytest.fixture(scope="module")
def clusters() -> Iterator[tuple[Any, Any]]:
    """Two of them: with a worker process here, and with one on what seems to be another host."""
    distributed = pytest.importorskip("distributed")
    options = {"host": "127.0.0.1", "dashboard_address": ":0", "threads_per_worker": 1}
    with (
        ThreadPoolExecutor() as pool,
        distributed.LocalCluster(n_workers=0, **options) as far,
        contextlib.ExitStack() as stack,
    ):
        # Of its own: the host's name, and what is in the directories for objects.
        setup = "hostname node2 && mount -t tmpfs tmpfs /dev/shm && "
        worker = f"exec {sys.executable} -m distributed.cli.dask_worker --no-nanny --no-dashboard"
        process = subprocess.Popen(
            [
                "unshare",
                "--uts",
                "--mount",
                "sh",
                "-c",
                f"{setup} {worker} {far.scheduler_address}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        near = pool.submit(distributed.LocalCluster, n_workers=1, **options)
        with near.result() as cluster:
            yield cluster, far


@pytest.fixture
def cluster(clusters: tuple[Any, Any]) -> Any:
    clusters[0].wait_for_workers(1, timeout=30)
    return clusters[0]


@pytest.fixture
def far(clusters: tuple[Any, Any]) -> Any:
    if subprocess.run(["unshare", "--uts", "--mount", "true"], check=False).returncode:
        pytest.skip("a host name of one's own needs to be root")
    clusters[1].wait_for_workers(1, timeout=30)
    return clusters[1]


@pytest.fixture
def scheduler_without_us(tmp_path: Path, unused_tcp_port: int) -> Iterator[str]:
    """One in a process that cannot import proxystore_dask."""
    pytest.importorskip("distributed")
    hidden = tmp_path / "proxystore_dask"
    hidden.mkdir()
    error = "ModuleNotFoundError(\"No module named 'proxystore_dask'\")"
    (hidden / "__init__.py").write_text(f"raise {error}")
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    with subprocess.Popen(
        [*scheduler, "--host", "127.0.0.1", "--port", str(unused_tcp_port)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        yield f"tcp://127.0.0.1:{unused_tcp_port}"
        process.kill()


@pytest.mark.dask
class TestDask:
    def test_memory_of_another_node(self, far: Any, caplog: pytest.LogCaptureFixture) -> None:
        from proxystore_dask import Client

        with Store("campaign", FileConnector("/dev/shm/campaign-of-test")) as store:
            raised("dask_out_of_reach", Client, far, ps_store=store)
        Client(far).close()
        if "/dev/shm" not in caplog.text:
            pytest.skip("/dev/shm is too small to be taken by itself")
        (message,) = (text for text in caplog.messages if "as in plain Dask" in text)
        check("dask_default_out_of_reach", message)

    def test_unpicklable_argument(self, cluster: Any) -> None:
        from proxystore_dask import Client

        with Client(cluster) as client:
            weights = {"weights": [UNPICKLABLE]}
            raised("dask_argument", client.submit, total, np.ones(1_000_000), weights)

    def test_results_that_stay_in_dask(self, cluster: Any, tmp_path: Path) -> None:
        import distributed

        from proxystore_dask import Client

        with Client(cluster) as client:
            client.run(log_into, str(tmp_path / "log"))
            for results in (0, "durable"):
                future = client.submit(a_connection, ps_results=results, pure=False)
                distributed.wait(future)
        stays, is_lost = (tmp_path / "log").read_text().splitlines()
        check("dask_result_stays", stays)
        check("dask_result_is_not_kept", is_lost)

    def test_proxy_in_place_of_an_iterable(self, cluster: Any, store: Store[Any]) -> None:
        from proxystore_dask import Client

        with Client(cluster) as client:
            raised("dask_iterator", client.scatter, store.proxy([1, 2, 3]))

    def test_closures(self, cluster: Any) -> None:
        from proxystore_dask import Client

        data = np.ones(2_000_000)
        with (
            Client(cluster) as client,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            client.submit(lambda: data.sum()).result()
        check("closures", str(caught[0].message))

    def test_worker_that_does_not_answer(
        self, cluster: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        import dask
        import distributed

        from proxystore_dask import Client

        with distributed.Client(cluster) as plain:
            (pid,) = plain.run(os.getpid).values()
        os.kill(pid, signal.SIGSTOP)
        try:
            with dask.config.set({"distributed.comm.timeouts.connect": "1 s"}):
                Client(cluster).close()
        finally:
            os.kill(pid, signal.SIGCONT)
        (message,) = (text for text in caplog.messages if "has not said" in text)
        check("dask_no_answer", message)

    def test_scheduler_without_the_package(
        self, scheduler_without_us: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        from proxystore_dask import Client

        Client(scheduler_without_us).close()
        (message,) = (text for text in caplog.messages if "as in plain Dask" in text)
        check("dask_no_package", message)

    def test_scheduler_without_plugins(self, caplog: pytest.LogCaptureFixture) -> None:
        import distributed

        from proxystore_dask import Client

        with (
            distributed.LocalCluster(
                n_workers=0,
                host="127.0.0.1",
                dashboard_address=":0",
                scheduler_kwargs={"blocked_handlers": ["register_scheduler_plugin"]},
            ) as strict,
            Client(strict),
        ):
            (message,) = (text for text in caplog.messages if "until this client" in text)
        check("dask_no_plugins", message)

    def test_killed_worker(self, cluster: Any) -> None:
        """The last one: its nanny takes a while to start another worker."""
        from proxystore_dask import Client

        with Client(cluster) as client:
            cluster.scheduler.allowed_failures = 0
            future = client.submit(own_process_dies, key="own_process_dies-1")
            raised("dask_killed_worker", future.result)


# ------------------------------------------------------------------------------------ Parsl


def ramp(n: int) -> Any:
    import numpy

    return numpy.arange(n)


def until_there(path: str) -> None:
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.05)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    parsl = pytest.importorskip("parsl")
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    from proxystore_parsl import StoreMemoizer

    executor = HighThroughputExecutor(
        label="cpu",
        address="127.0.0.1",
        loopback_address="127.0.0.1",
        max_workers_per_node=1,
        cores_per_worker=1e-6,
        encrypted=False,
        provider=LocalProvider(
            init_blocks=1,
            max_blocks=1,
            worker_init=f"export PYTHONPATH={ROOT}:$PYTHONPATH",
        ),
    )
    config = parsl.Config(
        executors=[executor],
        run_dir=str(tmp_path_factory.mktemp("run")),
        strategy="none",
        initialize_logging=False,
        memoizer=StoreMemoizer(),
    )
    with pytest.MonkeyPatch.context() as patch:
        # Parsl starts its helper programs by name.
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        kernel = parsl.DataFlowKernel(config)
        yield kernel
        kernel.cleanup()


@pytest.fixture
def apps(store: Store[Any]) -> Iterator[Any]:
    from proxystore_parsl import StoreApps

    with StoreApps(store) as apps:
        yield apps


@pytest.mark.parsl
class TestParsl:
    def test_arguments_and_results(self, apps: Any, kernel: Any) -> None:
        app = apps.python_app(total, data_flow_kernel=kernel)
        raised("parsl_argument", app, np.ones(1_000_000), UNPICKLABLE)
        future = apps.python_app(a_connection, data_flow_kernel=kernel)()
        raised("parsl_result", future.result)

    def test_object_is_gone(self, apps: Any, store: Store[Any], kernel: Any) -> None:
        data = apps.put(np.ones(1_000_000))
        store.evict(data.__proxy_factory__.key)
        future = apps.python_app(total, data_flow_kernel=kernel)(data)
        raised("parsl_object_is_gone", future.result)

    def test_store_out_of_reach(self, apps: Any, store: Store[Any], kernel: Any) -> None:
        data = apps.put(np.ones(1_000_000))
        directory = Path(store.connector.store_dir)
        away = directory.rename(directory.with_name("away"))
        directory.touch()
        try:
            future = apps.python_app(total, data_flow_kernel=kernel)(data)
            raised("parsl_out_of_reach", future.result)
        finally:
            directory.unlink()
            away.rename(directory)

    def test_no_store_for_an_executor(self, store: Store[Any], kernel: Any) -> None:
        from proxystore_parsl import StoreApps

        with StoreApps({"gpu": store}) as apps:
            app = apps.python_app(total, data_flow_kernel=kernel)
            raised("parsl_no_store", app, np.ones(1_000_000))

    def test_closed(self, store: Store[Any], kernel: Any, tmp_path: Path) -> None:
        from proxystore_parsl import StoreApps

        with StoreApps(store) as apps:
            app = apps.python_app(until_there, data_flow_kernel=kernel)
            future = app(str(tmp_path / "there"))
        (tmp_path / "there").touch()  # it was not, while `apps` was closed
        raised("parsl_closed", future.result)

    def test_memoized_result_is_gone(
        self, apps: Any, store: Store[Any], kernel: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = apps.python_app(ramp, data_flow_kernel=kernel, cache=True)
        first = app(1_000_000)
        store.evict(first.result().__proxy_factory__.key)
        with caplog.at_level(logging.WARNING, logger="parsl.proxystore"):
            assert app(1_000_000).result()[-1] == 999_999
        (message,) = (text for text in caplog.messages if "is run again" in text)
        check("parsl_memo", message)


@pytest.mark.parsl
def test_parsl_off_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsl = pytest.importorskip("parsl")
    from parsl.executors import HighThroughputExecutor

    monkeypatch.setenv("PATH", "/nowhere")
    executor = HighThroughputExecutor(address="127.0.0.1", encrypted=False)
    config = parsl.Config(executors=[executor], run_dir=str(tmp_path), initialize_logging=False)
    raised("parsl_path", parsl.DataFlowKernel, config)
