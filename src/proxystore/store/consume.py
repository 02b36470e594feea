"""Objects for exactly one consumer, which can fail and be tried again.

    proxy = store.proxy(obj, retain=600)
    with consume(proxy) as obj:  # in whichever process
        ...

What message queues call a visibility time-out:

- Whoever resolves the proxy first *takes* the object. For `retain` seconds nobody else gets
  it; another consumer that comes meanwhile waits until it is free, or gone.
- It says what has become of it: `acknowledge` evicts the object, `release` gives it back for
  the next one, at once. `consume` does the one when its block ends well, the other when that
  fails.
- One that says nothing has lost it after `retain` seconds, or as soon as it is known not to
  need it any more: its process is dead, which is seen on the same host, or its factory is,
  which is seen in the same process. So a task that is killed can be run again.
- One that never says anything, and was not followed by another: twice `retain` seconds after
  it took the object, its process evicts it. Not while its factory lives, which a proxy holds.
  A process that exits releases what it has; one that is killed evicts nothing.

So a consumer has to be done within `retain` seconds, and a second attempt to begin within as
many. The object is used once or more, never none, and by one at a time: exactly once if each
consumer is in time.

A consumer is a factory in a process: two proxies that were unpickled are two consumers, one
proxy that is used by two threads is one.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from time import monotonic, perf_counter_ns, sleep
from typing import Any, Generic, TypeVar, cast

from proxystore.connectors._base import expect_claims, new_name
from proxystore.proxy import Proxy, extract, is_resolved, resolve
from proxystore.store._backoff import backoff
from proxystore.store.config import StoreConfig
from proxystore.store.exceptions import ProxyResolveMissingKeyError, StoreError
from proxystore.store.factory import StoreFactory
from proxystore.store.lifetimes import _Alarm, _clock_of
from proxystore.store.types import ConnectorKeyT, DeserializerT
from proxystore.store.utils import _factory_of
from proxystore.utils._process import identity, is_dead, shown

__all__ = ["RetainingStoreFactory", "acknowledge", "consume", "release"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MISSING = object()

# First and longest wait before trying again to take what somebody else has, in seconds.
_WAITS = (0.005, 1.0)
# The longest claim, 30 years: servers count milliseconds in 64 bits.
_LONGEST_CLAIM = 1e9
# For how long at least to claim what is about to be evicted, in seconds: longer than that
# can take, and no longer than others may wait if this process is stopped in the middle.
_EVICTING = 30.0


# -- For users ------------------------------------------------------------------------------


def acknowledge(proxy: Proxy[Any]) -> bool:
    """Evict the object of a proxy that was made with `retain`: it has been used.

    A proxy that is resolved stays so, and can be used on in this process.

    Args:
        proxy: One that this process has resolved. Otherwise the object is evicted unused, if
            nobody has it.

    Returns:
        True: it is evicted. False: the time was up and somebody else has it, who may use it
        once more, or it is gone already.

    Raises:
        ValueError: The proxy was not made with `retain`.
        ProxyStoreFactoryError: It was not made by a store.
    """
    return _consumer(proxy).acknowledge()


def release(proxy: Proxy[Any]) -> None:
    """Give the object of a proxy that was made with `retain` back, for the next consumer.

    Does nothing at the store if somebody else has it. The proxy is not resolved any more:
    using it takes the object again, as it is stored.

    Raises:
        ValueError: As for `acknowledge`, as is `ProxyStoreFactoryError`.
    """
    factory = _consumer(proxy)
    _forget_target(proxy)
    factory.release()


@contextmanager
def consume(proxy: Proxy[T]) -> Iterator[T]:
    """Take the object of a proxy that was made with `retain`, for the length of a block.

    Acknowledges when the block ends well, releases when it raises. If that fails in turn, it
    is logged, and the block's exception is the one that is raised. That somebody else has the
    object at the end of the block, or has evicted it, is logged as a warning: the block took
    too long, or another one of this process used the same proxy.

        with consume(proxy) as obj:
            ...

    Raises:
        ProxyResolveError: The object cannot be got: it is gone, for one (the cause is a
            `ProxyResolveMissingKeyError`).
        ValueError: As for `acknowledge`, as is `ProxyStoreFactoryError`.
    """
    factory = _consumer(proxy)
    if factory.is_under_way():
        resolve(proxy)  # what was taken before, perhaps long ago
    if is_resolved(proxy) and not factory.renew():
        _forget_target(proxy)  # it was given back, or taken over
    obj = extract(proxy)
    start, attempt = monotonic(), factory.attempt
    try:
        yield obj
    except BaseException:
        try:
            release(proxy)
        except Exception:  # the first error is the one to know about
            logger.exception("cannot release %r, nobody gets it for %g s", factory, factory.retain)
        raise
    found = factory.settle()
    if found is not None:
        given_back = "it was released meanwhile and " if factory.attempt != attempt else ""
        logger.warning(
            "%r cannot be acknowledged, %.3f s after a block took its object for %g s: %s%s",
            *(factory, monotonic() - start, factory.retain, given_back, found),
        )


def _consumer(proxy: Proxy[T]) -> RetainingStoreFactory[T]:
    factory = retaining_factory(proxy)
    if factory is None:
        raise ValueError(
            f"the proxy of {_factory_of(proxy).key!r} was not made with retain=, or has an owner "
            f"by now: nobody has to say what has become of its object"
        )
    return factory


def retaining_factory(proxy: Proxy[T]) -> RetainingStoreFactory[T] | None:
    """Return the factory of a proxy that was made with `retain`, None if it was not.

    Raises:
        ProxyStoreFactoryError: The proxy was not made by a store.
    """
    factory: Any = _factory_of(proxy)
    is_one = isinstance(factory, RetainingStoreFactory) and factory.retain is not None
    return factory if is_one else None


def _forget_target(proxy: Proxy[Any]) -> None:
    if is_resolved(proxy):
        del proxy.__proxy_wrapped__


# -- Who has what ---------------------------------------------------------------------------

# For the tables below and the factories' attributes; nobody does I/O under it. Re-entrant: the
# garbage collector may run a finalizer that needs it in the middle.
_lock = threading.RLock()

# This process's consumers, by what connectors know them by. Who is not in it any more, needs
# nothing any more.
_consumers: weakref.WeakValueDictionary[str, RetainingStoreFactory[Any]]
_consumers = weakref.WeakValueDictionary()

# What they have taken and said nothing about, by the same.
_taken: dict[str, _Taken] = {}

# The random part of their names, and what tells one from the other.
_process = new_name()
_count = itertools.count()


def _after_fork() -> None:
    # All that is the parent's: here nobody has taken anything.
    global _lock, _process
    _lock = threading.RLock()
    _process = new_name()
    _consumers.clear()
    _taken.clear()


os.register_at_fork(after_in_child=_after_fork)


def _pass_over(claimant: str) -> bool:
    """Say whether who has an object does not need it any more; then it will not evict it."""
    process, _, consumer = claimant.rpartition(" ")
    if not consumer.startswith(_process):
        return is_dead(process)
    with _lock:
        if claimant in _consumers:
            return False
        taken = _taken.get(claimant)
        if taken is not None:
            if taken.is_evicting:
                return False
            taken.drop()
        return True


class _Taken:
    """An object that a consumer has taken, and has said nothing about. In the clock.

    Attributes:
        is_evicting: It is too late to pass the consumer over.
        busy: Held by whoever asks the connector in the consumer's name, so that one does not
            release what the other has just claimed.
    """

    def __init__(self, factory: RetainingStoreFactory[Any], store: Any, claimant: str) -> None:
        assert factory.retain is not None
        self._factory = weakref.ref(factory)
        self.store = store
        self.key = factory.key
        self.claimant = claimant
        self.retain = factory.retain
        self.is_evicting = False
        self.busy = threading.RLock()
        self._alarm: _Alarm | None = None

    def __repr__(self) -> str:
        return f"{self.key!r} of {self.store!r}"

    def look_at(self, deadline: float) -> None:
        """Look on the monotonic clock's `deadline` what has become of it."""
        with _lock:
            self.cancel()
            # One thread for all stores: that a slow one makes others late, harms nobody.
            self._alarm = _clock_of(RetainingStoreFactory).set(deadline, self)
            self.is_evicting = False

    def cancel(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def drop(self) -> None:
        """Leave it to others."""
        with _lock:
            if _taken.get(self.claimant) is self:
                del _taken[self.claimant]
            self.cancel()

    def claim(self, seconds: float) -> str:
        return _claim(self.store, self.key, self.claimant, seconds)

    def give_back(self) -> None:
        _give_back(self.store, self.key, self.claimant)

    def _expire(self, alarm: _Alarm | None = None) -> None:
        """Look what has become of it; without an alarm, the interpreter exits."""
        if _taken.get(self.claimant) is not self:
            return  # in a forked child, where `busy` may be held for ever
        with self.busy:
            with _lock:
                if _taken.get(self.claimant) is not self or alarm not in (None, self._alarm):
                    return
                self.is_evicting = alarm is not None and self._factory() is None
            try:
                if alarm is None:
                    self.drop()
                    self.give_back()
                elif self.is_evicting:
                    self._evict()
                else:
                    self._look()
            except BaseException:  # the thread has others to look at
                logger.exception("cannot see what has become of %r", self)
                if alarm is not None:
                    self._look_again()

    def _look_again(self) -> None:
        self.look_at(monotonic() + self.retain)

    def _evict(self) -> None:
        has = self.claim(max(self.retain, _EVICTING))
        if has == self.claimant:
            self.store.evict(self.key)
            logger.debug("evicted %r, of which its consumer has said nothing", self)
        elif _pass_over(has):  # it died: another attempt may come
            self._look_again()
            return
        self.drop()

    def _look(self) -> None:
        """See whether somebody else has it; then that one will evict it."""
        if self.claim(1.0) == self.claimant:
            self.give_back()
            if _exists(self.store, self.key):
                self._look_again()
                return
        self.drop()


def _claim(store: Any, key: ConnectorKeyT, claimant: str, seconds: float) -> str:
    with store._observe("store.claim") as op:
        op.on(key)
        with op.step("connector"), store._exclusive() as connector:
            has: str = connector.claim(key, claimant, min(seconds, _LONGEST_CLAIM))
        op.detail(f"for {claimant!r}, had by {has!r}")
        return has


def _give_back(store: Any, key: ConnectorKeyT, claimant: str) -> None:
    with store._observe("store.release") as op:
        op.on(key)
        with op.step("connector"), store._exclusive() as connector:
            connector.release(key, claimant)


def _exists(store: Any, key: ConnectorKeyT) -> bool:
    with store._exclusive() as connector:  # the store's cache may have what is gone
        return bool(connector.exists(key))


# -- The consumer ---------------------------------------------------------------------------


class RetainingStoreFactory(StoreFactory[T], Generic[T]):
    """Gets an object that only one consumer has at a time; see `proxystore.store.consume`.

    Args:
        key: As for `StoreFactory`; as are `store_config` and `deserializer`.
        store_config: See `key`.
        retain: For how long nobody else gets the object, in seconds.
        deserializer: See `key`.

    Attributes:
        retain: As given. None: the object has an owner by now, and is got like any other.
        attempt: How often it was released in this process.
    """

    _travels_small = True

    # Of one process; those of an unpickled one are these.
    _claimant: str | None = None
    _pid: int | None = None
    attempt = 0

    def __init__(
        self,
        key: ConnectorKeyT,
        store_config: StoreConfig,
        *,
        retain: float,
        deserializer: DeserializerT | None = None,
    ) -> None:
        super().__init__(key, store_config, deserializer=deserializer)
        self.retain: float | None = check_retain(retain)

    def resolve(self) -> T:
        """Wait until nobody else has the object, take it and return it.

        Raises:
            ProxyResolveMissingKeyError: It is gone.
            StoreError: It was released (`release`) while this was waiting.
            SerializationError: It cannot be deserialized; it is given back.
        """
        if self.retain is None:
            return super().resolve()
        start = perf_counter_ns()
        store = self.get_store()
        attempt = self.attempt
        taken = self._take(store, self.retain, attempt)
        try:
            # Not from the cache, nor into it: it would outlive that somebody acknowledges.
            obj = store.get(self.key, deserializer=self.deserializer, default=_MISSING, cache=False)
            if obj is _MISSING:
                raise ProxyResolveMissingKeyError(self.key, type(store), store.name)
            if self.attempt != attempt:
                raise self._was_released()
        except BaseException:
            try:
                taken.drop()
                taken.give_back()
            except Exception:  # the first error is the one to know about
                logger.exception("cannot release %r", self)
            raise
        self._record(store, "factory.resolve", start)
        return cast(T, obj)

    def _take(self, store: Any, retain: float, attempt: int) -> _Taken:
        waits = backoff(_WAITS[0], factor=2, limit=_WAITS[1])
        while True:
            taken = self._try_to_take(store, retain)
            if taken is not None:
                return taken
            if not _exists(store, self.key):
                raise ProxyResolveMissingKeyError(self.key, type(store), store.name)
            sleep(next(waits))
            if self.attempt != attempt:
                raise self._was_released()

    def _try_to_take(self, store: Any, retain: float) -> _Taken | None:
        """Take the object, unless somebody else has it who may need it."""
        claimant = self._name()
        before = _taken.get(claimant)
        taken = _Taken(self, store, claimant) if before is None else before
        with taken.busy:
            start = monotonic()
            has = taken.claim(retain)
            if has != claimant and _pass_over(has):
                _give_back(store, self.key, has)
                has = taken.claim(retain)
            if has != claimant:
                return None
            with _lock:
                _taken[claimant] = taken
                taken.look_at(start + 2 * retain)
        return taken

    def renew(self) -> bool:
        """Have the object for another `retain` seconds, if it has been taken and is still here."""
        taken = _taken.get(self._name())
        if taken is None or self.retain is None:
            return False
        return self._try_to_take(taken.store, self.retain) is not None and _exists(
            taken.store, self.key
        )

    def acknowledge(self) -> bool:
        """Do what the function of that name does."""
        return self.settle() is None

    def settle(self) -> str | None:
        """Evict the object; return what has become of it if that is not possible, as text."""
        claimant = self._name()
        taken = _taken.get(claimant) or _Taken(self, self.get_store(), claimant)
        self._obj_future = None
        with taken.busy, taken.store._observe("store.acknowledge") as op:
            op.on(self.key)
            has = taken.claim(max(taken.retain, _EVICTING))
            if has != claimant:
                process, _, consumer = has.rpartition(" ")
                return f"consumer {consumer} in {shown(process)} has it now, and may use it again"
            was_there = _exists(taken.store, self.key)
            if was_there:
                taken.store.evict(self.key)
            else:
                taken.give_back()
            taken.drop()
            return None if was_there else "it was acknowledged or evicted meanwhile, and is gone"

    def release(self) -> None:
        """Do what the function of that name does, but for the proxy."""
        with _lock:
            self.attempt += 1
        resolving = self._background()
        if resolving is not None:
            resolving.exception()  # it gives up within a second
            self._obj_future = None
        taken = _taken.get(self._name())
        if taken is not None:
            taken.drop()
            with taken.busy:
                taken.give_back()

    def disown(self) -> None:
        """Leave evicting to somebody else, and get the object like any other from now on."""
        super().disown()
        try:
            self.release()
        except Exception:
            logger.exception("cannot release %r", self)
        self.retain = None

    def _name(self) -> str:
        """Return what connectors know this consumer by."""
        with _lock:
            if self._claimant is None or self._pid != os.getpid():
                self._claimant = f"{identity()} {_process}.{next(_count)}"
                self._pid = os.getpid()
                _consumers[self._claimant] = self
            return self._claimant

    def _was_released(self) -> StoreError:
        return StoreError(
            f"{self!r} was released while it was being resolved; use the proxy again to take "
            f"its object again"
        )

    # -- pickling

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, without what it is in this process."""
        mine = ("_claimant", "_pid", "attempt")
        return {name: value for name, value in super().__getstate__().items() if name not in mine}

    def __reduce_ex__(self, protocol: Any) -> Any:
        make, args, state = super().__reduce_ex__(protocol)
        if isinstance(state, tuple) and state[0] is not None:  # no names: it has none either
            state = (self.retain or 0.0, *state)  # None would be the sign of names
        return make, args, state

    def __setstate__(self, state: tuple[Any, ...] | dict[str, Any]) -> None:
        retain = state[0] if isinstance(state, tuple) else None
        super().__setstate__(state if retain is None else state[1:])  # type: ignore[index]
        if retain is not None:
            self.retain = retain or None


def check_retain(retain: float, connector: Any = None) -> float:
    """Return `retain` as a number that is known to be good.

    Args:
        retain: In seconds.
        connector: Where the object is, or will be. None: not looked at.

    Raises:
        TypeError: It is no number.
        ValueError: It is not more than 0, or not finite.
        NotImplementedError: The connector is not a `ClaimableConnector`.
    """
    if isinstance(retain, bool) or not isinstance(retain, Real):
        raise TypeError(f"retain must be a number of seconds, got {type(retain).__name__}")
    try:
        seconds = float(retain)
    except OverflowError:
        seconds = math.inf
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"retain must be more than 0 seconds, and finite, got {seconds}: it is the time that "
            f"a consumer may need"
        )
    if connector is not None:
        expect_claims(connector)
    return seconds
