"""Stores and proxies in asyncio programs: nothing blocks the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import multiprocessing
import subprocess
import sys
import threading
import time
import weakref

import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector, LocalKey
from proxystore.proxy import Proxy, ProxyResolveError, is_resolved
from proxystore.serialize import SerializationError
from proxystore.store import Store, _threads, store_registration
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.store.lifetimes import ContextLifetime
from proxystore.store.utils import aresolve, resolve_async


class Held(LocalConnector):
    """Holds each put until `go` is set, and tells when one has begun and when one was evicted."""

    def __init__(self):
        super().__init__()
        self.begun = threading.Event()
        self.go = threading.Event()
        self.evicted = threading.Event()

    def put_buffers(self, parts):
        self.begun.set()
        assert self.go.wait(30)
        return super().put_buffers(parts)

    def evict(self, key):
        super().evict(key)
        self.evicted.set()


class Slow(LocalConnector):
    """Takes 50 ms for each read."""

    def __init__(self):
        super().__init__()
        self._counting = threading.Lock()
        self.reads = self.now = self.most_at_once = 0

    def get(self, key):
        with self._counting:
            self.reads += 1
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
        time.sleep(0.05)
        with self._counting:
            self.now -= 1
        return super().get(key)


async def in_loop(event):
    """Wait for an event of threads without blocking the event loop."""
    assert await asyncio.to_thread(event.wait, 30)


class TestPutAndGet:
    def test_do_what_put_and_get_do(self):
        async def main():
            key = await store.put_async([1])
            assert await store.get_async(key) == [1]
            assert store.is_cached(key)
            assert await store.get_async(key) is await store.get_async(key)
            assert await store.get_async(key, cache=False) is not store.get(key)
            assert await store.get_async(store.connector.new_key(), default="x") == "x"
            key = await store.put_async([1], serializer=repr_bytes)
            assert await store.get_async(key, deserializer=bytes) == b"[1]"

        def repr_bytes(obj):
            return repr(obj).encode()

        store = Store("async", LocalConnector())
        asyncio.run(main())

    def test_arguments_of_the_connector_are_passed_on(self):
        class Tagging(LocalConnector):
            def put_buffers(self, parts, tag=None):
                self.tag = tag
                return super().put_buffers(parts)

        store = Store("async", Tagging())
        asyncio.run(store.put_async(1, tag="mine"))
        assert store.connector.tag == "mine"
        with pytest.raises(TypeError, match="function"):
            asyncio.run(store.put_async(1, function="unknown"))

    def test_errors_are_those_of_put_and_get(self):
        store = Store("async", LocalConnector())
        with pytest.raises(SerializationError):
            asyncio.run(store.put_async(threading.Lock()))
        with pytest.raises(TypeError, match="bytes"):
            asyncio.run(store.put_async(1, serializer=lambda obj: obj))
        assert not store.connector._store
        key = store.put("x")
        with pytest.raises(SerializationError, match=key.id):
            asyncio.run(store.get_async(key, deserializer=lambda data: 1 / 0))

    def test_lifetimes(self):
        store = Store("async", LocalConnector())
        with ContextLifetime(store) as lifetime:
            key = asyncio.run(store.put_async(1, lifetime=lifetime))
            assert store.exists(key)
        assert not store.exists(key)

    def test_the_event_loop_goes_on(self):
        async def main():
            storing = asyncio.create_task(store.put_async(1))
            await in_loop(store.connector.begun)
            assert not storing.done()
            store.connector.go.set()
            return await storing

        store = Store("async", Held())
        assert store.exists(asyncio.run(main()))

    def test_hundreds_at_once(self):
        async def main():
            keys = await asyncio.gather(*(store.put_async(i) for i in range(500)))
            assert await asyncio.gather(*map(store.get_async, keys)) == list(range(500))

        store = Store("async", LocalConnector())
        asyncio.run(main())

    def test_the_same_key_is_fetched_once(self):
        async def main():
            found = await asyncio.gather(*(store.get_async(key) for _ in range(20)))
            assert all(obj is found[0] for obj in found)

        store = Store("async", Slow())
        key = store.put([1])
        asyncio.run(main())
        assert store.connector.reads == 1

    def test_context_variables_are_there(self):
        variable = contextvars.ContextVar("variable", default="unset")

        async def main():
            variable.set("mine")
            key = await store.put_async(1, serializer=lambda obj: variable.get().encode())
            return await store.get_async(key, deserializer=lambda data: (data, variable.get()))

        store = Store("async", LocalConnector())
        assert asyncio.run(main()) == (b"mine", "mine")

    def test_a_connector_that_is_not_thread_safe_is_used_by_one_thread(self):
        class Unsafe(Slow):
            thread_safe = False

        async def main():
            return await asyncio.gather(*map(store.get_async, keys))

        store = Store("async", Unsafe())
        keys = store.put_batch(range(5))
        assert asyncio.run(main()) == list(range(5))
        assert store.connector.most_at_once == 1


class TestCancelling:
    def test_a_put_under_way_leaves_nothing(self):
        async def main():
            storing = asyncio.create_task(store.put_async(1))
            await in_loop(store.connector.begun)
            storing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await storing  # at once: what is stored now is stored in the background
            assert not store.connector._store
            store.connector.go.set()
            await in_loop(store.connector.evicted)

        store = Store("async", Held())
        asyncio.run(main())
        assert not store.connector._store

    def test_a_put_that_ends_at_the_same_time_leaves_nothing(self):
        async def main():
            storing = asyncio.create_task(store.put_async(1))
            await asyncio.sleep(0)
            # Stored, and the loop has not heard of it: it is here.
            store.connector.go.set()
            while not store.connector._store:
                time.sleep(0.001)
            storing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await storing
            await in_loop(store.connector.evicted)

        store = Store("async", Held())
        asyncio.run(main())
        assert not store.connector._store

    def test_a_put_that_has_not_begun_never_does(self, monkeypatch):
        monkeypatch.setattr(_threads, "_pool", _threads.Pool(1))

        async def main():
            first = asyncio.create_task(store.put_async("first"))
            await in_loop(store.connector.begun)
            second = asyncio.create_task(store.put_async("second"))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            store.connector.go.set()
            await first

        store = Store("async", Held())
        asyncio.run(main())
        assert store.get_batch([*store.connector.keys()]) == ["first"]
        assert not store.connector.evicted.is_set()

    def test_a_put_that_fails_afterwards_is_nobody_s_concern(self, caplog):
        class Failing(Held):
            def put_buffers(self, parts):
                super().put_buffers(parts)
                self._store.clear()
                raise ConnectionError

        async def main():
            storing = asyncio.create_task(store.put_async(1))
            await in_loop(store.connector.begun)
            storing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await storing
            store.connector.go.set()

        store = Store("async", Failing())
        asyncio.run(main())
        assert not caplog.records

    def test_what_cannot_be_evicted_is_logged(self, caplog):
        class Stubborn(Held):
            def evict(self, key):
                self.evicted.set()
                raise ConnectionError("gone")

        logged = threading.Event()

        async def main():
            storing = asyncio.create_task(store.put_async(1))
            await in_loop(store.connector.begun)
            storing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await storing
            store.connector.go.set()
            await in_loop(logged)

        store = Store("async", Stubborn())
        caplog.handler.addFilter(lambda record: logged.set() or True)
        asyncio.run(main())
        assert "could not evict" in caplog.text

    def test_a_time_out_is_a_cancellation(self):
        async def main():
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(store.put_async(1), 0.01)
            store.connector.go.set()
            await in_loop(store.connector.evicted)

        store = Store("async", Held())
        asyncio.run(main())
        assert not store.connector._store

    def test_the_end_of_a_program_evicts_too(self, tmp_path):
        # The thread is a daemon: nothing waits for it by itself.
        script = f"""
