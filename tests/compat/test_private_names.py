"""Contract, section 25: private names that other people's code reaches, and their pickles."""

from __future__ import annotations

import copyreg
import dataclasses
import pickle
from typing import Any

import pytest

import proxystore.proxy
import proxystore.store
import proxystore.store.ref
from proxystore.connectors.local import LocalConnector
from proxystore.proxy import Proxy, is_resolved
from proxystore.store import Store, StoreFactory, register_store, unregister_store
from proxystore.store.metrics import Metrics
from proxystore.store.ref import OwnedProxy, RefMutProxy, RefProxy


@pytest.fixture
def store():
    with Store("private-names", LocalConnector(), register=True, metrics=True) as store:
        yield store


def test_stores_by_name(store):
    stores = proxystore.store._stores
    assert type(stores) is dict
    assert stores[store.name] is store
    other = Store("private-names-2", LocalConnector())
    assert other.name not in stores
    register_store(other)
    assert stores[other.name] is other
    unregister_store(other)
    store.close()
    assert not {store.name, other.name} & stores.keys()
    assert proxystore.store._stores is stores, "a dependant may have imported it by name"


def test_metrics_by_key(store):
    store.get(store.put([1]))
    store.put_batch([[1], [2]])
    found = list(store.metrics._metrics.values())
    assert [type(metrics) for metrics in found] == [Metrics, Metrics]
    assert all("times" in dataclasses.asdict(metrics) for metrics in found)


class _Reduced:
    """Is pickled as it is told to."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def _as_existing_installations_pickle(store, trampoline, *kind, hashed):
    """Return the pickle of a proxy of ``[1]``: in the factory's state is the model itself."""
    config = store.config()
    state = {
        "key": store.put([1]),
        "store_config": config,
        "evict": False,
        "deserializer": None,
        "_obj_future": None,
    }
    factory = _Reduced(copyreg._reconstructor, (StoreFactory, object, None), state)
    return pickle.dumps(_Reduced(trampoline, (*kind, factory, list, hashed)))


UNHASHABLE = TypeError("unhashable type: 'list'")


@pytest.mark.parametrize("hashed", [None, UNHASHABLE], ids=repr)
@pytest.mark.parametrize(
    ("module", "kind", "cls"),
    [
        (proxystore.proxy, (), Proxy),
        (proxystore.store.ref, ("OwnedProxy",), OwnedProxy),
        (proxystore.store.ref, ("RefProxy",), RefProxy),
        (proxystore.store.ref, ("RefMutProxy",), RefMutProxy),
    ],
)
def test_pickles_of_existing_installations_are_read(store, module, kind, cls, hashed):
    data = _as_existing_installations_pickle(store, module._proxy_trampoline, *kind, hashed=hashed)
    assert f"{module.__name__}".encode() in data
    assert b"_proxy_trampoline" in data
    proxy = pickle.loads(data)
    assert type(proxy) is cls
    assert isinstance(proxy, list)
    if hashed is not None:
        with pytest.raises(TypeError, match="unhashable"):
            hash(proxy)
    assert not is_resolved(proxy)
    assert proxy == [1]
    del proxy
    assert len(list(store.connector.keys())) == (cls is not OwnedProxy), "the owner evicts"
