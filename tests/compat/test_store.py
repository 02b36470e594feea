"""Contract, sections 6, 7 and 26: the registry and the store."""

from __future__ import annotations

import inspect
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
from proxystore.serialize import SerializationError, deserialize, serialize
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
    """A lifetime that keeps what it is given, and notes each call."""

    def __init__(self, done=False):
        self.keys, self.proxies, self.calls, self._done = [], [], [], done

    def add_key(self, *keys, store=None):
        self.calls.append(("add_key", len(keys)))
        self.keys.extend((key, store) for key in keys)

    def add_proxy(self, *proxies):
        self.calls.append(("add_proxy", len(proxies)))
        self.proxies.extend(proxies)

    def close(self, *, close_stores=False):
        self._done = True

    def done(self):
        return self._done


class Plain:
    """Has the methods of `Connector`, inherits from nothing, and notes each call."""

    def __init__(self):
        self._within = LocalConnector()
        self.calls = []

    def __getattr__(self, name):
        return getattr(self._within, name)

    close, config, evict, exists, get, get_batch, put, put_batch = (
        (
            lambda self, *args, _name=name: [
                self.calls.append((_name, *args)),
                getattr(self._within, _name)(*args),
            ][1]
        )
        for name in "close config evict exists get get_batch put put_batch".split()
    )

    @classmethod
    def from_config(cls, config):
        return cls()

    def names_of_calls(self):
        """Return what was called, but for what is asked once to describe the store."""
        return [name for name, *_ in self.calls if name != "config"]


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
    # compat.md, row 35
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


def test_asking_for_the_store_of_a_proxy_makes_it_and_resolves_nothing(tmp_path):
    store = Store("unregistered", FileConnector(tmp_path / "objects"))
    proxy = store.proxy([1], populate_target=False)
    assert get_store("unregistered") is None
    made = get_store(proxy)
    assert made is not store
    assert get_store("unregistered") is made
    assert made.config() == store.config()
    assert not is_resolved(proxy)
    unregister_store(made)


class NamesAStore(LocalConnector):
    """Uses the registry while its own store is made."""

    def __init__(self, **options):
        super().__init__(**options)
        inner = get_or_create_store(StoreConfig(name="within", connector={"kind": "local"}))
        assert get_store("within") is inner
        register_store(inner, exist_ok=True)
        unregister_store(inner)


def test_the_registry_can_be_used_while_it_makes_a_store():
    config = StoreConfig(name="names-a-store", connector={"kind": f"{__name__}.NamesAStore"})
    made = get_or_create_store(config)
    assert type(made.connector) is NamesAStore
    assert get_store("names-a-store") is made
    unregister_store(made)


def test_a_config_that_registers_is_registered_whatever_is_asked():
    config = StoreConfig(name="auto", connector={"kind": "local"}, auto_register=True)
    made = get_or_create_store(config, register=False)
    assert get_store("auto") is made
    made.close()
    assert get_store("auto") is None


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


SIGNATURES = {
    Store.__init__: {
        "serializer": None,
        "deserializer": None,
        "cache_size": 16,
        "metrics": False,
        "populate_target": True,
        "register": False,
    },
    Store.put: {"lifetime": None, "serializer": None},
    Store.put_batch: {"lifetime": None, "serializer": None},
    Store.get: {"deserializer": None, "default": None},
    Store.proxy: {
        "evict": False,
        "lifetime": None,
        "serializer": None,
        "deserializer": None,
        "populate_target": None,
        "skip_nonproxiable": False,
    },
    Store.proxy_from_key: {"evict": False, "lifetime": None, "deserializer": None},
    Store._set: {"serializer": None},
    Store.owned_proxy: {
        "serializer": None,
        "deserializer": None,
        "populate_target": None,
        "skip_nonproxiable": True,
    },
}
SIGNATURES[Store.proxy_batch] = SIGNATURES[Store.proxy]
SIGNATURES[Store.locked_proxy] = {**SIGNATURES[Store.proxy], "skip_nonproxiable": True}


@pytest.mark.parametrize("method", SIGNATURES, ids=lambda method: method.__name__)
def test_options_are_keywords_with_these_defaults(method):
    found = inspect.signature(method).parameters
    assert {name: found[name].default for name in SIGNATURES[method]} == SIGNATURES[method]
    for parameter in found.values():
        if parameter.default is not parameter.empty:
            assert parameter.kind is parameter.KEYWORD_ONLY, parameter


@pytest.mark.parametrize("name", ["name", "metrics", "serializer", "deserializer"])
def test_some_attributes_are_read_only(store, name):
    with pytest.raises(AttributeError):
        setattr(store, name, None)


