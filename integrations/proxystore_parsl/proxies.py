"""Proxies of objects that are evicted once nobody needs them.

The store's own proxies say nothing about need: who sends one on has to know how long
its object will be there. A `RefFactory` knows, in two ways:

- In the process that counts, it has a `Hold`: while the proxy lives, so does the object.
- It notices being pickled, so that whoever packs arguments or results learns which
  objects left with them, however deep inside they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from proxystore.proxy import Proxy, get_factory
from proxystore.store.factory import StoreFactory
from proxystore.workflow import Hold, Ref

Holds = Mapping[tuple[Any, ...], Hold]

_NOTHING: Holds = {}
_noticed: ContextVar[list[RefFactory] | None] = ContextVar("noticed", default=None)
_lent: ContextVar[Holds] = ContextVar("lent", default=_NOTHING)


class RefFactory(StoreFactory[Any]):
    """Gets a counted object: a private copy that may be written to.

    Args:
        ref: The object.
        hold: Keeps it in the store. None where nobody counts: on a worker, whose task
            the submit process holds it for.
        inside: Holds on objects that proxies inside this one refer to.
    """

    def __init__(self, ref: Ref, hold: Hold | None = None, inside: Holds = _NOTHING) -> None:
        super().__init__(ref.factory.key, ref.factory.store_config)
        self.ref = ref
        self.hold = hold
        self.inside = inside

    def resolve(self) -> Any:
        """Return the object.

        Raises:
            ProxyResolveMissingKeyError: It is gone.
        """
        with lend(self.inside):
            return self.ref.resolve()

    def __reduce_ex__(self, protocol: Any) -> Any:
        noticed = _noticed.get()
        if noticed is not None:
            noticed.append(self)
        return _arrived, (self.ref,)


def _arrived(ref: Ref) -> RefFactory:
    return RefFactory(ref, _lent.get().get(ref.id))


def counted_proxy(ref: Ref, hold: Hold | None = None, inside: Holds = _NOTHING) -> Proxy[Any]:
    """Return an unresolved proxy of an object; arguments are those of `RefFactory`."""
    proxy = ref.proxy()
    proxy.__proxy_factory__ = RefFactory(ref, hold, inside)
    return proxy


def counted_factory(obj: Any) -> RefFactory | None:
    """Return the factory of a proxy that `counted_proxy` made, else None; resolves nothing."""
    if not issubclass(type(obj), Proxy):
        return None
    factory = get_factory(obj)
    return factory if isinstance(factory, RefFactory) else None


@contextmanager
def notice() -> Iterator[list[RefFactory]]:
    """Collect the factories that are pickled in this thread meanwhile."""
    noticed: list[RefFactory] = []
    token = _noticed.set(noticed)
    try:
        yield noticed
    finally:
        _noticed.reset(token)


@contextmanager
def lend(holds: Holds) -> Iterator[None]:
    """Give the factories that are unpickled in this thread meanwhile their holds."""
    token = _lent.set(holds)
    try:
        yield
    finally:
        _lent.reset(token)
