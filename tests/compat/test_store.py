"""Contract, sections 6, 7 and 26: the registry and the store."""

from __future__ import annotations

import logging
import pickle
import re
import subprocess
import sys
import threading
import time
import weakref
from unittest import mock

import numpy as np
import pytest

import proxystore.proxy
import proxystore.store
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector, LocalKey
from proxystore.factory import SimpleFactory
from proxystore.proxy import Proxy, ProxyResolveError, extract, get_factory, is_resolved
from proxystore.serialize import SerializationError, serialize
from proxystore.store import (
    Store,
    get_or_create_store,
    get_store,
    register_store,
    store_registration,
    unregister_store,
)
from proxystore.store.base import (
    ConnectorKeyT,
    ConnectorT,
    DeserializerT,
    NonProxiableT,
    SerializerT,
)
from proxystore.store.config import ConnectorConfig, StoreConfig
from proxystore.store.exceptions import (
    NonProxiableTypeError,
    ProxyResolveMissingKeyError,
    ProxyStoreFactoryError,
    StoreExistsError,
)
from proxystore.store.factory import StoreFactory


@pytest.fixture
def store(tmp_path):
    with Store("contract", FileConnector(tmp_path / "objects"), register=True) as made:
        yield made


class Recorder:
    """A lifetime that keeps what it is given."""

    def __init__(self, done=False):
        self.keys, self.proxies, self._done = [], [], done

    def add_key(self, *keys, store=None):
        self.keys.extend((key, store) for key in keys)

    def add_proxy(self, *proxies):
        self.proxies.extend(proxies)

    def close(self, *, close_stores=False):
        self._done = True

    def done(self):
        return self._done


# -- 6 registry


def test_names_are_importable():
    assert all((ConnectorKeyT, ConnectorT, DeserializerT, NonProxiableT, SerializerT))
    import proxystore.store.base

    assert proxystore.store.get_store is get_store


def test_registering_by_name():
    store = Store("by-name", LocalConnector())
    assert get_store("by-name") is None
    register_store(store)
    assert get_store("by-name") is store
    with pytest.raises(StoreExistsError, match="by-name"):
        register_store(store)
    other = Store("by-name", LocalConnector())
    register_store(other, exist_ok=True)
    assert get_store("by-name") is other
    unregister_store("by-name")
    unregister_store(other)
    assert get_store("by-name") is None
    assert "by-name" not in proxystore.store._stores


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
def test_a_taken_name_comes_with_advice(store):
    with pytest.raises(StoreExistsError) as caught:
        Store(store.name, LocalConnector(), register=True)
    assert "get_store" in caught.value.__notes__[0]


def test_registration_as_a_context():
    a, b = Store("ctx-a", LocalConnector()), Store("ctx-b", LocalConnector())
    with store_registration(a, b):
        assert (get_store("ctx-a"), get_store("ctx-b")) == (a, b)
        with pytest.raises(StoreExistsError), store_registration(a):
            pass
        with store_registration(a, exist_ok=True):
            pass
        assert get_store("ctx-a") is None
    assert get_store("ctx-b") is None


def test_registration_ends_when_the_block_fails():
    # defects.md 35
    a, b = Store("fail-a", LocalConnector()), Store("fail-b", LocalConnector())
    with pytest.raises(ZeroDivisionError), store_registration(a):
        1 / 0  # noqa: B018
    assert get_store("fail-a") is None
    with store_registration(b), pytest.raises(StoreExistsError), store_registration(a, b):
        pass
    assert get_store("fail-a") is None


def test_the_store_of_a_proxy(store):
    assert get_store(store.proxy([1])) is store
    with pytest.raises(ProxyStoreFactoryError):
        get_store(Proxy(SimpleFactory([1])))


def test_two_stores_and_their_proxies():
    a, b = Store("pair-a", LocalConnector()), Store("pair-b", LocalConnector())
    with store_registration(a, b):
        assert get_store(a.proxy("x", populate_target=False)) is a
        assert get_store(b.proxy("x", populate_target=False)) is b


