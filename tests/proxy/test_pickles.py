"""Proxies travel whatever class their target has, also one that pickle finds under no name."""

from __future__ import annotations

import collections
import copy
import pickle
import re
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import dill
import numpy as np
import pytest

from proxystore.connectors.local import LocalConnector
from proxystore.proxy import Proxy, is_resolved
from proxystore.store import Store
from proxystore.store.ref import OwnedProxy, into_owned

each_pickler = pytest.mark.parametrize(
    "pickler", [pickle, cloudpickle, dill], ids=lambda module: module.__name__
)


def a_generator() -> Any:
    yield 1


async def a_coroutine() -> None:
    """Never started."""


async def an_async_generator() -> Any:
    yield 1


def nothing() -> Any:
    raise AssertionError("the factory is called")


def a_cell() -> Any:
    x = 1
    (cell,) = (lambda: x).__closure__ or ()
    return cell


def a_coroutine_object() -> Any:
    coroutine = a_coroutine()
    coroutine.close()  # else it warns that it was never awaited
    return coroutine


# Of classes that are in `types`: cloudpickle and dill know them, and so do we.
NAMED_IN_TYPES: dict[str, Callable[[], Any]] = {
    "builtin function": lambda: len,
    "function": lambda: nothing,
    "lambda": lambda: lambda: 0,
    "numpy's builtin function": lambda: np.array,
    "method of a builtin": lambda: "".join,
    "method": lambda: types.MethodType(len, []),
    "method wrapper": lambda: (1).__add__,
    "slot wrapper": lambda: int.__add__,
    "method descriptor": lambda: str.join,
    "getset descriptor": lambda: int.real,
    "module": lambda: sys,
    "generator": a_generator,
    "coroutine": a_coroutine_object,
    "async generator": an_async_generator,
    "mapping proxy": lambda: vars(int),
    "code": lambda: nothing.__code__,
    "frame": lambda: sys._getframe(),
    "cell": a_cell,
    "namespace": types.SimpleNamespace,
    "union": lambda: int | str,
    "ellipsis": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
}

# Of classes that nobody finds.
UNNAMED: dict[str, Callable[[], Any]] = {
    "keys": lambda: {}.keys(),
    "values": lambda: {}.values(),
    "items": lambda: {}.items(),
    "ordered keys": lambda: collections.OrderedDict().keys(),
    "iterator over a list": lambda: iter([]),
    "iterator over a tuple": lambda: iter(()),
    "iterator over a dict": lambda: iter({}),
    "iterator over a string": lambda: iter(""),
    "iterator over a range": lambda: iter(range(3)),
    "reversed list": lambda: reversed([]),
    "flags": lambda: sys.flags,
    "version": lambda: sys.version_info,
    "numpy's dispatched function": lambda: np.sum,
}

# Of classes that have a name that says where they are.
NAMED: dict[str, Callable[[], Any]] = {
    "class": lambda: int,
    "class of builtin functions": lambda: type(len),
    "class without a name": lambda: type({}.keys()),
    "pattern": lambda: re.compile("x"),
    "ufunc": lambda: np.add,
    "dtype": lambda: np.dtype("f8"),
    "iterator over a deque": lambda: iter(collections.deque()),
    "number": lambda: 1.5,
}


def default_class(proxy: Any) -> Any:
    return object.__getattribute__(proxy, "__proxy_default_class__")


@each_pickler
@pytest.mark.parametrize("kind", [*NAMED_IN_TYPES, *NAMED])
def test_the_class_of_a_target_is_known_on_arrival(pickler: Any, kind: str) -> None:
    target = {**NAMED_IN_TYPES, **NAMED}[kind]()
    again = pickler.loads(pickler.dumps(Proxy(nothing, cache_defaults=True, target=target)))
    assert default_class(again) is type(target)
    assert not is_resolved(again)


@each_pickler
@pytest.mark.parametrize("kind", UNNAMED)
def test_a_class_that_cannot_travel_is_left_behind(pickler: Any, kind: str) -> None:
    target = UNNAMED[kind]()
    again = pickler.loads(pickler.dumps(Proxy(nothing, cache_defaults=True, target=target)))
    assert default_class(again) is None
    if type(target).__hash__ is None:
        with pytest.raises(TypeError, match="unhashable type"):
            hash(again)  # is still known
    assert not is_resolved(again)


def test_through_a_store() -> None:
    with Store("functions", LocalConnector(), register=True) as store:
        again = pickle.loads(pickle.dumps(store.proxy(len)))
        assert again([1, 2]) == 2
        owned = pickle.loads(pickle.dumps(store.owned_proxy(len)))
        assert type(owned) is OwnedProxy
        assert owned([1]) == 1
        owned = pickle.loads(pickle.dumps(into_owned(store.proxy(nothing))))
        assert default_class(owned) is types.FunctionType


def a_local_object() -> Any:
    class Local:
        def size(self) -> int:
            return 3

        def __hash__(self) -> int:
            return 7

    return Local()


@each_pickler
def test_local_classes_travel(pickler: Any) -> None:
    target = a_local_object()
    proxy = Proxy(nothing, cache_defaults=True, target=target)
    again = pickler.loads(pickler.dumps(proxy))
    assert isinstance(again, type(target))
    assert hash(again) == 7
    assert not is_resolved(again)


@each_pickler
def test_local_classes_arrive_in_another_process(pickler: Any) -> None:
    data = pickler.dumps(Proxy(print, cache_defaults=True, target=a_local_object()))
    program = f"""\
import {pickler.__name__} as pickler
from proxystore.proxy import is_resolved
again = pickler.loads({data!r})
assert again.__class__.__name__ == "Local", again.__class__
assert again.__class__().size() == 3
assert not is_resolved(again)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_local_class_that_is_made_of_what_is_not_there_is_forgotten(monkeypatch: Any) -> None:
    module = types.ModuleType("not_there")
    module.Base = type("Base", (), {"__module__": "not_there"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "not_there", module)

    class Local(module.Base):  # type: ignore[name-defined, misc]
        pass

    data = pickle.dumps(Proxy(print, cache_defaults=True, target=Local()))
    program = f"import pickle; p = pickle.loads({data!r}); assert p.__class__ is type(None)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_local_class_that_refers_to_its_own_proxy() -> None:
    class Local:
        def other(self) -> Any:
            return proxy

    target = Local()
    proxy = Proxy(nothing, cache_defaults=True, target=target)
    assert len(pickle.dumps(proxy)) < 5_000
    assert default_class(pickle.loads(pickle.dumps(proxy))) is Local


def test_copies_know_a_local_class() -> None:
    target = a_local_object()
    again = copy.copy(Proxy(nothing, cache_defaults=True, target=target))
    assert default_class(again) is type(target)
    keys = copy.copy(Proxy(nothing, cache_defaults=True, target={}.keys()))
    assert not is_resolved(keys)
