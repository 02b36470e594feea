"""What a proxy of a stored object calls to get it."""

from __future__ import annotations

import copyreg
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import chain
from time import monotonic, perf_counter_ns, sleep
from typing import Any, Generic, TypeVar, cast

from proxystore.factory import Factory
from proxystore.proxy import Proxy, get_factory
from proxystore.store import _wire
from proxystore.store._backoff import backoff, check
from proxystore.store._registry import get_or_create_store
from proxystore.store.config import StoreConfig
from proxystore.store.exceptions import ProxyResolveMissingKeyError, ProxyResolveTimeoutError
from proxystore.store.types import ConnectorKeyT, DeserializerT

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Tells "no such key" from a stored None.
_MISSING = object()


class _Background(Future[Any]):
    """A resolve that is under way, or whose object nobody has used yet.

    Attributes:
        pid: Process whose thread resolves.
        caller: Thread that is in the middle of `StoreFactory.__call__`. None: it was started
            by `resolve_async`.
    """

    def __init__(self, caller: int | None = None) -> None:
        super().__init__()
        self.pid = os.getpid()
        self.caller = caller


# Held to see whether there is one and to begin one, so that of two threads one does.
_starting = threading.Lock()


def _forget_lock() -> None:
    # Another thread of the parent may have held it; it does not exist in the child.
    global _starting
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


