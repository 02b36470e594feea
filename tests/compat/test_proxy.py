"""Contract 2: `proxystore.proxy`."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import copy
import gc
import io
import json
import math
import operator
import os
import pathlib
import pickle
import sys
import time
import types
import typing
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterator
from decimal import Decimal
from typing import Any

import cloudpickle
import dill
import numpy as np
import pytest

from proxystore import proxy as module
from proxystore.proxy import (
    Proxy,
    ProxyLocker,
    ProxyOr,
    ProxyResolveError,
    extract,
    get_factory,
    is_resolved,
    resolve,
)

PICKLERS = [pickle, cloudpickle, dill]
each_pickler = pytest.mark.parametrize("pickler", PICKLERS, ids=lambda p: p.__name__)
each_protocol = pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))


class Calls:
    """A factory that counts its calls."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.count = 0

    def __call__(self) -> Any:
        self.count += 1
        return self.target


def a_list() -> list[int]:
    return [1, 2, 3]


def a_failure() -> Any:
    raise LookupError("nothing here")


def of(target: Any) -> Proxy[Any]:
    return Proxy(lambda: target)


def cached(target: Any) -> Proxy[Any]:
    """Return an unresolved proxy that knows the class and the hash of its target."""
    proxy = Proxy(lambda: target, cache_defaults=True, target=target)
    del proxy.__proxy_wrapped__
    return proxy


# -- 2.1 Names ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FactoryType", "DefaultClassType", "DefaultHashType", "T"])
def test_aliases(name: str) -> None:
    assert hasattr(module, name)


def test_what_the_aliases_stand_for() -> None:
    assert module.FactoryType[int] == Callable[[], int]
    assert module.DefaultClassType == type | None
    assert module.DefaultHashType == Exception | int | None


def test_proxy_or_is_a_generic_alias() -> None:
    assert set(typing.get_args(ProxyOr[int])) == {Proxy[int], int}


# -- 2.2 Constructor ------------------------------------------------------------------------


def test_factory_is_remembered_not_called() -> None:
    factory = Calls(1)
    proxy = Proxy(factory)
    assert get_factory(proxy) is factory
    assert factory.count == 0


@pytest.mark.parametrize("factory", [None, 1, "factory"])
def test_factory_must_be_callable(factory: Any) -> None:
    with pytest.raises(TypeError, match=f"callable, got {type(factory).__name__}"):
        Proxy(factory, cache_defaults=True, target=[])


def test_target_given_is_the_target() -> None:
    factory, target = Calls(None), [1]
    proxy = Proxy(factory, target=target)
    assert is_resolved(proxy)
    assert extract(proxy) is target
    assert factory.count == 0


@pytest.mark.parametrize("cache_defaults", [False, True])
def test_target_none_is_no_target(cache_defaults: bool) -> None:
    proxy = Proxy(a_list, cache_defaults=cache_defaults, target=None)
    assert not is_resolved(proxy)
    assert proxy.__proxy_default_class__ is None
    assert proxy.__proxy_default_hash__ is None


def test_all_but_the_factory_are_keywords() -> None:
    with pytest.raises(TypeError):
        Proxy(a_list, True)  # type: ignore[misc]


def test_default_class_is_the_class_that_the_target_claims() -> None:
    class Claims:
        @property  # type: ignore[misc]
        def __class__(self) -> type:
            return dict

    proxy = Proxy(a_failure, cache_defaults=True, target=Claims())
    assert proxy.__proxy_default_class__ is dict
    del proxy.__proxy_wrapped__
    assert isinstance(proxy, dict)


def test_defaults_are_not_cached_unasked() -> None:
    proxy = Proxy(a_list, target="abc")
    assert proxy.__proxy_default_class__ is None
    assert proxy.__proxy_default_hash__ is None


@pytest.mark.parametrize("target", ["abc", 7, (1, 2), frozenset({1})], ids=repr)
def test_defaults_of_a_hashable_target(target: Any) -> None:
    proxy = Proxy(a_list, cache_defaults=True, target=target)
    assert proxy.__proxy_default_class__ is type(target)
    assert proxy.__proxy_default_hash__ == hash(target)


def test_default_hash_of_an_unhashable_target_is_the_error() -> None:
    proxy = Proxy(a_list, cache_defaults=True, target=[1])
    assert isinstance(proxy.__proxy_default_hash__, TypeError)
    assert "unhashable type: 'list'" in str(proxy.__proxy_default_hash__)


def test_proxy_is_generic() -> None:
    class Derived(Proxy[Any]):
        pass

    factory = Calls(1)
    proxy = Proxy[int](factory)
    assert type(proxy) is Proxy
    assert factory.count == 0
    assert Derived(factory) == 1


# -- 2.3 State attributes -------------------------------------------------------------------

STATE = [
    "__proxy_factory__",
    "__proxy_resolved__",
    "__proxy_default_class__",
    "__proxy_default_hash__",
]


@pytest.mark.parametrize("name", STATE)
def test_reading_state_does_not_resolve(name: str) -> None:
    proxy = Proxy(a_failure)
    assert hasattr(proxy, name)
    assert getattr(proxy, name) is object.__getattribute__(proxy, name)
    assert not is_resolved(proxy)


@pytest.mark.parametrize("name", ["__proxy_wrapped__", "__proxy_target__", *STATE])
def test_all_state_is_read_and_written_on_the_proxy(name: str) -> None:
    target = Plain()
    proxy = Proxy(Calls(target), target=target)
    value = object.__getattribute__(proxy, name)
    assert value is getattr(proxy, name)
    if name != "__proxy_resolved__":
        setattr(proxy, name, value)
    assert vars(target) == {"own": 1}
    assert is_resolved(proxy)


def test_wrapped_resolves_what_is_not_resolved() -> None:
    factory = Calls([1])
    assert Proxy(factory).__proxy_wrapped__ is factory.target
    proxy = Proxy(factory)
    assert object.__getattribute__(proxy, "__proxy_wrapped__") is factory.target
    assert is_resolved(proxy)