import asyncio, os, threading
from proxystore.connectors.file import FileConnector
from proxystore.store import Store

class Held(FileConnector):
    begun = threading.Event()
    go = threading.Event()
    def put_buffers(self, parts):
        self.begun.set()
        self.go.wait(30)
        return super().put_buffers(parts)

async def main():
    storing = asyncio.create_task(store.put_async(1))
    assert await asyncio.to_thread(store.connector.begun.wait, 20)
    storing.cancel()
    threading.Timer(0.2, store.connector.go.set).start()

store = Store("s", Held({str(tmp_path / "objects")!r}, clear=False))
asyncio.run(main())
"""
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
        assert not list((tmp_path / "objects").iterdir())


class TestResolving:
    @pytest.fixture
    def store(self):
        store = Store("async", Slow())
        with store_registration(store):
            yield store

    def test_gives_the_object_and_resolves_the_proxy(self, store):
        proxy = store.proxy([1], populate_target=False)
        obj = asyncio.run(aresolve(proxy))
        assert type(obj) is list
        assert is_resolved(proxy)
        assert obj is proxy.__proxy_wrapped__

    def test_a_hundred_are_not_fetched_one_after_the_other(self, store):
        async def main():
            return await asyncio.gather(*map(aresolve, proxies))

        proxies = store.proxy_batch([[i] for i in range(100)], populate_target=False)
        assert asyncio.run(main()) == [[i] for i in range(100)]
        assert 8 <= store.connector.most_at_once <= 32, "bounded"

    def test_one_proxy_many_times_is_one_fetch(self, store):
        async def main():
            return await asyncio.gather(*(aresolve(proxy) for _ in range(20)))

        proxy = store.proxy([1], populate_target=False, evict=True)
        assert asyncio.run(main()) == [[1]] * 20
        assert store.connector.reads == 1

    def test_what_is_resolved_needs_no_thread(self, store, monkeypatch):
        monkeypatch.setattr(_threads, "start", None)
        proxy = store.proxy([1])
        assert asyncio.run(aresolve(proxy)) == [1]

    def test_what_is_being_resolved_is_waited_for(self, store):
        proxy = store.proxy([1], populate_target=False, evict=True)
        resolve_async(proxy)
        assert asyncio.run(aresolve(proxy)) == [1]
        assert store.connector.reads == 1

    def test_any_proxy(self):
        assert asyncio.run(aresolve(Proxy(lambda: "x"))) == "x"

    def test_errors(self, store):
        missing = store.proxy_from_key(store.connector.new_key())
        with pytest.raises(ProxyResolveError) as caught:
            asyncio.run(aresolve(missing))
        assert isinstance(caught.value.cause, ProxyResolveMissingKeyError)
        with pytest.raises(ProxyResolveError) as caught:
            asyncio.run(aresolve(Proxy(lambda: next(iter(())))))
        assert isinstance(caught.value.cause, StopIteration)
        with pytest.raises(ProxyResolveError, match="not initialized"):
            asyncio.run(aresolve(Proxy.__new__(Proxy)))

    @pytest.mark.parametrize("operation", ["get_async", "put_async"])
    def test_a_connector_s_stop_iteration_does_not_hang(self, operation):
        # asyncio's futures take none before Python 3.12.
        class Ended(LocalConnector):
            def get(self, key):
                return next(iter(()))

            def put(self, obj):
                return next(iter(()))

            put_buffers = put

        store = Store("ended", Ended())
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            asyncio.run(asyncio.wait_for(getattr(store, operation)(LocalKey("x")), 30))
        assert isinstance(caught.value.__cause__, StopIteration)

    def test_futures_do_not_keep_their_producers_from_a_thread(self):
        async def main():
            futures = [store.future(polling_interval=0.01) for _ in range(50)]
            waiting = asyncio.gather(*(aresolve(future.proxy()) for future in futures))
            await asyncio.sleep(0)
            keys = await asyncio.gather(*(store.put_async(i) for i in range(50)))
            for key, future in zip(keys, futures, strict=True):
                future.set_result([await store.get_async(key)])
            return await waiting

        with Store("futures", LocalConnector(), register=True) as store:
            assert asyncio.run(main()) == [[i] for i in range(50)]


class TestThreads:
    def test_end_when_there_is_nothing_to_do(self):
        pool = _threads.Pool(4, idle=0)
        ended = threading.Event()

        def work():
            weakref.finalize(threading.current_thread(), ended.set)

        pool.start(work).result(30)
        while not ended.wait(0.01):
            gc.collect()
        assert pool.start(lambda: 1).result(30) == 1, "and are started again"

    def test_hold_no_object_while_they_wait_for_work(self):
        class Work:
            def __call__(self):
                return Work()

        pool = _threads.Pool(1)
        work = Work()
        gone = weakref.ref(work)
        result = weakref.ref(pool.start(work).result(30))
        del work
        pool.start(int).result(30)  # the thread is past the first
        gc.collect()
        assert gone() is result() is None

    def test_are_no_more_than_allowed(self):
        pool = _threads.Pool(3)
        inside = threading.Barrier(3)
        futures = [pool.start(lambda: inside.wait(30)) for _ in range(9)]
        assert all(future.result(30) is not None for future in futures)
        assert pool._threads == 3

    def test_that_cannot_be_started_leave_no_work_behind(self, monkeypatch):
        def fail(*args, **kwargs):
            raise RuntimeError("can't start new thread")

        pool = _threads.Pool(2)
        with monkeypatch.context() as patch:
            patch.setattr(_threads, "_start_thread", fail)
            with pytest.raises(RuntimeError, match="new thread"):
                pool.start(lambda: 1)
        assert not pool._work
        assert pool.start(lambda: 2).result(30) == 2

    def test_are_the_child_s_own_after_a_fork(self):
        store = Store("forked", LocalConnector())
        key = asyncio.run(store.put_async([1]))  # there is a thread now, of the parent
        ours, theirs = multiprocessing.Pipe()

        def child():
            theirs.send(asyncio.run(store.get_async(key)))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        assert ours.poll(30)
        assert ours.recv() == [1]
        process.join()

    def test_that_hang_do_not_keep_the_interpreter_from_exiting(self):
        script = """
import asyncio, threading
from proxystore.connectors.local import LocalConnector
from proxystore.store import Store

class Hanging(LocalConnector):
    def get(self, key):
        threading.Event().wait()

async def main():
    try:
        await asyncio.wait_for(store.get_async(store.put(1)), 0.01)
    except asyncio.TimeoutError:
        print("timed out")

store = Store("s", Hanging())
asyncio.run(main())
"""
        run = subprocess.run(
            [sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True
        )
        assert run.stdout == "timed out\n"
        assert not run.stderr

    def test_importing_a_store_does_not_import_asyncio(self):
        code = "import sys, proxystore.store; sys.exit('asyncio' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_through_files(tmp_path):
    async def main():
        keys = await asyncio.gather(*(store.put_async(bytes(10**i)) for i in range(7)))
        return await asyncio.gather(*map(store.get_async, keys))

    with Store("files", FileConnector(tmp_path / "objects")) as store:
        assert asyncio.run(main()) == [bytes(10**i) for i in range(7)]
