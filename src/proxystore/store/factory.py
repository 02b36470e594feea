"""What a proxy of a stored object calls to get it."""

from __future__ import annotations

import copyreg
import logging
import threading
from concurrent.futures import Future
from time import perf_counter_ns
from typing import Any, Generic, TypeVar, cast

from proxystore.factory import Factory
from proxystore.proxy import Proxy, get_factory
from proxystore.store import _wire
from proxystore.store._registry import get_or_create_store
from proxystore.store.config import StoreConfig
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.store.types import ConnectorKeyT, DeserializerT

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Tells "no such key" from a stored None.
_MISSING = object()


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
        self._obj_future: Future[T] | None = None

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

        Does nothing while an earlier one is under way. Each has a thread of its own,
        which no other prefetch waits for and no exiting interpreter.
        """
        if self._obj_future is not None:
            return
        future: Future[T] = Future()
        self._obj_future = future
        logger.debug("resolving %r in the background", self)
        threading.Thread(
            target=self._resolve_into, args=(future,), name="proxystore-resolve", daemon=True
        ).start()

    def _resolve_into(self, future: Future[T]) -> None:
        try:
            future.set_result(self.resolve())
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits for it
            future.set_exception(error)

    def __call__(self) -> T:
        """Return what `resolve` returns, waiting for `resolve_async` if that was called."""
        start = perf_counter_ns()
        future, self._obj_future = self._obj_future, None
        obj = self.resolve() if future is None else future.result()
        self._record(self.get_store(), "factory.call", start)
        return obj

    def _record(self, store: Any, name: str, start: int) -> None:
        if store.metrics is not None:
            store.metrics.add_time(name, self.key, (perf_counter_ns() - start) / 1e6)

    # -- pickling: a factory travels with every proxy

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, without a background resolve, which cannot travel."""
        return {**self.__dict__, "_obj_future": None}

    def __reduce_ex__(self, protocol: Any) -> Any:
        text = _wire.encode(self.store_config)
        state: Any = None
        if text is not None and self._is_plain():
            fields = _wire.fields_of(self.key, self.store_config)
            state = fields and (text, *fields)
        if state is None:
            state = self.__getstate__()
            if text is not None:
                state["store_config"] = text
        return copyreg.__newobj__, (type(self),), state  # type: ignore[attr-defined]

    def _is_plain(self) -> bool:
        return type(self) is StoreFactory and not self.evict and self.deserializer is None

    def __setstate__(self, state: tuple[Any, ...] | dict[str, Any]) -> None:
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
            state = {**state, "store_config": _wire.decode(state["store_config"])}
        self.__dict__.update(state)


def store_factory(proxy: Proxy[Any]) -> StoreFactory[Any] | None:
    """Return the factory of a proxy that a store has made, else None; nothing is resolved."""
    factory = get_factory(proxy)
    return factory if isinstance(factory, StoreFactory) else None
