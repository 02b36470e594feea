"""Contract 3: `proxystore.factory`."""

from __future__ import annotations

from typing import Any

import pytest

from proxystore.factory import Factory, LambdaFactory, SimpleFactory
from proxystore.proxy import Proxy
from proxystore.serialize import deserialize, serialize


def add(x: int, y: int = 0) -> int:
    return x + y


class Bare(Factory[Any]):
    def __init__(self) -> None:
        pass


def test_base_is_abstract() -> None:
    with pytest.raises(NotImplementedError):
        Factory()
    with pytest.raises(NotImplementedError, match="Bare does not define resolve"):
        Bare().resolve()
    with pytest.raises(NotImplementedError):
        Bare()()


def test_calling_resolves() -> None:
    class Answer(Bare):
        def resolve(self) -> int:
            return 42

    assert Answer()() == 42
    assert Proxy(Answer()) + 1 == 43


def test_simple_factory_returns_the_same_object() -> None:
    obj = [1]
    factory = SimpleFactory(obj)
    assert factory() is factory.resolve() is obj


def test_lambda_factory_calls() -> None:
    assert LambdaFactory(list)() == []
    assert LambdaFactory(add, 1, y=2)() == 3
    assert LambdaFactory(add, 1).resolve() == 1
    assert LambdaFactory(target=list)() == []


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (SimpleFactory([1, 2]), [1, 2]),
        (LambdaFactory(add, 1, y=2), 3),
        (LambdaFactory(lambda: 5), 5),
        (LambdaFactory(lambda x: x, [1]), [1]),
    ],
)
def test_factories_serialize(factory: Factory[Any], expected: Any) -> None:
    again = deserialize(serialize(factory))
    assert type(again) is type(factory)
    assert again() == expected


def test_any_callable_is_a_factory() -> None:
    assert Proxy(list) == []