def test_get_or_create_returns_the_one_that_has_the_name(store):
    assert get_or_create_store(store.config()) is store
    assert get_or_create_store(store.config().model_copy(update={"cache_size": 3})) is store
    placeholder = StoreConfig(name=store.name, connector=ConnectorConfig(kind="test"))
    assert get_or_create_store(placeholder) is store


def test_get_or_create_registers_what_it_makes(tmp_path):
    config = StoreConfig(
        name="made", connector={"kind": "file", "options": {"store_dir": str(tmp_path)}}
    )
    unregistered = get_or_create_store(config, register=False)
    assert get_store("made") is None
    made = get_or_create_store(config)
    assert made is not unregistered
    assert get_store("made") is made
    assert get_or_create_store(config) is made
    unregister_store(made)


def test_concurrent_callers_get_one_store(tmp_path):
    config = StoreConfig(
        name="raced", connector={"kind": "file", "options": {"store_dir": str(tmp_path)}}
    )
    barrier = threading.Barrier(8)
    found = []

    def get():
        barrier.wait()
        found.append(get_or_create_store(config))

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(store) for store in found}) == 1
    unregister_store("raced")


# -- 7.1 to 7.4


def test_constructor_keywords_and_attributes():
    store = Store("n", connector=LocalConnector(), cache_size=3, metrics=True)
    assert store.name == "n"
    assert store.cache.maxsize == 3
    assert store.metrics is not None
    assert Store("m", LocalConnector()).metrics is None
    assert store.serializer is serialize
    assert Store("s", LocalConnector(), serializer=pickle.dumps).serializer is pickle.dumps
    assert Store[LocalConnector]


def test_negative_cache_size_is_refused():
    with pytest.raises(ValueError, match="cache_size"):
        Store("n", LocalConnector(), cache_size=-1, register=True)
    assert get_store("n") is None


def test_repr_names_everything():
    store = Store("n", LocalConnector(), serializer=pickle.dumps)
    assert repr(store) == (
        "Store(name=n, connector=LocalConnector(), serializer=custom, deserializer=default, "
        "cache_size=16, metrics=False, populate_target=True, auto_register=False)"
    )


def test_stores_are_compared_and_hashed_by_identity():
    a, b = Store("n", LocalConnector()), Store("n", LocalConnector())
    assert a != b
    assert len({a, b}) == 2


def test_stores_are_not_pickled(store):
    with pytest.raises(TypeError, match="config"):
        pickle.dumps(store)


def test_close_unregisters_only_what_registered_itself(tmp_path):
    connector = mock.Mock()
    by_itself = Store("itself", connector, register=True)
    by_itself.close(clear=False)
    assert get_store("itself") is None
    connector.close.assert_called_once_with(clear=False)
    by_hand = Store("hand", LocalConnector())
    register_store(by_hand)
    by_hand.close()
    assert get_store("hand") is by_hand
    unregister_store(by_hand)


def test_close_leaves_the_name_to_its_next_owner():
    # defects.md 34
    first = Store("handed-on", LocalConnector(), register=True)
    second = Store("handed-on", LocalConnector())
    register_store(second, exist_ok=True)
    first.close()
    assert get_store("handed-on") is second
    unregister_store(second)


def test_config_rebuilds_an_equal_store(store):
    config = store.config()
    assert config == store.config()
    assert config.connector.kind == "proxystore.connectors.file.FileConnector"
    assert config.auto_register
    with pytest.raises(StoreExistsError):
        Store.from_config(config)
    unregister_store(store)
    again = Store.from_config(config)
    assert again.config() == config
    assert get_store(store.name) is again
    again.close(clear=False)


def test_subclasses_are_rebuilt_as_themselves(store):
    class Mine(Store):
        pass

    config = store.config().model_copy(update={"auto_register": False})
    assert type(Mine.from_config(config)) is Mine


# -- 7.5 to 7.9