def test_effective_serializers():
    plain = Store("n", LocalConnector())
    assert (plain.serializer, plain.deserializer) == (serialize, deserialize)
    own = Store("n", LocalConnector(), serializer=pickle.dumps, deserializer=pickle.loads)
    assert (own.serializer, own.deserializer) == (pickle.dumps, pickle.loads)


def test_the_connector_can_be_replaced_by_a_mock(store):
    connector = store.connector
    assert type(connector).__name__ == "FileConnector"
    store.connector = mock.Mock()
    store.connector.put.return_value = LocalKey("key")
    store.connector.get.return_value = None
    assert store.put("x") == LocalKey("key")
    assert store.get(LocalKey("key"), default="none") == "none"
    store.connector.get.assert_called_once_with(LocalKey("key"))
    store.connector = connector


def test_leaving_its_block_closes_a_store_and_hides_no_error():
    connector = mock.Mock()
    store = Store("block", connector)
    with store as entered:
        assert entered is store
        connector.close.assert_not_called()
    connector.close.assert_called_once_with()
    with pytest.raises(ZeroDivisionError), store:
        1 / 0  # noqa: B018
    assert connector.close.mock_calls == [mock.call()] * 2


def test_a_closed_store_can_be_closed_and_used_again():
    store = Store("closed", LocalConnector(), register=True)
    key = store.put("x")
    store.close()
    store.close()
    assert store.get(key) == "x"
    assert store.get(store.put("y")) == "y"


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
    # compat.md, row 34
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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"serializer": pickle.dumps, "deserializer": pickle.loads},
        {"cache_size": 0},
        {"metrics": True},
        {"populate_target": False},
        {"register": True},
    ],
    ids=lambda options: " ".join(options) or "defaults",
)
def test_config_has_what_the_store_was_made_with(options):
    with Store("described", LocalConnector(), **options) as store:
        found = store.config()
    expected = {
        "name": "described",
        "connector": ConnectorConfig(
            kind="proxystore.connectors.local.LocalConnector", options=store.connector.config()
        ),
        "serializer": None,
        "deserializer": None,
        "cache_size": 16,
        "metrics": False,
        "populate_target": True,
        "auto_register": options.get("register", False),
        **{name: value for name, value in options.items() if name != "register"},
    }
    assert {name: getattr(found, name) for name in expected} == expected
    with Store.from_config(found) as again:
        assert again.config() == found
        assert (again.metrics is None) is (store.metrics is None)


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


def test_a_batch_is_serialized_first_and_then_one_operation():
    store = Store("batch", Plain())
    lifetime = Recorder()
    keys = store.put_batch(["a", "b", "c"], serializer=str.encode, lifetime=lifetime)
    assert store.connector.calls == [("put_batch", [b"a", b"b", b"c"])]
    assert lifetime.calls == [("add_key", 3)]
    assert [store.get(key, deserializer=bytes.decode) for key in keys] == ["a", "b", "c"]
    store.connector.calls.clear()
    with pytest.raises(TypeError, match="bytes"):
        store.put_batch([b"a", "b"], serializer=lambda x: x)
    assert store.connector.calls == []


def test_each_operation_is_one_of_the_connector():
    store = Store("one", Plain())
    key = store.put("x")
    store.get(key)
    store.get(key)
    store.exists(key)
    store.is_cached(key)
    store.evict(key)
    store.exists(key)
    store.proxy_from_key(key)
    assert store.connector.names_of_calls() == ["put", "get", "evict", "exists"]
    assert Plain.__mro__ == (Plain, object)


def test_the_deserializer_gets_what_the_connector_returns():
    store = Store("as-is", Plain())
    data = bytearray(b"data")
    key = store.connector._within.put(data)
    seen = []
    store.get(key, deserializer=lambda given: seen.append(given))
    assert seen[0] is data


def test_a_default_is_not_cached(store):
    key = store.connector.new_key()
    default = object()
    assert store.get(key, default=default) is default
    assert not store.is_cached(key)
    store._set(key, "x")
    assert store.get(key, default=default) == "x"


def test_parts_of_an_operation_may_use_the_store():
    store = Store("re-entrant", Plain(), cache_size=1)

    class EvictsWhenItGoes:
        def __init__(self, key):
            self.key = key

        def __del__(self):
            store.evict(self.key)

    class Drops(Plain):
        dropped = None

        def get(self, key):
            self.dropped = None
            return self._within.get(key)

    def serializer(obj):
        return serialize([obj, store.put("within")])

    def deserializer(data):
        obj, within = deserialize(data)
        return [obj, store.get(within)]

    key = store.put("x", serializer=serializer)
    assert store.get(key, deserializer=deserializer) == ["x", "within"]
    first, second = store.put_batch([1, 2])
    store.get(key, deserializer=lambda data: EvictsWhenItGoes(first))
    store.get(second)
    assert not store.exists(first), "evicted when the cache dropped its value"
    store = Store("re-entrant", Drops())
    first, second = store.put_batch([1, 2])
    store.connector.dropped = EvictsWhenItGoes(first)
    assert store.get(second) == 2
    assert not store.exists(first), "evicted in the middle of an operation of the connector"


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

    class Broken:  # no __qualname__: compat.md, row 31
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


