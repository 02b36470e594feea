"""The stores of this process, by name.

The lock protects the tables below and is never held while a store is made, since
that may connect to a server: whoever else wants the same store waits for it on a
lock of that name's own.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from proxystore.connectors._base import abandon, close, disown
from proxystore.proxy import Proxy, get_factory
from proxystore.store import _wire
from proxystore.store.exceptions import ProxyStoreFactoryError, StoreExistsError

if TYPE_CHECKING:
    from proxystore.connectors.protocols import Connector
    from proxystore.store.base import Store
    from proxystore.store.config import StoreConfig
    from proxystore.store.types import ConnectorKeyT

logger = logging.getLogger("proxystore.store")

_stores: dict[str, Store[Any]] = {}
# Stores whose name was taken by a store of another place (see `_elsewhere_or_same`),
# by name and then by the text of their configuration.
_elsewhere: dict[str, dict[str, Store[Any]]] = {}
# Each is there while somebody makes that store, or waits for it.
_making: weakref.WeakValueDictionary[str, threading.RLock] = weakref.WeakValueDictionary()
# Stores that were made here for proxies from elsewhere. A worker that lives for long would
# keep the caches and connections of all jobs it has ever seen; so of these, and of each
# name's in `_elsewhere`, the oldest are forgotten (not closed: a thread may be using one).
# A proxy that still needs one has it made again.
_guests: dict[str, Store[Any]] = {}
_MOST_GUESTS = 64
_lock = threading.RLock()


def get_store(val: str | Proxy[Any]) -> Store[Any] | None:
    """Return a registered store by its name, or the store of a proxy.

    The proxy is not resolved. Its store is made and registered if this process has
    none of that name.

    Raises:
        ProxyStoreFactoryError: The proxy was not made by a store.
    """
    if not issubclass(type(val), Proxy):  # isinstance would resolve a proxy of a str
        return _stores.get(cast(str, val))
    val = cast("Proxy[Any]", val)
    get = getattr(get_factory(val), "get_store", None)
    if get is None:
        raise ProxyStoreFactoryError(
            f"the proxy's factory is a {type(get_factory(val)).__name__}, not a StoreFactory: "
            f"it was not made by a store"
        )
    store: Store[Any] = get()
    return store


def register_store(store: Store[Any], exist_ok: bool = False) -> None:
    """Make `store` known by its name in this process.

    Args:
        store: The store.
        exist_ok: Replace a store that has the name already.

    Raises:
        StoreExistsError: The name is taken, even by `store` itself.
    """
    with _lock:
        if store.name in _stores and not exist_ok:
            error = StoreExistsError(f"a store named {store.name!r} is registered already")
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"get_store({store.name!r}) returns it")
            raise error
        _stores[store.name] = store
        _elsewhere.pop(store.name, None)
        _guests.pop(store.name, None)
    logger.info("registered the store %r", store.name)


def unregister_store(name_or_store: str | Store[Any]) -> None:
    """Forget a store by its name; one that is not registered is no error."""
    name = name_or_store if isinstance(name_or_store, str) else name_or_store.name
    with _lock:
        known = _stores.pop(name, None)
        _elsewhere.pop(name, None)
        _guests.pop(name, None)
    if known is not None:
        logger.info("unregistered the store %r", name)


def unregister_this(store: Store[Any]) -> None:
    """Forget `store`, unless its name has gone to another one since."""
    with _lock:
        if _stores.get(store.name) is store:
            unregister_store(store)


@contextmanager
def store_registration(*stores: Store[Any], exist_ok: bool = False) -> Iterator[None]:
    """Register stores for the length of a block; another one that takes a name in it keeps it.

    Raises:
        StoreExistsError: As for `register_store`; then none is registered.
    """
    registered: list[Store[Any]] = []
    try:
        for store in stores:
            register_store(store, exist_ok=exist_ok)
            registered.append(store)
        yield
    finally:
        for store in registered:
            unregister_this(store)


def get_or_create_store(store_config: StoreConfig, *, register: bool = True) -> Store[Any]:
    """Return this process's store for a configuration, making it if there is none.

    A store is found by its name. If the one that has the name keeps its objects
    somewhere else (another connector, or other options), a second store is made for
    this configuration and returned whenever it is asked for again.

    A store made here is a guest: closing it never deletes objects (see
    `FileConnector.disown`).

    Args:
        store_config: What to look for.
        register: Make a new store known to `get_store`.
    """
    name = store_config.name
    store = _stores.get(name)
    if store is not None and store.is_at(store_config.connector):
        return store
    with _lock:
        making = _making.setdefault(name, threading.RLock())
    with making:
        store = _stores.get(name)
        if store is not None and store.is_at(store_config.connector):
            return store  # which whoever had the lock has made
        if store is not None:
            return _elsewhere_or_same(store, store_config)
        from proxystore.store.base import Store  # base imports this module

        # Registered below, when it is complete and known to be nobody's rival.
        store = Store.from_config(store_config.model_copy(update={"auto_register": False}))
        store.auto_register = store_config.auto_register
        disown(store.connector)
        if register or store_config.auto_register:
            try:
                register_store(store)
            except StoreExistsError:  # somebody has registered another one by hand meanwhile
                with suppress(Exception):
                    # Not abandon(): that one may use a directory that this one has made.
                    close(store.connector, clear=False)
                return get_or_create_store(store_config, register=register)
            _welcome(store)
        return store


def _welcome(store: Store[Any]) -> None:
    """Count a store that was made here among the guests."""
    if not hasattr(store.connector, "disown"):
        return  # its objects may be nowhere but in it
    with _lock:
        _guests[store.name] = store
        # Taken out in the same step: two threads must not choose the same one.
        oldest = _guests.pop(next(iter(_guests))) if len(_guests) > _MOST_GUESTS else None
    if oldest is not None:
        unregister_this(oldest)


def _elsewhere_or_same(store: Store[Any], config: StoreConfig) -> Store[Any]:
    """Tell whether a configuration means the store that has its name.

    Options may be spelled differently (a relative path, a default left out), so the
    connector is made and asked. A configuration that cannot be made here can only
    have meant the name.
    """
    text = _wire.encode(config) or repr(config)
    others = _elsewhere.setdefault(store.name, {})
    if text in others:
        return others[text]
    if len(others) >= _MOST_GUESTS:
        del others[next(iter(others))]
    try:
        connector = config.connector.get_connector()
    except Exception:  # noqa: BLE001 - any constructor may raise anything; see above
        others[text] = store
        return store
    disown(connector)
    if _same_place(connector, store.connector):
        abandon(connector)
        others[text] = store
        return store
    logger.warning(
        "the store named %r in this process keeps its objects in %r, a proxy's store of the "
        "same name in %r: both are used; give stores names of their own",
        store.name,
        store.connector,
        connector,
    )
    other = type(store).from_config(
        config.model_copy(update={"auto_register": False}), connector=connector
    )
    others[text] = other
    return other


class _Home(NamedTuple):
    """The store of a configuration; neither is kept alive.

    Attributes:
        config: The configuration, by whose identity this is found.
        store: Its store, which need not be registered (any more).
        is_maker: The store has made the configuration; otherwise it was registered once when
            somebody asked.
    """

    config: weakref.ref[StoreConfig]
    store: weakref.ref[Store[Any]]
    is_maker: bool


_homes: dict[int, _Home] = {}


def remember(config: StoreConfig, store: Store[Any], *, is_maker: bool) -> None:
    """Let `store_at` return `store` for this very configuration, while there is such a store."""
    place = id(config)
    # The callback frees the place before another object can have the same identity.
    ref = weakref.ref(config, lambda _: _homes.pop(place, None))
    _homes[place] = _Home(ref, weakref.ref(store), is_maker)


def store_at(config: StoreConfig) -> Store[Any] | None:
    """Return the store that a configuration means, if this process has it; none is made."""
    home = _homes.get(id(config))
    known = None
    if home is not None and home.config() is config:
        known = home.store()
        if known is not None and home.is_maker:
            return known
    store = _stores.get(config.name)
    if store is not None and not store.is_at(config.connector):
        store = _elsewhere.get(config.name, {}).get(_wire.encode(config) or repr(config))
    if store is not None and store is not known:
        remember(config, store, is_maker=False)
    return store or known


def evict_from(config: StoreConfig, key: ConnectorKeyT) -> None:
    """Remove an object, without making a store where there is none (any more).

    If `store_at` knows none, a connector is made for it, and closed again; nothing but the
    object is deleted.
    """
    store = store_at(config)
    if store is not None:
        store.evict(key)
        return
    named = _stores.get(config.name)
    try:
        connector = config.connector.get_connector()
    except Exception:
        if named is None:
            raise
        named.evict(key)  # see _elsewhere_or_same
        return
    disown(connector)
    try:
        if named is not None and _same_place(connector, named.connector):
            named.evict(key)
        else:
            connector.evict(key)
    finally:
        abandon(connector)


def _same_place(a: Connector[Any], b: Connector[Any]) -> bool:
    return type(a) is type(b) and a.config() == b.config()


def _forget_locks() -> None:
    # Another thread of the parent may have held them; it does not exist in the child.
    global _lock
    _lock = threading.RLock()
    _making.clear()


os.register_at_fork(after_in_child=_forget_locks)
