"""Defects of the other implementation that no other test would notice here.

The table in docs/compat.md says for each of its rows which tests would.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future as PlainFuture
from pathlib import Path

import numpy as np
import pytest

from proxystore.connectors.exceptions import ForeignObjectError
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.connectors.multi import MultiConnector, Policy
from proxystore.proxy import Proxy, ProxyResolveError, is_resolved
from proxystore.serialize import SerializationError
from proxystore.store import (
    Store,
    _registry,
    get_or_create_store,
    get_store,
    register_store,
    store_registration,
    unregister_store,
)
from proxystore.store.config import ConnectorConfig, StoreConfig
from proxystore.store.exceptions import ProxyResolveTimeoutError
from proxystore.store.factory import StoreFactory
from proxystore.store.utils import get_key
from proxystore.workflow import Ledger, Packer, unpack

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs to be root")


class Counted(FileConnector):
    """Counts those that are open."""

    opened = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        type(self).opened += 1

    def close(self, clear=None):
        super().close(clear)
        type(self).opened -= 1


@pytest.fixture
def names():
    """Whatever a test leaves in the registry is removed."""
    before = set(_registry._stores)
    yield
    for name in set(_registry._stores) - before:
        unregister_store(name)


@pytest.fixture
def files(tmp_path, request):
    name = f"rows-{request.node.name}"
    with Store(name, FileConnector(tmp_path / "objects"), register=True) as store:
        yield store


def run(code: str, *arguments: object, **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True, timeout=60, **options)


# -- objects and their cache


def test_without_a_cache_each_proxy_has_an_object_of_its_own(tmp_path):
    """What a task does to its object no other task sees, where nothing is cached (row 30)."""
    with Store("apart", FileConnector(tmp_path / "s"), cache_size=0, register=True) as store:
        key = store.put([1])
        first, second = store.proxy_from_key(key), store.proxy_from_key(key)
        first.append(2)
        assert second == [1]
        second.append(3)
        assert (first, second) == ([1, 2], [1, 3])
        assert store.proxy_from_key(key) == [1]


def _fail(message: str, data: bytes) -> None:
    raise ZeroDivisionError(message)


class Nameless:
    def __init__(self, message):
        self.message = message

    def __call__(self, data):
        _fail(self.message, data)


@pytest.mark.parametrize(
    "deserializer",
    [functools.partial(_fail, "in it"), Nameless("in it"), Nameless("in it").__call__],
    ids=["partial", "instance", "method"],
)
def test_a_deserializer_without_a_name_shows_why_it_fails(files, deserializer):
    """Whichever way it is called, the cause is there and the key is named (row 31)."""
    key = files.put([1])
    proxy = files.proxy_from_key(key, deserializer=deserializer)
    with pytest.raises(ProxyResolveError) as wrapped:
        len(proxy)
    with pytest.raises(SerializationError) as single:
        files.get(key, deserializer=deserializer)
    with pytest.raises(SerializationError) as batch:
        files.get_batch([key], deserializer=deserializer)
    with Store("nameless", files.connector, deserializer=deserializer) as own:
        with pytest.raises(SerializationError) as store_wide:
            own.get(key)
        for error in (wrapped.value.cause, single.value, batch.value, store_wide.value):
            assert type(error) is SerializationError
            assert type(error.__cause__) is ZeroDivisionError
            assert key.filename in str(error)
            assert "in it" in str(error)
        own.connector = LocalConnector()  # closing it leaves ours alone


def test_every_batch_may_be_an_iterator():
    """What can be gone through once is not silently empty (row 32)."""
    with Store("iterators", LocalConnector(), register=True) as store:
        keys = store.put_batch(iter([[1], [2]]))
        assert store.get_batch(iter(keys)) == [[1], [2]]
        assert store.proxy_batch(x for x in ([3], [4])) == [[3], [4]]
        mixed = store.proxy_batch(iter([None, [5]]), skip_nonproxiable=True)
        assert mixed == [None, [5]]


def test_a_container_of_proxies_is_stored_by_reference(files):
    """Storing it neither fetches their targets nor copies them (row 45)."""
    large = [files.put(np.zeros(100_000)), files.put("x" * 800_000)]
    proxies = {"a": [files.proxy_from_key(key) for key in large]}
    key = files.put(proxies)
    assert os.stat(f"{files.connector.store_dir}/{key.filename}").st_size < 1000
    again = files.get(key, cache=False)["a"]
    for proxy in (*proxies["a"], *again):
        assert type(proxy) is Proxy
        assert not is_resolved(proxy)
    assert [len(proxy) for proxy in again] == [100_000, 800_000]


# -- the registry


@pytest.mark.parametrize("same_place", [True, False])
def test_a_store_that_is_registered_while_a_proxy_makes_one(
    tmp_path, names, monkeypatch, same_place
):
    """The proxy gets its own store's objects, and no connector is left open (row 33)."""
    monkeypatch.setattr(Counted, "opened", 0)
    maker = Store("raced", Counted(tmp_path / "s"))
    proxy = maker.proxy([1], populate_target=False)
    rival = Store("raced", Counted(tmp_path / ("s" if same_place else "other")))
    connect = ConnectorConfig.get_connector

    def get_connector(self):
        made = connect(self)
        if get_store("raced") is None:
            register_store(rival)
        return made

    monkeypatch.setattr(ConnectorConfig, "get_connector", get_connector)
    assert proxy == [1]
    assert get_store("raced") is rival
    assert (get_store(proxy) is rival) is same_place
    assert Counted.opened == (2 if same_place else 3)