class StoreFactory(Factory[T], Generic[T]):
    """Gets an object from a store, in whichever process it is called.

    Small when pickled: the key and the store's configuration as text, which a process
    decodes once for all factories of a store.

    Args:
        key: The connector's key.
        store_config: Which store; it is made and registered where there is none.
        evict: Evict the object once it has been got.
        deserializer: As for `Store.get`; None: the store's.

    Attributes:
        key: As given; as are `store_config`, `evict` and `deserializer`. All may be
            assigned to.
    """

    # Of a class, not of its subclasses: its pickles hold nothing but what is put there below.
    _travels_small = True

    def __init__(
        self,
        key: ConnectorKeyT,
        store_config: StoreConfig,
        *,
        evict: bool = False,
        deserializer: DeserializerT | None = None,
    ) -> None:
        self.key = key
        self.store_config = store_config
        self.evict = evict
        self.deserializer = deserializer
        self._obj_future: _Background | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key={self.key!r}, store={self.store_config.name!r})"

    def get_store(self) -> Any:
        """Return this process's `Store` for the object, making it if there is none."""
        return get_or_create_store(self.store_config, register=True)

    def resolve(self) -> T:
        """Return the object, and evict it if `evict` is set.

        Raises:
            ProxyResolveMissingKeyError: The store has no object under the key.
            SerializationError: It has, and it cannot be deserialized.
        """
        start = perf_counter_ns()
        store = self.get_store()
        obj = store.get(self.key, deserializer=self.deserializer, default=_MISSING)
        if obj is _MISSING:
            raise ProxyResolveMissingKeyError(self.key, type(store), store.name)
        if self.evict:
            store.evict(self.key)
        self._record(store, "factory.resolve", start)
        return cast(T, obj)

    def resolve_async(self) -> None:
        """Start `resolve` in the background; the next call waits for it and gives its result.

        Does nothing while an earlier one is under way, or has an object that nobody has
        used yet. Each has a thread of its own, which no other prefetch waits for and no
        exiting interpreter.
        """
        with _starting:
            before = self._background()
            if before is not None and not (before.done() and before.exception()):
                return
            future = self._obj_future = _Background()
        logger.debug("resolving %r in the background", self)
        try:
            threading.Thread(
                target=self._resolve_into, args=(future,), name="proxystore-resolve", daemon=True
            ).start()
        except BaseException:
            self._obj_future = None  # nobody would ever complete it
            raise

    def hand_over(self, obj: T) -> None:
        """Let the next call give `obj`, as if `resolve_async` had got it.

        Does nothing if that is under way.
        """
        got = _Background()
        got.set_result(obj)
        with _starting:
            if not self.is_under_way():
                self._obj_future = got

    def is_under_way(self) -> bool:
        """Say whether `resolve_async` was called and nobody has used its object yet."""
        return self._background() is not None

    def disown(self) -> None:
        """Leave evicting to somebody else."""
        self.evict = False

    def _background(self) -> _Background | None:
        """Return the background resolve, if its thread is one of this process."""
        future = self._obj_future
        return None if future is None or future.pid != os.getpid() else future

    def _resolve_into(self, future: _Background) -> None:
        try:
            future.set_result(self.resolve())
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits for it
            future.set_exception(error)

    def __call__(self) -> T:
        """Return what `resolve` returns, waiting for `resolve_async` if that was called."""
        start = perf_counter_ns()
        obj: T = self._resolve_alone() if self.evict else self._resolve_or_wait()
        self._record(self.get_store(), "factory.call", start)
        return obj

    def _resolve_or_wait(self) -> T:
        future, self._obj_future = self._background(), None
        return self.resolve() if future is None else cast(T, future.result())

    def _resolve_alone(self) -> T:
        """As `_resolve_or_wait`; what begins meanwhile waits, since the object is there once."""
        caller = threading.get_ident()
        with _starting:
            future = before = self._background()
            if future is None:
                future = self._obj_future = _Background(caller)
        try:
            if before is None:
                self._resolve_into(future)
            elif before.caller == caller:
                return self.resolve()  # it is being decoded with its own help
            return cast(T, future.result())
        finally:
            with _starting:
                if self._obj_future is future and (before is None or before.caller != caller):
                    self._obj_future = None
            del future, before  # a failure holds this frame

    def _record(self, store: Any, name: str, start: int) -> None:
        if store.metrics is not None:
            store.metrics.add_time(name, self.key, (perf_counter_ns() - start) / 1e6)

    # -- pickling: a factory travels with every proxy

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, without a background resolve, which cannot travel."""
        return {**self.__dict__, "_obj_future": None}

    # A pickler that proxies what a policy matches, as Parsl's, asks the policy about each
    # object in here. A list, set, dictionary or bytes among them would be proxied too, and
    # what is in the pickle of that proxy, and so on without an end.

    def __reduce_ex__(self, protocol: Any) -> Any:
        ours = "_travels_small" in vars(type(self))
        text = _wire.encode(self.store_config)
        state: Any = None
        if text is not None and ours and not self.evict and self.deserializer is None:
            fields = _wire.fields_of(self.key, self.store_config)
            state = fields and (text, *fields)
        if state is None:
            state = self.__getstate__()
            if text is None and ours:
                text, state["functions"] = _wire.encode_apart(self.store_config)
            if text is not None:
                state["store_config"] = text
            if ours:
                state = (None, *chain.from_iterable(state.items()))
        return copyreg.__newobj__, (type(self),), state  # type: ignore[attr-defined]

    def __setstate__(self, state: tuple[Any, ...] | dict[str, Any]) -> None:
        functions = None
        if isinstance(state, tuple) and state[0] is None:
            state = dict(zip(state[1::2], state[2::2], strict=True))
            functions = state.pop("functions", None)
        if isinstance(state, tuple):
            text, *fields = state
            self.store_config = _wire.decode(text)
            self.key = _wire.key_from(fields, self.store_config)
            self.evict = False
            self.deserializer = None
            self._obj_future = None
            return
        # Existing installations have written the model itself.
        if isinstance(state["store_config"], str):
            state = {**state, "store_config": _wire.decode(state["store_config"], functions)}
        self.__dict__.update(state)


_POLLING = (
    "polling_interval",
    "polling_backoff_factor",
    "polling_interval_limit",
    "polling_timeout",
)


class PollingStoreFactory(StoreFactory[T], Generic[T]):
    """Gets an object from a store once it is there, and waits until then.

    Where the connector can tell when an object comes (`WaitableConnector`), it is got at
    once. Otherwise, and should the connector be mistaken, it is looked for after each
    interval. Nobody else waits for a thread that does this: it holds no lock.

    Args:
        key: As for `StoreFactory`; as are `store_config` and `deserializer`.
        store_config: See `key`.
        deserializer: See `key`.
        evict: Evict the object once it has been got. What a producer has set in its place,
            an exception, stays for others to see.
        polling_interval: Longest time before the second look, in seconds; greater than 0.
        polling_backoff_factor: Growth from one interval to the next; at least 1.
        polling_interval_limit: Longest interval, in seconds; greater than 0. None: no cap.
        polling_timeout: How long to wait altogether, in seconds, the time that the
            connector takes included; 0: look once. None: for ever.

    Raises:
        ValueError: An argument is out of range.
    """

    _travels_small = True

    def __init__(
        self,
        key: ConnectorKeyT,
        store_config: StoreConfig,
        *,
        deserializer: DeserializerT | None = None,
        evict: bool = False,
        polling_interval: float = 1,
        polling_backoff_factor: float = 1,
        polling_interval_limit: float | None = None,
        polling_timeout: float | None = None,
    ) -> None:
        check_polling(
            polling_interval, polling_backoff_factor, polling_interval_limit, polling_timeout
        )
        super().__init__(key, store_config, evict=evict, deserializer=deserializer)
        self._polling_interval = polling_interval
        self._polling_backoff_factor = polling_backoff_factor
        self._polling_interval_limit = polling_interval_limit
        self._polling_timeout = polling_timeout

    def resolve(self) -> T:
        """Wait for the object, return it, and evict it if `evict` is set.

        Raises:
            ProxyResolveTimeoutError: It has not come within `polling_timeout`; a
                `ProxyResolveMissingKeyError` and a `TimeoutError`.
            Exception: What its producer has set in its place.
            SerializationError: It has come, and cannot be deserialized.
        """
        return self._resolve(self._polling_timeout)

    def _resolve(self, timeout: float | None) -> T:
        start = perf_counter_ns()
        store = self.get_store()
        obj = self._poll(store, timeout)
        self._take(store, start)
        return cast(T, obj)

    # These are told which store it is: after a wait it may be closed, and get_store() would
    # make and register a new one.

    def _take(self, store: Any, start: int) -> None:
        """Do what is left to do once the object is at hand."""
        if self.evict:
            store.evict(self.key)
        self._record(store, "factory.polling_resolve", start)

    def _wait(self, store: Any, timeout: float | None) -> None:
        """Wait for the object without getting it; raises as `resolve`."""
        self._until(lambda: store.exists(self.key) or _MISSING, store, timeout, None)

    def _poll(
        self, store: Any, timeout: float | None, given_up: threading.Event | None = None
    ) -> Any:
        """Wait for the object and return it.

        Args:
            store: Where it will be.
            timeout: As `polling_timeout`.
            given_up: Time out as soon as it is set. None: nobody gives up.
        """

        def get() -> Any:
            return store.get(self.key, deserializer=self.deserializer, default=_MISSING)

        return self._until(get, store, timeout, given_up)

    def _until(
        self,
        look: Callable[[], Any],
        store: Any,
        timeout: float | None,
        given_up: threading.Event | None,
    ) -> Any:
        """Return what `look` finds as soon as it finds something; it looks at least once."""
        start = monotonic()
        waits = backoff(
            self._polling_interval,
            factor=self._polling_backoff_factor,
            limit=self._polling_interval_limit,
            timeout=timeout,
            clock=monotonic,
        )
        pause: Callable[[float], object] = sleep if given_up is None else given_up.wait
        while (found := look()) is _MISSING:
            wait = next(waits, None)
            if wait is None or (given_up is not None and given_up.is_set()):
                raise ProxyResolveTimeoutError(
                    self.key, type(store), store.name, monotonic() - start
                )
            until = monotonic() + wait
            if store._wait(self.key, wait) and (found := look()) is not _MISSING:
                break
            # The connector cannot wait, or has come back early and with nothing.
            left = until - monotonic()
            if left > 0:
                pause(left)
        return found

    # -- pickling

    def __reduce_ex__(self, protocol: Any) -> Any:
        make, args, state = super().__reduce_ex__(protocol)
        if isinstance(state, tuple) and state[0] is not None:  # no names: these have none either
            state = (tuple(getattr(self, f"_{name}") for name in _POLLING), *state)
        return make, args, state

    def __setstate__(self, state: tuple[Any, ...] | dict[str, Any]) -> None:
        polling = state[0] if isinstance(state, tuple) else None
        super().__setstate__(state if polling is None else state[1:])  # type: ignore[index]
        if polling is not None:
            for name, value in zip(_POLLING, polling, strict=True):
                setattr(self, f"_{name}", value)


def check_polling(
    interval: float, factor: float, limit: float | None, timeout: float | None
) -> None:
    """Raise `ValueError` if `PollingStoreFactory` would not take these arguments."""
    check(interval, factor, limit, timeout, names=_POLLING)


def store_factory(proxy: Proxy[Any]) -> StoreFactory[Any] | None:
    """Return the factory of a proxy that a store has made, else None; nothing is resolved."""
    factory = get_factory(proxy)
    return factory if isinstance(factory, StoreFactory) else None
