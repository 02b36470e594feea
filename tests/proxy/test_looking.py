"""What other libraries may ask of a proxy that knows its class, without fetching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
import pytest

from proxystore.proxy import Proxy, is_resolved


class Failing:
    def __call__(self) -> Any:
        raise LookupError("must not be fetched")

    def __dask_tokenize__(self) -> str:
        return "token"


class Asked:
    """Has some of the protocols."""

    __array_priority__ = 3
    __array_ufunc__ = None

    def _repr_html_(self) -> str:
        return "<b>asked</b>"


def unresolved(kind: type, factory: Callable[[], Any] | None = None) -> Proxy[Any]:
    proxy: Proxy[Any] = Proxy(factory or Failing())
    proxy.__proxy_default_class__ = kind
    return proxy


PROTOCOLS = """
    __dask_graph__ __dask_tokenize__ __dask_future__ __array_interface__ __array_function__
    __arrow_c_array__ __cuda_array_interface__ __dataframe__ __dlpack__
    __rich_repr__ _repr_png_ _repr_mimebundle_ _ipython_display_
    _ipython_canary_method_should_not_exist_
""".split()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_the_class_lacks_is_answered_without_a_fetch(name: str) -> None:
    proxy = unresolved(Asked)
    with pytest.raises(AttributeError, match=f"'Asked' object has no attribute '{name}'"):
        getattr(proxy, name)
    assert not is_resolved(proxy)


@pytest.mark.parametrize("name", [*PROTOCOLS, "anything"])
def test_without_a_class_the_target_is_asked(name: str) -> None:
    proxy = Proxy(Asked)
    assert not hasattr(proxy, name)
    assert is_resolved(proxy)


def test_what_the_class_has_is_the_target_s() -> None:
    assert unresolved(Asked, Asked).__array_priority__ == 3
    assert unresolved(Asked, Asked).__array_ufunc__ is None
    assert unresolved(Asked, Asked)._repr_html_() == "<b>asked</b>"
    array = np.arange(3)
    assert np.shares_memory(np.asarray(unresolved(np.ndarray, lambda: array)), array)


@pytest.mark.parametrize("name", ["anything", "_private", "__len__", "__deepcopy__"])
def test_other_names_are_the_target_s_alone(name: str) -> None:
    proxy = unresolved(Asked, Asked)
    hasattr(proxy, name)
    assert is_resolved(proxy) is (name != "__len__"), "which is an operator of the proxy"


def test_a_resolved_proxy_asks_the_target() -> None:
    proxy = unresolved(Asked, Asked)
    target: Any = Asked()
    target.__dask_tokenize__ = lambda: "t"
    proxy.__proxy_wrapped__ = target
    assert proxy.__dask_tokenize__() == "t"


def test_module_of_the_class_is_the_instance_s() -> None:
    proxy = unresolved(Asked)
    assert proxy.__module__ == __name__
    for kind in (list, int):
        assert not hasattr(unresolved(kind), "__module__")
    assert not is_resolved(proxy)
    # A class or function has one of its own.
    assert unresolved(type, lambda: list).__module__ == "builtins"


def test_closures_over_a_proxy_pickle_without_a_fetch() -> None:
    proxy = Proxy(Failing())
    assert cloudpickle.loads(cloudpickle.dumps(lambda: is_resolved(proxy)))() is False
    assert not is_resolved(proxy)


@pytest.mark.parametrize("kind", [np.ndarray, list, Asked])
def test_dask_does_not_fetch(kind: type) -> None:
    dask = pytest.importorskip("dask")
    task_spec = pytest.importorskip("dask._task_spec")
    tokenize = pytest.importorskip("dask.tokenize").tokenize
    sizeof = pytest.importorskip("dask.sizeof").sizeof
    proxy = unresolved(kind)
    assert not dask.is_dask_collection(proxy)
    assert tokenize(proxy) == tokenize(unresolved(kind))
    if kind is not list:  # whose items may be tasks
        assert task_spec.parse_input(proxy) is proxy
    assert task_spec.Task("key", len, proxy).dependencies == frozenset()
    assert sizeof(proxy) < 1000
    assert not is_resolved(proxy)


@pytest.mark.parametrize("kind", [np.ndarray, list, Asked])
def test_distributed_does_not_fetch(kind: type) -> None:
    protocol = pytest.importorskip("distributed.protocol")
    proxy = unresolved(kind)
    again = protocol.deserialize(*protocol.serialize(proxy))
    assert type(again) is Proxy
    assert not is_resolved(again)
    assert not is_resolved(proxy)
