"""Things to ask of proxies that stores have made; only `resolve_async` does any work."""

from __future__ import annotations

from typing import Any

from proxystore.proxy import Proxy, get_factory, is_resolved
from proxystore.store.exceptions import ProxyStoreFactoryError
from proxystore.store.factory import StoreFactory, store_factory
from proxystore.store.types import ConnectorKeyT


def get_key(proxy: Proxy[Any]) -> ConnectorKeyT:
    """Return the key of a proxy's object.

    Raises:
        ProxyStoreFactoryError: The proxy was not made by a store.
    """
    return _factory_of(proxy).key


def resolve_async(proxy: Proxy[Any]) -> None:
    """Start getting a proxy's object in the background; using the proxy waits for it.

    Does nothing if the proxy is resolved.

    Raises:
        ProxyStoreFactoryError: The proxy was not made by a store.
    """
    factory = _factory_of(proxy)
    if not is_resolved(proxy):
        factory.resolve_async()


def _factory_of(proxy: Proxy[Any]) -> StoreFactory[Any]:
    factory = store_factory(proxy)
    if factory is None:
        raise ProxyStoreFactoryError(
            f"The proxy must contain a factory with type StoreFactory, "
            f"this one's is a {type(get_factory(proxy)).__name__}"
        )
    return factory
