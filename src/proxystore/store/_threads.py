"""Threads that do for coroutines what would block their event loop.

All are daemons: a connector that hangs does not keep the interpreter from exiting, as the
threads of `asyncio.to_thread` do. asyncio itself is imported by who uses it already.
"""

from __future__ import annotations

import atexit
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")

# They wait for a disk or a server, and hardly need a processor; more at once would only
# make a server's queue longer.
_MOST = 32
# Seconds until a thread without work ends.
_IDLE = 10.0
# Seconds that the end of a program is put off for what is still to be cleaned up.
_PATIENCE = 5.0


class Pool:
    """Up to `most` threads, started when there is work for them.

    Attributes:
        most: Most threads at once, at least 1.

    Args:
        most: As the attribute.
        idle: How long a thread waits for work before it ends, in seconds.
    """

    def __init__(self, most: int = _MOST, *, idle: float = _IDLE) -> None:
        self.most = most
        self._idle_time = idle
        # Protects what follows; notified when there is work.
        self._changed = threading.Condition()
        self._work: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = 0
        self._idle = 0

    def start(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in one of the threads, as soon as one is free.

        Raises:
            RuntimeError: There is no thread and none can be started.
        """
        future: Future[T] = Future()
        work = (future, function)
        with self._changed:
            self._work.append(work)
            if self._idle >= len(self._work) or self._threads >= self.most:
                self._changed.notify()
                return future
            self._threads += 1
            try:
                _start_thread(self._run)
            except RuntimeError:
                self._threads -= 1
                if not self._threads:  # else one of them will come to it
                    self._work.remove(work)
                    raise
        return future

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                found = self._changed.wait_for(lambda: self._work, self._idle_time)
                self._idle -= 1
                if not found:
                    self._threads -= 1
                    return
                future, function = self._work.popleft()
            _run_into(future, function)
            del future, function  # whose objects must not live until there is more work


def _start_thread(function: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=function, args=args, name="proxystore-io", daemon=True).start()


def _run_into(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except StopIteration as error:
        # asyncio's futures refuse it, and who awaits one would wait for ever (before Python
        # 3.12). A coroutine that raises it does this, too.
        instead = RuntimeError(f"raised StopIteration: {error}")
        instead.__cause__ = error
        future.set_exception(instead)
    except BaseException as error:  # noqa: BLE001 - raised by whoever waits for it
        future.set_exception(error)
    else:
        future.set_result(result)


_pool = Pool()


def start(function: Callable[[], T], *, alone: bool = False) -> Future[T]:
    """Run a function in another thread, with the caller's context variables.

    Args:
        function: What to run.
        alone: In a thread of its own: it may wait for what another function, which waits
            for a free thread, has to do.

    Raises:
        RuntimeError: No thread can be started.
    """
    function = _in_context(function)
    if not alone:
        return _pool.start(function)
    future: Future[T] = Future()
    _start_thread(_run_into, future, function)
    return future


def _in_context(function: Callable[[], T]) -> Callable[[], T]:
    context = contextvars.copy_context()
    return lambda: context.run(function)


async def wait_for(future: Future[T]) -> T:
    """Return the result of what was started.

    Cancelling this cancels `future` if it has not begun; else that goes on by itself.
    """
    import asyncio  # 0.07 s that only coroutines need, and they have it

    return await asyncio.wrap_future(future)


# Set when what `afterwards` has promised is done.
_owed: set[threading.Event] = set()


def afterwards(future: Future[T], function: Callable[[T], object]) -> None:
    """Call a function with the result of what was started, if it comes to one.

    In one of the threads, and even if the program ends: that waits `_PATIENCE` seconds.
    """
    done = threading.Event()
    _owed.add(done)

    def end() -> None:
        _owed.discard(done)
        done.set()

    def call() -> None:
        try:
            function(future.result())
        finally:
            end()

    def react(_: Future[T]) -> None:
        if future.cancelled() or future.exception() is not None:
            end()
        else:
            _pool.start(call)  # not here: this may be the event loop's thread

    future.add_done_callback(react)


def _settle() -> None:
    until = monotonic() + _PATIENCE
    for done in tuple(_owed):
        done.wait(max(0, until - monotonic()))


atexit.register(_settle)


def _after_fork() -> None:
    global _pool
    _pool = Pool()  # the threads of the other one are in the parent
    _owed.clear()


os.register_at_fork(after_in_child=_after_fork)