def test_the_end_of_a_registration_leaves_another_store_of_that_name(names):
    """A block unregisters its own stores, not what has taken a name since (row 34)."""
    first, second = Store("taken-over", LocalConnector()), Store("taken-over", LocalConnector())
    with store_registration(first):
        register_store(second, exist_ok=True)
    assert get_store("taken-over") is second


def test_stores_that_are_forgotten_are_given_up(tmp_path, names):
    """Their caches and connectors are collected, and nothing is kept of a name (row 36)."""

    def use(i):
        options = {"store_dir": str(tmp_path / "s")}
        config = StoreConfig(name=f"job-{i}", connector={"kind": "file", "options": options})
        return get_or_create_store(config)

    first = use(0)
    first.get(first.put([0]))
    gone = [weakref.ref(x) for x in (first, first.cache, first.connector)]
    del first
    for i in range(1, _registry._MOST_GUESTS + 1):
        use(i)
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    assert not _registry._making


@pytest.mark.redis
def test_stores_of_many_jobs_do_not_pile_up_connections(own_redis_server, names):
    """A worker that has seen many names has no more connections than stores (row 36)."""
    from proxystore.connectors.redis import RedisConnector

    with RedisConnector("localhost", own_redis_server.port) as connector:
        maker = Store("maker", connector)
        key = maker.put([1])
        connector_config = maker.config().connector
        for i in range(2 * _registry._MOST_GUESTS):
            config = StoreConfig(name=f"job-{i}", connector=connector_config)
            assert Proxy(StoreFactory(key, config)) == [1]
        gc.collect()
        connected = len(connector._client.client_list())
        assert connected <= _registry._MOST_GUESTS + 1


# -- futures