def test_only_get_fills_the_cache_and_orders_it(store):
    keys = [store.put(i) for i in range(3)]
    keys += store.put_batch([3, 4])
    keys += [get_factory(p).key for p in [store.proxy("p"), *store.proxy_batch(["q"])]]
    assert all(store.exists(key) for key in keys)
    assert not any(store.is_cached(key) for key in keys)
    small = Store("small", store.connector, cache_size=2)
    for key in (keys[0], keys[1], keys[0]):
        small.get(key)
    # Neither makes what was got longest ago look recent.
    assert small.is_cached(keys[1])
    assert small.exists(keys[1])
    small.get(keys[2])
    assert [small.is_cached(key) for key in keys[:3]] == [True, False, True]


def test_cached_objects_are_shared(store):
    key = store.put([1])
    store.get(key).append(2)
    assert store.get(key) == [1, 2]


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
        def put(self, data):
            return ("key",)

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
    assert lifetime.calls == [
        *(("add_key", n) for n in (1, 2)),
        *(("add_proxy", n) for n in (1, 2, 1)),
    ]


@pytest.mark.parametrize("method", ["put", "put_batch", "proxy", "proxy_batch"])
def test_nothing_is_stored_for_a_lifetime_that_has_ended(store, method):
    # compat.md, row 11
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


def test_defaults_answer_until_the_first_use(store):
    proxy = store.proxy("text", populate_target=True)
    del proxy.__proxy_wrapped__
    assert isinstance(proxy, str)
    assert hash(proxy) == hash("text")
    assert not is_resolved(proxy)
    bare = store.proxy("text", populate_target=False)
    for unknown in (bare, store.proxy_from_key(get_factory(bare).key)):
        assert type(unknown) is Proxy
        assert unknown.__proxy_default_class__ is unknown.__proxy_default_hash__ is None
        assert isinstance(unknown, str)
        assert is_resolved(unknown)


@pytest.mark.parametrize("populate_target", [None, True, False])
@pytest.mark.parametrize("by_default", [True, False])
def test_who_decides_whether_a_proxy_has_its_target(populate_target, by_default):
    expected = by_default if populate_target is None else populate_target
    with Store("decides", LocalConnector(), populate_target=by_default, register=True) as store:
        one = store.proxy([1], populate_target=populate_target)
        (other,) = store.proxy_batch([[1]], populate_target=populate_target)
        assert is_resolved(one) is is_resolved(other) is expected
        assert one == other == [1]


def test_the_factory_of_a_proxy_is_as_asked(store):
    for evict, deserializer in [(False, None), (True, pickle.loads)]:
        options = {"evict": evict, "deserializer": deserializer}
        made = [
            store.proxy([1], serializer=pickle.dumps, **options),
            *store.proxy_batch([[1]], serializer=pickle.dumps, **options),
            store.locked_proxy([1], serializer=pickle.dumps, **options).unlock(),
        ]
        made.append(store.proxy_from_key(get_factory(made[0]).key, **options))
        for proxy in made:
            factory = get_factory(proxy)
            assert type(factory) is StoreFactory
            assert factory.store_config == store.config()
            assert (factory.evict, factory.deserializer) == (evict, deserializer)


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


def test_a_batch_of_proxies_is_one_operation_of_the_connector():
    store = Store("batch", Plain())
    proxies = store.proxy_batch([None, "a", True, "b"], skip_nonproxiable=True)
    assert store.connector.names_of_calls() == ["put_batch"]
    assert proxies[0] is None
    assert proxies[2] is True
    assert [type(proxies[i]) for i in (1, 3)] == [Proxy, Proxy]
    with pytest.raises(NonProxiableTypeError):
        store.proxy_batch(["a", None])
    assert store.connector.names_of_calls() == ["put_batch"]


def test_a_batch_may_be_an_iterator(store):
    # compat.md, row 32: it silently gave []
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


PUT = {"store.put", "store.put.serialize", "store.put.connector"}
PUT_BATCH = {"store.put_batch", "store.put_batch.serialize", "store.put_batch.connector"}
MISS = {"store.get", "store.get.connector", "store.get.deserialize"}
SIZE, SIZES = {"store.put.object_size"}, {"store.put_batch.object_sizes"}
NEW = LocalKey("new")


