"""What stores, factories, futures and references say of their objects. Never run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future as ConcurrentFuture
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from typing_extensions import assert_type

from proxystore.connectors.local import LocalConnector
from proxystore.factory import Factory, LambdaFactory, SimpleFactory
from proxystore.proxy import (
    Proxy,
    ProxyLocker,
    ProxyOr,
    extract,
    get_factory,
    is_resolved,
    resolve,
)
from proxystore.store import Store, StoreConfig, StoreFactory, get_or_create_store, get_store
from proxystore.store.future import Future
from proxystore.store.ref import (
    BaseRefProxy,
    OwnedProxy,
    RefMutProxy,
    RefProxy,
    borrow,
    clone,
    into_owned,
    mut_borrow,
    update,
)
from proxystore.store.scopes import submit
from proxystore.store.utils import get_key, resolve_async

T = TypeVar("T")


S = TypeVar("S")


class Box(Generic[T]):
    item: T

    def pair(self, other: S) -> tuple[T, S]:
        return self.item, other


class Foo:
    number: int = 0

    def method(self, argument: str) -> float:
        return 0.0


store = Store("store", LocalConnector())
assert_type(store, Store[LocalConnector])
assert_type(store.connector, LocalConnector)
assert_type(get_store("store"), Store[Any] | None)
assert_type(Store.from_config(store.config()), Store[Any])
assert_type(get_or_create_store(store.config()), Store[Any])
assert_type(store.config(), StoreConfig)
with store as entered:
    assert_type(entered, Store[LocalConnector])

# -- proxies of stores

proxy = store.proxy(Foo())
assert_type(proxy, Proxy[Foo])
assert_type(proxy.number, int)
assert_type(proxy.method("text"), float)
_ = proxy.unknown  # E: attr-defined
assert_type(store.proxy(1) + 1, int)
assert_type(store.proxy([1], skip_nonproxiable=True), Proxy[list[int]])
assert_type(store.proxy(None, skip_nonproxiable=True), None)
assert_type(store.proxy(True, skip_nonproxiable=True), bool)
assert_type(store.locked_proxy(Foo()), ProxyLocker[Foo])
assert_type(store.locked_proxy(Foo()).unlock().number, int)
assert_type(store.locked_proxy(None), None)
assert_type(store.locked_proxy(True), bool)
assert_type(store.proxy_from_key(get_key(proxy)), Proxy[Any])
store.proxy(1, evict=1)  # E: call-overload
store.proxy(Foo(), "serializer")  # E: call-overload

# -- functions on proxies

assert_type(extract(proxy), Foo)
assert_type(get_factory(proxy), Callable[[], Foo])
assert_type(is_resolved(proxy), bool)
resolve(proxy)
resolve_async(proxy)
extract(Foo())  # E: arg-type

# -- factories

factory: StoreFactory[Foo] = StoreFactory(get_key(proxy), store.config())
assert_type(factory(), Foo)
assert_type(factory.resolve(), Foo)
assert_type(Proxy(factory), Proxy[Foo])
assert_type(Proxy(factory).number, int)
assert_type(SimpleFactory(1), SimpleFactory[int])
assert_type(Proxy(SimpleFactory(1)) + 1, int)
assert_type(LambdaFactory(int, "1"), LambdaFactory[int])
general: Factory[Foo] = factory
wrong: Factory[str] = factory  # E: assignment

# -- futures

future: Future[Foo] = store.future()
assert_type(future.result(), Foo)
assert_type(future.proxy(), Proxy[Foo])
assert_type(future.proxy().number, int)
assert_type(future.done(), bool)
future.set_result(Foo())
future.set_result("text")  # E: arg-type

# -- references

owner = store.owned_proxy(Foo())
assert_type(owner, OwnedProxy[Foo])
assert_type(store.owned_proxy(None), None)
assert_type(owner.number, int)
assert_type(into_owned(proxy), OwnedProxy[Foo])
assert_type(clone(owner), OwnedProxy[Foo])
reader = borrow(owner)
assert_type(reader, RefProxy[Foo])
assert_type(reader.method("text"), float)
_ = reader.unknown  # E: attr-defined
writer = mut_borrow(owner)
assert_type(writer, RefMutProxy[Foo])
writer.number = 2
writer.number = "text"  # E: assignment
writer.unknown = 2  # E: attr-defined
update(writer)
update(reader)  # E: arg-type
borrow(proxy)  # E: arg-type
assert_type(extract(reader), Foo)
assert_type(borrow(store.owned_proxy([1]))[0], int)


def references(
    base: BaseRefProxy[Foo],
    either: OwnedProxy[Foo] | RefProxy[Foo],
    unbound: RefProxy[T],
    numbers: OwnedProxy[list[int]],
    boxes: tuple[OwnedProxy[Box[str]], RefProxy[Box[str]], RefMutProxy[Box[str]]],
) -> None:
    assert_type(base.number, int)
    for box in boxes:
        assert_type(box.item, str)
        assert_type(box.pair(1), tuple[str, int])
        assert_type(box.__proxy_factory__, Callable[[], Box[str]])
        assert_type(box.__proxy_resolved__, bool)
        assert_type(box.__proxy_wrapped__, Box[str])
        assert_type(box.__proxy_target__, Box[str])
        _ = box.unknown  # E: union-attr
    assert_type(either.number, int)
    _ = either.unknown  # E: union-attr
    assert_type(unbound.anything, Any)
    assert_type(numbers[0], int)
    assert_type(numbers + [1], list[int])
    for item in numbers:
        assert_type(item, int)


for kind in (BaseRefProxy, OwnedProxy, RefProxy, RefMutProxy):
    assert_type(kind.__module__, str)
assert_type(OwnedProxy.__doc__, str | None)
assert_type(RefProxy.__dict__, MappingProxyType[str, Any])
assert_type(RefMutProxy.__annotations__, dict[str, Any])


# -- functions that take either


def work(foo: ProxyOr[Foo]) -> int:
    return foo.number


with ThreadPoolExecutor() as pool:
    assert_type(work(proxy) + work(owner) + work(Foo()), int)
    work(store.proxy("text"))  # E: arg-type
    assert_type(submit(pool.submit, args=(work, reader)), ConcurrentFuture[Any])
