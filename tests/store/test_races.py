"""Threads and processes that meet in one store: whoever comes first, the outcome is right."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from proxystore.connectors.exceptions import StoreDirectoryGoneError
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.proxy import ProxyResolveError, extract, get_factory, is_resolved
from proxystore.serialize import deserialize
from proxystore.store import (
    Store,
    get_or_create_store,
    get_store,
    store_registration,
    unregister_store,
)
from proxystore.store.config import ConnectorConfig
from proxystore.store.exceptions import ProxyResolveMissingKeyError, StoreExistsError
from proxystore.store.utils import aresolve, get_key, resolve_async

# Python 3.12 warns of every fork beside threads, which is what is tested here.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Counting(LocalConnector):
    """Counts what is asked of it."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def get(self, key):
        self.reads.append(key)
        return super().get(key)


class Alone(LocalConnector):
    """Must not be entered by a second thread while one is inside."""

    thread_safe = False

    def __init__(self):
        super().__init__()
        self._inside = threading.RLock()
        self.entered = 0
        self.met = False

    @contextmanager
    def _enter(self):
        if not self._inside.acquire(blocking=False):
            self.met = True
            yield
            return
        try:
            self.entered += 1
            time.sleep(0)  # let others run
            yield
        finally:
            self._inside.release()


def _entering(name):
    inner = getattr(LocalConnector, name)

    def method(self, *args):
        with self._enter():
            return inner(self, *args)

    return method


for _name in ("get", "get_batch", "put", "put_batch", "set", "exists", "evict"):
    setattr(Alone, _name, _entering(_name))
for _name in ("put_buffers", "set_buffers"):
    setattr(Alone, _name, _entering(_name))


def outcome(function, *args):
    """Return what a call returns or raises."""
    try:
        return function(*args)
    except Exception as error:  # noqa: BLE001 - any is an outcome
        return error


class TestOneStore:
    def test_sixty_four_threads_that_get_one_object_fetch_it_once(self, at_once):
        for _ in range(10):
            store = Store("n", Counting())
            key = store.put([1])
            found = at_once(*[lambda store=store, key=key: store.get(key)] * 64)
            assert store.connector.reads == [key]
            assert all(obj is found[0] for obj in found)

    def test_sixty_four_threads_that_get_other_objects_get_their_own(self, at_once):
        store = Store("n", Counting(), cache_size=5)
        keys = store.put_batch([[i] for i in range(64)])
        found = at_once(*[lambda key=key: store.get(key) for key in keys])
        assert found == [[i] for i in range(64)]
        assert sorted(store.connector.reads) == sorted(keys)

    def test_sixty_four_threads_that_do_everything(self, tmp_path, at_once):
        def use(i):
            key = store.put([i])
            proxy = store.proxy([i, i], populate_target=False, evict=True)
            batch = store.put_batch([i] * 3)
            assert store.get(key) == [i]
            assert store.get_batch([*batch, key]) == [i, i, i, [i]]
            assert proxy == [i, i]
            assert not store.exists(get_key(proxy))
            store._set(key, "new")
            assert store.get(key) == "new"
            for each in (key, *batch):
                store.evict(each)
                assert store.get(each) is None

        with Store("everything", FileConnector(tmp_path / "o"), register=True) as store:
            at_once(*[lambda i=i: use(i) for i in range(64)])
            assert not list(store.connector.keys())
            assert store._flights._flights == store._flights._counts == {}

    def test_a_connector_that_is_not_thread_safe_is_never_entered_twice(self, at_once):
        def use(i):
            key = store.put(i)
            assert store.get(key) == i
            assert store.exists(key)
            keys = store.put_batch([i] * 2)
            assert store.get_batch([*keys, shared]) == [i, i, "shared"]
            store._set(key, "new")
            assert store.proxy([i], populate_target=False, evict=True) == [i]
            store.evict(key)
            assert asyncio.run(store.get_async(keys[0])) == i

        store = Store("alone", Alone(), cache_size=2)
        shared = store.put("shared")
        with store_registration(store):
            at_once(*[lambda i=i: use(i) for i in range(16)])
        assert store.connector.entered > 100
        assert not store.connector.met

    def test_the_check_of_that_connector_itself(self):
        connector = Alone()
        with connector._enter():
            thread = threading.Thread(target=connector.exists, args=(("k",),))
            thread.start()
            thread.join()
        assert connector.met