@pytest.mark.parametrize("value", [Calls("new"), None])
def test_factory_can_be_replaced_unvalidated(value: Any) -> None:
    proxy = Proxy(a_list)
    proxy.__proxy_factory__ = value
    assert get_factory(proxy) is value
    assert not is_resolved(proxy)


def test_deleted_factory_fails_on_the_next_resolve() -> None:
    proxy = Proxy(a_list)
    del proxy.__proxy_factory__
    assert not hasattr(proxy, "__proxy_factory__")
    with pytest.raises(ProxyResolveError, match="__proxy_factory__ is missing"):
        len(proxy)


def test_target_attribute_of_an_unresolved_proxy() -> None:
    proxy = Proxy(a_list)
    with pytest.raises(AttributeError):
        object.__getattribute__(proxy, "__proxy_target__")
    assert not is_resolved(proxy)
    # It is looked up on the target like any name that the proxy does not have.
    with pytest.raises(AttributeError, match="'list' object has no attribute"):
        _ = proxy.__proxy_target__
    assert is_resolved(proxy)
    assert proxy.__proxy_target__ == [1, 2, 3]
    assert object.__getattribute__(proxy, "__proxy_target__") == [1, 2, 3]


@pytest.mark.parametrize("name", ["__proxy_target__", "__proxy_wrapped__"])
@pytest.mark.parametrize("value", [5, None])
def test_setting_the_target_resolves_and_deleting_it_unresolves(name: str, value: Any) -> None:
    factory = Calls(1)
    proxy = Proxy(factory)
    setattr(proxy, name, value)
    assert is_resolved(proxy)
    assert extract(proxy) is value
    assert factory.count == 0
    delattr(proxy, name)
    assert not is_resolved(proxy)
    assert extract(proxy) == 1
    assert factory.count == 1


@pytest.mark.parametrize("name", ["__proxy_target__", "__proxy_wrapped__"])
def test_deleting_a_target_that_is_not_there(name: str) -> None:
    for factory in (a_list, a_failure, lambda: Proxy(a_failure, target=1)):
        proxy = Proxy(factory)
        with pytest.raises(AttributeError, match="not resolved"):
            delattr(proxy, name)
        assert not is_resolved(proxy)
    with pytest.raises(AttributeError, match="not resolved"):
        delattr(Proxy.__new__(Proxy), name)


def test_resolved_is_read_only() -> None:
    with pytest.raises(AttributeError):
        Proxy(a_list).__proxy_resolved__ = True  # type: ignore[misc]


@pytest.mark.parametrize("name", ["__proxy_default_class__", "__proxy_default_hash__"])
def test_defaults_can_be_set(name: str) -> None:
    proxy = Proxy(a_failure)
    value = int if name.endswith("class__") else 3
    setattr(proxy, name, value)
    assert getattr(proxy, name) is value
    assert not is_resolved(proxy)


def test_weak_references() -> None:
    proxy = Proxy(a_failure)
    reference = weakref.ref(proxy)
    assert reference() is proxy
    assert not is_resolved(proxy)
    del proxy
    assert reference() is None, "freed at once, without the garbage collector"


def test_a_proxy_in_a_cycle_is_collected() -> None:
    target: list[Any] = []
    proxy = Proxy(Calls(target), target=target)
    target.append(proxy)
    reference = weakref.ref(proxy)
    del proxy, target
    gc.collect()
    assert reference() is None


# -- 2.4 Resolution -------------------------------------------------------------------------


@pytest.mark.parametrize("target", [[1], None, 0], ids=repr)
def test_factory_is_called_once(target: Any) -> None:
    factory = Calls(target)
    proxy = Proxy(factory)
    for _ in range(3):
        assert extract(proxy) is target
        assert str(proxy) == str(target)
    assert factory.count == 1


@pytest.mark.parametrize(
    "use",
    [
        str,
        len,
        bool,
        lambda p: p == 1,
        lambda p: p.x,
        lambda p: p.__class__,
        lambda p: p.__proxy_wrapped__,
        lambda p: isinstance(p, int),
        lambda p: p.__name__,
        lambda p: p.__doc__,
        lambda p: p.__module__,
        hash,
        extract,
        resolve,
    ],
)
@pytest.mark.parametrize(
    "error", [LookupError("x"), AttributeError("x"), ValueError("x")], ids=repr
)
def test_failing_factory(use: Callable[[Any], Any], error: Exception) -> None:
    count = 0

    def fail() -> Any:
        nonlocal count
        count += 1
        raise error

    proxy = Proxy(fail)
    for attempt in (1, 2):
        with pytest.raises(ProxyResolveError) as caught:
            use(proxy)
        assert caught.value.cause is error
        assert caught.value.__cause__ is error
        assert not is_resolved(proxy)
        assert count == attempt, "called again by the next use, and not twice by this one"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("use", [str, lambda p: p.x, lambda p: isinstance(p, int)])
def test_other_exceptions_propagate(use: Callable[[Any], Any], error: BaseException) -> None:
    def fail() -> Any:
        raise error

    proxy = Proxy(fail)
    with pytest.raises(type(error)) as caught:
        use(proxy)
    assert caught.value is error
    assert not is_resolved(proxy)


def test_target_that_is_a_proxy() -> None:
    inner = of([1, 2])
    outer = of(inner)
    assert outer == [1, 2]
    assert outer.__proxy_wrapped__ == [1, 2]
    assert outer.__proxy_wrapped__ is inner
    assert len(outer) == 2


# -- 2.5 What does and does not resolve -----------------------------------------------------


def holds(condition: bool) -> None:
    assert condition


INERT: dict[str, Callable[[Any], Any]] = {
    "isinstance": lambda p: holds(isinstance(p, Proxy)),
    "isinstance of a tuple": lambda p: holds(isinstance(p, (Proxy, list))),
    "type": lambda p: holds(type(p) is Proxy),
    "is": lambda p: holds(p is not None),
    "id": id,
    "repr": repr,
    "format repr": lambda p: f"{p!r}",
    "callable": lambda p: holds(callable(p)),
    "is_resolved": is_resolved,
    "get_factory": get_factory,
    "hasattr factory": lambda p: holds(hasattr(p, "__proxy_factory__")),
    "cloudpickle": cloudpickle.dumps,
    "dill": dill.dumps,
    "pickle": pickle.dumps,
    "reduce": lambda p: p.__reduce__(),
    "reduce_ex": lambda p: p.__reduce_ex__(4),
    "copy": copy.copy,
    "weakref": weakref.ref,
    "getsizeof": sys.getsizeof,
    "list": lambda p: [p],
    "tuple": lambda p: (p,),
    "dict value": lambda p: {1: p},
}


