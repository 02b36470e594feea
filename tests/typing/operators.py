"""Operators, items and calls of a proxy are those of its target. Never run."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self, assert_type

from proxystore.proxy import Proxy, ProxyOr

T = TypeVar("T")


class Person(TypedDict):
    name: str
    age: int


class Resource:
    def __enter__(self) -> int:
        return 1

    def __exit__(self, *_: object) -> None: ...

    async def __aenter__(self) -> str:
        return ""

    async def __aexit__(self, *_: object) -> None: ...


class Money:
    def __radd__(self, other: int) -> Self:
        return self

    def __iadd__(self, other: str) -> Self:
        return self


class Stream:
    def __aiter__(self) -> AsyncIterator[int]:
        raise NotImplementedError


number = Proxy(lambda: 1)
real = Proxy(lambda: 1.5)
text = Proxy(lambda: "text")
numbers = Proxy(lambda: [1, 2])
names = Proxy(lambda: {"a": 1})
pair: Proxy[tuple[int, str]] = Proxy(lambda: (1, ""))
person: Proxy[Person] = Proxy(lambda: Person(name="", age=1))
money = Proxy(Money)
nothing = Proxy(object)

# -- arithmetic

assert_type(number + 1, int)
assert_type(1 + number, int)
assert_type(number + number, int)
assert_type(number + 1.5, float)
assert_type(1.5 - number, float)
assert_type(number / 2, float)
assert_type(text + "more", str)
assert_type(text % 1, str)
assert_type(numbers + [3], list[int])
assert_type(numbers + [], list[int])
assert_type([3] + numbers, list[int])
assert_type(numbers * 2, list[int])
assert_type(number + number * (2 + number) // 3, int)
assert_type(1 + money, Money)
assert_type(-number, int)
assert_type(~number, int)
assert_type(number << number, int)
assert_type(number | 1, int)
_ = number + "text"  # E: operator
_ = "text" + number  # E: operator
_ = number + text  # E: operator
_ = -text  # E: operator
_ = nothing + 1  # E: operator
_ = nothing @ nothing  # E: operator
array: Proxy[NDArray[np.float64]] = Proxy(lambda: np.zeros(3))
assert_type(array + array, NDArray[np.float64])
assert_type(array.sum(), Any)

# -- comparisons

assert_type(number < 2, bool)
assert_type(2 < number, bool)
assert_type(number == 2, bool)
assert_type(number != number, bool)
assert_type(text >= "a", bool)
_ = number < "text"  # E: operator
assert_type(1 in numbers, bool)
_ = number in number  # E: attr-defined
assert_type(not numbers, bool)

# -- in place, where the name still holds the proxy

number += 1
assert_type(number, Proxy[int])
numbers += [3]
numbers += ["text"]  # E: list-item
number += "text"  # E: operator
number /= 2  # E: operator
money += "text"
money += 1  # E: arg-type

# -- items

assert_type(numbers[0], int)
assert_type(numbers[1:], list[int])
assert_type(text[0], str)
assert_type(names["a"], int)
assert_type(pair[0], int)
assert_type(pair[1], str)
_ = pair[2]  # E: misc
assert_type(person["name"], str)
_ = person["unknown"]  # E: typeddict-item
person["age"] = 2
numbers[0] = 2
numbers[0] = "text"  # E: call-overload
numbers["a"]  # E: call-overload
names["a"] += 1
names[1] = 1  # E: index
_ = number[0]  # E: index
number[0] = 1  # E: index
del numbers[0]
del number[0]  # E: attr-defined

# -- iteration

for item in numbers:
    assert_type(item, int)
assert_type([x for x in text], list[str])
assert_type({k: v for k, v in names.items()}, dict[str, int])
first, second = numbers
assert_type(first, int)
for item in number:  # E: attr-defined
    pass
assert_type(len(numbers), int)
# Functions see the protocol, and that is of Any.
assert_type(list(numbers), list[Any])
assert_type(operator.index(number), int)

# -- calls and contexts

function: Proxy[Callable[[int], str]] = Proxy(lambda: str)
assert_type(function(1), str)
function("text")  # E: arg-type
function()  # E: call-arg
factory: Proxy[type[Resource]] = Proxy(lambda: Resource)
assert_type(factory(), Resource)
number()  # E: operator

with Proxy(Resource) as got:
    assert_type(got, int)
with number as got:  # E: attr-defined, attr-defined
    pass


async def asynchronous(
    waiting: Proxy[Awaitable[int]], resource: Proxy[Resource], stream: Proxy[Stream]
) -> None:
    assert_type(await waiting, int)
    async with resource as got:
        assert_type(got, str)
    async for item in stream:
        assert_type(item, int)
    await resource  # E: attr-defined


# -- unions, proxies of proxies, and unknown targets


def others(
    one: Proxy[int] | float,
    two: ProxyOr[list[int]],
    target: Proxy[int | str],
    inner: Proxy[Proxy[int]],
    unbound: Proxy[T],
    anything: Proxy[Any],
    maybe: Proxy[list[int] | None],
) -> None:
    assert_type(one + 1, int | float)
    assert_type(two[0], int)
    for item in two:
        assert_type(item, int)
    assert_type(target * 2, int | str)
    assert_type(inner + 1, int)
    assert_type(unbound + 1, Any)
    assert_type(unbound[0], Any)
    assert_type(unbound(), Any)
    assert_type(anything + 1, Any)
    assert_type(anything[0], Any)
    assert_type(anything(1, a=2), Any)
    assert_type(1 + anything, Any)
    anything += 1
    _ = maybe[0]  # E: index


# -- what a proxy has for all targets

assert_type(bool(nothing), bool)
assert_type(int(number), int)
assert_type(str(number), str)
assert_type(hash(number), int)
assert_type(iter(numbers), Iterator[Any])
assert_type(numbers.__iter__(), Iterator[int])
assert_type(f"{number:.2f}", str)
plain: int = number  # E: assignment
