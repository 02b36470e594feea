"""Contract, sections 7.15, 7.16, 7.17 (their rows), 9.3, 9.4 and 10: futures and polling."""

from __future__ import annotations

import inspect
import logging
import pickle
import subprocess
import sys
import threading
import time
from uuid import uuid4

import cloudpickle
import dill
import pytest

import proxystore.store.base
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.proxy import Proxy, ProxyResolveError, get_factory, is_resolved
from proxystore.serialize import deserialize, serialize
from proxystore.store import Store
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.store.factory import PollingStoreFactory, StoreFactory
from proxystore.store.future import Future
from proxystore.store.utils import get_key, resolve_async


class Plain:
    """Has the methods of `Connector` and no others."""

    def __init__(self):
        self._within = LocalConnector()

    def __getattr__(self, name):
        return getattr(self._within, name)

    close, config, evict, exists, get, get_batch, put, put_batch = (
        (lambda self, *args, _name=name: getattr(self._within, _name)(*args))
        for name in "close config evict exists get get_batch put put_batch".split()
    )

    @classmethod
    def from_config(cls, config):
        return cls()


class Options(LocalConnector):
    """Takes an option with an object, and keeps it."""

    def set(self, key, obj, *, option=None):
        super().set(key, obj)
        self.option = option


@pytest.fixture(params=["local", "file", pytest.param("redis", marks=pytest.mark.redis)])
def store(request, tmp_path):
    if request.param == "local":
        connector = LocalConnector()
    elif request.param == "file":
        connector = FileConnector(tmp_path / "dir")
    else:
        connector = redis_connector(request.getfixturevalue("redis_server"))
    with Store("futures", connector, metrics=True, register=True) as made:
        yield made


def redis_connector(server):
    from proxystore.connectors.redis import RedisConnector  # needs an optional package

    return RedisConnector(url=f"unix://{server.socket_path}", clear=True, prefix=f"{uuid4()}:")


def double(data):
    return deserialize(data) * 2


# -- 7.15


def test_the_parameters_of_future():
    parameters = inspect.signature(Store.future).parameters
    assert {name: p.default for name, p in parameters.items() if name != "self"} == {
        "evict": False,
        "serializer": None,
        "deserializer": None,
        "polling_interval": 1,
        "polling_backoff_factor": 1,
        "polling_interval_limit": None,
        "polling_timeout": None,
    }
    assert {p.kind for name, p in parameters.items() if name != "self"} == {
        inspect.Parameter.KEYWORD_ONLY
    }


def test_a_connector_has_to_be_deferrable():
    with pytest.raises(NotImplementedError, match="DeferrableConnector"):
        Store("n", Plain()).future()


def test_a_future_is_a_new_key_and_a_polling_factory(store):
    first, second = (
        store.future(evict=True, deserializer=double, serializer=serialize) for _ in range(2)
    )
    assert type(first) is Future
    assert first._factory.key != second._factory.key
    assert type(first._factory.key) is type(store.put(1))
    assert not store.exists(first._factory.key)
    assert type(first._factory) is PollingStoreFactory
    assert first._factory.store_config == store.config()
    assert (first._factory.evict, first._factory.deserializer) == (True, double)
    assert first._serializer is serialize


def test_a_future_is_a_line_in_the_log(store, caplog):
    with caplog.at_level(logging.DEBUG, "proxystore.store.base"):
        future = store.future()
    (line,) = [r.getMessage() for r in caplog.records if "FUTURE" in r.getMessage()]
    assert repr(future._factory.key) in line
    assert "futures" in line
    assert line.endswith(" ms")


# -- 7.16


def test_set_needs_a_deferrable_connector():
    store = Store("n", Plain())
    with pytest.raises(NotImplementedError, match="DeferrableConnector"):
        store._set(store.put(1), 2)


def test_set_needs_bytes(store):
    key = store.connector.new_key()
    with pytest.raises(TypeError, match="bytes"):
        store._set(key, "x", serializer=lambda obj: obj)
    assert not store.exists(key)