@pytest.mark.parametrize("look", INERT.values(), ids=INERT)
def test_does_not_resolve(look: Callable[[Any], Any]) -> None:
    proxy = Proxy(a_failure)
    look(proxy)
    assert not is_resolved(proxy)


class AtOnce:
    def __aiter__(self) -> AtOnce:
        return self

    def __await__(self) -> Iterator[Any]:
        return iter(())


USES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "isinstance": (lambda p: isinstance(p, int), 1),
    "class": (lambda p: p.__class__, 1),
    "hash": (hash, 1),
    "eq": (lambda p: p == 1, 1),
    "ne": (lambda p: p != 1, 1),
    "lt": (lambda p: p < 1, 1),
    "le": (lambda p: p <= 1, 1),
    "gt": (lambda p: p > 1, 1),
    "ge": (lambda p: p >= 1, 1),
    "bool": (bool, 1),
    "len": (len, []),
    "str": (str, 1),
    "bytes": (bytes, b""),
    "format": (lambda p: f"{p}", 1),
    "iter": (iter, []),
    "index": (lambda p: p[0], [1]),
    "in": (lambda p: 1 in p, [1]),
    "call": (lambda p: p(), dict),
    "add": (lambda p: p + 1, 1),
    "radd": (lambda p: 1 + p, 1),
    "dir": (dir, 1),
    "vars": (vars, contextlib),
    "fspath": (os.fspath, "a"),
    "with": (lambda p: p.__enter__(), contextlib.nullcontext()),
    "async with": (lambda p: p.__aenter__().close(), contextlib.nullcontext()),
    "async for": (lambda p: p.__aiter__(), AtOnce()),
    "await": (lambda p: next(p.__await__(), None), AtOnce()),
    "next": (next, iter([1])),
    "set item": (lambda p: p.__setitem__(0, 1), [1]),
    "set attribute": (lambda p: setattr(p, "anything", 1), contextlib.nullcontext()),
    "hasattr": (lambda p: hasattr(p, "anything"), 1),
    "doc": (lambda p: p.__doc__, 1),
    "module": (lambda p: p.__module__, list),
    "name": (lambda p: p.__name__, list),
    "annotations": (lambda p: p.__annotations__, a_list),
    "dict": (lambda p: p.__dict__, list),
    "deepcopy": (copy.deepcopy, 1),
}


@pytest.mark.parametrize(("use", "target"), USES.values(), ids=USES)
def test_resolves(use: Callable[[Any], Any], target: Any) -> None:
    factory = Calls(target)
    proxy = Proxy(factory)
    use(proxy)
    assert is_resolved(proxy)
    assert factory.count == 1


def test_cached_class_answers_while_unresolved() -> None:
    proxy = cached("abc")
    assert isinstance(proxy, str)
    assert not isinstance(proxy, list)
    assert proxy.__class__ is str
    assert not is_resolved(proxy)


def test_cached_hash_answers_while_unresolved() -> None:
    proxy = cached("abc")
    assert hash(proxy) == hash("abc")
    assert len({proxy}) == len({proxy: 1}) == 1
    assert not is_resolved(proxy)


def test_cached_hash_may_be_an_error() -> None:
    proxy = cached([1])
    for _ in range(2):
        with pytest.raises(TypeError, match="unhashable type: 'list'"):
            hash(proxy)
    assert not is_resolved(proxy)


def test_defaults_are_not_consulted_once_resolved() -> None:
    proxy = cached("abc")
    proxy.__proxy_wrapped__ = 7
    assert proxy.__class__ is int
    assert not isinstance(proxy, str)
    assert hash(proxy) == hash(7)


@pytest.mark.parametrize(
    "abc",
    ["Hashable", "Iterable", "Iterator", "Sized", "Callable", "Awaitable"],
)
def test_structural_abcs_answer_from_the_type(abc: str) -> None:
    assert isinstance(of(object()), getattr(collections.abc, abc))


# -- 2.6 Text and representation ------------------------------------------------------------


def test_repr_unresolved() -> None:
    text = repr(Proxy(a_list))
    assert "Proxy at 0x" in text
    assert repr(a_list) in text


def test_repr_resolved() -> None:
    target = a_list()
    text = repr(Proxy(a_list, target=target))
    assert "Proxy at 0x" in text
    for part in (repr(a_list), repr(target), f"{id(target):x}"):
        assert part in text


def test_repr_names_the_subclass() -> None:
    class Derived(Proxy[Any]):
        pass

    assert "Derived at 0x" in repr(Derived(a_list))


class Odd:
    def __str__(self) -> str:
        return "as str"

    def __format__(self, spec: str) -> str:
        return f"as {spec!r}"

    def __bytes__(self) -> bytes:
        return b"as bytes"


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (str, "as str"),
        (format, "as str"),
        (lambda p: f"{p}", "as str"),
        (lambda p: f"{p:>7}", "as '>7'"),
        (lambda p: "%s" % p, "as str"),
        (bytes, b"as bytes"),
    ],
)
def test_text_is_the_target_s(write: Callable[[Any], Any], text: Any) -> None:
    assert write(of(Odd())) == text


def test_percent_d() -> None:
    assert "%d" % of(7) == "7"


@pytest.mark.parametrize(
    ("target", "path"),
    [("a/b", "a/b"), (b"a", b"a"), (pathlib.Path("a"), "a")],
    ids=repr,
)
def test_fspath(target: Any, path: Any) -> None:
    assert os.fspath(of(target)) == path
    assert of(target).__fspath__() == path


