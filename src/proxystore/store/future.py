"""Objects that somebody will produce, elsewhere and later.

What a future knows lies in its store and nowhere else, under one key: nothing (it is not
done), the result, or in its place an exception. So all copies of a future agree, in every
process, but for one thing: who has got a result goes on seeing it, while the cache of its
store has it, though it was overwritten (`overwrite=True`) or evicted elsewhere since. And none
can do what the store's connector cannot. In particular two producers, or one and a `cancel`,
at the very same moment do not see each other: the last one wins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter_ns, sleep
from typing import Any, Generic, TypeVar, cast

from typing_extensions import Self

from proxystore.proxy import Proxy
from proxystore.serialize import serialize
from proxystore.store import _threads
from proxystore.store._backoff import backoff
from proxystore.store._failures import Failure
from proxystore.store.exceptions import FutureAlreadyDoneError, FutureCancelledError
from proxystore.store.factory import PollingStoreFactory
from proxystore.store.types import SerializerT

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)


class Future(Generic[T]):
    """An object that somebody will produce, elsewhere and later; made by `Store.future`.

    Send the future, which can be pickled, to the producer, which calls `set_result`. Send
    `proxy` to the consumers: they start at once, and wait where they use it.

    A future is done while there is something under its key. Once the result has been
    evicted (by `evict=True`, a lifetime, or anybody) it is not done any more, and `result`
    waits for another one. Exceptions and cancellations are never evicted by consumers. A
    process that has got the result and still has it in its store's cache does not learn that
    it was overwritten or evicted by another one: `done`, `result` and `exception` there go by
    what it has got.

    A producer that is killed tells nobody: give futures a `polling_timeout`, and producers
    `with future.producing():`, which tells of all that Python can catch.

    ``await future`` is `result` without blocking the event loop. If that is cancelled
    while it waits, nothing is evicted.

    Thread-safe.

    Args:
        factory: Gets the object.
        serializer: For `set_result`; None: the store's.
    """

    _watch: _Watch | None = None

    def __init__(
        self, factory: PollingStoreFactory[T], *, serializer: SerializerT | None = None
    ) -> None:
        self._factory = factory
        self._serializer = serializer

    def __repr__(self) -> str:
        factory = self._factory
        return f"{type(self).__name__}(key={factory.key!r}, store={factory.store_config.name!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, without callbacks, which cannot travel."""
        return {name: value for name, value in vars(self).items() if name != "_watch"}

    # -- for consumers

    def done(self) -> bool:
        """Say whether `result` would return, or raise an exception, without waiting."""
        done: bool = self._factory.get_store().exists(self._factory.key)
        return done

    def proxy(self, default_class: type[T] | None = None) -> Proxy[T]:
        """Return a new proxy of the result; using it waits, and raises, as `result` does.

        Args:
            default_class: Class that the result will have. None: not known; then also
                `isinstance` waits for the result, and with it whoever looks at what it is
                given, as plain Dask does at the arguments of a task, in the client.
        """
        proxy = Proxy(self._factory)
        proxy.__proxy_default_class__ = default_class
        return proxy

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result and return it; evict it if the future was made to.

        Args:
            timeout: How long to wait, in seconds; 0: look once. None: as long as the
                future's `polling_timeout`. A connector that does not answer can make it longer
                by as much as its own time-out.

        Raises:
            ProxyResolveTimeoutError: It has not come in time; a
                `ProxyResolveMissingKeyError` and a `TimeoutError`.
            FutureCancelledError: The future was cancelled.
            Exception: What the producer has set.
            ValueError: `timeout` is negative.
        """
        if timeout is None:
            return self._factory.resolve()
        return self._factory._resolve(timeout)

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait until the future is done and return its exception, None if it has a result.

        Nothing is evicted. Arguments and errors are those of `result`, but for the
        exception that is returned.
        """
        factory = self._factory
        timeout = factory._polling_timeout if timeout is None else timeout
        store = factory.get_store()
        factory._wait(store, timeout)
        if store._remembers(factory.key, factory.deserializer):
            return None  # as `result`, whatever there is by now
        error = self._failure()
        if isinstance(error, FutureCancelledError):
            raise error
        return error

    def cancelled(self) -> bool:
        """Say whether the future was cancelled."""
        return isinstance(self._failure(), FutureCancelledError)

    def cancel(self) -> bool:
        """Tell all that no result is wanted: consumers stop waiting, producers are refused.

        Returns:
            False if there is a result or an exception already; then nothing changes.
        """
        store, key = self._factory.get_store(), self._factory.key
        if store.exists(key):
            return self.cancelled()
        error = FutureCancelledError(key, store.name)
        store._set(key, Failure.of(error), serializer=serialize)
        return True

    def add_done_callback(self, fn: Callable[[Self], object]) -> None:
        """Call ``fn(future)`` in this process once the future is done; now, if it is.

        Functions are called in the order in which they were added, by one daemon thread
        for all of a future, which waits without regard to `polling_timeout`. What they
        raise is logged. They do not travel with the future.

        Raises:
            TypeError: `fn` is not callable.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable with the future, got {type(fn).__name__}")
        watch = self._watch
        if watch is not None and watch.add(fn):
            return
        if self.done():
            _call(fn, self)
        else:
            self._watch = _Watch(self, fn)

    def __await__(self) -> Generator[Any, Any, T]:
        return self._awaited().__await__()

    async def _awaited(self) -> T:
        import asyncio  # late: who awaits has it, all others do without

        factory = self._factory
        start = perf_counter_ns()
        given_up = threading.Event()

        def get() -> tuple[Any, T]:
            store = factory.get_store()
            return store, factory._poll(store, factory._polling_timeout, given_up)

        try:
            store, obj = await _in_thread(get)
        finally:
            given_up.set()
        # Only now, when a cancelled await cannot lose the object any more.
        if factory.evict:
            await asyncio.shield(_in_thread(partial(factory._take, store, start)))
        else:
            factory._take(store, start)
        return obj

    # -- for producers

    def set_result(self, obj: T, *, overwrite: bool = False) -> None:
        """Store the result, in whatever thread or process.

        Args:
            obj: Any object that can be serialized; None is one.
            overwrite: Replace what is there, for a producer that may run twice. A
                cancelled future stays so.

        Raises:
            FutureAlreadyDoneError: There is a result or an exception already, or the
                future was cancelled; nothing is stored.
            SerializationError: The object cannot be pickled; nothing is stored.
            TypeError: The serializer did not return bytes; nothing is stored.
        """
        self._set(obj, self._serializer, overwrite)

    def set_exception(self, error: BaseException, *, overwrite: bool = False) -> None:
        """Let all who wait for the result raise `error` instead.

        They raise a copy, as `result` or as the cause of a proxy's `ProxyResolveError`. It
        is a `ProducerError` with a description where `error` cannot be pickled or rebuilt,
        or is no `Exception`: consumers must not end because their producer was told to.

        Args:
            error: The exception, with its traceback if it was raised.
            overwrite: As for `set_result`.

        Raises:
            FutureAlreadyDoneError: As for `set_result`.
            TypeError: `error` is no exception.
        """
        if not isinstance(error, BaseException):
            raise TypeError(f"error must be an exception, got {type(error).__name__}")
        self._set(Failure.of(error), serialize, overwrite)

    @contextmanager
    def producing(self) -> Iterator[Self]:
        """Set what the block raises as the exception, unless the future is done by then.

        The exception is raised on.

            with future.producing():
                future.set_result(compute())
        """
        try:
            yield self
        except BaseException as error:
            try:
                if not self.done():
                    self.set_exception(error)
            except Exception:  # the first error is the one to know about
                logger.exception("cannot tell the consumers of %r that its producer failed", self)
            raise

    def _set(self, obj: Any, serializer: SerializerT | None, overwrite: bool) -> None:
        store, key = self._factory.get_store(), self._factory.key
        if store.exists(key):
            error = self._failure()
            outcome = "a result" if error is None else "an exception"
            if isinstance(error, FutureCancelledError):
                outcome = "been cancelled"
            if outcome == "been cancelled" or not overwrite:
                raise FutureAlreadyDoneError(key, store.name, outcome)
        store._set(key, obj, serializer=serializer)

    def _failure(self) -> Exception | None:
        """Return what is there in place of a result, if anything."""
        error: Exception | None = self._factory.get_store()._failure(self._factory.key)
        return error


class _Watch:
    """Calls functions once a future is done, in a daemon thread of its own."""

    def __init__(self, future: Future[Any], fn: Callable[[Any], object]) -> None:
        self._future = future
        # Kept: once it is closed, asking for it would make another one.
        self._store = future._factory.get_store()
        self._functions: list[Callable[[Any], object]] | None = [fn]
        # Protects the list; nobody calls or waits for anything under it.
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="proxystore-callbacks", daemon=True)
        self._thread.start()

    def add(self, fn: Callable[[Any], object]) -> bool:
        """Add a function, unless it is too late: the thread is done, or in a fork's parent."""
        if not self._thread.is_alive():
            return False
        with self._lock:
            if self._functions is None:
                return False
            self._functions.append(fn)
            return True

    def _run(self) -> None:
        for wait in backoff(1, factor=2, limit=60):
            try:
                self._future._factory._wait(self._store, None)
                break
            except Exception:  # any connector may raise anything
                logger.exception("cannot see whether %r is done, retrying", self._future)
                sleep(wait)
        with self._lock:
            functions, self._functions = self._functions, None
        for fn in functions or ():
            _call(fn, self._future)


def _call(fn: Callable[[Any], object], future: Future[Any]) -> None:
    try:
        fn(future)
    except Exception:  # who added it is not here to catch it
        logger.exception("a callback of %r failed", future)


async def _in_thread(function: Callable[[], R]) -> R:
    """Return what a function returns in a thread of its own; the event loop goes on."""
    obj, error = await _threads.wait_for(_threads.start(partial(_outcome, function), alone=True))
    if error is not None:
        raise error
    return cast(R, obj)


def _outcome(function: Callable[[], R]) -> tuple[R | None, BaseException | None]:
    # asyncio's futures never end with a StopIteration (before Python 3.12), and make other
    # exceptions of some: a pair passes through them as it is.
    try:
        return function(), None
    except BaseException as error:  # noqa: BLE001 - raised by whoever awaits
        return None, error