@pytest.mark.parametrize("value", [None, True, 0, "text", b"bytes", [1, {"a": (2,)}]])
def test_put_and_get(store, value):
    key = store.put(value)
    assert store.exists(key)
    assert not store.is_cached(key)
    assert store.get(key, default="missing") == value
    assert store.is_cached(key)
    assert store.get(key) is store.get(key)
    store.evict(key)
    store.evict(key)
    assert not store.exists(key)
    assert not store.is_cached(key)
    assert store.get(key, default="missing") == "missing"
    assert store.get(key) is None


def test_put_batch(store):
    keys = store.put_batch(["a", None, "c"])
    assert [store.get(key) for key in keys] == ["a", None, "c"]
    assert store.put_batch([]) == []


@pytest.mark.parametrize("put", ["put", "put_batch", "proxy"])
def test_serializers_have_to_return_bytes(store, put):
    value = ["x"] if put == "put_batch" else "x"
    with pytest.raises(TypeError, match="bytes"):
        getattr(store, put)(value, serializer=lambda x: "text")
    assert not list(store.connector.keys())


def test_a_batch_with_one_that_cannot_be_serialized_stores_nothing(store):
    with pytest.raises(SerializationError):
        store.put_batch(["fine", threading.Lock()])
    assert not list(store.connector.keys())


def test_unknown_options_are_the_connector_s_to_refuse(store):
    with pytest.raises(TypeError, match="wrong"):
        store.put("x", wrong=1)


def test_custom_serializers(store):
    key = store.put("x", serializer=lambda text: text.encode())
    assert store.get(key, deserializer=lambda data: bytes(data).decode()) == "x"
    whole = Store("own", LocalConnector(), serializer=str.encode, deserializer=bytes.decode)
    assert whole.get(whole.put("x")) == "x"


def test_what_does_not_deserialize_names_key_and_deserializer(store):
    key = store.put("x")

    class Broken:  # no __qualname__: defects.md 31
        def __call__(self, data):
            raise ZeroDivisionError("inside")

    with pytest.raises(SerializationError, match="Failed to deserialize object") as caught:
        store.get(key, deserializer=Broken())
    assert key.filename in str(caught.value)
    assert "Broken" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert store.get(key) == "x"


@pytest.mark.parametrize(("size", "cached"), [(0, []), (1, [2]), (2, [1, 2]), (3, [0, 1, 2])])
def test_cache_keeps_what_was_got_last(size, cached):
    store = Store("n", LocalConnector(), cache_size=size)
    keys = [store.put(i) for i in range(3)]
    for key in keys:
        store.get(key)
    assert [i for i, key in enumerate(keys) if store.is_cached(key)] == cached


def test_exists_asks_the_cache_first():
    store = Store("n", LocalConnector())
    key = store.put("x")
    store.get(key)
    store.connector.evict(key)
    assert store.exists(key)
    store.evict(key)
    assert not store.exists(key)


def test_set_replaces_and_forgets(store):
    key = store.put("old")
    assert store.get(key) == "old"
    store._set(key, "new")
    assert store.get(key) == "new"
    with pytest.raises(TypeError, match="bytes"):
        store._set(key, "x", serializer=lambda x: "text")

    class Plain:
        def config(self):
            return {}

    with pytest.raises(NotImplementedError, match="DeferrableConnector"):
        Store("plain", Plain())._set(("key",), "x")


def test_lifetimes_get_what_is_put(store):
    lifetime = Recorder()
    key = store.put("x", lifetime=lifetime)
    keys = store.put_batch(["y", "z"], lifetime=lifetime)
    assert lifetime.keys == [(k, store) for k in [key, *keys]]
    proxy = store.proxy("p", lifetime=lifetime)
    proxies = store.proxy_batch(["q", "r"], lifetime=lifetime)
    last = store.proxy_from_key(key, lifetime=lifetime)
    for got, given in zip(lifetime.proxies, [proxy, *proxies, last], strict=True):
        assert got is given


@pytest.mark.parametrize("method", ["put", "put_batch", "proxy", "proxy_batch"])
def test_nothing_is_stored_for_a_lifetime_that_has_ended(store, method):
    # defects.md 11
    with pytest.raises(RuntimeError, match="ended"):
        getattr(store, method)(["x"], lifetime=Recorder(done=True))
    assert not list(store.connector.keys())