def test_set_replaces_what_was_there_and_what_was_cached(store):
    key = store.put("old")
    assert store.get(key) == "old"
    assert store.is_cached(key)
    store._set(key, "new")
    assert not store.is_cached(key)
    assert store.get(key) == "new"


def test_set_passes_options_on():
    store = Store("n", Options())
    store._set(store.connector.new_key(), 1, option="given")
    assert store.connector.option == "given"


# -- 7.17


def test_metrics_of_a_future(store):
    future = store.future()
    times = store.metrics.get_metrics(get_key(future.proxy())).times
    assert {name: stats.count for name, stats in times.items()} == {
        "store.future.connector": 1,
        "store.future": 1,
    }


# -- 9.3


def test_the_parameters_of_a_polling_factory():
    parameters = inspect.signature(PollingStoreFactory).parameters
    assert {name: p.default for name, p in list(parameters.items())[2:]} == {
        "deserializer": None,
        "evict": False,
        "polling_interval": 1,
        "polling_backoff_factor": 1,
        "polling_interval_limit": None,
        "polling_timeout": None,
    }
    assert list(parameters)[:2] == ["key", "store_config"]
    assert issubclass(PollingStoreFactory, StoreFactory)
    assert proxystore.store.base.PollingStoreFactory is PollingStoreFactory


def polling(store, key=None, **options):
    options = {"polling_interval": 0.001, "polling_timeout": 60, **options}
    return PollingStoreFactory(key or store.connector.new_key(), store.config(), **options)


def test_what_is_there_is_returned(store):
    assert polling(store, store.put([1])).resolve() == [1]
    assert polling(store, store.put([1]))() == [1]
    assert polling(store, store.put(None)).resolve() is None
    assert polling(store, store.put([1]), deserializer=double).resolve() == [1, 1]


def test_what_is_there_is_evicted_if_that_was_asked_for(store):
    key = store.put([1])
    assert polling(store, key).resolve() == [1]
    assert store.exists(key)
    assert polling(store, key, evict=True).resolve() == [1]
    assert not store.exists(key)


def test_what_comes_is_returned(store):
    factory = polling(store)
    setter = threading.Thread(target=store._set, args=(factory.key, [1]))
    setter.start()
    assert factory.resolve() == [1]
    setter.join()


def test_what_does_not_come_is_missing(store):
    factory = polling(store, polling_timeout=0.01)
    for use in (factory, factory.resolve):
        with pytest.raises(ProxyResolveMissingKeyError) as caught:
            use()
        error = caught.value
        assert (error.key, error.store_type, error.store_name) == (factory.key, Store, "futures")
        for fact in (repr(factory.key), "Store", "futures"):
            assert fact in str(error)
    with pytest.raises(ProxyResolveError) as wrapped:
        str(Proxy(factory))
    assert isinstance(wrapped.value.cause, ProxyResolveMissingKeyError)


class Unaided(LocalConnector):
    """Cannot wait, and counts how often it is asked."""

    wait = None

    def __init__(self):
        super().__init__()
        self.reads = 0

    def get(self, key):
        self.reads += 1
        return super().get(key)


class Clock:
    """Time passes only while it is slept."""

    def __init__(self):
        self.now = 0.0
        self.slept = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("proxystore.store.factory.monotonic", made.monotonic)
    monkeypatch.setattr("proxystore.store.factory.sleep", made.sleep)
    return made


@pytest.fixture
def unaided():
    with Store("unaided", Unaided(), register=True) as made:
        yield made


def test_intervals_are_slept_before_it_fails(unaided, clock):
    factory = polling(
        unaided, polling_backoff_factor=2, polling_interval_limit=0.004, polling_timeout=0.011
    )
    with pytest.raises(ProxyResolveMissingKeyError):
        factory.resolve()
    assert clock.slept == pytest.approx([0.001, 0.002, 0.004, 0.004])
    assert unaided.connector.reads == 5


def test_it_does_not_fail_early(store):
    factory = polling(
        store, polling_backoff_factor=2, polling_interval_limit=0.004, polling_timeout=0.011
    )
    start = time.monotonic()
    with pytest.raises(ProxyResolveMissingKeyError):
        factory.resolve()
    assert time.monotonic() - start >= 0.011


