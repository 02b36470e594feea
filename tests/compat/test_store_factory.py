"""Contract, sections 9.1, 9.2, 9.4 and 11: factories of stored objects."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import subprocess
import sys
import threading

import cloudpickle
import dill
import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.factory import SimpleFactory
from proxystore.proxy import Proxy, ProxyResolveError, is_resolved
from proxystore.store import Store, get_store, store_registration, unregister_store
from proxystore.store.exceptions import ProxyResolveMissingKeyError, ProxyStoreFactoryError
from proxystore.store.factory import StoreFactory, store_factory
from proxystore.store.utils import get_key, resolve_async


class Gated(LocalConnector):
    """Reads only when the gate is open."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.reads = 0

    def get(self, key):
        assert self.gate.wait(30)
        self.reads += 1
        return super().get(key)


class GatedFiles(FileConnector):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gate = threading.Event()
        self.gate.set()

    def get(self, key):
        assert self.gate.wait(30)
        return super().get(key)


@pytest.fixture
def store():
    with Store("factories", Gated(), cache_size=0, metrics=True, register=True) as made:
        yield made


@pytest.fixture
def factory(store):
    return StoreFactory(store.put([1, 2]), store.config())


# -- 9.1


def test_attributes_are_plain(store, factory):
    assert factory.store_config == store.config()
    assert (factory.evict, factory.deserializer) == (False, None)
    factory.evict = True
    assert factory() == [1, 2]
    assert not store.exists(factory.key)


@pytest.mark.parametrize("option", [True, bytes])
def test_options_are_keywords(store, option):
    with pytest.raises(TypeError):
        StoreFactory(("key",), store.config(), option)
    made = StoreFactory(key=("key",), store_config=store.config(), evict=True, deserializer=bytes)
    assert (made.key, made.evict, made.deserializer) == (("key",), True, bytes)


def test_each_attribute_can_be_replaced(store, factory):
    other = Store("other", LocalConnector())
    factory.key = other.put("x", serializer=str.encode)
    factory.store_config = other.config()
    factory.deserializer = bytes.decode
    with store_registration(other):
        assert factory.get_store() is other
        assert factory() == "x"


def test_a_direct_resolve_leaves_the_background_one_alone(store, factory):
    factory.resolve_async()
    factory._obj_future.result(60)
    assert factory.resolve() == [1, 2]
    assert factory._obj_future is not None
    assert factory() == [1, 2]
    assert factory._obj_future is None
    assert store.connector.reads == 2
    assert factory() == [1, 2]
    assert store.connector.reads == 3


def test_resolve_and_call(store, factory):
    assert factory.get_store() is store
    assert factory.resolve() == factory() == [1, 2]
    times = store.metrics.get_metrics(factory.key).times
    assert (times["factory.resolve"].count, times["factory.call"].count) == (2, 1)


def test_a_stored_none_is_an_object(store):
    assert StoreFactory(store.put(None), store.config()).resolve() is None


def test_a_missing_key_is_raised_bare_and_wrapped_by_a_proxy(store, factory):
    store.evict(factory.key)
    for use in (factory, factory.resolve):
        with pytest.raises(ProxyResolveMissingKeyError) as caught:
            use()
        error = caught.value
        assert (error.key, error.store_type, error.store_name) == (factory.key, Store, "factories")
    with pytest.raises(ProxyResolveError) as wrapped:
        str(Proxy(factory))
    assert isinstance(wrapped.value.cause, ProxyResolveMissingKeyError)


def test_a_deserializer_is_used(store):
    key = store.put("x", serializer=str.encode)
    read = StoreFactory(key, store.config(), deserializer=lambda data: bytes(data).decode() * 2)
    assert read() == "xx"


def test_the_first_resolve_makes_and_registers_a_store_that_all_use(tmp_path):
    creator = Store("unregistered", FileConnector(tmp_path / "objects"), cache_size=3)
    first, second = (StoreFactory(creator.put(i), creator.config()) for i in range(2))
    assert get_store("unregistered") is None
    assert first() == 0
    made = get_store("unregistered")
    assert made is not creator
    assert made.cache.maxsize == 3
    assert second.get_store() is made
    unregister_store(made)
    creator.close()


# -- 9.2


@pytest.mark.parametrize("library", [pickle, cloudpickle, dill], ids=lambda m: m.__name__)
@pytest.mark.parametrize("evict", [False, True])
@pytest.mark.parametrize("deserializer", [None, bytes])
def test_factories_travel(store, library, evict, deserializer):
    factory = StoreFactory(store.put([1]), store.config(), evict=evict, deserializer=deserializer)
    data = library.dumps(factory)
    again = library.loads(data)
    assert type(again) is StoreFactory
    assert again.__getstate__() == factory.__getstate__()
    assert type(again.key) is type(factory.key)
    assert len(data) < 725
    assert b"proxystore.store.factory" in data
    assert b"StoreFactory" in data


def test_state_is_the_attributes_without_a_background_resolve(store, factory):
    store.connector.gate.clear()
    factory.resolve_async()
    assert factory.__getstate__() == {
        "key": factory.key,
        "store_config": store.config(),
        "evict": False,
        "deserializer": None,
        "_obj_future": None,
    }
    again = pickle.loads(pickle.dumps(factory))
    store.connector.gate.set()
    assert again() == factory() == [1, 2]