def test_a_killed_producer_does_not_keep_its_consumers(files):
    """Who waits for a process that cannot tell any more waits as long as said (row 44)."""
    future = files.future(polling_interval=0.01, polling_timeout=0.1)
    code = """if True:
        import os, pickle, signal, sys
        future = pickle.load(sys.stdin.buffer)
        with future.producing():
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(subprocess.CalledProcessError) as killed:
        run(code, input=pickle.dumps(future))
    assert killed.value.returncode == -9
    assert not future.done()
    for wait in (future.result, future.exception, lambda: asyncio.run(_await(future))):
        with pytest.raises(ProxyResolveTimeoutError):
            wait()
    with pytest.raises(ProxyResolveError) as wrapped:
        len(future.proxy())
    assert isinstance(wrapped.value.cause, ProxyResolveTimeoutError)


async def _await(future):
    return await future


@pytest.mark.parametrize("by", ["this store", "another store"])
@pytest.mark.parametrize("got", [True, False])
def test_done_says_what_result_does_after_an_eviction(files, by, got):
    """Whoever has evicted it, and whether it is cached here or not (row 44)."""
    future = files.future()
    future.set_result([1])
    if got:
        assert future.result() == [1]
    other = Store("other", FileConnector(files.connector.store_dir))
    (files if by == "this store" else other).evict(get_key(future.proxy()))
    try:
        future.result(0)
    except ProxyResolveTimeoutError:
        assert not future.done()
    else:
        assert future.done()
    assert future.done() is (got and by == "another store"), "only the cache still has it"


# -- proxies and what frameworks ask of them


class Plain:
    __hash__ = None


USES: list[Callable] = [iter, next, len, hash, lambda p: p(), lambda p: asyncio.run(_await(p))]


@pytest.mark.parametrize("use", USES, ids=["iter", "next", "len", "hash", "call", "await"])
def test_a_proxy_that_looks_able_fails_as_its_target_does(use):
    """The class promises what some targets cannot do: TypeError, of the target (row 48)."""
    with pytest.raises(TypeError, match=r"Plain|await"):
        use(Proxy(Plain))


def test_what_travels_with_a_framework_looks_like_nothing_it_is_not(tmp_path):
    """References, and the objects that functions get, are no awaitables or the like (row 48)."""
    with Store("inert", FileConnector(tmp_path / "s"), register=True) as store:
        ledger = Ledger(store)
        packer = Packer(ledger, threshold=1000, is_native=lambda x: isinstance(x, PlainFuture))
        packed = packer.pack(({"a": np.zeros(1000)}, Plain(), 3.5), {})
        (ref,) = packed.refs
        assert not isinstance(ref, Iterable | Awaitable | Callable)
        arguments = unpack(packed.args)
        assert [type(x) for x in (*arguments, arguments[0]["a"])] == [
            dict, Plain, float, np.ndarray
        ]  # fmt: skip
        for obj in (ref, *packed.args, *arguments):
            assert not inspect.isawaitable(obj)
            assert not callable(obj)
        for hold in packed.holds:
            hold.release()
        ledger.close()


# -- what stands in the place of parts that are not here


def test_no_module_can_be_imported_under_two_names():
    """Each class is found where it says it is, and each file is one module (row 53)."""
    code = """if True:
        import importlib, inspect, pkgutil, sys, warnings
        from proxystore.utils.imports import get_object_path, import_from_path
        warnings.simplefilter("ignore")
        for package in ("proxystore", "proxystore_dask", "proxystore_parsl"):
            try:
                path = importlib.import_module(package).__path__
            except ImportError:
                continue  # its framework is not installed
            for info in pkgutil.walk_packages(path, f"{package}."):
                try:
                    module = importlib.import_module(info.name)
                except ImportError:
                    continue
                for cls in vars(module).values():
                    if inspect.isclass(cls) and cls.__module__.startswith("proxystore"):
                        assert import_from_path(get_object_path(cls)) is cls, cls
        ours = {n: m for n, m in sys.modules.items() if n.startswith("proxystore")}
        files = [m.__file__ for m in ours.values()]
        assert len(files) > 40
        assert len(files) == len(set(files)), sorted(files)
        assert all(m.__name__ == n for n, m in ours.items())
    """
    run(code)


CLOSES = {
    "store": "get_store(proxy).close()",
    "context": "get_store(proxy).__exit__(None, None, None)",
    "lifetime": "ContextLifetime(get_store(proxy)).close(close_stores=True)",
    "static": "StaticLifetime().add_proxy(copy); StaticLifetime().close(close_stores=True)",
    "executor": "StoreExecutor(ThreadPoolExecutor(1), get_store(proxy)).shutdown()",
}

CONSUMER = """
import pickle, sys
from concurrent.futures import ThreadPoolExecutor
from proxystore.store import get_store
from proxystore.store.executor import StoreExecutor
from proxystore.store.lifetimes import ContextLifetime, StaticLifetime
proxy = pickle.load(sys.stdin.buffer)
assert proxy == [1]
copy = get_store(proxy).proxy([2])
"""


@pytest.mark.parametrize("how", CLOSES)
@pytest.mark.parametrize("kind", ["file", "multi"])
def test_a_consumer_that_closes_its_stores_deletes_nothing_of_the_producer(tmp_path, how, kind):
    """However a process closes the store that a proxy has made there (row 55)."""
    connector = FileConnector(tmp_path / "objects", clear=True)
    if kind == "multi":
        connector = MultiConnector({"files": (connector, Policy())})
    with Store("produced", connector, register=True) as store:
        proxy = store.proxy([1], populate_target=False)
        run(CONSUMER + CLOSES[how], input=pickle.dumps(proxy))
        assert proxy == [1]
        assert store.exists(get_key(proxy))
        assert (tmp_path / "objects").is_dir()
    assert not (tmp_path / "objects").exists()


def test_a_stored_none_is_an_object_wherever_it_is_got():
    """None that was stored is not taken for what is missing (row 55)."""
    with Store("none", LocalConnector(), register=True) as store:
        key, missing = store.put(None), store.connector.new_key()
        default = object()
        assert store.get(key, default=default) is None
        assert store.get(missing, default=default) is default
        assert store.get_batch([key, missing], default=default) == [None, default]
        assert store.exists(key)
        assert store.proxy_from_key(key) == None  # noqa: E711 - it is a proxy
        with pytest.raises(ProxyResolveError):
            bool(store.proxy_from_key(missing))
        future = store.future(polling_timeout=0)
        future.set_result(None)
        assert future.result() is None
        assert future.proxy() == None  # noqa: E711 - as above
        assert asyncio.run(_await(future)) is None


@as_root
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_what_another_user_has_put_there_is_not_loaded(tmp_path, size):
    """Where others may write, a file of theirs does not run their code here (row 57)."""

    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "has run",)

    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o770)
    with Store("guarded", FileConnector(directory, mmap=True), register=True) as store:
        key = store.put((Harmful(), bytes(size)))
        path = directory / key.filename
        os.chown(path, 12345, 12345)
        with pytest.raises(ForeignObjectError, match="belongs to user 12345") as caught:
            store.get(key)
        assert isinstance(caught.value, PermissionError)
        assert (caught.value.path, caught.value.owner) == (str(path), 12345)
        with pytest.raises(ForeignObjectError):
            store.get_batch([key])
        with pytest.raises(ProxyResolveError) as resolving:
            len(store.proxy_from_key(key))
        assert isinstance(resolving.value.__cause__, ForeignObjectError)
        assert not (tmp_path / "has run").exists()
        os.chown(path, 0, 0)
        store.get(key)
        assert (tmp_path / "has run").exists(), "this test would notice"


@pytest.mark.redis
def test_one_connection_serves_operation_after_operation(own_redis_server):
    """None is made for each of them (row 59)."""
    from proxystore.connectors.redis import RedisConnector

    with RedisConnector("localhost", own_redis_server.port) as connector:
        store = Store("connected", connector, cache_size=0)
        for i in range(50):
            key = store.put([i])
            assert store.exists(key)
            assert store.get(key) == [i]
            assert store.get_batch([key]) == [[i]]
            store.evict(key)
        made = connector._client.info("stats")["total_connections_received"]
    assert made <= 3, "with those that the server's start was waited for with"


@pytest.mark.redis
def test_looking_for_a_server_that_is_not_there_leaves_nothing_open():
    """However often that is tried (row 59)."""
    import socket

    from proxystore.connectors.redis import RedisConnectionError, RedisConnector

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]

        def probe():
            connector = RedisConnector("127.0.0.1", port)
            with pytest.raises(RedisConnectionError):
                connector.put(b"x")

        probe()
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            probe()
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= before