def test_fspath_of_what_is_no_path() -> None:
    assert of(None).__fspath__() is None
    with pytest.raises(TypeError, match=r"__fspath__\(\) to return str or bytes, not NoneType"):
        os.fspath(of(None))


# -- 2.7 Operators --------------------------------------------------------------------------

COMPARE = [operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge]
ARITHMETIC = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    divmod,
    pow,
    operator.lshift,
    operator.rshift,
    operator.and_,
    operator.xor,
    operator.or_,
]
UNARY = [operator.neg, operator.pos, abs, operator.invert, int, float, bool, complex, round]
UNARY += [operator.index, math.trunc, math.floor, math.ceil, hash, str, hex, oct, bin]


@pytest.mark.parametrize("operate", COMPARE + ARITHMETIC, ids=lambda f: f.__name__)
def test_binary_operators(operate: Callable[[Any, Any], Any]) -> None:
    expected = operate(21, 4)
    for left, right in [(of(21), 4), (21, of(4)), (of(21), of(4))]:
        result = operate(left, right)
        assert result == expected
        assert type(result) is type(expected), "bare, not a proxy"


@pytest.mark.parametrize("operate", UNARY, ids=lambda f: f.__name__)
def test_unary_operators(operate: Callable[[Any], Any]) -> None:
    result = operate(of(21))
    assert result == operate(21)
    assert type(result) is type(operate(21))


def test_matrix_multiplication() -> None:
    matrix = np.eye(2)
    for product in (of(matrix) @ matrix, matrix @ of(matrix), of(matrix) @ of(matrix)):
        assert type(product) is np.ndarray
        assert (product == matrix).all()


def test_power_with_a_modulus() -> None:
    assert pow(of(7), 3, 5) == pow(7, 3, 5)
    assert pow(of(7), of(3), of(5)) == pow(7, 3, 5)


def test_a_modulus_alone_can_be_a_proxy_only_where_python_asks_it() -> None:
    with contextlib.suppress(TypeError):  # Python 3.14 asks it
        assert pow(7, 3, of(5)) == pow(7, 3, 5)


IN_PLACE = [
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.ilshift,
    operator.irshift,
    operator.iand,
    operator.ixor,
    operator.ior,
]


@pytest.mark.parametrize("operate", IN_PLACE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("other", [4, of(4)], ids=["bare", "proxy"])
def test_in_place_operators(operate: Callable[[Any, Any], Any], other: Any) -> None:
    proxy = of(21)
    result = operate(proxy, other)
    assert result is proxy
    assert type(proxy) is Proxy
    assert extract(proxy) == operate(21, 4)


def test_in_place_matrix_multiplication() -> None:
    proxy = same = of(np.eye(2))
    proxy @= 2 * np.eye(2)
    assert proxy is same
    assert (proxy == 2 * np.eye(2)).all()


@pytest.mark.parametrize(
    ("target", "operate", "other", "after"),
    [
        ([1], operator.iadd, [2], [1, 2]),
        ([1], operator.imul, 2, [1, 1]),
        ({1}, operator.ior, {2}, {1, 2}),
        ({1}, operator.ior, of({2}), {1, 2}),
        ({1, 2}, operator.iand, {2}, {2}),
        ({1: 1}, operator.ior, {2: 2}, {1: 1, 2: 2}),
    ],
    ids=repr,
)
def test_in_place_operators_change_a_mutable_target(
    target: Any, operate: Callable[[Any, Any], Any], other: Any, after: Any
) -> None:
    proxy = of(target)
    assert operate(proxy, other) is proxy
    assert extract(proxy) is target
    assert target == after


@pytest.mark.parametrize("operate", IN_PLACE, ids=lambda f: f.__name__)
def test_in_place_operator_that_fails_leaves_the_target(operate: Callable[[Any, Any], Any]) -> None:
    target = object()
    proxy = of(target)
    with pytest.raises(TypeError, match="unsupported operand"):
        operate(proxy, 1)
    assert extract(proxy) is target


def test_index_falls_back_to_int() -> None:
    class OnlyInt:
        def __int__(self) -> int:
            return 2

    assert [10, 11, 12][of(OnlyInt())] == 12
    assert [10, 11, 12][of(1)] == 11


def test_round_to_digits() -> None:
    assert round(of(1.257), 2) == 1.26
    assert round(of(1257), -2) == 1300
    assert round(of(1.257), ndigits=1) == 1.3


@pytest.mark.parametrize("target", [Decimal("1.5"), 2.5, 3 + 4j, "1+2j"], ids=repr)
def test_complex(target: Any) -> None:
    assert complex(of(target)) == complex(target)


def test_floor_and_ceil_do_not_go_through_float() -> None:
    assert math.floor(of(10**30 + 1)) == math.ceil(of(10**30 + 1)) == 10**30 + 1


def test_containers() -> None:
    proxy = of([1, 2, 3])
    assert len(proxy) == 3
    assert 2 in proxy
    assert 4 not in proxy
    assert proxy[0] == 1
    assert proxy[1:] == [2, 3]
    proxy[0] = 5
    proxy[1:2] = [6, 7]
    assert list(proxy) == [5, 6, 7, 3]
    del proxy[0]
    del proxy[:2]
    assert proxy == [3]
    assert list(reversed(of([1, 2]))) == [2, 1]


def test_dict_target() -> None:
    proxy = of({"a": 1})
    proxy["b"] = 2
    assert proxy["a"] == 1
    assert "b" in proxy
    del proxy["a"]
    assert proxy == {"b": 2}
    assert len(proxy) == 1
    assert {**proxy} == {"b": 2}


def test_iteration() -> None:
    assert [x for x in of([1, 2])] == [1, 2]
    assert sum(of([1, 2])) == 3
    with pytest.raises(TypeError, match="not iterable"):
        iter(of(1))


def test_next() -> None:
    proxy = of(iter([1]))
    assert next(proxy) == 1
    with pytest.raises(StopIteration):
        next(proxy)
    assert next(proxy, "end") == "end"


def function(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


class Methods:
    def method(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    @classmethod
    def of_class(cls, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    @staticmethod
    def static(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    __call__ = method


@pytest.mark.parametrize(
    "target",
    [function, Methods().method, Methods.of_class, Methods.static, Methods()],
)
@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1,), {}), ((), {"k": 2}), ((1, 2), {"k": 3})]
)
def test_calls(target: Any, args: Any, kwargs: Any) -> None:
    assert of(target)(*args, **kwargs) == (args, kwargs)


def test_context_manager() -> None:
    events: list[Any] = []

    class Manager:
        def __enter__(self) -> str:
            events.append("enter")
            return "value"

        def __exit__(self, *error: Any) -> bool:
            events.append(error[0])
            return True

    with of(Manager()) as value:
        assert value == "value"
        raise KeyError
    assert events == ["enter", KeyError]


@pytest.mark.parametrize(
    "name",
    """
    __lt__ __le__ __eq__ __ne__ __gt__ __ge__ __add__ __sub__ __mul__ __matmul__ __truediv__
    __floordiv__ __mod__ __divmod__ __pow__ __lshift__ __rshift__ __and__ __xor__ __or__ __radd__
    __rsub__ __rmul__ __rmatmul__ __rtruediv__ __rfloordiv__ __rmod__ __rdivmod__ __rpow__
    __rlshift__ __rrshift__ __rand__ __rxor__ __ror__ __iadd__ __isub__ __imul__ __imatmul__
    __itruediv__ __ifloordiv__ __imod__ __ipow__ __ilshift__ __irshift__ __iand__ __ixor__ __ior__
    __neg__ __pos__ __abs__ __invert__ __int__ __float__ __bool__ __index__ __round__ __len__
    __contains__ __getitem__ __setitem__ __delitem__ __iter__ __next__ __reversed__ __call__
    __enter__ __exit__ __aiter__ __anext__ __await__ __aenter__ __aexit__ __dir__ __dict__
    __weakref__ __name__ __doc__ __module__ __annotations__ __class__ __fspath__ __bytes__
    __getattr__ __setattr__ __delattr__
    """.split(),
)
def test_method_is_there(name: str) -> None:
    assert hasattr(Proxy, name)


@pytest.mark.parametrize(
    "use",
    [
        lambda p: ",".join([p]),
        lambda p: b"".join([p]),
        memoryview,
        io.StringIO,
        json.dumps,
    ],
)
def test_c_functions_want_the_exact_type(use: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError):
        use(of("x"))


def test_pattern_matching() -> None:
    match of(3):
        case int():
            found = "int"
        case _:
            found = "other"
    assert found == "int"
    match of([1]):
        case [_]:
            found = "sequence"
        case _:
            found = "other"
    assert found == "other"
    match of({"a": 1}):
        case {"a": _}:
            found = "mapping"
        case _:
            found = "other"
    assert found == "other"


def test_numpy_functions_accept_a_proxy() -> None:
    array = np.arange(4.0)
    for result, expected in [
        (np.add(of(array), 1), array + 1),
        (np.concatenate([of(array), array]), np.tile(array, 2)),
        (np.asarray(of(array)), array),
    ]:
        assert type(result) is np.ndarray
        assert (result == expected).all()
    assert np.sum(of(array)) == 6


def test_pandas_functions_accept_a_proxy() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2]})
    both = pandas.concat([of(frame), frame])
    assert type(both) is pandas.DataFrame
    assert list(both["a"]) == [1, 2, 1, 2]