class TestChanges:
    @pytest.mark.parametrize("batch", [False, True])
    def test_the_cache_never_outlives_what_it_holds(self, at_once, batch):
        store = Store("changes", LocalConnector())

        def get(key):
            return store.get_batch([key])[0] if batch else store.get(key)

        for i in range(100):
            key = store.put("old")
            change = [lambda key=key: store.evict(key), lambda key=key: store._set(key, "new")]
            found = at_once(*[lambda key=key: get(key)] * 3, *change)
            assert set(found) <= {"old", "new", None}, i
            data = store.connector.get(key)
            assert store.get(key) == (None if data is None else deserialize(data))
            assert store.is_cached(key) == (data is not None)

    def test_a_proxy_that_is_resolved_and_evicted_has_its_object_or_says_it_is_gone(self, at_once):
        with Store("evicted", LocalConnector(), register=True) as store:
            for _ in range(100):
                proxy = store.proxy([1], populate_target=False)
                key = get_key(proxy)
                found = at_once(
                    *[lambda proxy=proxy: outcome(extract, proxy)] * 3,
                    *[lambda key=key: store.evict(key)] * 2,
                )[:3]
                for obj in found:
                    if obj != [1]:
                        assert isinstance(obj, ProxyResolveError)
                        assert isinstance(obj.cause, ProxyResolveMissingKeyError)
                assert is_resolved(proxy) or [1] not in found
                assert not store.is_cached(key)
                assert not store.exists(key)

    def test_one_proxy_that_evicts_serves_all_threads(self, at_once):
        with Store("once", LocalConnector(), register=True) as store:
            for _ in range(50):
                proxy = store.proxy([1], populate_target=False, evict=True)
                resolve = [lambda proxy=proxy: extract(proxy)] * 4
                assert at_once(*resolve, lambda proxy=proxy: resolve_async(proxy)) == [
                    *[[1]] * 4,
                    None,
                ]

    def test_a_factory_that_evicts_gives_all_who_call_it_at_once_the_object(self):
        class Slow(LocalConnector):
            def __init__(self):
                super().__init__()
                self.reading = threading.Event()
                self.go = threading.Event()

            def get(self, key):
                self.reading.set()
                assert self.go.wait(30)
                return super().get(key)

        for begin in ("call", "resolve_async"):
            with Store("together", Slow(), register=True) as store:
                factory = get_factory(store.proxy([1], populate_target=False, evict=True))
                with ThreadPoolExecutor(3) as pool:
                    first = pool.submit(factory if begin == "call" else factory.resolve_async)
                    assert store.connector.reading.wait(30)
                    others = [pool.submit(factory) for _ in range(2)]
                    while len(factory._obj_future._condition._waiters) < 2:
                        time.sleep(0.001)  # until both wait
                    factory.resolve_async()  # does nothing more
                    store.connector.go.set()
                    assert [first.result(30) or [1], *(o.result(30) for o in others)] == [[1]] * 3
                assert not factory.is_under_way()

    def test_a_factory_that_evicts_may_be_called_by_its_own_decoder(self):
        def decode(data):
            calls.append(1)
            return factory() if len(calls) == 1 else "decoded"

        calls = []
        with Store("own", LocalConnector(), register=True) as store:
            proxy = store.proxy([1], populate_target=False, evict=True, deserializer=decode)
            factory = get_factory(proxy)
            assert factory() == "decoded"
            assert not factory.is_under_way()

    def test_a_file_store_that_is_closed_meanwhile_leaves_no_half_object(self, tmp_path, at_once):
        for i in range(30):
            connector = FileConnector(tmp_path / str(i))
            store = Store("closed", connector)
            *put, _ = at_once(*[lambda s=store: outcome(s.put, bytes(100))] * 4, store.close)
            errors = [each for each in put if isinstance(each, Exception)]
            assert all(isinstance(error, FileNotFoundError) for error in errors), errors
            keys = {key.filename for key in put if not isinstance(key, Exception)}
            left = (
                set(os.listdir(connector.store_dir)) if os.path.exists(connector.store_dir) else ()
            )
            assert keys.issuperset(left), "only what somebody has the key of"

    def test_proxies_of_a_store_that_is_closed_meanwhile(self, tmp_path, at_once):
        for i in range(20):
            store = Store("closing", FileConnector(tmp_path / str(i)), register=True)
            proxy = store.proxy([1], populate_target=False)
            found, _ = at_once(lambda p=proxy: outcome(extract, p), store.close)
            if found != [1]:
                assert isinstance(found, ProxyResolveError)
                assert isinstance(
                    found.cause, (ProxyResolveMissingKeyError, StoreDirectoryGoneError)
                )
            unregister_store("closing")  # the one that the proxy has made, if it has