def test_nothing_stays_if_a_lifetime_ends_while_putting(store):
    lifetime = Recorder()
    lifetime.add_key = mock.Mock(side_effect=RuntimeError("ended meanwhile"))
    with pytest.raises(RuntimeError, match="meanwhile"):
        store.put("x", lifetime=lifetime)
    assert not list(store.connector.keys())


class Unhashed(list):
    """Fails in another way than what has no hash."""

    def __hash__(self):
        raise ZeroDivisionError("in __hash__")


@pytest.mark.parametrize("batch", [False, True])
def test_nothing_stays_of_an_object_that_cannot_be_hashed(store, batch):
    with pytest.raises(ZeroDivisionError):
        store.proxy_batch([[1], Unhashed()]) if batch else store.proxy(Unhashed())
    assert not list(store.connector.keys())
    assert store.proxy(Unhashed([1]), populate_target=False)[0] == 1


# -- 7.10 to 7.12


def test_a_proxy_is_a_proxy(store):
    value = [1, 2]
    proxy = store.proxy(value)
    assert type(proxy) is Proxy
    assert is_resolved(proxy)
    assert extract(proxy) is value
    del proxy.__proxy_wrapped__
    assert not is_resolved(proxy)
    assert isinstance(proxy, list)
    assert not is_resolved(proxy)
    assert proxy == value
    again = pickle.loads(pickle.dumps(proxy))
    assert isinstance(again, Proxy)
    assert not is_resolved(again)
    assert again == value


def test_a_proxy_without_its_target(store):
    proxy = store.proxy([1], populate_target=False)
    assert not is_resolved(proxy)
    assert proxy == [1]
    lazy = Store("lazy", LocalConnector(), populate_target=False)
    with store_registration(lazy):
        assert not is_resolved(lazy.proxy([1]))


@pytest.mark.parametrize("value", [None, True, False])
def test_what_is_compared_with_is_cannot_be_proxied(store, value):
    with pytest.raises(NonProxiableTypeError):
        store.proxy(value)
    with pytest.raises(NonProxiableTypeError):
        store.proxy_batch([1, value])
    assert not list(store.connector.keys())
    assert store.proxy(value, skip_nonproxiable=True) is value
    assert store.proxy_batch([value, value], skip_nonproxiable=True) == [value, value]
    assert store.proxy(np.bool_(True)) == np.bool_(True)


def test_evict_and_lifetime_exclude_each_other(store):
    for method, value in [("proxy", None), ("proxy_batch", [None]), ("proxy_from_key", ("k",))]:
        with pytest.raises(ValueError, match="The evict and lifetime"):
            getattr(store, method)(value, evict=True, lifetime=Recorder())


def test_evict_happens_on_resolving(store):
    proxy = store.proxy([1], evict=True)
    key = get_factory(proxy).key
    assert proxy == [1]
    assert store.exists(key)
    del proxy.__proxy_wrapped__
    assert proxy == [1]
    assert not store.exists(key)
    del proxy.__proxy_wrapped__
    with pytest.raises(ProxyResolveError) as caught:
        len(proxy)
    assert isinstance(caught.value.cause, ProxyResolveMissingKeyError)


def test_batches_of_proxies_keep_order_and_constants(store):
    values = [None, "a", True, "b", False]
    with mock.patch.object(store, "put_batch", wraps=store.put_batch) as put_batch:
        proxies = store.proxy_batch(values, skip_nonproxiable=True, populate_target=False)
    put_batch.assert_called_once()
    assert [p if p is None or isinstance(p, bool) else str(p) for p in proxies] == values
    assert store.proxy_batch([]) == []


def test_a_batch_may_be_an_iterator(store):
    # defects.md 32: it silently gave []
    assert [str(p) for p in store.proxy_batch(iter("ab"))] == ["a", "b"]


def test_serializers_and_the_populated_target(store):
    proxy = store.proxy(b"raw", serializer=lambda x: x, deserializer=lambda data: bytes(data)[::-1])
    assert proxy == b"raw"
    del proxy.__proxy_wrapped__
    assert proxy == b"war"