# -- 2.8 Attribute access -------------------------------------------------------------------


class Plain:
    """A target."""

    attribute = "class"

    def __init__(self) -> None:
        self.own = 1

    def method(self) -> int:
        return self.own


def test_attributes_are_the_target_s() -> None:
    target = Plain()
    proxy = of(target)
    assert (proxy.own, proxy.attribute, proxy.method()) == (1, "class", 1)
    proxy.own = 2
    proxy.new = 3
    assert (target.own, target.new) == (2, 3)
    del proxy.new
    assert not hasattr(target, "new")
    with pytest.raises(AttributeError, match="'Plain' object has no attribute 'missing'"):
        _ = proxy.missing
    with pytest.raises(AttributeError, match="missing"):
        del proxy.missing


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("__name__", "renamed"),
        ("__module__", "elsewhere"),
        ("__doc__", "Other."),
        ("__annotations__", {"x": int}),
        ("__qualname__", "a.b"),
    ],
)
def test_specials_of_a_function_are_forwarded(name: str, value: Any) -> None:
    def target(x: str) -> None:
        """Docstring."""

    proxy = of(target)
    assert getattr(proxy, name) == getattr(target, name)
    setattr(proxy, name, value)
    assert getattr(proxy, name) == getattr(target, name) == value


@pytest.mark.parametrize("target", [list, Odd, Odd.__str__, operator.add, a_list], ids=repr)
def test_qualified_name_is_the_target_s(target: Any) -> None:
    assert of(target).__qualname__ == target.__qualname__
    assert of(target).__name__ == target.__name__


def test_class_can_be_assigned() -> None:
    class Other(Plain):
        pass

    target = Plain()
    proxy = of(target)
    proxy.__class__ = Other
    assert type(target) is Other
    assert proxy.__class__ is Other


def test_names_of_the_class_are_set_and_deleted_on_the_proxy() -> None:
    target = Plain()
    proxy = of(target)
    extract(proxy)
    proxy.__proxy_factory__ = a_list
    del proxy.__proxy_factory__
    proxy.__proxy_default_hash__ = 3
    assert vars(target) == {"own": 1}
    assert proxy.__proxy_default_hash__ == 3


@pytest.mark.parametrize("target", [Plain, Plain(), function, contextlib], ids=repr)
def test_vars_and_dir(target: Any) -> None:
    assert vars(of(target)) == vars(target)
    assert dir(of(target)) == dir(target)


def test_vars_of_a_target_without_a_dict() -> None:
    with pytest.raises((TypeError, AttributeError)):
        vars(of(1))
    assert dir(of(1)) == dir(1)


def test_dict_can_be_assigned() -> None:
    target = Plain()
    of(target).__dict__ = {"own": 9}
    assert vars(target) == {"own": 9}


