"""Whatever an operator does to a target it does to its proxy."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore.proxy import Proxy, extract

NUMBERS = st.one_of(
    st.booleans(),
    st.integers(-1000, 1000),
    st.floats(-1e6, 1e6),
    st.fractions(-10, 10, max_denominator=100),
    st.complex_numbers(max_magnitude=1e3),
)
SMALL = st.integers(-3, 6)
CONTAINERS = st.one_of(
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(-3, 3), max_size=5),
    st.tuples(st.integers(-3, 3)),
    st.sets(st.integers(-3, 3)),
    st.frozensets(st.integers(-3, 3)),
    st.dictionaries(st.integers(-3, 3), st.integers(), max_size=3),
)
VALUES = st.one_of(st.none(), SMALL, NUMBERS, CONTAINERS)

BINARY: list[Callable[..., Any]] = [
    operator.lt,
    operator.le,
    operator.eq,
    operator.ne,
    operator.gt,
    operator.ge,
    operator.add,
    operator.sub,
    operator.mul,
    operator.matmul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.and_,
    operator.or_,
    operator.xor,
    operator.getitem,
    operator.contains,
    divmod,
    round,
    isinstance,
]
# What is looked for, or used as an index, is asked for its exact type by C, and may not be a proxy.
TAKE_ITEMS = {operator.getitem, operator.contains, round}
# Large exponents and shifts take for ever, bare or not.
BINARY_SMALL: list[Callable[..., Any]] = [pow, operator.lshift, operator.rshift]
IN_PLACE: list[Callable[..., Any]] = [
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.imatmul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.iand,
    operator.ior,
    operator.ixor,
]
UNARY: list[Callable[..., Any]] = [
    operator.neg,
    operator.pos,
    operator.invert,
    operator.length_hint,
    abs,
    bool,
    bytes,
    complex,
    float,
    int,
    str,
    hash,
    len,
    list,
    reversed,
    sorted,
    round,
    dir,
    math.ceil,
    math.floor,
    math.trunc,
    format,
    lambda x: f"{x:>8}",
    lambda x: f"{x:.2f}",
    lambda x: "%s|%r" % (x, str(x)),
    lambda x: x.real,
    lambda x: x.copy(),
    lambda x: x.__class__,
]


def outcome(operate: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Return the type of what came out, and that itself if it is a value."""
    try:
        result = operate(*args)
    except Exception as error:  # noqa: BLE001 - the proxy has to raise the same, whatever it is
        return type(error), None
    if isinstance(result, float | complex) and result != result:
        return type(result), "nan"
    if hasattr(result, "__next__"):
        return type(result), list(result)
    return type(result), result


def of(target: Any) -> Proxy[Any]:
    return Proxy(lambda: target)


@given(x=VALUES, y=VALUES)
@pytest.mark.parametrize("operate", BINARY, ids=lambda f: f.__name__)
def test_binary(operate: Callable[..., Any], x: Any, y: Any) -> None:
    expected = outcome(operate, x, y)
    assert outcome(operate, of(x), y) == expected
    if operate not in TAKE_ITEMS:
        assert outcome(operate, of(x), of(y)) == expected


@given(x=st.one_of(SMALL, CONTAINERS), y=SMALL)
@pytest.mark.parametrize("operate", BINARY_SMALL, ids=lambda f: f.__name__)
def test_power_and_shift(operate: Callable[..., Any], x: Any, y: Any) -> None:
    expected = outcome(operate, x, y)
    for arguments in ((of(x), y), (x, of(y)), (of(x), of(y))):
        assert outcome(operate, *arguments) == expected


@given(x=VALUES, y=VALUES)
@pytest.mark.parametrize("operate", IN_PLACE, ids=lambda f: f.__name__)
def test_in_place(operate: Callable[..., Any], x: Any, y: Any) -> None:
    proxy = of(copy.copy(x))
    kind, expected = outcome(operate, copy.copy(x), y)
    if issubclass(kind, Exception):
        with pytest.raises(kind):
            operate(proxy, y)
        expected = x
    else:
        assert operate(proxy, y) is proxy
    target = extract(proxy)
    assert type(target) is type(expected)
    assert target == expected or target != target


@given(x=VALUES)
@pytest.mark.parametrize("operate", UNARY)
def test_unary(operate: Callable[..., Any], x: Any) -> None:
    assert outcome(operate, of(x)) == outcome(operate, x)