def test_a_proxy_from_a_key(store):
    proxy = store.proxy_from_key(store.put(None))
    assert not is_resolved(proxy)
    assert isinstance(proxy, type(None))
    with pytest.raises(ProxyResolveError):
        str(store.proxy_from_key(store.connector.new_key()))


# -- 7.17, 1.3


def test_metrics_are_one_sample_an_operation():
    store = Store("metrics", LocalConnector(), metrics=True)
    key = store.put("x")
    store.exists(key)
    store.get(key)
    store.get(key)
    store.exists(key)
    store._set(key, "y")
    store.evict(key)
    metrics = store.metrics.get_metrics(key)
    assert {name: stats.count for name, stats in metrics.times.items()} == {
        "store.put": 1,
        "store.put.serialize": 1,
        "store.put.connector": 1,
        "store.exists": 2,
        "store.exists.connector": 1,
        "store.get": 2,
        "store.get.connector": 1,
        "store.get.deserialize": 1,
        "store.set": 1,
        "store.set.serialize": 1,
        "store.set.connector": 1,
        "store.evict": 1,
        "store.evict.connector": 1,
    }
    assert metrics.counters == {"store.get.cache_hits": 1, "store.get.cache_misses": 1}
    assert set(metrics.attributes) == {
        "store.put.object_size", "store.get.object_size", "store.set.object_size"
    }  # fmt: skip


def test_metrics_of_a_missing_key_and_of_batches():
    store = Store("metrics-2", LocalConnector(), metrics=True)
    missing = LocalKey("missing")
    store.get(missing)
    metrics = store.metrics.get_metrics(missing)
    assert set(metrics.times) == {"store.get", "store.get.connector"}
    assert metrics.counters == {"store.get.cache_misses": 1}
    proxies = store.proxy_batch(["a", "b"])
    batch = store.metrics.get_metrics(proxies)
    assert {"store.proxy_batch", "store.put_batch"} < set(batch.times)
    assert type(batch.attributes["store.put_batch.object_sizes"]) is int


def test_metrics_of_factories():
    store = Store("metrics-3", LocalConnector(), metrics=True, register=True)
    proxy = store.proxy("x")
    assert "factory.call" not in store.metrics.get_metrics(proxy).times
    del proxy.__proxy_wrapped__
    assert proxy == "x"
    times = store.metrics.get_metrics(proxy).times
    assert times["factory.call"].count == times["factory.resolve"].count == 1
    assert times["store.proxy"].count == 1
    assert 0 < times["factory.resolve"].last_time_ms < 1000  # milliseconds: defects.md 39
    store.close()


@pytest.mark.parametrize(
    ("operation", "verb"),
    [
        (lambda s, k: s.put("x"), "PUT "),
        (lambda s, k: s.put_batch(["x"]), "PUT_BATCH 1 items"),
        (lambda s, k: s.get(k), "GET "),
        (lambda s, k: s.exists(k), "EXISTS "),
        (lambda s, k: s.evict(k), "EVICT "),
        (lambda s, k: s._set(k, "y"), "SET "),
        (lambda s, k: s.proxy("x"), "PROXY "),
        (lambda s, k: s.proxy_batch(["x"]), "PROXY_BATCH 1 items"),
        (lambda s, k: s.proxy_from_key(k), "PROXY_FROM_KEY "),
    ],
)
def test_each_operation_is_a_line_in_the_log(operation, verb, caplog):
    store = Store("logged", LocalConnector())
    key = store.put("x")
    with caplog.at_level(logging.DEBUG, "proxystore.store.base"):
        operation(store, key)
    lines = [record.getMessage() for record in caplog.records if verb in record.getMessage()]
    assert len(lines) == 1
    assert "logged" in lines[0]
    assert verb == "PROXY_FROM_KEY " or re.search(r"in \d+\.\d{3} ms$", lines[0])
    assert "items" in verb or "LocalKey" in lines[0]


