"""Futures beyond the contract: failures, cancelling, callbacks, await, and how they wait."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import traceback
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.proxy import ProxyResolveError, get_factory, is_resolved
from proxystore.serialize import SerializationError, deserialize, frames
from proxystore.store import Store, get_store
from proxystore.store._failures import Failure, failure_in, is_failure
from proxystore.store.exceptions import (
    FutureAlreadyDoneError,
    FutureCancelledError,
    ProducerError,
    ProxyResolveMissingKeyError,
    ProxyResolveTimeoutError,
)
from proxystore.store.factory import PollingStoreFactory
from proxystore.store.future import Future
from proxystore.store.utils import resolve_async

# So long that a test which is not told about the result fails.
AN_HOUR = 3600


class Told(Exception):
    """With an argument that pickle does not know of."""

    def __init__(self, what, *, code=0):
        super().__init__(what)
        self.code = code


class CannotLeave(Exception):
    def __reduce__(self):
        raise TypeError("stays here")


class CannotArrive(Exception):
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise TypeError("not wanted")


@pytest.fixture(params=["local", "file", pytest.param("redis", marks=pytest.mark.redis)])
def store(request, tmp_path):
    if request.param == "local":
        connector = LocalConnector()
    elif request.param == "file":
        connector = FileConnector(tmp_path / "dir")
    else:
        connector = redis_connector(request.getfixturevalue("redis_server"))
    with Store("futures", connector, register=True) as made:
        yield made


def redis_connector(server):
    from proxystore.connectors.redis import RedisConnector  # needs an optional package

    return RedisConnector(url=f"unix://{server.socket_path}", clear=True, prefix=f"{uuid4()}:")


class Visible(LocalConnector):
    """Shows when somebody waits."""

    def __init__(self):
        super().__init__()
        self.waiting = threading.Semaphore(0)

    def wait(self, key, timeout):
        self.waiting.release()
        return super().wait(key, timeout)


@pytest.fixture
def visible():
    with Store("visible", Visible(), register=True) as made:
        yield made


@pytest.fixture
def files(tmp_path):
    with Store("files", FileConnector(tmp_path / "dir"), register=True) as made:
        yield made


def start(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def custom(data):
    raise AssertionError("not for this deserializer")


# -- what the producer sets in place of a result


class TestExceptions:
    @pytest.mark.parametrize("deserializer", [None, deserialize, custom])
    @pytest.mark.parametrize("evict", [False, True])
    def test_reach_who_waits(self, store, deserializer, evict):
        future = store.future(evict=evict, serializer=lambda obj: custom, deserializer=deserializer)
        proxy = future.proxy()
        future.set_exception(Told("so", code=3))
        assert future.done()
        for _ in range(2):
            with pytest.raises(Told, match=r"^so$") as caught:
                future.result()
            assert caught.value.code == 3
        with pytest.raises(ProxyResolveError, match="Told: so") as wrapped:
            len(proxy)
        assert isinstance(wrapped.value.cause, Told)
        assert not is_resolved(proxy)
        assert future.done(), "others may want to know"

    def test_wake_who_waits(self, store):
        future = store.future(polling_interval=AN_HOUR)
        setter = start(future.set_exception, Told("so"))
        with pytest.raises(Told):
            future.result()
        setter.join()

    def test_are_looked_at_without_being_raised(self, store):
        future = store.future(evict=True)
        with pytest.raises(ProxyResolveTimeoutError):
            future.exception(0)
        future.set_exception(Told("so"))
        assert type(future.exception()) is Told
        fine = store.future(evict=True, deserializer=custom)
        fine.set_result(1)
        assert fine.exception() is None, "the result is not even deserialized"
        assert fine.done(), "nor evicted"

    def test_are_raised_by_whoever_gets_the_object(self, store):
        future = store.future()
        future.set_exception(Told("so"))
        key = future._factory.key
        for get in (
            lambda: store.get(key),
            lambda: store.get(key, deserializer=custom),
            lambda: store.get(key, default=1, cache=False),
        ):
            with pytest.raises(Told):
                get()
        assert not store.is_cached(key)

    def test_are_new_for_each(self, store):
        future = store.future()
        future.set_exception(Told("so"))
        assert future.exception() is not future.exception(), "tracebacks are not shared"

    def test_show_where_the_producer_failed(self, store):
        future = store.future()

        def producer_of_trouble():
            raise Told("so") from KeyError("deeper")

        try:
            producer_of_trouble()
        except Told as error:
            future.set_exception(error)
        try:
            future.result()
        except Told as error:
            shown = "".join(traceback.format_exception(error))
        assert "producer_of_trouble" in shown
        assert "KeyError: 'deeper'" in shown

    def test_that_were_never_raised_have_no_traceback_to_show(self, store):
        future = store.future()
        future.set_exception(Told("so"))
        assert future.exception().__cause__ is None

    @pytest.mark.parametrize(
        ("error", "shown"),
        [
            (CannotLeave("x"), "CannotLeave: x"),
            (CannotArrive("x"), "CannotArrive: x"),
            (KeyboardInterrupt(), "KeyboardInterrupt"),
            (SystemExit(3), "SystemExit: 3"),
            (Told(lambda: threading.Lock()), "Told: "),
            (Told(threading.Lock()), "Told: "),
        ],
        ids=repr,
    )
    def test_that_cannot_travel_are_described(self, store, error, shown):
        future = store.future()
        future.set_exception(error)
        found = future.exception()
        if type(found) is Told:
            return  # a function travels by value
        assert type(found) is ProducerError
        assert shown in str(found)
        assert shown in found.description
        with pytest.raises(ProxyResolveError, match="ProducerError"):
            len(future.proxy())

    def test_defined_in_a_script_reach_another_process(self, files):
        future = files.future(polling_interval=AN_HOUR, polling_timeout=60)
        script = """if True:
            import pickle, sys
            class Homemade(Exception): pass
            future = pickle.load(sys.stdin.buffer)
            with future.producing():
                raise Homemade("in another process")
        """
        run = subprocess.run(
            [sys.executable, "-c", script], input=pickle.dumps(future), capture_output=True
        )
        assert run.returncode == 1
        assert b"Homemade: in another process" in run.stderr
        with pytest.raises(Exception, match=r"^in another process$") as caught:
            future.result()
        assert type(caught.value).__name__ == "Homemade"
        assert 'File "<string>"' in str(caught.value.__cause__)

    @pytest.mark.parametrize("value", ["text", None, Told], ids=repr)
    def test_have_to_be_exceptions(self, store, value):
        future = store.future()
        with pytest.raises(TypeError, match="must be an exception"):
            future.set_exception(value)
        assert not future.done()

    def test_that_are_damaged_are_no_result(self, files):
        future = files.future()
        future.set_exception(Told("so"))
        path = os.path.join(files.connector.store_dir, future._factory.key.filename)
        for damage in (-1, 70):
            os.truncate(path, os.stat(path).st_size + damage if damage < 0 else damage)
            with pytest.raises(SerializationError):
                future.result()

    def test_that_are_a_result_are_a_result(self, store):
        future = store.future()
        future.set_result(Told("so"))
        assert type(future.result()) is Told
        assert future.exception() is None


NAME = b"proxystore.store._failures.Failure"


class TestRecognition:
    @given(st.binary(max_size=200), st.sampled_from([b"", frames.MAGIC]), st.booleans())
    def test_of_other_data_is_safe_and_right(self, data, magic, named):
        data = magic + data
        if named:
            data = data[:72].ljust(72, b"\0") + NAME + data[72:]
        try:
            assert not is_failure(data)
        except SerializationError:  # damaged data of ours
            assert data.startswith(frames.MAGIC)
            assert data[72:].startswith(NAME)

    @pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
    def test_of_what_is_one(self, wrap):
        data = wrap(frames.dump(Failure.of(Told("so"))).join())
        assert is_failure(data)
        assert str(failure_in(data)) == "so"
        assert failure_in(wrap(frames.dump([NAME]).join())) is None


# -- more than one outcome


class TestOutcomes:
    def test_are_not_replaced_by_accident(self, store):
        for outcome, settle in (
            ("a result", lambda future: future.set_result(1)),
            ("an exception", lambda future: future.set_exception(Told("so"))),
        ):
            future = store.future()
            settle(future)
            for again in (
                lambda future=future: future.set_result(2),
                lambda future=future: future.set_exception(KeyError(2)),
            ):
                with pytest.raises(FutureAlreadyDoneError, match=outcome) as caught:
                    again()
                error = caught.value
                assert (error.key, error.store_name) == (future._factory.key, "futures")
                assert error.outcome == outcome
                assert isinstance(error, concurrent.futures.InvalidStateError)
            assert (future.exception() is None) is (outcome == "a result")

    def test_are_replaced_when_that_is_said(self, store):
        future = store.future()
        future.set_result(1)
        assert future.result() == 1
        future.set_result(2, overwrite=True)
        assert future.result() == 2
        future.set_exception(Told("so"), overwrite=True)
        with pytest.raises(Told):
            future.result()
        future.set_result(3, overwrite=True)
        assert future.result() == 3

    def test_that_do_not_serialize_leave_the_future_as_it_was(self, store):
        future = store.future()
        with pytest.raises(SerializationError):
            future.set_result(threading.Lock())
        assert not future.done()
        future.set_result(1)

    def test_come_after_what_was_evicted(self, store):
        future = store.future(evict=True)
        for i in range(2):
            future.set_result(i)
            assert future.result() == i
        with pytest.raises(ProxyResolveTimeoutError):
            future.result(0)


class TestCancel:
    def test_ends_waiting(self, store):
        future = store.future(polling_interval=AN_HOUR)
        proxy = future.proxy()
        assert not future.cancelled()
        canceller = start(future.cancel)
        with pytest.raises(FutureCancelledError, match="was cancelled") as caught:
            future.result()
        canceller.join()
        assert isinstance(caught.value, concurrent.futures.CancelledError)
        assert caught.value.key == future._factory.key
        with pytest.raises(ProxyResolveError) as wrapped:
            len(proxy)
        assert isinstance(wrapped.value.cause, FutureCancelledError)
        with pytest.raises(FutureCancelledError):
            future.exception()
        assert future.done()
        assert pickle.loads(pickle.dumps(future)).cancelled()

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_refuses_producers(self, store, overwrite):
        future = store.future(evict=True)
        assert future.cancel()
        assert future.cancel(), "cancelled is cancelled"
        with pytest.raises(FutureCancelledError):
            future.result()
        for settle in (future.set_result, future.set_exception):
            with pytest.raises(FutureAlreadyDoneError, match="been cancelled"):
                settle(Told("late"), overwrite=overwrite)
        assert future.cancelled()

    def test_comes_too_late_when_there_is_an_outcome(self, store):
        fine, failed = store.future(), store.future()
        fine.set_result(1)
        failed.set_exception(Told("so"))
        for future in (fine, failed):
            assert not future.cancel()
            assert not future.cancelled()
        assert fine.result() == 1
        with pytest.raises(Told):
            failed.result()


class TestProducing:
    def test_sets_what_is_raised_and_raises_it(self, store):
        future = store.future()
        with pytest.raises(Told, match=r"^so$"), future.producing():
            raise Told("so")
        with pytest.raises(Told, match=r"^so$"):
            future.result()

    def test_tells_of_an_interruption(self, store):
        future = store.future()
        with pytest.raises(KeyboardInterrupt), future.producing():
            raise KeyboardInterrupt
        assert type(future.exception()) is ProducerError

    def test_leaves_a_result_alone(self, store):
        future = store.future()
        with pytest.raises(Told), future.producing() as same:
            _set_and_fail(same)
        assert future.result() == 1

    def test_raises_the_first_error_if_it_cannot_tell(self, caplog):
        class Broken(LocalConnector):
            def set(self, key, obj):
                raise OSError("disk on fire")

        with Store("broken", Broken(), register=True) as store:
            future = store.future()
            with pytest.raises(Told), future.producing():
                raise Told("first")
        assert "cannot tell the consumers" in caplog.text
        assert "disk on fire" in caplog.text


def _set_and_fail(future):
    future.set_result(1)
    raise Told("afterwards")


# -- callbacks


class TestCallbacks:
    def test_are_called_in_order_in_one_thread(self, store):
        future = store.future(polling_interval=AN_HOUR)
        called = []
        done = threading.Event()
        for i in range(3):
            future.add_done_callback(
                lambda f, i=i: called.append((i, f, threading.current_thread()))
            )
        future.add_done_callback(lambda f: done.set())
        assert called == []
        future.set_result(1)
        assert done.wait(60)
        assert [(i, f is future) for i, f, _ in called] == [(0, True), (1, True), (2, True)]
        (thread,) = {t for _, _, t in called}
        assert thread is not threading.current_thread()
        assert thread.daemon

    @pytest.mark.parametrize("settle", ["set_result", "set_exception", "cancel"])
    def test_are_called_at_once_when_it_is_done(self, store, settle):
        future = store.future()
        getattr(future, settle)(*() if settle == "cancel" else (Told("so"),))
        called = []
        future.add_done_callback(called.append)
        assert called == [future]

    @pytest.mark.parametrize("settle", ["set_exception", "cancel"])
    def test_are_called_without_a_result(self, store, settle):
        future = store.future(polling_interval=AN_HOUR)
        done = threading.Event()
        future.add_done_callback(lambda f: done.set())
        getattr(future, settle)(*() if settle == "cancel" else (Told("so"),))
        assert done.wait(60)

    def test_wait_longer_than_the_time_out(self, store):
        future = store.future(polling_timeout=0)
        done = threading.Event()
        future.add_done_callback(lambda f: done.set())
        future.set_result(1)
        assert done.wait(60)

    def test_that_fail_are_logged_and_stop_no_others(self, store, caplog):
        future = store.future(polling_interval=AN_HOUR)
        done = threading.Event()
        future.add_done_callback(lambda f: 1 / 0)
        future.add_done_callback(lambda f: done.set())
        future.set_result(1)
        assert done.wait(60)
        assert "ZeroDivisionError" in caplog.text
        caplog.clear()
        future.add_done_callback(lambda f: 1 / 0)
        assert "ZeroDivisionError" in caplog.text

    def test_may_use_the_future(self, store):
        future = store.future(polling_interval=AN_HOUR, evict=True)
        found = concurrent.futures.Future()
        future.add_done_callback(lambda f: found.set_result(f.result()))
        future.set_result([1])
        assert found.result(60) == [1]

    def test_added_at_the_same_time_are_all_called(self, store, at_once):
        future = store.future(polling_interval=AN_HOUR)
        called = threading.Semaphore(0)
        add = lambda: future.add_done_callback(lambda f: called.release())  # noqa: E731
        at_once(*[add] * 8, lambda: future.set_result(1))
        for _ in range(8):
            assert called.acquire(timeout=60)
        assert not called.acquire(blocking=False)

    def test_outlast_a_failing_connector(self, monkeypatch, caplog):
        class Flaky(LocalConnector):
            failures = 2

            def exists(self, key):
                if Flaky.failures and "callbacks" in threading.current_thread().name:
                    Flaky.failures -= 1
                    raise OSError("no route")
                return super().exists(key)

        slept = []
        monkeypatch.setattr("proxystore.store.future.sleep", slept.append)
        with Store("flaky", Flaky(), register=True) as store:
            future = store.future(polling_interval=AN_HOUR)
            done = threading.Event()
            future.add_done_callback(lambda f: done.set())
            future.set_result(1)
            assert done.wait(60)
            assert slept == [1, 2]
            assert "no route" in caplog.text

    def test_of_a_store_that_is_closed_make_no_new_one(self, monkeypatch):
        class Closed(LocalConnector):
            def close(self):
                is_closed.set()

            def exists(self, key):
                if "callbacks" not in threading.current_thread().name:
                    return False
                assert is_closed.wait(60)
                looked.append(key)
                if len(looked) < 4:
                    raise OSError("closed")
                return True

        is_closed, looked, done = threading.Event(), [], threading.Event()
        monkeypatch.setattr("proxystore.store.future.sleep", lambda s: None)
        with Store("closed", Closed(), register=True) as store:
            store.future().add_done_callback(lambda f: done.set())
        assert done.wait(60)
        assert len(looked) == 4
        assert get_store("closed") is None

    def test_do_not_travel(self, store):
        future = store.future()
        done = threading.Event()
        future.add_done_callback(lambda f: done.set())
        copy = pickle.loads(pickle.dumps(future))
        assert vars(copy).keys() == {"_factory", "_serializer"}
        copy.set_result(1)
        assert done.wait(60)

    def test_of_a_parent_are_not_a_forked_child_s(self, files):
        future = files.future(polling_interval=AN_HOUR)
        parent = threading.Event()
        future.add_done_callback(lambda f: parent.set())
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=lambda: _add_and_settle(future, theirs, parent)
        )
        child.start()
        assert ours.poll(60)
        assert ours.recv() == ("called in the child", False)
        child.join()
        assert parent.wait(60)


def _add_and_settle(future, pipe, parent):
    called = threading.Event()
    future.add_done_callback(lambda f: called.set())
    future.set_result(1)
    assert called.wait(60)
    pipe.send(("called in the child", parent.is_set()))


# -- await


class TestAwait:
    def test_does_not_block_the_loop(self, store):
        async def main():
            future = store.future(polling_interval=AN_HOUR)
            waiting = asyncio.ensure_future(_await(future))
            await asyncio.sleep(0)
            assert not waiting.done()
            future.set_result([1])
            return await waiting

        assert asyncio.run(main()) == [1]

    def test_what_is_there_and_what_comes(self, store):
        async def main():
            futures = [store.future(polling_interval=AN_HOUR, evict=i % 2 == 0) for i in range(6)]
            for i in (0, 1):
                futures[i].set_result(i)
            gathered = asyncio.gather(*futures)
            await asyncio.sleep(0)
            for i in (2, 3, 4, 5):
                futures[i].set_result(i)
            return futures, await gathered

        futures, found = asyncio.run(main())
        assert found == [0, 1, 2, 3, 4, 5]
        assert [future.done() for future in futures] == [False, True] * 3

    @pytest.mark.parametrize(
        "kind",
        [concurrent.futures.CancelledError, concurrent.futures.InvalidStateError, TimeoutError],
    )
    def test_raises_what_asyncio_would_make_another_exception_of(self, store, kind):
        async def main():
            future = store.future()
            future.set_exception(kind("so"))
            with pytest.raises(kind, match="so") as caught:
                await future
            assert type(caught.value) is kind

        asyncio.run(main())

    def test_raises_what_result_raises(self, store):
        async def main():
            failed, cancelled = store.future(), store.future()
            failed.set_exception(Told("so"))
            cancelled.cancel()
            with pytest.raises(Told):
                await failed
            with pytest.raises(FutureCancelledError):
                await cancelled
            with pytest.raises(ProxyResolveTimeoutError):
                await store.future(polling_timeout=0)

        asyncio.run(main())

    def test_an_exception_that_asyncio_cannot_carry(self, store):
        async def main():
            future = store.future()
            future.set_exception(StopIteration("x"))
            with pytest.raises(RuntimeError, match="StopIteration"):
                await future

        asyncio.run(main())

    def test_records_what_result_records(self):
        with Store("metrics", LocalConnector(), metrics=True, register=True) as store:
            for evict in (False, True):
                future = store.future(evict=evict)
                future.set_result(1)
                assert asyncio.run(_await(future)) == 1
                times = store.metrics.get_metrics(future._factory.key).times
                assert times["factory.polling_resolve"].count == 1

    def test_that_is_cancelled_takes_nothing(self, visible):
        async def main():
            before = threading.enumerate()
            future = visible.future(polling_interval=AN_HOUR, evict=True)
            task = asyncio.ensure_future(_await(future))
            await asyncio.to_thread(visible.connector.waiting.acquire)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            future.set_result([1])
            _join_others_than(before)
            assert future.done()
            return await future

        assert asyncio.run(main()) == [1]

    def test_that_was_given_up_does_not_keep_a_thread(self):
        before = threading.enumerate()
        with Store("unaided", Unaided(), register=True) as store:

            async def main():
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(_await(store.future(polling_interval=AN_HOUR)), 0.01)

            asyncio.run(main())
            _join_others_than(before)

    def test_of_a_loop_that_is_gone(self, visible):
        before = threading.enumerate()
        future = visible.future(polling_interval=AN_HOUR)
        loop = asyncio.new_event_loop()
        task = loop.create_task(_await(future))
        loop.run_until_complete(asyncio.sleep(0))
        assert visible.connector.waiting.acquire(timeout=60)
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        loop.close()
        future.set_result(1)
        _join_others_than(before)


def _join_others_than(before):
    for thread in threading.enumerate():
        if thread not in before and thread.name == "proxystore-io":
            thread.join(60)
            assert not thread.is_alive()


async def _await(future):
    return await future


# -- waiting


class Unaided(LocalConnector):
    """Cannot wait."""

    wait = None


class Clock:
    """Time passes only when somebody says so."""

    def __init__(self):
        self.now = 0.0
        self.slept = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("proxystore.store.factory.monotonic", made.monotonic)
    monkeypatch.setattr("proxystore.store.factory.sleep", made.sleep)
    return made


class TestNotification:
    @pytest.mark.parametrize("consume", ["result", "proxy", "resolve_async", "exception"])
    def test_wakes_at_once(self, store, consume):
        future = store.future(polling_interval=AN_HOUR)
        proxy = future.proxy()
        if consume == "resolve_async":
            resolve_async(proxy)
        user = {
            "result": future.result,
            "exception": future.exception,
        }.get(consume, lambda: sum(proxy))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = pool.submit(user)
            future.set_result([1, 2])
            expected = {"result": [1, 2], "exception": None}.get(consume, 3)
            assert found.result(60) == expected

    def test_wakes_all(self, store, at_once):
        future = store.future(polling_interval=AN_HOUR)
        *found, _ = at_once(*[future.result] * 16, lambda: future.set_result([1]))
        assert found == [[1]] * 16

    def test_wakes_who_uses_another_connector(self):
        shared = {}
        two = Store("two", LocalConnector(shared))
        with Store("one", LocalConnector(shared), register=True) as one:
            future = one.future(polling_interval=AN_HOUR)
            setter = start(two._set, future._factory.key, [1])
            assert future.result() == [1]
            setter.join()

    def test_wakes_another_process(self, files):
        future = files.future(polling_interval=AN_HOUR, polling_timeout=60)
        script = """if True:
            import pickle, sys
            there, back = pickle.load(sys.stdin.buffer)
            back.set_result(there.result() * 2)
        """
        back = files.future(polling_interval=AN_HOUR, polling_timeout=60)
        child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
        child.stdin.write(pickle.dumps((future, back)))
        child.stdin.close()
        future.set_result([1])
        assert back.result() == [1, 1]
        assert child.wait(60) == 0

    def test_a_result_through_processes_that_were_spawned(self, files):
        future = files.future(polling_interval=AN_HOUR, polling_timeout=60)
        child = multiprocessing.get_context("spawn").Process(target=future.set_result, args=([1],))
        child.start()
        assert future.result() == [1]
        child.join()
        assert child.exitcode == 0


class TestWaiting:
    def test_counts_the_time_that_a_slow_connector_takes(self, clock):
        class Slow(Unaided):
            reads = 0

            def get(self, key):
                self.reads += 1
                clock.now += 5
                return super().get(key)

        with Store("slow", Slow(), register=True) as store:
            future = store.future(polling_interval=1, polling_timeout=15)
            with pytest.raises(ProxyResolveTimeoutError, match=r"for 17\.000 s") as caught:
                future.result()
        assert caught.value.waited == 17
        assert store.connector.reads == 3, "if only sleep counted it would have been 16"
        assert clock.slept == [1, 1]

    @pytest.mark.parametrize(("timeout", "waited"), [(0, 0), (2.5, 2.5), (None, 7)])
    def test_as_long_as_the_caller_says(self, clock, timeout, waited):
        with Store("unaided", Unaided(), register=True) as store:
            future = store.future(polling_timeout=7)
            with pytest.raises(ProxyResolveTimeoutError) as caught:
                future.result(timeout)
            with pytest.raises(ProxyResolveTimeoutError) as again:
                future.exception(timeout)
        assert caught.value.waited == again.value.waited == waited
        assert isinstance(caught.value, ProxyResolveMissingKeyError)
        assert isinstance(caught.value, TimeoutError)
        assert f"{waited:.3f} s" in str(caught.value)

    def test_what_was_missing_when_another_thread_looked_may_be_there(self, monkeypatch):
        class Gated(LocalConnector):
            def __init__(self, *args):
                super().__init__(*args)
                self.has_read, self.may_return = threading.Event(), threading.Event()

            def get(self, key):
                data = super().get(key)
                self.has_read.set()
                assert self.may_return.wait(60)
                return data

        shared = {}
        with Store("gated", Gated(shared), register=True) as store:
            connector = store.connector
            future = store.future(polling_timeout=0)
            key = future._factory.key
            earlier = start(store.get, key)
            assert connector.has_read.wait(60)
            Store("elsewhere", LocalConnector(shared))._set(key, [1])
            join = store._flights.join

            def join_and_open(*args):
                flight, fetch_here = join(*args)
                if not fetch_here:  # so this thread is about to wait for the earlier one
                    connector.may_return.set()
                return flight, fetch_here

            monkeypatch.setattr(store._flights, "join", join_and_open)
            assert future.result() == [1]
            earlier.join()

    @pytest.mark.parametrize("answer", [True, False])
    def test_survives_a_connector_that_comes_back_early_with_nothing(self, clock, answer):
        class Hasty(LocalConnector):
            waits = reads = 0

            def wait(self, key, timeout):
                self.waits += 1
                clock.now += timeout / 4
                return answer

            def get(self, key):
                self.reads += 1
                return super().get(key)

        with Store("hasty", Hasty(), register=True) as store:
            future = store.future(polling_interval=4, polling_timeout=12)
            with pytest.raises(ProxyResolveTimeoutError) as caught:
                future.result()
            assert store.connector.waits == 3
            assert store.connector.reads == (7 if answer else 4)
        assert caught.value.waited == 12
        assert clock.slept == [3, 3, 3]

    def test_a_connector_is_never_asked_to_wait_longer_than_an_interval(self, clock):
        class Patient(LocalConnector):
            asked = ()

            def wait(self, key, timeout):
                self.asked += (timeout,)
                clock.now += timeout
                return False

        with Store("patient", Patient(), register=True) as store:
            future = store.future(
                polling_interval=1,
                polling_backoff_factor=2,
                polling_interval_limit=3,
                polling_timeout=8,
            )
            with pytest.raises(ProxyResolveTimeoutError):
                future.result()
        assert store.connector.asked == (1, 2, 3, 2)
        assert clock.slept == []

    def test_a_connector_for_one_thread_is_not_occupied_by_it(self, clock):
        class ForOne(LocalConnector):
            thread_safe = False

            def wait(self, key, timeout):
                raise AssertionError("would keep all others out")

        with Store("for one", ForOne(), register=True) as store:
            future = store.future(polling_timeout=3)
            with pytest.raises(ProxyResolveTimeoutError):
                future.result()
        assert clock.slept == [1, 1, 1]

    def test_holds_nothing_that_others_need(self, visible):
        futures = [visible.future(polling_interval=AN_HOUR) for _ in range(8)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            found = [pool.submit(future.result) for future in futures for _ in range(2)]
            for _ in range(16):
                assert visible.connector.waiting.acquire(timeout=60)
            key = visible.put([1])
            assert visible.get(key) == [1]
            assert visible.exists(key)
            visible.evict(key)
            for i, future in enumerate(futures):
                future.set_result(i)
            assert [f.result(60) for f in found] == [i // 2 for i in range(16)]

    @pytest.mark.parametrize("method", ["get", "wait"])
    def test_ends_when_the_connector_fails(self, method):
        def fail(self, *args):
            raise OSError("no route")

        failing = type("Failing", (LocalConnector,), {method: fail})
        with Store("failing", failing(), register=True) as store:
            future = store.future()
            with pytest.raises(OSError, match="no route"):
                future.result()
            with pytest.raises(ProxyResolveError) as caught:
                len(future.proxy())
            assert isinstance(caught.value.cause, OSError)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("polling_interval", 0),
            ("polling_interval", math.nan),
            ("polling_backoff_factor", 0.5),
            ("polling_interval_limit", 0),
            ("polling_timeout", -1),
        ],
    )
    def test_needs_sensible_parameters(self, store, name, value):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            store.future(**{name: value})

    def test_needs_a_sensible_time_out(self, store):
        future = store.future()
        for wait in (future.result, future.exception):
            with pytest.raises(ValueError, match=r"^timeout must be"):
                wait(-1)

    def test_a_proxy_that_knows_its_class_is_looked_at_without_waiting(self, store):
        proxy = store.future().proxy(dict)
        assert isinstance(proxy, dict)
        assert not hasattr(proxy, "__dask_graph__")
        assert not is_resolved(proxy)

    def test_pickles_are_small(self, store):
        future = store.future()
        plain = len(pickle.dumps(store.proxy([1], populate_target=False)))
        assert len(pickle.dumps(future.proxy())) < plain + 60
        assert len(pickle.dumps(future)) < plain + 100


# -- background, fork and exit


class TestBackground:
    def test_a_failure_is_forgotten_once_it_was_raised(self, store):
        future = store.future(polling_timeout=0)
        proxy = future.proxy()
        resolve_async(proxy)
        with pytest.raises(ProxyResolveError):
            len(proxy)
        future.set_result([1])
        assert proxy == [1]

    def test_a_failure_that_nobody_has_seen_is_tried_again(self, store):
        future = store.future(polling_timeout=0)
        proxy = future.proxy()
        resolve_async(proxy)
        assert get_factory(proxy)._obj_future.exception(60) is not None
        future.set_result([1])
        resolve_async(proxy)
        assert proxy == [1]

    def test_a_second_one_changes_nothing(self, store, at_once):
        future = store.future(evict=True, polling_interval=AN_HOUR, polling_timeout=60)
        proxy = future.proxy()
        at_once(*[lambda: resolve_async(proxy)] * 8)
        first = get_factory(proxy)._obj_future
        future.set_result([1])
        assert first.result(60) == [1]
        resolve_async(proxy)
        assert get_factory(proxy)._obj_future is first
        assert proxy == [1]
        assert not future.done()

    def test_a_thread_that_cannot_be_started_is_not_waited_for(self, store, monkeypatch):
        def refuse(thread):
            raise RuntimeError("can't start new thread")

        future = store.future()
        proxy = future.proxy()
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            resolve_async(proxy)
        monkeypatch.undo()
        future.set_result([1])
        assert proxy == [1]

    @pytest.mark.parametrize("again", [False, True])
    def test_a_forked_child_does_not_wait_for_its_parent_s(self, files, again):
        future = files.future(polling_interval=AN_HOUR)
        proxy = future.proxy()
        resolve_async(proxy)
        ours, theirs = multiprocessing.Pipe()

        def use():
            if again:
                resolve_async(proxy)
            theirs.send(sum(proxy))

        child = multiprocessing.get_context("fork").Process(target=use)
        child.start()
        future.set_result([1, 2])
        assert ours.poll(60)
        assert ours.recv() == 3
        child.join()
        assert proxy == [1, 2]

    def test_nothing_that_waits_keeps_the_interpreter(self, tmp_path):
        script = """if True:
            import asyncio, sys, threading
            from proxystore.connectors.file import FileConnector
            from proxystore.store import Store, get_store
            from proxystore.store.utils import resolve_async

            store = Store("exit", FileConnector(sys.argv[1]), register=True)
            future = store.future(polling_interval=3600)
            resolve_async(future.proxy())
            resolve_async(store.future(polling_interval=0.001).proxy())
            future.add_done_callback(print)

            async def main():
                try:
                    await asyncio.wait_for(asyncio.ensure_future(wait()), 0.01)
                except asyncio.TimeoutError:
                    print("gave up")

            async def wait():
                return await future

            asyncio.run(main())
            print(threading.active_count(), "threads")
        """
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "dir")],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.split("\n")[:2] == ["gave up", "5 threads"]
        assert run.stderr == ""


def test_a_background_resolve_is_logged(store, caplog):
    proxy = store.future(polling_timeout=0).proxy()
    with caplog.at_level(logging.DEBUG, "proxystore.store.factory"):
        resolve_async(proxy)
    assert "in the background" in caplog.text


def test_errors_travel_where_tblib_is_switched_on():
    key = LocalConnector().new_key()
    errors = [
        ProxyResolveTimeoutError(key, Store, "n", 1.5),
        FutureCancelledError(key, "n"),
        FutureAlreadyDoneError(key, "n", "a result"),
        ProducerError("KeyboardInterrupt"),
    ]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    script = """if True:
        import pickle, sys, tblib.pickling_support
        errors = pickle.load(sys.stdin.buffer)
        tblib.pickling_support.install()
        for error in errors:
            try:
                raise error
            except Exception as raised:
                again = pickle.loads(pickle.dumps(raised))
            assert (type(again), str(again)) == (type(error), str(error)), again
    """
    run = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(errors), capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode()


# -- what was overwritten elsewhere


def elsewhere(future):
    """Return the future in another store over the same files, as in another process."""
    config = future._factory.store_config
    other = Store("elsewhere", FileConnector(**config.connector.options), register=True)
    factory = PollingStoreFactory(future._factory.key, other.config())
    return other, Future(factory)


def test_who_has_got_the_result_goes_on_seeing_it(files):
    future = files.future()
    future.set_result("first")
    assert future.result(0) == "first"
    other, there = elsewhere(future)
    with other:
        there.set_exception(Told("second"), overwrite=True)
        with pytest.raises(Told):
            there.result(0)
        assert (future.done(), future.result(0), future.exception(0)) == (True, "first", None)
        files.cache.evict(future._factory.key)
        assert isinstance(future.exception(0), Told)
        with pytest.raises(Told):
            future.result(0)
        assert future.done()


def test_a_result_that_replaces_an_exception_is_seen_by_all(files):
    future = files.future()
    future.set_exception(Told("first"))
    assert isinstance(future.exception(0), Told)
    other, there = elsewhere(future)
    with other:
        there.set_result("second", overwrite=True)
        assert (future.done(), future.exception(0), future.result(0)) == (True, None, "second")