class TestRegistry:
    def test_sixty_four_threads_make_one_store(self, at_once, monkeypatch):
        made = []
        get_connector = ConnectorConfig.get_connector

        def get_and_count(self):
            made.append(1)
            return get_connector(self)

        monkeypatch.setattr(ConnectorConfig, "get_connector", get_and_count)
        config = Store("made", LocalConnector()).config()
        for _ in range(10):
            made.clear()
            stores = at_once(*[lambda: get_or_create_store(config)] * 64)
            assert len(made) == 1
            assert all(store is stores[0] for store in stores)
            assert get_store("made") is stores[0]
            unregister_store("made")

    def test_one_of_many_gets_the_name(self, at_once):
        for _ in range(20):
            made = at_once(
                *[lambda: outcome(lambda: Store("name", LocalConnector(), register=True))] * 16
            )
            (winner,) = [each for each in made if isinstance(each, Store)]
            assert get_store("name") is winner
            assert sum(isinstance(each, StoreExistsError) for each in made) == 15
            winner.close()
            assert get_store("name") is None

    def test_two_processes_make_one_store_over_one_directory(self, tmp_path):
        script = f"""
import pickle, sys
from proxystore.connectors.file import FileConnector
from proxystore.store import Store

print("ready", flush=True)
sys.stdin.readline()
with Store("shared", FileConnector({str(tmp_path / "new" / "dir")!r}, clear=False)) as store:
    proxies = store.proxy_batch([[i, "x" * i] for i in range(100)], populate_target=False)
    print(pickle.dumps(proxies).hex(), flush=True)
    proxies = pickle.loads(bytes.fromhex(sys.stdin.readline()))
    assert proxies == [[i, "x" * i] for i in range(100)]
"""
        for _ in range(2):
            both = [
                subprocess.Popen(
                    [sys.executable, "-c", script],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    bufsize=1,
                )
                for _ in range(2)
            ]
            try:
                for each in both:
                    assert each.stdout.readline() == "ready\n"
                for each in both:
                    each.stdin.write("go\n")
                sent = [each.stdout.readline() for each in both]
                for each, proxies in zip(both, reversed(sent), strict=True):
                    each.communicate(proxies, timeout=60)
                    assert each.returncode == 0
            finally:
                for each in both:
                    each.kill()
                    each.wait()
        assert len(list((tmp_path / "new" / "dir").iterdir())) == 400


@forks
class TestForks:
    def test_while_other_threads_use_the_store(self, tmp_path):
        with Store("f", FileConnector(tmp_path / "o"), metrics=True, register=True) as store:
            _use_and_fork(store)

    def test_while_another_thread_is_alone_with_the_connector(self):
        with Store("f", Alone(), cache_size=1, metrics=True, register=True) as store:
            _use_and_fork(store)

    def test_with_a_resolve_in_the_background(self):
        class Slow(LocalConnector):
            reading = threading.Event()
            go = threading.Event()

            def get(self, key):
                self.reading.set()
                assert self.go.wait(30)
                return super().get(key)

        with Store("background", Slow(), register=True) as store:
            proxy = store.proxy([1], populate_target=False)
            resolve_async(proxy)
            assert store.connector.reading.wait(30)

            def child():
                store.connector.go.set()
                assert proxy == [1]

            _in_child(child)
            store.connector.go.set()
            assert proxy == [1]

    def test_in_the_middle_of_a_fetch(self):
        store = Store("middle", LocalConnector())
        key, other = store.put("x"), store.put("y")
        parent = os.getpid()
        children = []

        def decode(data):
            pid = os.fork()
            if pid:
                children.append(pid)
            return deserialize(data)

        try:
            assert store.get(key, deserializer=decode) == "x"
            if os.getpid() != parent:  # the child goes on with the fetch
                assert store.get(key, deserializer=decode) == "x", "cached"
                assert store.get_batch([other, key]) == ["y", "x"]
        except BaseException:
            if os.getpid() == parent:
                raise
            os._exit(1)
        if os.getpid() != parent:
            os._exit(0)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0]


def _use_and_fork(store):
    """Fork while threads are anywhere in the store, and use it in the children."""
    key = store.put("kept")
    done = threading.Event()

    def use():
        while not done.is_set():
            mine = store.put([1])
            store.get_batch([mine, key])
            store.get(mine)
            store.evict(mine)

    def child():
        assert store.get(key) == "kept"
        mine = store.put([2])
        assert store.get_batch([mine, key]) == [[2], "kept"]
        store.evict(mine)
        assert not store.exists(mine)
        proxies = store.proxy_batch([[3], [4], [5]], populate_target=False, evict=True)
        resolve_async(proxies[0])
        assert proxies[:2] == [[3], [4]]
        assert asyncio.run(aresolve(proxies[2])) == [5]
        assert store.metrics.get_metrics(key) is not None

    threads = [threading.Thread(target=use) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            _in_child(child)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)


def _in_child(function):
    """Call a function in a forked child; fail if it does, or takes half a minute."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            function()
            os.write(theirs, b"well")
        except BaseException:  # noqa: BLE001 - nothing must reach pytest, which is here, too
            os.write(theirs, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    try:
        assert select.select([ours], [], [], 30)[0], "the child hangs"
        assert os.read(ours, 100_000).decode() == "well"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours)
