"""Parsl's own ProxyStoreSerializer, and proxies given to apps that know nothing of them."""

from __future__ import annotations

import os
import pickle

import numpy as np
import parsl
import pytest
from parsl.data_provider.files import File
from parsl.serialize import facade
from parsl.serialize.proxystore import ProxyStoreSerializer
from parsl_tasks import Box

from proxystore.connectors.file import FileConnector
from proxystore.proxy import Proxy, ProxyResolveError, is_resolved
from proxystore.store import Store
from proxystore.store.exceptions import NonProxiableTypeError, ProxyResolveMissingKeyError
from proxystore.store.utils import get_key

pytestmark = pytest.mark.parsl


@pytest.fixture
def store(tmp_path, request):
    name = f"serializer-{request.node.name}"
    with Store(name, FileConnector(tmp_path / "s"), register=True, metrics=True) as store:
        yield store


def count(store):
    return len(os.listdir(store.connector.store_dir))


def serializer_for(store, *kinds):
    return ProxyStoreSerializer(should_proxy=lambda obj: type(obj) in kinds, store=store)


OBJECTS = [[1, 2], frozenset({1, 2}), b"bytes", np.arange(3), {"a": 1}, {1, 2}]


@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: type(obj).__name__)
def test_round_trips(store, obj):
    data = serializer_for(store, type(obj)).serialize((obj, "small"))
    # As in a worker, which makes one without arguments.
    found, small = ProxyStoreSerializer().deserialize(data)
    assert isinstance(found, Proxy)
    assert not is_resolved(found)
    assert np.array_equal(found, obj) if isinstance(obj, np.ndarray) else found == obj
    assert small == "small"
    assert count(store) == 1


@pytest.mark.parametrize("obj", ["text", (1, 2)], ids=["str", "tuple"])
def test_a_policy_that_would_never_come_to_an_end_is_refused(store, obj):
    # compat.md, row 54
    with pytest.raises(NonProxiableTypeError, match="leave small ones alone"):
        serializer_for(store, type(obj)).serialize([obj])
    assert count(store) <= 1


def _describe(*args):
    from proxystore.proxy import Proxy, is_resolved

    before = [(isinstance(arg, Proxy), is_resolved(arg)) for arg in args]
    return before, [sum(arg) for arg in args]


@pytest.fixture
def far(kernel):
    """Make an app that runs elsewhere and that we have nothing to do with."""
    return lambda function: parsl.python_app(function, data_flow_kernel=kernel, executors=["far"])


def test_arguments_go_to_workers_by_the_store(store, far, executor, monkeypatch):
    serializer = serializer_for(store, list, frozenset, bytes, np.ndarray)
    # The first that can is used; results come back by Parsl's own.
    methods = {serializer.identifier: serializer, **facade.methods_for_data}
    monkeypatch.setattr(facade, "methods_for_data", methods)
    large = [[1] * 50_000, frozenset(range(50_000)), b"x" * 100_000, np.ones(50_000)]
    found = far(_describe)(*large).result()
    assert found == ([(True, False)] * 4, [sum(each) for each in large])
    assert count(store) == 4
    assert max(executor.sent) < 10_000
    again = far(_describe)(large[0]).result()
    assert again == ([(True, False)], [50_000])


def test_remote_errors_come_home_and_break_nothing(store, far):
    gone = store.proxy_from_key(store.put([1]), evict=False)
    store.evict(get_key(gone))
    # Not unresolved without a class: Parsl would look into it, and fail, where it is submitted.
    hidden = Box(gone)

    def use(box):
        return len(box.content)

    error = far(use)(hidden).exception()
    assert isinstance(error, ProxyResolveError)
    assert isinstance(error.cause, ProxyResolveMissingKeyError)
    assert (error.cause.key, error.cause.store_name) == (get_key(gone), store.name)
    assert error.__traceback__ is not None
    assert far(sum)([1, 2]).result() == 3, "and the next task runs"


def resolves_of(store, proxy):
    metrics = store.metrics.get_metrics(get_key(proxy))
    return 0 if metrics is None or "factory.resolve" not in metrics.times else 1


def test_submitting_resolves_only_what_has_no_cached_class(store, far):
    key = store.put([1, 2])
    with_class = pickle.loads(pickle.dumps(store.proxy([1, 2])))
    without = store.proxy_from_key(key)
    assert far(_describe)(with_class).result() == ([(True, False)], [3])
    assert not is_resolved(with_class)
    assert resolves_of(store, with_class) == 0
    assert far(_describe)(without).result() == ([(True, False)], [3])
    assert is_resolved(without)
    assert not isinstance(with_class, File)


def test_a_wrapped_none_keeps_parsl_from_resolving(store, far):
    proxy = store.proxy_from_key(store.put([1, 2]))
    proxy.__proxy_wrapped__ = None
    assert far(_describe)(proxy).result() == ([(True, False)], [3])
    assert resolves_of(store, proxy) == 0
    assert proxy == None  # noqa: E711 - what it wraps


def test_results_come_home_as_proxies(store, far):
    def make(config):
        from proxystore.store import get_or_create_store

        # In a list: what is callable, as any proxy is to Python, Parsl hashes as code.
        return [get_or_create_store(config).proxy([1] * 50_000)]

    (result,) = far(make)(store.config()).result()
    assert type(result) is Proxy
    assert not is_resolved(result)
    assert sum(result) == 50_000