def test_a_time_out_of_zero_is_one_look_and_no_sleep(unaided, clock):
    with pytest.raises(ProxyResolveMissingKeyError):
        polling(unaided, polling_timeout=0).resolve()
    assert unaided.connector.reads == 1
    assert polling(unaided, unaided.put([1]), polling_timeout=0).resolve() == [1]
    assert unaided.connector.reads == 2
    assert clock.slept == []


def test_metrics_of_polling(clock):
    with Store("polling", Unaided(), metrics=True, register=True) as store:
        future = store.future(polling_timeout=2)
        key = future._factory.key
        with pytest.raises(ProxyResolveMissingKeyError):
            future.result()
        times = store.metrics.get_metrics(key).times
        assert times["store.get"].count == store.connector.reads == 3
        assert "factory.polling_resolve" not in times
        future.set_result(1)
        assert future.proxy() == 1
        times = store.metrics.get_metrics(key).times
        assert times["store.get"].count == store.connector.reads == 4
        assert times["factory.polling_resolve"].count == 1
        assert times["factory.call"].count == 1
        assert times["store.set"].count == 1
        assert 0 < times["factory.polling_resolve"].last_time_ms < 10_000, "milliseconds"


def test_without_a_time_out_it_is_looked_for_until_it_comes(unaided, clock, monkeypatch):
    factory = polling(unaided, polling_interval=100, polling_timeout=None)

    def sleep(seconds):
        clock.sleep(seconds)
        if unaided.connector.reads == 1000:
            unaided._set(factory.key, "at last")

    monkeypatch.setattr("proxystore.store.factory.sleep", sleep)
    assert factory.resolve() == "at last"
    assert clock.slept == [100] * 1000


@pytest.mark.parametrize("library", [pickle, cloudpickle, dill], ids=lambda m: m.__name__)
@pytest.mark.parametrize("options", [{}, {"evict": True}, {"deserializer": double}], ids=str)
def test_a_polling_factory_travels_with_its_parameters(store, library, options):
    factory = polling(
        store,
        polling_interval=0.002,
        polling_backoff_factor=3,
        polling_interval_limit=4,
        polling_timeout=5,
        **options,
    )
    data = library.dumps(factory)
    again = library.loads(data)
    assert type(again) is PollingStoreFactory
    assert again.__getstate__() == factory.__getstate__()
    assert {name: value for name, value in again.__getstate__().items() if "polling" in name} == {
        "_polling_interval": 0.002,
        "_polling_backoff_factor": 3,
        "_polling_interval_limit": 4,
        "_polling_timeout": 5,
    }
    assert type(again.key) is type(factory.key)
    assert again.__getstate__()["_obj_future"] is None
    assert len(data) < 725
    assert b"proxystore.store.factory" in data
    store._set(factory.key, [1])
    assert again.resolve() == [1] * (2 if factory.deserializer else 1)


def test_a_polling_factory_survives_serialize(store):
    factory = polling(store, store.put([1]))
    again = deserialize(serialize(factory))
    assert again.__getstate__() == factory.__getstate__()
    assert again.resolve() == [1]


# -- 9.4


def test_a_proxy_is_unresolved_until_it_is_used_and_then_waits(store):
    future = store.future(polling_interval=0.001)
    proxy = future.proxy()
    resolve_async(proxy)
    assert get_factory(proxy)._obj_future is not None
    future.set_result([1])
    get_factory(proxy)._obj_future.result(timeout=60)
    assert not is_resolved(proxy)
    assert proxy == [1]
    assert get_factory(proxy)._obj_future is None


def test_using_a_proxy_blocks_until_the_background_is_done(store):
    future = store.future()
    proxy = future.proxy()
    resolve_async(proxy)
    in_background = get_factory(proxy)._obj_future
    found = []
    user = threading.Thread(target=lambda: found.append([*proxy, 2]))
    user.start()
    assert not in_background.done()
    assert found == []
    future.set_result([1])
    user.join()
    assert found == [[1, 2]]
    assert in_background.done()


