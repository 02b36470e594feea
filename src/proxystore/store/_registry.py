"""The stores of this process, by name.

The lock protects the tables below and is never held while a store is made, since
that may connect to a server: whoever else wants the same store waits for it on a
lock of that name's own.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from proxystore.proxy import Proxy, get_factory
from proxystore.store import _wire
from proxystore.store.exceptions import ProxyStoreFactoryError, StoreExistsError

if TYPE_CHECKING:
    from proxystore.store.base import Store
    from proxystore.store.config import StoreConfig

logger = logging.getLogger("proxystore.store")

_stores: dict[str, Store[Any]] = {}
# Stores whose name was taken by a store of another place (see `_elsewhere_or_same`),
# by name and then by the text of their configuration.
_elsewhere: dict[str, dict[str, Store[Any]]] = {}
_making: dict[str, threading.RLock] = {}
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
    logger.info("registered the store %r", store.name)


def unregister_store(name_or_store: str | Store[Any]) -> None:
    """Forget a store by its name; one that is not registered is no error."""
    name = name_or_store if isinstance(name_or_store, str) else name_or_store.name
    with _lock:
        known = _stores.pop(name, None)
        _elsewhere.pop(name, None)
    if known is not None:
        logger.info("unregistered the store %r", name)


def unregister_this(store: Store[Any]) -> None:
    """Forget `store`, unless its name has gone to another one since."""
    with _lock:
        if _stores.get(store.name) is store:
            unregister_store(store)


@contextmanager
def store_registration(*stores: Store[Any], exist_ok: bool = False) -> Iterator[None]:
    """Register stores for the length of a block.

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
            unregister_store(store)


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
        if store is not None:
            return _elsewhere_or_same(store, store_config)
        from proxystore.store.base import Store  # base imports this module

        # Registered below, when it is complete and known to be nobody's rival.
        store = Store.from_config(store_config.model_copy(update={"auto_register": False}))
        store.auto_register = store_config.auto_register
        _disown(store.connector)
        if register or store_config.auto_register:
            register_store(store)
        return store


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
    try:
        connector = config.connector.get_connector()
    except Exception:  # noqa: BLE001 - any constructor may raise anything; see above
        others[text] = store
        return store
    if type(connector) is type(store.connector) and connector.config() == store.connector.config():
        others[text] = store
        return store
    logger.warning(
        "the store named %r in this process keeps its objects in %r, a proxy's store of the "
        "same name in %r: both are used; give stores names of their own",
        store.name,
        store.connector,
        connector,
    )
    _disown(connector)
    other = type(store).from_config(
        config.model_copy(update={"auto_register": False}), connector=connector
    )
    others[text] = other
    return other


def _disown(connector: object) -> None:
    disown = getattr(connector, "disown", None)
    if disown is not None:
        disown()


def _forget_locks() -> None:
    # Another thread of the parent may have held them; it does not exist in the child.
    global _lock
    _lock = threading.RLock()
    _making.clear()


os.register_at_fork(after_in_child=_forget_locks)
