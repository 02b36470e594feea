"""When proxies and their targets are freed, and what may happen meanwhile."""

from __future__ import annotations

import gc
import sys
import weakref
from functools import partial
from typing import Any

import pytest

from proxystore.proxy import Proxy, ProxyResolveError, extract, is_resolved, resolve


class Node:
    """Something that can be part of a cycle and be watched."""

    proxy: Any = None
    itself: Any = None


def test_cycle_through_the_target_is_collected() -> None:
    node = Node()
    node.proxy = Proxy(Node, target=node)
    gone = weakref.ref(node)
    del node
    gc.collect()
    assert gone() is None


def test_cycle_through_the_factory_is_collected() -> None:
    node = Node()
    node.proxy = Proxy(partial(getattr, node, "itself"))
    resolve(node.proxy)
    gone = weakref.ref(node)
    del node
    gc.collect()
    assert gone() is None


def test_cycle_through_a_subclass_s_attribute_is_collected() -> None:
    class Derived(Proxy[Any]):
        owner: Any = None

    proxy = Derived(list)
    proxy.owner = proxy
    gone = weakref.ref(proxy)
    del proxy
    gc.collect()
    assert gone() is None


def test_finalizer_in_a_collected_cycle_can_still_resolve() -> None:
    found = []

    class Last(Node):
        def __del__(self) -> None:
            found.append(len(self.proxy))

    node = Last()
    node.proxy = Proxy(lambda: [1])
    node.itself = node
    del node
    gc.collect()
    assert found == [1]


def test_finalizer_of_the_old_target_sees_the_new_one() -> None:
    seen = []

    class Old:
        def __del__(self) -> None:
            seen.append(proxy.__proxy_wrapped__ if is_resolved(proxy) else "none")

    proxy: Proxy[Any] = Proxy(Old)
    resolve(proxy)
    proxy.__proxy_wrapped__ = "new"
    assert seen == ["new"]
    proxy.__proxy_wrapped__ = Old()
    del proxy.__proxy_wrapped__
    assert seen == ["new", "none"]


def test_initialising_twice_keeps_the_target() -> None:
    proxy = Proxy(list, target=[1])
    Proxy.__init__(proxy, dict)
    assert extract(proxy) == [1]
    del proxy.__proxy_wrapped__
    assert extract(proxy) == {}


def test_failures_keep_nothing_alive() -> None:
    def fail() -> Any:
        raise LookupError

    gc.disable()
    try:
        for use in (str, hash, len, lambda p: p.x, lambda p: isinstance(p, int)):
            proxy: Proxy[Any] = Proxy(fail)
            with pytest.raises(ProxyResolveError):
                use(proxy)
            gone = weakref.ref(proxy)
            del proxy
            assert gone() is None
    finally:
        gc.enable()


def test_error_of_hashing_keeps_nothing_alive() -> None:
    target = [1]
    before = sys.getrefcount(target)
    try:
        raise LookupError
    except LookupError:
        proxy = Proxy(list, cache_defaults=True, target=target)
    error: Any = proxy.__proxy_default_hash__
    assert error.__traceback__ is None
    assert error.__context__ is None
    del proxy
    assert sys.getrefcount(target) == before