# What is done, what it is filed under; times, counters and attributes that are then there.
METRICS = {
    "put": (lambda s, key: s.put("x"), PUT, {}, SIZE),
    "put_batch": (lambda s, key: s.put_batch(["x", "yz"]), PUT_BATCH, {}, SIZES),
    "get, hit": (
        lambda s, key: [s.get(key), s.get(key), key][-1],
        MISS,
        {"store.get.cache_hits": 1, "store.get.cache_misses": 1},
        {"store.get.object_size"},
    ),
    "get, miss": (
        lambda s, key: [s.get(key), key][-1],
        MISS,
        {"store.get.cache_misses": 1},
        {"store.get.object_size"},
    ),
    "get, absent": (
        lambda s, key: [s.get(NEW), NEW][-1],
        MISS - {"store.get.deserialize"},
        {"store.get.cache_misses": 1},
        set(),
    ),
    "exists": (
        lambda s, key: [s.exists(key), key][-1],
        {"store.exists", "store.exists.connector"},
        {},
        set(),
    ),
    "evict": (
        lambda s, key: [s.evict(key), key][-1],
        {"store.evict", "store.evict.connector"},
        {},
        set(),
    ),
    "_set": (
        lambda s, key: [s._set(NEW, "x"), NEW][-1],
        {"store.set", "store.set.serialize", "store.set.connector"},
        {},
        {"store.set.object_size"},
    ),
    "proxy": (lambda s, key: s.proxy("x"), {*PUT, "store.proxy"}, {}, SIZE),
    "proxy_batch": (
        lambda s, key: s.proxy_batch(["x", "yz"]),
        {*PUT_BATCH, "store.proxy_batch"},
        {},
        SIZES,
    ),
    "proxy_from_key": (lambda s, key: s.proxy_from_key(key), None, {}, set()),
    "future": (
        lambda s, key: s.future().proxy(),
        {"store.future", "store.future.connector"},
        {},
        set(),
    ),
    "factory": (
        lambda s, key: [p := s.proxy_from_key(key), get_factory(p).resolve()][0],
        {*MISS, "factory.resolve"},
        {"store.get.cache_misses": 1},
        {"store.get.object_size"},
    ),
    "factory, called": (
        lambda s, key: [p := s.proxy_from_key(key), str(p)][0],
        {*MISS, "factory.resolve", "factory.call"},
        {"store.get.cache_misses": 1},
        {"store.get.object_size"},
    ),
    "factory, evicting": (
        lambda s, key: [p := s.proxy_from_key(key, evict=True), str(p)][0],
        {
            *MISS,
            *("factory.resolve", "factory.call", "store.evict", "store.evict.connector"),
        },
        {"store.get.cache_misses": 1},
        {"store.get.object_size"},
    ),
}


@pytest.mark.parametrize(("operation", "times", "counters", "sizes"), METRICS.values(), ids=METRICS)
def test_metrics_of_each_operation(operation, times, counters, sizes):
    connector = LocalConnector()
    key = Store("before", connector).put("x")
    with Store("measured", connector, metrics=True, register=True) as store:
        found = store.metrics.get_metrics(operation(store, key))
    if times is None:
        assert found is None
        return
    hits = counters.get("store.get.cache_hits", 0)
    assert {name: stats.count for name, stats in found.times.items()} == {
        name: 1 + (hits if name == "store.get" else 0) for name in times
    }
    assert found.counters == counters
    stored = [len(data) for made, data in connector._store.items() if made != key]
    expected = sum(stored) or len(serialize("x"))
    assert found.attributes == dict.fromkeys(sizes, expected)


def test_exists_of_what_is_cached_does_not_ask_the_connector():
    store = Store("measured", LocalConnector(), metrics=True)
    key = store.put("x")
    store.get(key)
    store.exists(key)
    times = store.metrics.get_metrics(key).times
    assert times["store.exists"].count == 1
    assert "store.exists.connector" not in times


def test_nothing_is_measured_unless_asked():
    store = Store("unmeasured", LocalConnector())
    assert store.get(store.put("x")) == "x"
    assert store.metrics is None


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
    assert 0 < times["factory.resolve"].last_time_ms < 1000  # milliseconds: compat.md, row 39
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
        start = time.thread_time()  # of this thread alone: others may keep the processors busy
        store.proxy_batch(objs, skip_nonproxiable=True)
        return time.thread_time() - start

    short, long = (min(seconds(length) for _ in range(5)) for length in (2_000, 32_000))
    assert long < 64 * short, "256 times, if each constant were looked for among the others"


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