def test_weakref_attribute() -> None:
    target = Plain()
    assert of(target).__weakref__ is None
    reference = weakref.ref(target)
    assert of(target).__weakref__ is reference


@pytest.mark.parametrize("name", ["__wrapped__", "__factory__", "__resolved__"])
def test_no_other_names_hide_the_target_s(name: str) -> None:
    target = Plain()
    proxy = of(target)
    assert not hasattr(Proxy, name)
    assert not hasattr(proxy, name)
    setattr(proxy, name, "x")
    assert getattr(proxy, name) == getattr(target, name) == "x"
    delattr(proxy, name)
    assert not hasattr(target, name)
    assert extract(proxy) is target


# -- 2.9 Pickle and copy --------------------------------------------------------------------


def test_reduce() -> None:
    reduced = Proxy(a_list).__reduce__()
    assert type(reduced) is tuple
    assert reduced == (module._proxy_trampoline, (a_list, None, None))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("target", ["abc", 7, b"", Plain, (1, "a")], ids=repr)
def test_reduce_holds_the_defaults(target: Any, protocol: int) -> None:
    proxy = Proxy(a_list, cache_defaults=True, target=target)
    expected = (module._proxy_trampoline, (a_list, type(target), hash(target)))
    assert proxy.__reduce__() == proxy.__reduce_ex__(protocol) == expected
    assert is_resolved(proxy)


@each_pickler
@each_protocol
def test_pickle_holds_the_factory_not_the_target(pickler: Any, protocol: int) -> None:
    proxy = Proxy(a_list, target=list(range(10_000)))
    data = pickler.dumps(proxy, protocol=protocol)
    assert len(data) < 200
    again = pickler.loads(data)
    assert type(again) is Proxy
    assert isinstance(again, Proxy)
    assert not is_resolved(again)
    assert isinstance(again, list)
    assert is_resolved(again)
    assert again == [1, 2, 3]


@each_pickler
@pytest.mark.parametrize("target", ["abc", 7, 1.5, (1, "a"), b"", Plain()], ids=repr)
def test_pickle_keeps_the_defaults(pickler: Any, target: Any) -> None:
    proxy = Proxy(a_failure, cache_defaults=True, target=target)
    again = pickler.loads(pickler.dumps(proxy))
    assert again.__proxy_default_class__ is type(target)
    assert again.__proxy_default_hash__ == hash(again) == hash(target)
    assert type(again.__proxy_default_hash__) is int
    assert isinstance(again, type(target))
    assert not is_resolved(again)


@each_pickler
def test_pickle_keeps_the_error_of_an_unhashable_target(pickler: Any) -> None:
    proxy = Proxy(a_failure, cache_defaults=True, target=[])
    again = pickler.loads(pickler.dumps(proxy))
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        hash(again)
    assert not is_resolved(again)


def test_reduce_tuple_serves_as_the_reduction_of_another_object() -> None:
    class Pickler(dill.Pickler):  # in Python, so that it asks about built-in types too
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is not frozenset:
                return NotImplemented
            return Proxy(a_list, cache_defaults=True, target=obj).__reduce__()

    buffer = io.BytesIO()
    Pickler(buffer).dump([frozenset({1, 2})])
    (again,) = pickle.loads(buffer.getvalue())
    assert isinstance(again, Proxy)
    assert again == [1, 2, 3]


def test_data_of_existing_installations() -> None:
    data = b"cproxystore.proxy\n_proxy_trampoline\n(c__builtin__\nlist\nNNtR."
    again = pickle.loads(data)
    assert type(again) is Proxy
    assert again == []


@each_pickler
def test_local_functions(pickler: Any) -> None:
    proxy = Proxy(lambda: 3)
    if pickler is pickle:
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(proxy)
    else:
        assert pickler.loads(pickler.dumps(proxy)) == 3


class LocalFunction:
    """A factory of functions that no pickle can refer to by name."""

    def __call__(self) -> Callable[[], int]:
        return lambda: 3


@each_pickler
@pytest.mark.parametrize("known", ["nothing", "class", "target"])
def test_pickle_of_a_function_s_proxy_does_not_hold_the_function(pickler: Any, known: str) -> None:
    proxy = Proxy(LocalFunction())
    if known == "target":
        resolve(proxy)
    if known == "class":
        proxy.__proxy_default_class__ = types.FunctionType
    again = pickler.loads(pickler.dumps(proxy))
    assert type(again) is Proxy
    assert type(get_factory(again)) is LocalFunction
    assert again() == 3


def test_copy_shares_the_factory() -> None:
    factory = Calls(1)
    proxy = Proxy(factory, cache_defaults=True, target="abc")
    again = copy.copy(proxy)
    assert type(again) is Proxy
    assert get_factory(again) is factory
    assert not is_resolved(again)
    assert type(again.__proxy_default_hash__) is int
    assert hash(again) == hash("abc")


def test_deepcopy_of_a_target_that_defines_it() -> None:
    target = np.arange(3)
    proxy = of(target)
    again = copy.deepcopy(proxy)
    assert is_resolved(proxy)
    assert type(again) is np.ndarray
    assert again is not target
    assert (again == target).all()


def test_deepcopy_of_any_other_target() -> None:
    proxy = Proxy(Calls([1]))
    again = copy.deepcopy(proxy)
    assert is_resolved(proxy)
    assert type(again) is Proxy
    assert not is_resolved(again)
    assert get_factory(again) is not get_factory(proxy)
    assert again == [1]


@each_pickler
@each_protocol
def test_class_pickles_by_reference(pickler: Any, protocol: int) -> None:
    assert pickler.loads(pickler.dumps(Proxy, protocol=protocol)) is Proxy


# -- 2.10 Async -----------------------------------------------------------------------------


async def coroutine() -> str:
    return "value"


@types.coroutine
def iterable_coroutine() -> Generator[Any, Any, str]:
    yield from asyncio.sleep(0).__await__()
    return "value"


class Awaits:
    def __await__(self) -> Generator[Any, Any, str]:
        return coroutine().__await__()


