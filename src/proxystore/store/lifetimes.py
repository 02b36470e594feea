"""How long stored objects live.

The rules:

- What is attached to a lifetime is taken out of it once, under its lock, and evicted
  outside of it. Who closes a lifetime that another thread is closing waits for that one.
- What cannot be evicted does not stop the rest: the lifetime ends all the same, and then
  the first error is raised.
- The leases of a store share one daemon thread, which exists while there are any. A store
  that does not answer delays no lease but its own.
- What was attached before a fork is the parent's: in the child every lifetime is empty.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import logging
import math
import os
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from numbers import Real
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from typing_extensions import Self

from proxystore.proxy import Proxy, get_factory
from proxystore.store.types import ConnectorKeyT
from proxystore.store.utils import get_key

if TYPE_CHECKING:
    from proxystore.store.base import Store

logger = logging.getLogger(__name__)


def no_key(given: object, act: str) -> TypeError:
    """Return what is raised for something that is no key; a proxy among that is not resolved.

    Args:
        given: What was given.
        act: The method that takes keys.
    """
    what = repr(given)
    advice = "a key is a tuple, as put() returns it"
    if issubclass(type(given), Proxy):
        advice = "get_key(proxy) is the key of a proxy"
    elif act == "get_batch":
        advice = "pass a list of keys, which are tuples, as put() returns them"
    return TypeError(f"{act}() cannot find an object by {what[:200]}: {advice}")


def _require_store(store: Any) -> None:
    # Told by its methods, since its module imports this one; connectors have no `proxy`.
    has_both = all(callable(getattr(store, method, None)) for method in ("evict", "proxy"))
    if isinstance(store, type) or not has_both:
        raise TypeError(f"store must be a Store, whose objects are evicted, got {store!r}")


@runtime_checkable
class Lifetime(Protocol):
    """Evicts what is attached to it when it ends."""

    def add_key(self, *keys: ConnectorKeyT, store: Store[Any] | None = None) -> None:
        """Attach keys of `store`."""
        ...

    def add_proxy(self, *proxies: Proxy[Any]) -> None:
        """Attach the keys of proxies that stores have made."""
        ...

    def close(self, *, close_stores: bool = False) -> None:
        """End: evict everything that is attached, then close the stores if asked to."""
        ...

    def done(self) -> bool:
        """Say whether it has ended."""
        ...


class _Lifetime:
    """Keys by store, until it ends. Thread-safe."""

    name: str

    def __init__(self) -> None:
        # None: ended, or being closed.
        self._attached: dict[Any, set[ConnectorKeyT]] | None = {}
        self._ended = False
        self._new_locks()
        _alive.add(self)

    def _new_locks(self) -> None:
        # Both re-entrant: a finalizer may close a lifetime in the middle of anything.
        # `_lock` is for the attributes; `_closing` is held during a whole close.
        self._lock = threading.RLock()
        self._closing = threading.RLock()

    def _forget(self) -> None:
        # In a forked child. A thread that was closing it is not here and never returns.
        self._new_locks()
        self._ended = self._attached is None
        self._attached = None if self._ended else {}

    def _attach(self, attached: Iterable[tuple[Any, ConnectorKeyT]]) -> None:
        with self._lock:
            if self._attached is None:
                raise RuntimeError(f"{self!r} has ended: nothing can be attached to it any more")
            for store, key in attached:
                self._attached.setdefault(store, set()).add(key)

    def _attach_keys(self, store: Any, keys: tuple[Any, ...]) -> None:
        for key in keys:
            if not issubclass(type(key), tuple):
                raise no_key(key, "add_key")
        self._attach((store, key) for key in keys)

    def close(self, *, close_stores: bool = False) -> None:
        """Evict everything that is attached, then end; does nothing if it has ended.

        Returns when that is done, also if another thread is doing it. Interrupted
        (``KeyboardInterrupt``) it has not ended: close it again.

        Args:
            close_stores: Close the stores afterwards.

        Raises:
            Exception: The first that evicting, or closing a store, has raised; notes
                (from Python 3.11) tell of the others. It has ended all the same.
        """
        with self._closing:
            with self._lock:
                attached, self._attached = self._attached, None
            if attached is None:
                return
            failures: list[tuple[str, Exception]] = []
            try:
                for store, keys in attached.items():
                    _evict_all(store, keys, failures)
            except BaseException:
                with self._lock:
                    self._attached = attached
                raise
            self._ended = True
            for store in attached if close_stores else ():
                _close(store, failures)
        logger.info("closed %r", self)
        if failures:
            raise _first(failures)

    def done(self) -> bool:
        """Say whether it has ended: everything that was attached has been evicted."""
        return self._ended


def _evict_all(store: Any, keys: set[ConnectorKeyT], failures: list[tuple[str, Exception]]) -> None:
    while keys:
        key = keys.pop()
        try:
            store.evict(key)
        except Exception as error:  # noqa: BLE001 - a connector's own; raised when all are tried
            failures.append((f"evicting {key!r} from {store!r}", error))
        except BaseException:
            keys.add(key)
            raise


def _close(store: Any, failures: list[tuple[str, Exception]]) -> None:
    try:
        store.close()
    except Exception as error:  # noqa: BLE001 - a connector's own; raised when all are tried
        failures.append((f"closing {store!r}", error))


def _first(failures: list[tuple[str, Exception]]) -> Exception:
    (doing, first), *others = failures
    notes = [f"raised when {doing}"]
    notes += [f"then {doing} raised {error!r}" for doing, error in others[:10]]
    if len(others) > 10:
        notes.append(f"and so on, {len(others) - 10} times more")
    for note in notes:
        if hasattr(first, "add_note"):  # Python 3.11
            first.add_note(note)
        else:
            logger.warning("%r: %s", first, note)
    return first


class ContextLifetime(_Lifetime):
    """Evicts what is attached to it when a block is left, or when it is closed.

    Thread-safe. In a forked child it is empty: only the parent evicts what the parent
    has attached.

    Args:
        store: Whose objects.
        name: What it is called in logs. None: a new UUID.

    Raises:
        TypeError: `store` is no `Store`.

    Attributes:
        store: As given, as is `name`.
    """

    def __init__(self, store: Store[Any], *, name: str | None = None) -> None:
        _require_store(store)
        super().__init__()
        self.store = store
        self.name = str(uuid.uuid4()) if name is None else name
        self._attached = {store: set()}
        logger.info("created %r", self)

    def __repr__(self) -> str:
        return f"Lifetime(name={self.name}, store={self.store!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception:
            if exc_value is None:
                raise
            # What the block has raised came first.
            logger.warning("closing %r failed", self, exc_info=True)

    def add_key(self, *keys: ConnectorKeyT, store: Store[Any] | None = None) -> None:
        """Attach keys of this lifetime's store.

        Args:
            keys: Keys; one that is attached already is no error.
            store: Not looked at.

        Raises:
            RuntimeError: The lifetime has ended.
            TypeError: One is no key; none is attached.
        """
        self._attach_keys(self.store, keys)
        logger.debug("%r: added %r", self, keys)

    def add_proxy(self, *proxies: Proxy[Any]) -> None:
        """Attach the keys of proxies of this lifetime's store; nothing is resolved.

        Raises:
            ProxyStoreFactoryError: A proxy was not made by a store; none is attached.
            RuntimeError: The lifetime has ended.
        """
        self.add_key(*[get_key(proxy) for proxy in proxies])


# -- Leases ---------------------------------------------------------------------------------


class LeaseLifetime(ContextLifetime):
    """Evicts what is attached to it after some time, unless it is extended.

    The time is measured by a clock that nobody sets; a `datetime` is converted once, when
    it is given (a naive one is local time). A lease does not keep the interpreter alive:
    at exit, what is attached to it is evicted at once, since nobody would later.

    Thread-safe, and cheap: the leases of a store share one thread. Errors of an eviction
    when the lease has run out are logged.

    Args:
        store: Whose objects.
        expiry: A point in time, or for how long from now, in seconds. The past, 0 or
            less: it has ended from the start.
        name: As for `ContextLifetime`.

    Raises:
        TypeError: `expiry` is neither a datetime nor a timedelta nor a number, or `store` no
            `Store`.
        ValueError: `expiry` is not a number of seconds (nan).
    """

    _expired = False

    def __init__(
        self, store: Store[Any], expiry: datetime | timedelta | float, *, name: str | None = None
    ) -> None:
        now = time.monotonic()
        deadline = _deadline(expiry, now)
        super().__init__(store, name=name)
        self._clock = _clock_of(store)
        if deadline > now:
            self._timer = self._clock.set(deadline, self)
        else:
            self._timer = _Alarm(self._clock, deadline, self)
            self._timer.finish()
            self.close()

    def extend(self, expiry: datetime | timedelta | float) -> None:
        """Let it end later, or earlier; effective at once.

        Args:
            expiry: A point in time takes the place of the present one; a timedelta or a
                number of seconds is added to it, and may be negative.

        Raises:
            RuntimeError: The lease has ended.
            TypeError: As for the constructor, as is `ValueError`.
        """
        with self._lock:
            if self._expired or self._attached is None:
                raise RuntimeError(f"{self!r} has ended: it cannot be extended any more")
            deadline = _deadline(expiry, self._timer.deadline)
            self._timer.cancel()
            self._timer = self._clock.set(deadline, self)

    def close(self, *, close_stores: bool = False) -> None:
        """End it now; otherwise as `ContextLifetime.close`."""
        try:
            super().close(close_stores=close_stores)
        finally:
            if self._ended:
                self._timer.cancel()

    def done(self) -> bool:
        """Say whether it has ended: everything that was attached has been evicted."""
        self._clock.run()
        return super().done()

    def _attach(self, attached: Iterable[tuple[Any, ConnectorKeyT]]) -> None:
        super()._attach(attached)
        self._clock.run()

    def _forget(self) -> None:
        super()._forget()
        if self._expired:  # and the thread that was about to close it is not here
            self._attached = None
            self._ended = True

    def _expire(self, alarm: _Alarm | None = None) -> None:
        """End it from a thread that nobody gets errors from.

        Args:
            alarm: What has gone off; ignored if the lease has been given another one.
                None: end it in any case.
        """
        with self._lock:
            if alarm is not None and alarm is not self._timer:
                return
            self._expired = True
        try:
            super().close()
        except BaseException:  # the thread has other leases to end
            logger.exception("%r could not evict all that was attached to it", self)


def _deadline(expiry: datetime | timedelta | float, start: float) -> float:
    """Return a time on the monotonic clock.

    Args:
        expiry: A point in time; or for how long, in seconds.
        start: From when on, on the monotonic clock.
    """
    if isinstance(expiry, datetime):
        try:
            seconds = expiry.timestamp() - time.time()
        except (OverflowError, ValueError):  # datetime.max and .min, in some time zones
            seconds = math.inf if expiry.year > 1970 else -math.inf
        return time.monotonic() + seconds
    if isinstance(expiry, timedelta):
        return start + expiry.total_seconds()
    if not isinstance(expiry, Real):
        raise TypeError(
            f"expiry must be a datetime, a timedelta or a number of seconds, "
            f"got {type(expiry).__name__}"
        )
    if math.isnan(expiry):
        raise ValueError(f"expiry must be a number of seconds, got {expiry}")
    return start + float(expiry)


class _Expiring(Protocol):
    """What a clock calls: a lease, or what a consumer has taken."""

    def _expire(self, alarm: _Alarm | None = None) -> None:
        """Do what is due, and raise nothing.

        Args:
            alarm: What has gone off. None: the interpreter exits.
        """
        ...


class _Alarm:
    """The end of a lease, like a `threading.Timer`.

    Attributes:
        deadline: When it goes off, on the monotonic clock.
        lease: What it ends.
        waiting: It is in the clock and has neither gone off nor been cancelled.
    """

    __slots__ = ("_clock", "_over", "deadline", "lease", "waiting")

    def __init__(self, clock: _Clock, deadline: float, lease: _Expiring) -> None:
        self._clock = clock
        self._over = threading.Event()
        self.deadline = deadline
        self.lease = lease
        self.waiting = False

    def cancel(self) -> None:
        """Stop it, unless it has gone off."""
        self._clock.remove(self)

    def finish(self) -> None:
        """Let those who wait for it go on."""
        self._over.set()

    def is_alive(self) -> bool:
        """Say whether it has yet to go off, or is evicting."""
        return not self._over.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has gone off and everything is evicted, or it is cancelled.

        Args:
            timeout: For how long at most, in seconds. None: for ever.
        """
        self._over.wait(timeout)


