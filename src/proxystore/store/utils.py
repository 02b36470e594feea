"""What to ask of proxies that stores have made, and ways to resolve several of them at once."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from proxystore.proxy import Proxy, extract, get_factory, is_resolved, resolve
from proxystore.store import _threads
from proxystore.store.exceptions import ProxyStoreFactoryError
from proxystore.store.factory import StoreFactory, store_factory
from proxystore.store.types import ConnectorKeyT

T = TypeVar("T")


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


def resolve_batch(proxies: Iterable[Proxy[Any]]) -> None:
    """Resolve several proxies, those of one store with one operation of its connector.

    Proxies that are resolved, or being resolved in the background, cost nothing more. Those
    that no store has made, or whose object is yet to come, are resolved one by one.

    Args:
        proxies: Any proxies; one may occur several times.

    Raises:
        ProxyResolveError: The first failure, once all others that can be are resolved.
        TypeError: One is no proxy; none is resolved.
    """
    proxies = list(proxies)
    for proxy in proxies:
        _require_proxy(proxy, "resolve_batch")
    batches: dict[tuple[int, int], tuple[Any, list[StoreFactory[Any]]]] = {}
    for proxy in proxies:
        factory = None if is_resolved(proxy) else getattr(proxy, "__proxy_factory__", None)
        # Subclasses wait, or ask for more than the object.
        if type(factory) is StoreFactory and not factory.is_under_way():
            try:
                store = factory.get_store()
            except Exception:  # noqa: BLE001 - resolving the proxy tells
                continue
            batch = batches.setdefault((id(store), id(factory.deserializer)), (store, []))
            batch[1].append(factory)
    taken = [at for batch in batches.values() for at in _fetch(*batch)]
    steps = [functools.partial(resolve, proxy) for proxy in proxies]
    steps += [functools.partial(store.evict, fac.key) for store, fac in taken if fac.evict]
    failure: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001, PERF203 - raised below
            failure = failure or error
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame


def _fetch(
    store: Any, factories: list[StoreFactory[Any]]
) -> Iterator[tuple[Any, StoreFactory[Any]]]:
    """Give factories what they would get from their store, and yield those that have it."""
    missing = object()
    keys = [factory.key for factory in factories]
    try:
        objs = store.get_batch(keys, deserializer=factories[0].deserializer, default=missing)
    except Exception:  # noqa: BLE001 - as above: each tells what is wrong with its own
        return
    for factory, obj in zip(factories, objs, strict=True):
        if obj is not missing:
            factory.hand_over(obj)
            yield store, factory


async def aresolve(proxy: Proxy[T]) -> T:
    """Return the object of any proxy; the event loop goes on while it is being got.

    The proxy is resolved afterwards. Of those to come at once (``asyncio.gather``) some
    dozens are got at a time; those of `Future`s each have a thread of their own.

    Raises:
        ProxyResolveError: The factory failed.
        TypeError: `proxy` is none.
    """
    _require_proxy(proxy, "aresolve")
    if not is_resolved(proxy):
        kind = type(getattr(proxy, "__proxy_factory__", None))
        # What a future waits for may have to be stored by others who want a thread.
        waits = issubclass(kind, StoreFactory) and kind is not StoreFactory
        work = functools.partial(resolve, proxy)
        await _threads.wait_for(_threads.start(work, alone=waits))
    return extract(proxy)


def _factory_of(proxy: Proxy[Any]) -> StoreFactory[Any]:
    if not issubclass(type(proxy), Proxy):
        raise ProxyStoreFactoryError(
            f"The proxy must contain a factory with type StoreFactory, got no proxy but a "
            f"{type(proxy).__name__}"
        )
    factory = store_factory(proxy)
    if factory is None:
        raise ProxyStoreFactoryError(
            f"The proxy must contain a factory with type StoreFactory, "
            f"this one's is a {type(get_factory(proxy)).__name__}"
        )
    return factory


def _require_proxy(proxy: object, act: str) -> None:
    if not issubclass(type(proxy), Proxy):
        raise TypeError(f"{act}() needs a proxy, got a {type(proxy).__name__}")
