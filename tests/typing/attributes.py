"""Attributes of a proxy are those of its target. Checked by test_typing.py, never run."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

from typing_extensions import Self, assert_type

from proxystore.proxy import Proxy, ProxyOr

T = TypeVar("T")
S = TypeVar("S")


class Foo:
    number: int = 0
    both: int = 0

    def method(self, argument: str) -> float:
        return 0.0

    def itself(self) -> Self:
        return self

    @property
    def read_only(self) -> str:
        return ""

    @classmethod
    def make(cls) -> Self:
        return cls()


class Bar:
    both: str = ""


class Box(Generic[T]):
    item: T

    def get(self) -> T:
        return self.item

    def pair(self, other: S) -> tuple[T, S]:
        return self.item, other


class Point(NamedTuple):
    x: int
    name: str


class Person(TypedDict):
    name: str
    age: int


Bound = TypeVar("Bound", bound=Foo)
BoundProxy = TypeVar("BoundProxy", bound=Proxy[Foo])
OneOf = TypeVar("OneOf", Foo, Bar)


def make_int() -> int:
    return 1


# -- its own

number = Proxy(make_int)
assert_type(number, Proxy[int])
assert_type(number.__proxy_factory__, Callable[[], int])
assert_type(number.__proxy_resolved__, bool)
assert_type(number.__proxy_wrapped__, int)
assert_type(number.__proxy_target__, int)
assert_type(number.__proxy_default_class__, type | None)
assert_type(number.__proxy_default_hash__, Exception | int | None)
number.__proxy_wrapped__ = 2
number.__proxy_target__ = ""  # E: assignment
number.__proxy_factory__ = make_int
del number.__proxy_wrapped__
assert_type(Proxy(lambda: [1]), Proxy[list[int]])
Proxy(1)  # E: arg-type
Proxy(make_int, target="")  # E: arg-type

assert_type(Proxy.__doc__, str | None)
assert_type(Proxy.__module__, str)
assert_type(Proxy.__dict__, MappingProxyType[str, Any])
assert_type(Proxy.__annotations__, dict[str, Any])
assert_type(Proxy.__name__, str)

# -- the target's

foo: Proxy[Foo] = Proxy(Foo)
assert_type(foo.number, int)
assert_type(foo.method("text"), float)
assert_type(foo.itself(), Foo)
assert_type(foo.read_only, str)
assert_type(foo.make(), Foo)
assert_type(foo.__class__, type[Foo])
assert_type(foo.__doc__, str | None)
_ = foo.unknown  # E: attr-defined
foo.method(1)  # E: arg-type
foo.method()  # E: call-arg
foo.number = 2
foo.number += 2
foo.number = "text"  # E: assignment
foo.unknown = 1  # E: attr-defined
foo.read_only = ""  # E: misc
del foo.number

assert_type(number.real, int)
assert_type(number.bit_length(), int)
assert_type(Proxy(lambda: [1]).pop(), int)
Proxy(lambda: [1]).append("text")  # E: arg-type
assert_type(Proxy(lambda: {"a": 1}).get("a"), int | None)

# -- generic ones

box: Proxy[Box[str]] = Proxy(Box[str])
assert_type(box.item, str)
assert_type(box.get(), str)
assert_type(box.pair(1), tuple[str, int])
assert_type(box.pair([]), tuple[str, list[int]])  # E: assert-type

point: Proxy[Point] = Proxy(lambda: Point(1, ""))
assert_type(point.name, str)
assert_type(point._replace(x=2), Point)

person: Proxy[Person] = Proxy(lambda: Person(name="", age=1))
for key in person.keys():
    assert_type(key, str)

kind: Proxy[type[Foo]] = Proxy(lambda: Foo)
assert_type(kind.make(), Foo)
function: Proxy[Callable[[int], str]] = Proxy(lambda: str)
_ = function.unknown  # E: attr-defined

inner: Proxy[Proxy[Foo]] = Proxy(lambda: foo)
assert_type(inner.number, int)
_ = inner.unknown  # E: attr-defined


# -- unions


def unions(
    one: Proxy[Foo] | Bar,
    either: ProxyOr[Foo],
    two: Proxy[Foo] | Proxy[Bar],
    target: Proxy[Foo | Bar],
    maybe: Proxy[Foo] | None,
    nothing: Proxy[Foo | None],
) -> None:
    assert_type(one.both, int | str)
    _ = one.number  # E: union-attr
    _ = one.unknown  # E: union-attr, union-attr
    assert_type(either.number, int)
    assert_type(either.method("text"), float)
    _ = either.unknown  # E: union-attr
    assert_type(two.both, int | str)
    _ = two.number  # E: union-attr
    assert_type(target.both, int | str)
    _ = target.number  # E: union-attr
    _ = maybe.number  # E: union-attr
    _ = nothing.number  # E: union-attr
    if isinstance(either, Proxy):
        assert_type(either, Proxy[Foo])
    if maybe is not None:
        assert_type(maybe.number, int)
        maybe.number = 1
        maybe.number = ""  # E: assignment


# -- nothing is known of the target


def unbound(proxy: Proxy[T], other: ProxyOr[T]) -> T:
    assert_type(proxy.anything, Any)
    proxy.anything = 1
    _ = other.anything  # E: union-attr
    return proxy.__proxy_wrapped__


def bound(
    proxy: Proxy[Bound], itself: BoundProxy, constrained: Proxy[OneOf], subclass: type[Proxy[Foo]]
) -> None:
    assert_type(proxy.number, int)
    assert_type(proxy.itself(), Bound)
    _ = proxy.unknown  # E: attr-defined
    assert_type(itself.number, int)
    _ = itself.unknown  # E: attr-defined
    _ = constrained.both
    _ = constrained.unknown  # E: attr-defined, attr-defined
    _ = subclass.number  # E: attr-defined


def untyped(proxy: Proxy[Any], bare: Proxy) -> None:  # E: type-arg
    assert_type(proxy.anything, Any)
    assert_type(bare.anything.more, Any)
    proxy.anything = 1
    assert_type(proxy.__class__, Any)