class _Clock:
    """The alarms of a store's leases, and the thread in which they go off."""

    def __init__(self) -> None:
        # For all attributes, and to wake the thread. Re-entrant: see _Lifetime.
        self._changed = threading.Condition()
        self._count = itertools.count()  # decides between equal deadlines
        self._heap: list[tuple[float, int, _Alarm]] = []
        self._waiting = 0  # alarms in the heap that are not cancelled
        self._ringing: _Alarm | None = None
        self._thread: threading.Thread | None = None

    def set(self, deadline: float, lease: _Expiring) -> _Alarm:
        """Return an alarm that ends `lease`."""
        alarm = _Alarm(self, deadline, lease)
        with self._changed:
            alarm.waiting = True
            self._waiting += 1
            heapq.heappush(self._heap, (deadline, next(self._count), alarm))
            if self._heap[0][2] is alarm:
                self._changed.notify()
        self.run()
        return alarm

    def remove(self, alarm: _Alarm) -> None:
        """Cancel an alarm if it waits."""
        with self._changed:
            if not alarm.waiting:
                return
            alarm.waiting = False
            alarm.finish()
            self._waiting -= 1
            if self._is_stale():
                self._changed.notify()

    def _is_stale(self) -> bool:
        # Half of it: so each alarm is looked at a constant number of times, on average.
        return self._waiting * 2 <= len(self._heap)

    def _drop_cancelled(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].waiting]
        heapq.heapify(self._heap)
        self._waiting = len(self._heap)

    def run(self) -> None:
        """See to it that the thread is there: it ends when it is not needed, and forking."""
        if self._thread is not None or not self._heap:
            return
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="proxystore-leases", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while self._wait():
            alarm = self._ringing
            assert alarm is not None
            alarm.lease._expire(alarm)
            alarm.finish()
            self._ringing = alarm = None  # do not keep the lease while waiting for another

    def _wait(self) -> bool:
        """Wait for an alarm to go off; False when there is none left to wait for."""
        with self._changed:
            while True:
                if self._is_stale():
                    self._drop_cancelled()
                if not self._heap:
                    self._thread = None
                    return False
                seconds = self._heap[0][0] - time.monotonic()
                if seconds > 0:
                    self._changed.wait(min(seconds, threading.TIMEOUT_MAX))
                    continue
                _, _, alarm = heapq.heappop(self._heap)
                if alarm.waiting:
                    alarm.waiting = False
                    self._waiting -= 1
                    self._ringing = alarm
                    return True
                del alarm  # do not keep a cancelled lease while waiting for another

    def end(self) -> None:
        """End all leases now, and wait for the one that is ending."""
        with self._changed:
            alarms = [alarm for _, _, alarm in self._heap if alarm.waiting]
            if self._ringing is not None:
                alarms.append(self._ringing)
        for alarm in alarms:
            alarm.lease._expire()

    def forget_thread(self) -> None:
        """In a forked child: it is not here."""
        self._changed = threading.Condition()
        self._thread = self._ringing = None
        self._drop_cancelled()
        for _, _, alarm in self._heap:
            alarm._over = threading.Event()