class AsyncRange:
    def __init__(self, stop: int) -> None:
        self.values = iter(range(stop))

    def __aiter__(self) -> AsyncRange:
        return self

    async def __anext__(self) -> int:
        with contextlib.suppress(StopIteration):
            return next(self.values)
        raise StopAsyncIteration

    async def __aenter__(self) -> str:
        return "entered"

    async def __aexit__(self, *error: Any) -> bool:
        return True


@pytest.mark.parametrize("make", [coroutine, iterable_coroutine, Awaits])
def test_await(make: Callable[[], Awaitable[str]]) -> None:
    async def main() -> None:
        assert await of(make)() == "value"
        assert await of(make()) == "value"

    asyncio.run(main())


@pytest.mark.parametrize("target", [[1], 3], ids=repr)
def test_await_of_what_cannot_be_awaited(target: Any) -> None:
    async def main() -> None:
        await of(target)

    with pytest.raises(TypeError, match="can't be used in 'await' expression"):
        asyncio.run(main())


def test_async_for() -> None:
    async def main() -> list[int]:
        return [x async for x in of(AsyncRange(3))]

    assert asyncio.run(main()) == [0, 1, 2]


def test_async_next() -> None:
    async def main() -> int:
        return await of(AsyncRange(3)).__anext__()

    assert asyncio.run(main()) == 0


def test_async_with() -> None:
    async def main() -> None:
        async with of(AsyncRange(0)) as value:
            assert value == "entered"
            raise KeyError

    asyncio.run(main())


# -- 2.11 Class-level attributes ------------------------------------------------------------


def test_attributes_of_the_class() -> None:
    assert Proxy.__module__ == "proxystore.proxy"
    assert Proxy.__name__ == Proxy.__qualname__ == "Proxy"
    assert isinstance(Proxy.__doc__, str)
    assert isinstance(Proxy.__dict__, types.MappingProxyType)
    assert isinstance(Proxy.__annotations__, dict)
    assert repr(Proxy) == "<class 'proxystore.proxy.Proxy'>"
    assert typing.get_type_hints(Proxy) == {}


def test_attributes_of_instances() -> None:
    assert of(list).__module__ == "builtins"
    assert of(Plain()).__module__ == __name__
    assert of(Plain()).__doc__ == "A target."
    with pytest.raises(AttributeError):
        _ = of([]).__module__


@pytest.mark.parametrize(
    "target", [2.7, np.float64(2), "3", b"3", Decimal(3), 2j, None, [3], str], ids=repr
)
def test_what_is_no_index_is_none_behind_a_proxy(target: Any) -> None:
    with pytest.raises(TypeError) as expected:
        operator.index(target)
    for use in (operator.index, range, ["a", "b", "c", "d"].__getitem__, time.sleep):
        with pytest.raises(TypeError) as caught:
            use(of(target))
        assert str(caught.value) == str(expected.value)
    with pytest.raises(TypeError):
        np.zeros(of(target))


# -- 2.12 Uninitialised proxies -------------------------------------------------------------


def test_uninitialised_proxy() -> None:
    proxy: Proxy[Any] = Proxy.__new__(Proxy)
    assert not is_resolved(proxy)
    assert "Proxy at" in repr(proxy)
    for use in (str, len, extract, lambda p: p.x, lambda p: p.__class__, hash):
        message = "Proxy is not initialized: __proxy_factory__ is missing"
        with pytest.raises(ProxyResolveError, match=message) as caught:
            use(proxy)
        assert isinstance(caught.value.cause, AttributeError)
    proxy.__proxy_wrapped__ = 1
    assert str(proxy) == "1"
    assert proxy + 1 == 2


# -- 2.13 Subclassing -----------------------------------------------------------------------


def test_subclass_methods() -> None:
    class Derived(Proxy[Any]):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return super().__new__(cls)

        def __init__(self, factory: Any, **kwargs: Any) -> None:
            super().__init__(factory)
            for name, value in kwargs.items():
                setattr(self, name, value)

        def __getattr__(self, name: str) -> Any:
            return "extra" if name == "extra" else super().__getattr__(name)

        note = "class"

        def method(self) -> Any:
            return self.note, self.append

    factory = Calls([1])
    proxy = Derived(factory, note="instance")
    assert factory.count == 0
    assert proxy.note == "instance"
    assert proxy.extra == "extra"
    assert factory.count == 0
    assert proxy.method() == ("instance", factory.target.append)


def test_class_attributes_stay_with_the_proxy() -> None:
    class Derived(Proxy[Any]):
        ATTRIBUTE = 1

    target = Plain()
    proxy: Any = Derived(lambda: target)
    assert proxy.ATTRIBUTE == 1
    assert not hasattr(target, "ATTRIBUTE")
    proxy.ATTRIBUTE = 2
    assert not is_resolved(proxy)
    assert (proxy.ATTRIBUTE, Derived.ATTRIBUTE) == (2, 1)
    assert not hasattr(target, "ATTRIBUTE")
    del Derived.ATTRIBUTE
    assert proxy.ATTRIBUTE == 2
    del proxy.own
    assert not hasattr(target, "own")


def test_subclass_can_switch_class_forwarding_off() -> None:
    class Derived(Proxy[Any]):
        __class__ = object.__dict__["__class__"]

    class Further(Derived):
        pass

    for kind in (Derived, Further):
        proxy = kind(a_list)
        assert proxy.__class__ is kind
        assert not isinstance(proxy, list)
        assert isinstance(proxy, Proxy)
        assert not is_resolved(proxy)
        assert proxy == [1, 2, 3]


def test_subclass_texts_are_its_own_on_the_class_only() -> None:
    class Derived(Proxy[Any]):
        """Docstring."""

        x: int = 0

    assert Derived.__doc__ == "Docstring."
    assert Derived.__module__ == __name__
    assert Derived.__annotations__ == {"x": "int"}
    proxy = Derived(Plain)
    assert proxy.__doc__ == "A target."
    assert proxy.__module__ == __name__
    assert Derived(lambda: list).__module__ == "builtins"
    assert Derived(lambda: function).__annotations__ == function.__annotations__


class Labelled(Proxy[Any]):
    label = "class"