def test_a_failure_in_the_background_is_raised_on_use(store):
    proxy = store.future(polling_timeout=0).proxy()
    resolve_async(proxy)
    with pytest.raises(ProxyResolveError) as caught:
        len(proxy)
    assert isinstance(caught.value.cause, ProxyResolveMissingKeyError)


# -- 10


def test_a_future_is_done_when_there_is_an_object(store):
    future = store.future()
    assert future.done() is False
    future.set_result(None)
    assert future.done() is True
    assert future.result() is None
    assert future.done() is True


def test_a_future_is_made_of_a_factory_and_a_serializer(store):
    factory = polling(store)
    future = Future(factory)
    assert (future._factory, future._serializer) == (factory, None)
    assert future._factory.key is factory.key
    future.set_result([1])
    assert future.result() == [1]
    assert Future(factory=factory, serializer=str.encode)._serializer == str.encode
    with pytest.raises(TypeError):
        Future(factory, str.encode)


def test_another_process_sets_the_result(tmp_path):
    script = "import pickle, sys; pickle.load(sys.stdin.buffer).set_result([1, 2])"
    with Store("elsewhere", FileConnector(tmp_path / "dir"), register=True) as store:
        future = store.future(polling_interval=0.01, polling_timeout=60)
        proxy = future.proxy()
        subprocess.run([sys.executable, "-c", script], input=pickle.dumps(future), check=True)
        assert future.done()
        assert future.result() == proxy == [1, 2]


def test_a_result_in_time(store):
    future = store.future(polling_interval=0.001, polling_timeout=60)
    setter = threading.Thread(target=future.set_result, args=([1],))
    setter.start()
    assert future.result() == [1]
    setter.join()


def test_no_result_in_time_is_raised_bare(store):
    with pytest.raises(ProxyResolveMissingKeyError):
        store.future(polling_interval=0.001, polling_timeout=0.002).result()


def test_each_proxy_is_new_and_over_the_same_factory(store):
    future = store.future()
    first, second = future.proxy(), future.proxy()
    assert type(first) is Proxy
    assert first is not second
    assert get_factory(first) is get_factory(second) is future._factory
    assert not is_resolved(first)
    future.set_result([1])
    assert first == second == [1]


def test_a_proxy_waits_in_its_thread_for_what_another_one_sets(store):
    future = store.future(polling_interval=0.001)
    proxy = future.proxy()
    found = []
    user = threading.Thread(target=lambda: found.append(sum(proxy)))
    user.start()
    future.set_result([1, 2])
    user.join()
    assert found == [3]


def test_a_proxy_taken_before_and_used_after_in_another_thread(store):
    future = store.future()
    proxy = future.proxy()
    future.set_result([1, 2])
    found = []
    user = threading.Thread(target=lambda: found.append(sum(proxy)))
    user.start()
    user.join()
    assert found == [3]


@pytest.mark.parametrize("library", [pickle, cloudpickle, dill], ids=lambda m: m.__name__)
def test_a_copy_completes_the_original(store, library):
    future = store.future()
    copy = library.loads(library.dumps(future))
    assert type(copy) is Future
    copy.set_result([1])
    assert future.done()
    assert future.result() == copy.result() == [1]


def test_the_serializer_sets_and_the_deserializer_gets(store):
    future = store.future(serializer=str.encode, deserializer=lambda data: bytes(data).decode()[1:])
    future.set_result("xyz")
    assert future.result() == "yz"
    assert future.proxy() == "yz"
    assert bytes(store.connector.get(future._factory.key)) == b"xyz"


def test_a_serializer_travels(store):
    future = pickle.loads(pickle.dumps(store.future(serializer=str.encode)))
    future.set_result("xyz")
    assert bytes(store.connector.get(future._factory.key)) == b"xyz"


def test_what_is_evicted_when_it_is_got_is_not_done_any_more(store):
    future = store.future(evict=True)
    future.set_result([1])
    assert future.done()
    assert future.result() == [1]
    assert not future.done()
