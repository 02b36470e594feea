"""Proxies that cannot be used by accident."""

from __future__ import annotations

import pickle

import pytest

from proxystore.connectors.local import LocalConnector
from proxystore.proxy import Proxy, ProxyLocker, extract, is_resolved
from proxystore.serialize import deserialize, serialize
from proxystore.store import Store
from proxystore.store.exceptions import NonProxiableTypeError
from proxystore.store.lifetimes import ContextLifetime


@pytest.fixture
def store():
    with Store("locked", LocalConnector(), register=True) as store:
        yield store


def test_the_proxy_comes_out_of_the_lock(store):
    locked = store.locked_proxy([1, 2], populate_target=False)
    assert type(locked) is ProxyLocker
    proxy = locked.unlock()
    assert type(proxy) is Proxy
    assert not is_resolved(proxy)
    assert proxy == [1, 2]


def test_parameters_are_those_of_proxy(store):
    locked = store.locked_proxy(
        "a",
        evict=True,
        lifetime=None,
        serializer=pickle.dumps,
        deserializer=pickle.loads,
        populate_target=False,
        skip_nonproxiable=False,
    )
    proxy = locked.unlock()
    key = proxy.__proxy_factory__.key
    assert store.exists(key)
    assert proxy == "a"
    assert not store.exists(key)
    assert is_resolved(store.locked_proxy("a", populate_target=True).unlock())
    with pytest.raises(TypeError, match="keyword"):
        store.locked_proxy("a", whatever=1)


@pytest.mark.parametrize("obj", [None, True, False])
def test_what_cannot_be_proxied_is_skipped_by_default(store, obj):
    assert store.locked_proxy(obj) is obj
    with pytest.raises(NonProxiableTypeError):
        store.locked_proxy(obj, skip_nonproxiable=False)


def test_evict_and_lifetime_exclude_each_other(store):
    lifetime = ContextLifetime(store)
    with pytest.raises(ValueError, match="The evict and lifetime"):
        store.locked_proxy(None, evict=True, lifetime=lifetime)


def test_a_lifetime_ends_it(store):
    with ContextLifetime(store) as lifetime:
        key = store.locked_proxy("a", lifetime=lifetime).unlock().__proxy_factory__.key
        assert store.exists(key)
    assert not store.exists(key)


@pytest.mark.parametrize("dumps_loads", [(pickle.dumps, pickle.loads), (serialize, deserialize)])
def test_a_locked_proxy_travels_unresolved(store, dumps_loads):
    dumps, loads = dumps_loads
    locked = store.locked_proxy([1], populate_target=False)
    arrived = loads(dumps(locked)).unlock()
    assert not is_resolved(locked.unlock())
    assert not is_resolved(arrived)
    assert extract(arrived) == [1]
