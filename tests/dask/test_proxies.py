"""Proxies given to Dask by hand, through a client that knows nothing of them."""

from __future__ import annotations

import os
import pickle

import dask
import numpy as np
import pytest
from dask.base import is_dask_collection
from dask.sizeof import sizeof
from dask.tokenize import tokenize
from dask_tasks import fail, identity, total
from distributed import Client
from distributed.protocol import deserialize, dumps, loads, serialize

from proxystore.connectors.file import FileConnector
from proxystore.factory import LambdaFactory
from proxystore.proxy import Proxy, ProxyResolveError, is_resolved
from proxystore.store import Store
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.store.utils import get_key


@pytest.fixture
def store(tmp_path, request):
    name = f"proxies-{request.node.name}"
    with Store(name, FileConnector(tmp_path / "s"), register=True, metrics=True) as store:
        yield store


@pytest.fixture
def proxy(store, array):
    """A proxy that is unresolved, and knows the class of its target, as on a worker."""
    return pickle.loads(pickle.dumps(store.proxy(array)))


@pytest.mark.parametrize("look", [tokenize, is_dask_collection, sizeof, serialize, dumps])
def test_looking_does_not_resolve_what_knows_its_class(proxy, look):
    look(proxy)
    assert not is_resolved(proxy)


def test_what_looking_finds(store, proxy, array):
    assert not is_dask_collection(proxy)
    assert sizeof(proxy) < 1000, "of the proxy, not of what it stands for"
    assert tokenize(proxy) == tokenize(pickle.loads(pickle.dumps(proxy)))
    assert tokenize(proxy) != tokenize(store.proxy(array + 1))
    # Without a class some looks are at the target itself.
    bare = store.proxy_from_key(get_key(proxy))
    sizeof(bare)
    assert not is_resolved(bare)
    assert tokenize(bare) == tokenize(store.proxy_from_key(get_key(proxy)))
    assert not is_dask_collection(bare)
    np.testing.assert_array_equal(bare, array)


@pytest.mark.parametrize("resolved", [False, True])
def test_messages_carry_the_factory(proxy, array, resolved):
    if resolved:
        proxy.sum()
    header, frames = serialize(proxy)
    assert sum(len(frame) for frame in frames) < 1000
    for again in (deserialize(header, frames), loads(dumps(proxy))):
        assert type(again) is Proxy
        assert not is_resolved(again)
        np.testing.assert_array_equal(again, array)


def test_a_local_scheduler_takes_proxies(store, array):
    proxy = store.proxy(array, populate_target=False)
    assert dask.delayed(total)(proxy).compute(scheduler="synchronous") == array.sum()
    assert dask.delayed(total)(proxy).compute(scheduler="threads") == array.sum()


@pytest.fixture
def plain(cluster):
    with Client(cluster) as client:
        yield client


@pytest.mark.dask
def test_proxies_go_through_a_cluster_unresolved(store, plain, proxy, array):
    again = plain.submit(identity, proxy).result()
    assert type(again) is Proxy
    assert (is_resolved(proxy), is_resolved(again)) == (False, False)
    assert "factory.resolve" not in store.metrics.get_metrics(get_key(proxy)).times
    assert plain.submit(total, proxy).result() == array.sum()
    assert plain.submit(total, proxy, times=2).result() == 2 * array.sum()
    assert not is_resolved(proxy)


@pytest.mark.dask
def test_a_factory_is_not_called_before_the_proxy_is_used(plain):
    # Fails with the length of what it is given.
    proxy = Proxy(LambdaFactory(fail, "called"), cache_defaults=True, target=b"")
    again = plain.submit(identity, proxy, pure=False).result()
    assert type(again) is Proxy
    assert not is_resolved(again)
    with pytest.raises(ProxyResolveError, match="6"):
        len(again)
    with pytest.raises((ProxyResolveError, ZeroDivisionError), match="6"):
        plain.submit(len, proxy, pure=False).result()


def _use(proxy):
    from proxystore.store import get_store

    len(proxy)
    len(proxy)
    store = get_store(proxy)
    metrics = store.metrics.get_metrics(get_key(proxy))
    return os.getpid(), metrics.times["factory.resolve"].count


@pytest.mark.dask
def test_each_key_is_resolved_once_in_the_worker(store, plain):
    # Not lists: the scheduler looks for futures in whatever says it is one, with Client.map.
    proxies = [store.proxy(b"x" * i, populate_target=True) for i in range(4)]
    found = [future.result() for future in plain.map(_use, proxies, pure=False)]
    proxies.append(store.proxy([1]))
    found.append(plain.submit(_use, proxies[-1], pure=False).result())
    assert [count for _, count in found] == [1] * 5
    assert os.getpid() not in [pid for pid, _ in found]
    for proxy in proxies:
        assert "factory.resolve" not in store.metrics.get_metrics(get_key(proxy)).times


@pytest.mark.dask
def test_a_missing_object_comes_home_as_an_error(store, plain, proxy):
    store.evict(get_key(proxy))
    error = plain.submit(total, proxy, pure=False).exception()
    assert isinstance(error, ProxyResolveError)
    assert isinstance(error.cause, ProxyResolveMissingKeyError)
    assert error.cause.key == get_key(proxy)
    assert plain.submit(total, np.ones(3)).result() == 3, "and the worker lives"