def test_a_policy_that_matches_bytes_lists_and_sets_finds_none_in_a_factory(store, factory):
    # Parsl's serializer asks about everything inside a pickled proxy, and recurses (24).
    seen = []

    class Pickler(pickle._Pickler):
        def reducer_override(self, obj):
            seen.append(type(obj))
            return NotImplemented

    with open("/dev/null", "wb") as nowhere:
        Pickler(nowhere).dump(Proxy(factory))
    assert not {list, bytes, set, frozenset} & set(seen)
    _, args = Proxy(factory).__reduce__()
    assert not any(isinstance(arg, (list, bytes, set, frozenset)) for arg in args)


# -- 9.4


def test_a_background_resolve_is_used_once_and_awaited(store, caplog):
    proxy = store.proxy([1], populate_target=False)
    store.connector.gate.clear()
    with caplog.at_level(logging.DEBUG, "proxystore.store.factory"):
        resolve_async(proxy)
    assert "background" in caplog.text
    assert not is_resolved(proxy)
    opener = threading.Timer(0.05, store.connector.gate.set)
    opener.start()
    assert proxy == [1]
    opener.join()
    assert store.connector.reads == 1


def test_a_background_failure_is_raised_on_use(store):
    proxy = store.proxy_from_key(store.connector.new_key())
    resolve_async(proxy)
    with pytest.raises(ProxyResolveError) as caught:
        len(proxy)
    assert isinstance(caught.value.cause, ProxyResolveMissingKeyError)


def test_a_background_failure_is_raised_once_and_forgotten(store):
    proxy = store.proxy_from_key(store.connector.new_key())
    resolve_async(proxy)
    with pytest.raises(ProxyResolveError):
        len(proxy)
    store._set(get_key(proxy), [1])
    assert proxy == [1]


def test_a_background_failure_that_nobody_has_seen_is_tried_again(store):
    proxy = store.proxy_from_key(store.connector.new_key())
    resolve_async(proxy)
    assert isinstance(
        proxy.__proxy_factory__._obj_future.exception(60), ProxyResolveMissingKeyError
    )
    store._set(get_key(proxy), [1])
    resolve_async(proxy)
    assert proxy == [1]


@pytest.mark.parametrize("finished", [False, True])
def test_a_second_background_resolve_changes_nothing(store, at_once, finished):
    proxy = store.proxy([1], evict=True, populate_target=False)
    store.connector.gate.clear()
    at_once(*[lambda: resolve_async(proxy)] * 8)
    first = proxy.__proxy_factory__._obj_future
    store.connector.gate.set()
    if finished:
        assert first.result(60) == [1]
        assert not is_resolved(proxy)
    resolve_async(proxy)
    assert proxy.__proxy_factory__._obj_future is first
    assert proxy == [1]
    assert store.connector.reads == 1
    assert not store.exists(get_key(proxy))


@pytest.mark.parametrize("again", [False, True])
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent(tmp_path, again):
    directory = tmp_path / "objects"
    with Store("forked", GatedFiles(directory), cache_size=0, register=True) as store:
        proxy = store.proxy([1, 2], populate_target=False)
        store.connector.gate.clear()
        resolve_async(proxy)
        ours, theirs = multiprocessing.Pipe()

        def use():
            store.connector.gate = threading.Event()
            store.connector.gate.set()
            if again:
                resolve_async(proxy)
            theirs.send(sum(proxy))

        child = multiprocessing.get_context("fork").Process(target=use)
        child.start()
        assert ours.poll(60)
        assert ours.recv() == 3
        child.join()
        store.connector.gate.set()
        assert proxy == [1, 2]


def test_a_background_resolve_does_not_keep_the_interpreter(tmp_path):
    script = """if True:
        import sys, threading
        from proxystore.connectors.file import FileConnector
        from proxystore.store import Store
        from proxystore.store.utils import resolve_async

        class Hanging(FileConnector):
            def get(self, key):
                reading.set()
                threading.Event().wait()

        reading = threading.Event()
        store = Store("exit", Hanging(sys.argv[1]), register=True)
        resolve_async(store.proxy([1], populate_target=False))
        assert reading.wait(60)
        print("over")
    """
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "objects")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "over\n", "")


# -- 11


def test_the_key_of_a_proxy(store):
    key = store.put([1])
    proxy = store.proxy_from_key(key)
    assert get_key(proxy) is key
    assert not is_resolved(proxy)
    assert store_factory(proxy).key is key
    other = Proxy(SimpleFactory([1]))
    assert store_factory(other) is None
    with pytest.raises(ProxyStoreFactoryError):
        get_key(other)
    assert not is_resolved(other)


def test_resolving_in_the_background_needs_a_store(store):
    for other in (Proxy(SimpleFactory([1])), Proxy(SimpleFactory([1]), target=[1])):
        with pytest.raises(
            ProxyStoreFactoryError,
            match="The proxy must contain a factory with type StoreFactory",
        ):
            resolve_async(other)


def test_resolving_what_is_resolved_does_nothing(store):
    proxy = store.proxy([1], populate_target=True)
    resolve_async(proxy)
    assert proxy.__proxy_factory__._obj_future is None
