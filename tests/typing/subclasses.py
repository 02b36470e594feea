"""Subclasses of Proxy have what they declare and what the target has. Never run."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from typing_extensions import assert_type

from proxystore.proxy import Proxy

T = TypeVar("T")
S = TypeVar("S")


class Foo:
    number: int = 0
    shared: int = 0

    def __add__(self, other: int) -> float:
        return 0.0


class Named(Proxy[T]):
    name: str = ""
    shared: str = ""

    def describe(self) -> str:
        return self.name


class OfFoo(Proxy[Foo]):
    def __mul__(self, other: Any) -> bytes:
        return b""


class Swapped(Named[S], Generic[T, S]):
    pass


class Believed(Proxy[Foo]):
    def __getattr__(self, name: str) -> bytes:
        return b""


class Overriding(Proxy[Foo]):
    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class Recursive(Proxy["Recursive"]):
    pass


class Growing(Proxy["Growing[list[T]]"], Generic[T]):
    pass


named: Named[Foo] = Named(Foo)
assert_type(named.name, str)
assert_type(named.shared, str)
assert_type(named.describe(), str)
assert_type(named.number, int)
assert_type(named + 1, float)
_ = named.unknown  # E: attr-defined
named.name = "text"
named.name = 1  # E: assignment
named.number = "text"  # E: assignment

of_foo = OfFoo(Foo)
assert_type(of_foo.number, int)
assert_type(of_foo + 1, float)
assert_type(of_foo * 1, bytes)

swapped: Swapped[str, Foo] = Swapped(Foo)
assert_type(swapped.number, int)
assert_type(Believed(Foo).number, bytes)
assert_type(Overriding(Foo).number, int)
_ = Overriding(Foo).unknown  # E: attr-defined


def proxies_of_themselves(recursive: Recursive, growing: Growing[int]) -> None:
    assert_type(recursive.anything, Any)
    assert_type(recursive + 1, Any)
    assert_type(recursive[0], Any)
    assert_type(growing.anything, Any)
    recursive.anything = 1


def unions(one: Named[Foo] | OfFoo) -> None:
    assert_type(one.shared, str | int)
    assert_type(one.number, int)
    assert_type(one + 1, float)


class Holder:
    foo: Proxy[Foo]

    def use(self) -> int:
        return self.foo.number

    def local(self) -> None:
        class Local(Proxy[Foo]):
            mine: int = 0

        assert_type(Local(Foo).mine, int)
        assert_type(Local(Foo).number, int)
        _ = Local(Foo).unknown  # E: attr-defined