@each_pickler
def test_subclass_unpickles_as_what_it_is(pickler: Any) -> None:
    proxy = Labelled(a_list)
    proxy.label = "instance"
    again = pickler.loads(pickler.dumps(proxy))
    assert type(again) is Labelled
    assert again.label == "class", "state of its own is for the subclass to pickle"
    assert not is_resolved(again)
    assert again == [1, 2, 3]


# -- 2.14 Helper functions ------------------------------------------------------------------


def test_helper_functions() -> None:
    factory = Calls([1])
    proxy = Proxy(factory)
    assert get_factory(proxy) is factory
    assert is_resolved(proxy) is False
    assert resolve(proxy) is None
    assert is_resolved(proxy) is True
    assert extract(proxy) is factory.target
    assert factory.count == 1


# -- 2.15 ProxyLocker -----------------------------------------------------------------------


def test_locker() -> None:
    proxy = Proxy(a_failure)
    locker = ProxyLocker(proxy)
    with pytest.raises(AttributeError, match="unlock"):
        _ = locker._proxy
    locker.note = "x"
    assert locker.note == "x"
    assert locker.unlock() is proxy
    assert not is_resolved(proxy)


@each_pickler
def test_locker_pickles(pickler: Any) -> None:
    again = pickler.loads(pickler.dumps(ProxyLocker(Proxy(a_list)))).unlock()
    assert not is_resolved(again)
    assert again == [1, 2, 3]


# -- 2.16 ProxyResolveError -----------------------------------------------------------------


def test_resolve_error() -> None:
    cause = KeyError("x")
    error = ProxyResolveError("message", cause)
    assert isinstance(error, Exception)
    assert not isinstance(error, KeyError)
    assert str(error) == "message"
    assert error.cause is cause


class Demanding(Exception):
    """Cannot be rebuilt from its args, as so many."""

    def __init__(self, key: str, *, host: str) -> None:
        super().__init__(f"{key} at {host}")


def cannot() -> Any:
    raise RuntimeError


class NotPicklable(Exception):
    def __reduce__(self) -> Any:
        return cannot()


class NotRebuildable(Exception):
    def __reduce__(self) -> Any:
        return cannot, ()


@each_pickler
@each_protocol
def test_resolve_error_travels(pickler: Any, protocol: int) -> None:
    with pytest.raises(ProxyResolveError) as caught:
        extract(Proxy(a_failure))
    caught.value.extra = "kept"  # type: ignore[attr-defined]
    again = pickler.loads(pickler.dumps(caught.value, protocol=protocol))
    assert type(again) is ProxyResolveError
    assert str(again) == str(caught.value)
    for cause in (again.cause, again.__cause__):
        assert type(cause) is LookupError
        assert cause.args == ("nothing here",)
    assert again.extra == "kept"


@each_pickler
@pytest.mark.parametrize("cause", [NotPicklable("why"), NotRebuildable("why")], ids=repr)
def test_resolve_error_travels_without_its_cause(pickler: Any, cause: Exception) -> None:
    error = ProxyResolveError("message", cause)
    again = pickler.loads(pickler.dumps(error))
    assert str(again) == "message"
    assert isinstance(again.cause, Exception)
    assert f"{type(cause).__name__}: why" in str(again.cause)
    twice = pickler.loads(pickler.dumps(again))
    assert str(twice.cause) == str(again.cause)


@each_pickler
def test_resolve_error_travels_whatever_its_cause_demands(pickler: Any) -> None:
    # tblib, which Dask installs, can rebuild it; pickle alone cannot.
    again = pickler.loads(pickler.dumps(ProxyResolveError("message", Demanding("k", host="h"))))
    assert "k at h" in str(again.cause)


# -- 2.17 Edge cases ------------------------------------------------------------------------


def test_hash_is_the_target_s() -> None:
    assert hash(of("key")) == hash("key")
    assert {"key": 1}[of("key")] == 1
    assert {of("key"): 1}["key"] == 1


def test_adding_gives_a_bare_list() -> None:
    result = of([1]) + [1]
    assert type(result) is list
    assert result == [1, 1]


def test_wrapped_none() -> None:
    proxy = Proxy(a_failure)
    proxy.__proxy_wrapped__ = None
    assert proxy == None
    assert not hasattr(proxy, "__name__")


@pytest.mark.parametrize("name", ["__getattr__", "__setattr__", "__delattr__"])
def test_a_proxy_has_the_methods_that_forward_attributes(name: str) -> None:
    assert hasattr(of(1), name)


def test_a_failing_lookup_in_the_factory_is_no_missing_attribute() -> None:
    def fail() -> Any:
        return object().missing  # type: ignore[attr-defined]

    for use in (str, lambda p: p.__proxy_wrapped__, lambda p: hasattr(p, "x")):
        with pytest.raises(ProxyResolveError) as caught:
            use(Proxy(fail))
        assert isinstance(caught.value.cause, AttributeError)


def test_aliases_of_typing_look_at_the_type() -> None:
    mapping, sequence = of({}), of([])
    assert isinstance(mapping, dict)
    assert isinstance(mapping, collections.abc.Mapping)
    assert not isinstance(mapping, typing.Mapping)
    assert isinstance(sequence, list)
    assert isinstance(sequence, collections.abc.Sequence)
    assert not isinstance(sequence, typing.Sequence)


def test_references_to_the_target_are_given_back() -> None:
    target: Iterator[int] = iter([])
    before = sys.getrefcount(target)
    for _ in range(100):
        proxy = Proxy(lambda: target, cache_defaults=True)
        hash(proxy)
        resolve(proxy)
        del proxy
    assert sys.getrefcount(target) == before


def test_references_are_given_back_without_the_collector() -> None:
    target = [1]
    before = sys.getrefcount(target)
    gc.disable()
    try:
        for _ in range(100):
            proxy = Proxy(lambda: target, cache_defaults=True, target=target)
            for use in (hash, lambda p: p.missing):
                with pytest.raises((TypeError, AttributeError)):
                    use(proxy)
            del proxy.__proxy_wrapped__
            with pytest.raises(TypeError):
                hash(proxy)
            del proxy
        assert sys.getrefcount(target) == before
    finally:
        gc.enable()
