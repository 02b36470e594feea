"""Proxies of objects that are evicted once nobody needs them.

The store's own proxies say nothing about need: who sends one on has to know how long
its object will be there. A `RefFactory` knows, in two ways:

- In the process that counts, it has a `Hold`: while the proxy lives, so does the object.
- It notices being pickled, so that whoever packs arguments or results learns which
  objects left with them, however deep inside they were.

A `Scope` can end that need for many proxies at once, whoever still has them.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from proxystore.proxy import Proxy, get_factory
from proxystore.store.factory import StoreFactory
from proxystore.workflow import Hold, Ref

T = TypeVar("T")

Holds = Mapping[tuple[Any, ...], Hold]

_NOTHING: Holds = {}
_noticed: ContextVar[list[RefFactory] | None] = ContextVar("noticed", default=None)
_lent: ContextVar[tuple[Holds, Scope | None]] = ContextVar("lent", default=(_NOTHING, None))


class _CanLetGo(Protocol):
    def let_go(self) -> None:
        """Need nothing any more."""


class Scope:
    """What was put and called in a `StoreApps.scope`, which is let go when that ends.

    Thread-safe; the lock protects the set, and nothing is called under it.

    Attributes:
        ended: Whether it has.
    """

    def __init__(self) -> None:
        self.ended = False
        self._lock = threading.Lock()
        self._members: dict[int, weakref.ref[_CanLetGo]] = {}
        self._kept: list[Any] = []

    def keep(self, obj: T) -> T:
        """Return an object that is not dropped before the scope ends: a future, a proxy."""
        self._kept.append(obj)
        return obj

    def add(self, member: _CanLetGo) -> None:
        """Let something go when the scope ends, or now if it has."""
        with self._lock:
            if not self.ended:
                number = id(member)
                forget = self._members.pop
                self._members[number] = weakref.ref(member, lambda _: forget(number, None))
                return
        member.let_go()

    def end(self) -> None:
        """Let everything go; calling it again does nothing."""
        with self._lock:
            self.ended = True
            members = list(self._members.values())
            self._members.clear()
        self._kept.clear()
        for member in members:
            if (found := member()) is not None:
                found.let_go()


class RefFactory(StoreFactory[Any]):
    """Gets a counted object: a private copy that may be written to.

    Args:
        ref: The object.
        hold: Keeps it in the store. None where nobody counts: on a worker, whose task
            the submit process holds it for.
        inside: Holds on objects that proxies inside this one refer to.
        scope: Ends that at the latest.
    """

    def __init__(
        self,
        ref: Ref,
        hold: Hold | None = None,
        inside: Holds = _NOTHING,
        scope: Scope | None = None,
    ) -> None:
        super().__init__(ref.factory.key, ref.factory.store_config)
        self.ref = ref
        self.hold = hold
        self.inside = inside
        self.scope = scope
        if scope is not None:
            scope.add(self)

    def let_go(self) -> None:
        """Need the object, and those inside it, no more."""
        self.hold, self.inside = None, _NOTHING

    def resolve(self) -> Any:
        """Return the object.

        Raises:
            ProxyResolveMissingKeyError: It is gone.
        """
        with lend(self.inside, self.scope):
            return of_main(self.ref.resolve())

    def __reduce_ex__(self, protocol: Any) -> Any:
        noticed = _noticed.get()
        if noticed is not None:
            noticed.append(self)
        return _arrived, (self.ref,)


def of_main(obj: T) -> T:
    """Return an object that has come from elsewhere, as one of a class of this program.

    Classes of a notebook or a script travel by value, so that there is a second one, of
    which `isinstance` is false. What unpickles results in Parsl does the same, also for
    the outermost object only.
    """
    cls = type(obj)
    if cls.__module__ == "__main__":
        own = getattr(sys.modules["__main__"], cls.__name__, None)
        if isinstance(own, type):
            with suppress(TypeError, AttributeError):  # its attributes have another place there
                object.__setattr__(obj, "__class__", own)
    return obj


def _arrived(ref: Ref) -> RefFactory:
    holds, scope = _lent.get()
    return RefFactory(ref, holds.get(ref.id), scope=scope)


def counted_proxy(
    ref: Ref,
    hold: Hold | None = None,
    inside: Holds = _NOTHING,
    scope: Scope | None = None,
) -> Proxy[Any]:
    """Return an unresolved proxy of an object; arguments are those of `RefFactory`."""
    proxy = ref.proxy()
    proxy.__proxy_factory__ = RefFactory(ref, hold, inside, scope)
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
def lend(holds: Holds, scope: Scope | None = None) -> Iterator[None]:
    """Give the factories that are unpickled in this thread meanwhile their holds and scope."""
    token = _lent.set((holds, scope))
    try:
        yield
    finally:
        _lent.reset(token)