def test_get_says_in_the_log_whether_it_was_cached(caplog):
    store = Store("logged", LocalConnector())
    key = store.put("x")
    with caplog.at_level(logging.DEBUG, "proxystore.store.base"):
        store.get(key)
        store.get(key)
    assert ["cached=False" in caplog.messages[0], "cached=True" in caplog.messages[1]] == [True] * 2


def test_making_and_registering_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        Store("told", LocalConnector(), register=True).close()
    by_logger = {(r.name, r.levelname) for r in caplog.records if "told" in r.getMessage()}
    assert by_logger == {("proxystore.store", "INFO"), ("proxystore.store.base", "INFO")}


# -- 26


def test_a_proxy_resolves_in_a_process_that_knows_no_store(store):
    proxy = store.proxy(np.arange(10))
    script = (
        "import pickle, sys\n"
        "from proxystore.store import get_store, _stores\n"
        "p = pickle.load(sys.stdin.buffer)\n"
        "assert not _stores\n"
        "print(int(p.sum()), list(_stores), get_store(p) is get_store('contract'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(proxy), capture_output=True, check=True
    )
    assert done.stdout.decode() == "45 ['contract'] True\n"
    assert store.exists(get_factory(proxy).key), "the guest's exit deletes nothing"


def test_a_proxy_that_an_existing_installation_pickled_resolves(store):
    # What it pickles: the trampoline, with a factory whose state is its attributes, the
    # configuration among them as a model that lacks the fields we have added.
    config = store.config()
    del config.__dict__["verify"]
    factory = StoreFactory.__new__(StoreFactory)
    factory.__setstate__(
        {
            "key": store.put([1]),
            "store_config": pickle.loads(pickle.dumps(config)),
            "evict": False,
            "deserializer": None,
            "_obj_future": None,
        }
    )
    proxy = proxystore.proxy._proxy_trampoline(factory, list, None)
    unregister_store(store)
    assert isinstance(proxy, list)
    assert not is_resolved(proxy)
    assert proxy == [1]
    assert get_store("contract").config() == store.config()
    unregister_store("contract")


def test_the_pickle_of_a_proxy_does_not_grow_with_the_object(store):
    small, large = store.proxy([1]), store.proxy(list(range(100_000)))
    assert len(pickle.dumps(small)) == len(pickle.dumps(large)) < 400
    assert isinstance(get_factory(pickle.loads(pickle.dumps(small))), StoreFactory)


@pytest.mark.parametrize("obj", ["x" * 8000, [1], np.zeros(1000)], ids=["str", "list", "ndarray"])
def test_the_pickle_of_a_proxy_is_small(store, obj):
    path = len(str(store.connector.store_dir))
    assert len(pickle.dumps(store.proxy(obj))) - path < 280
    again = [pickle.loads(pickle.dumps(proxy)) for proxy in store.proxy_batch([obj] * 3)]
    assert len({id(get_factory(proxy).store_config) for proxy in again}) == 1, "decoded once"


def test_a_store_is_described_once_for_all_its_proxies(store, monkeypatch):
    config = mock.Mock(wraps=store.config)
    monkeypatch.setattr(store, "config", config)
    pickle.dumps([store.proxy([1]), *store.proxy_batch([[2]] * 100)])
    config.assert_called_once_with()


def test_a_batch_takes_time_in_proportion_to_its_length():
    store = Store("constants", LocalConnector())

    def seconds(length):
        objs = [[1], None] * (length // 2)
        start = time.perf_counter()
        store.proxy_batch(objs, skip_nonproxiable=True)
        return time.perf_counter() - start

    short, long = (min(seconds(length) for _ in range(3)) for length in (5_000, 20_000))
    assert long < 9 * short, "16 times, if each constant were looked for among the others"


@pytest.mark.parametrize("by_default", [False, True])
def test_without_its_target_a_proxy_keeps_no_object_alive(store, by_default):
    class Large(list):
        pass

    obj = Large([1])
    dead = weakref.ref(obj)
    if by_default:
        store.populate_target = False
        proxy = store.proxy(obj)
    else:
        proxy = store.proxy(obj, populate_target=False)
    del obj
    assert dead() is None
    assert not is_resolved(proxy)