# For the tables below.
_lock = threading.RLock()
_alive: weakref.WeakSet[_Lifetime] = weakref.WeakSet()
_clocks: weakref.WeakKeyDictionary[Any, _Clock] = weakref.WeakKeyDictionary()
# The process that ends its leases when it exits.
_ends_leases: int | None = None


def _clock_of(store: Any) -> _Clock:
    global _ends_leases
    with _lock:
        if _ends_leases != os.getpid():
            _ends_leases = os.getpid()
            atexit.unregister(_end_leases)
            atexit.register(_end_leases)
            _end_leases_of_child()
        return _clocks.setdefault(store, _Clock())


def _end_leases_of_child() -> None:
    # Children of multiprocessing call no atexit hooks before Python 3.13.
    if "multiprocessing.process" not in sys.modules:
        return
    from multiprocessing import parent_process, util

    if parent_process() is not None:
        util.Finalize(None, _end_leases, exitpriority=0)


def _end_leases() -> None:
    for clock in list(_clocks.values()):
        clock.end()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for clock in list(_clocks.values()):
        clock.forget_thread()
    for lifetime in list(_alive):
        lifetime._forget()


os.register_at_fork(after_in_child=_after_fork)


# -- Until the end of the program -----------------------------------------------------------


class StaticLifetime(_Lifetime):
    """Evicts what is attached to it, and closes the stores, when the interpreter exits.

    There is one: every call returns it, also after it has been closed. (Assigning None to
    `_instance` lets the next call make another one; what is attached to this one stays.)

    Thread-safe; in a forked child it is empty, as is every lifetime.
    """

    name = "static"
    _instance: ClassVar[StaticLifetime | None] = None

    def __new__(cls) -> StaticLifetime:
        """Return the one that there is; make it if there is none."""
        with _lock:
            if cls._instance is None:
                new = super().__new__(cls)
                _Lifetime.__init__(new)
                logger.info("created %r", new)
                new._callback = register_lifetime_atexit(new, close_stores=True)
                cls._instance = new
            return cls._instance

    def __init__(self) -> None:  # once, in __new__
        self._callback: Callable[[], None]

    def __repr__(self) -> str:
        return f"Lifetime(name={self.name})"

    def add_key(self, *keys: ConnectorKeyT, store: Store[Any] | None = None) -> None:
        """Attach keys of `store`.

        Raises:
            ValueError: `store` is None.
            RuntimeError: The lifetime has ended.
            TypeError: One is no key, or `store` no `Store`; none is attached.
        """
        if store is None:
            raise ValueError(
                f"{type(self).__name__}.add_key requires the store parameter: keys of several "
                f"stores are attached to it, and do not say whose they are"
            )
        _require_store(store)
        self._attach_keys(store, keys)
        logger.debug("%r: added %r of %r", self, keys, store)

    def add_proxy(self, *proxies: Proxy[Any]) -> None:
        """Attach the keys of proxies; a store that this process does not have is made.

        Raises:
            ProxyStoreFactoryError: A proxy was not made by a store; none is attached.
            RuntimeError: The lifetime has ended.
        """
        keys = [get_key(proxy) for proxy in proxies]
        stores: list[Any] = [get_factory(proxy).get_store() for proxy in proxies]  # type: ignore[attr-defined]  # get_key has looked
        self._attach(zip(stores, keys, strict=True))
        logger.debug("%r: added %r", self, keys)

    def close(self, *, close_stores: bool = False) -> None:
        """Evict everything that is attached, then end; see `ContextLifetime.close`."""
        try:
            super().close(close_stores=close_stores)
        finally:
            if self._ended:
                atexit.unregister(self._callback)


def register_lifetime_atexit(lifetime: Lifetime, close_stores: bool = True) -> Callable[[], None]:
    """Close a lifetime when the interpreter exits.

    Args:
        lifetime: Kept alive until then.
        close_stores: As for its `close`.

    Returns:
        What is called then: may be called earlier, and given to `atexit.unregister`.
    """

    def close_lifetime() -> None:
        lifetime.close(close_stores=close_stores)

    atexit.register(close_lifetime)
    logger.debug("registered an atexit hook that closes %r", lifetime)
    return close_lifetime
