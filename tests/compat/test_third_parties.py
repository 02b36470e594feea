"""Contract, sections 24 to 26: what programs that already use stores and proxies do with them.

What needs a running framework is in tests/parsl and tests/dask.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cloudpickle
import dill
import pydantic
import pytest

import proxystore
import proxystore.store.ref
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.proxy import Proxy, ProxyResolveError, _proxy_trampoline, extract, is_resolved
from proxystore.store import (
    Store,
    get_or_create_store,
    get_store,
    register_store,
    unregister_store,
)
from proxystore.store.config import ConnectorConfig, StoreConfig
from proxystore.store.exceptions import NonProxiableTypeError, ProxyResolveMissingKeyError
from proxystore.store.metrics import StoreMetrics
from proxystore.store.ref import borrow, into_owned
from proxystore.store.scopes import submit
from proxystore.store.utils import get_key, resolve_async
from proxystore.utils.data import readable_to_bytes
from proxystore.utils.timer import Timer


@pytest.fixture
def store(tmp_path, request):
    name = f"third-{request.node.name}"
    with Store(name, FileConnector(tmp_path / "objects"), metrics=True, register=True) as made:
        yield made


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def count(store: Store) -> int:
    return len(os.listdir(store.connector.store_dir))


# -- Parsl's ProxyStoreSerializer: a pickler that stores what a policy matches


class Pickler(dill.Pickler):
    """As Parsl's, which is in tests/parsl."""

    def __init__(self, file, store, policy):
        super().__init__(file)
        self.store = store
        self.policy = policy

    def reducer_override(self, obj):
        return self.store.proxy(obj).__reduce__() if self.policy(obj) else NotImplemented


def through(obj: Any, store: Store, policy: Any) -> Any:
    file = io.BytesIO()
    Pickler(file, store, policy).dump(obj)
    return dill.loads(file.getvalue())


class Thing:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    __hash__ = None


@pytest.mark.parametrize(
    "obj",
    [[1, 2], frozenset([1, 2]), b"bytes", {"a": 1}, {1, 2}, bytearray(b"x"), 1j, Thing(1)],
    ids=lambda obj: type(obj).__name__,
)
def test_a_policy_that_matches_a_type_proxies_one_object(store, obj):
    # compat.md, row 54: dict and set were proxied again and again
    found = through((obj, "other", 5), store, lambda o: type(o) is type(obj))
    assert type(found[0]) is Proxy
    assert isinstance(found[0], Proxy)
    assert found[0] == obj
    assert found[1:] == ("other", 5)
    assert count(store) == 1


def _encode(obj):
    return pickle.dumps(obj)


def _decode(data):
    return pickle.loads(data)


def _factories(store: Store) -> list[Any]:
    key = store.put([1])
    future = store.future(evict=True)
    future.set_result([1])
    return [
        store.proxy_from_key(key),
        store.proxy_from_key(key, evict=True),
        store.proxy_from_key(key, deserializer=_decode),
        future.proxy(),
    ]


@pytest.mark.parametrize("kind", [list, frozenset, set, dict, bytes])
@pytest.mark.parametrize("functions", [{}, {"serializer": _encode, "deserializer": _decode}])
def test_no_factory_has_in_its_pickle_what_a_policy_matches(tmp_path, kind, functions):
    # compat.md, row 54
    name = f"no-{kind.__name__}-{len(functions)}"
    with Store(name, FileConnector(tmp_path / "s"), register=True, **functions) as store:
        for proxy in _factories(store):
            stored = count(store)
            again = through(proxy, store, lambda o: type(o) is kind)
            assert count(store) == stored, "nothing in it was proxied"
            before, after = (p.__proxy_factory__ for p in (proxy, again))
            assert after.__getstate__() == before.__getstate__()
            assert type(after) is type(before)


@pytest.mark.parametrize("obj", ["text", (1, 2)], ids=["str", "tuple"])
def test_a_policy_that_matches_all_texts_or_tuples_is_refused(store, obj):
    # compat.md, row 54: of these, every pickle of a proxy has some
    with pytest.raises(NonProxiableTypeError, match="again and again"):
        through([obj], store, lambda o: isinstance(o, type(obj)))
    assert count(store) == 1
    large = obj * 1000
    (found,) = through([large], store, lambda o: isinstance(o, type(obj)) and len(o) >= 2000)
    assert type(found) is Proxy
    assert found == large
    assert count(store) == 2


def test_texts_like_those_in_a_pickle_of_a_proxy_can_be_stored(store):
    assert store.proxy("".join(["proxystore", ".proxy"])) == "proxystore.proxy"
    assert store.proxy((1, "x")) == (1, "x")


@pytest.mark.parametrize("obj", [Thing([1] * 1000), [1] * 1000], ids=["its own class", "list"])
def test_parsls_own_serializer(store, obj):
    serialize = pytest.importorskip("parsl.serialize.proxystore")
    matches = lambda o: type(o) is type(obj)  # noqa: E731
    data = serialize.ProxyStoreSerializer(should_proxy=matches, store=store).serialize({"a": obj})
    assert len(data) < 2000
    found = serialize.ProxyStoreSerializer().deserialize(data)["a"]
    assert isinstance(found, Proxy)
    assert not is_resolved(found)
    assert found == obj
    assert count(store) == 1


# -- Benchmarks that keep Parsl from looking into a proxy


@pytest.mark.parametrize("library", [pickle, cloudpickle, dill], ids=lambda m: m.__name__)
def test_a_wrapped_none_stays_behind(store, library):
    proxy = store.proxy(["x" * 100_000], populate_target=False)
    before = library.dumps(proxy)
    proxy.__proxy_wrapped__ = None
    assert is_resolved(proxy)
    assert isinstance(proxy, type(None))
    assert not isinstance(proxy, list)
    assert library.dumps(proxy) == before
    again = library.loads(library.dumps(proxy))
    assert not is_resolved(again)
    assert again == ["x" * 100_000]


# -- TaPS


class ProxyTransformerConfig(pydantic.BaseModel):
    connector: ConnectorConfig
    cache_size: int = 16
    async_resolve: bool = False
    metrics: bool = False
    populate_target: bool = True

    def get_transformer(self, **extra):
        store = Store(
            "proxy-transformer",
            connector=self.connector.get_connector(),
            cache_size=self.cache_size,
            metrics=self.metrics,
            populate_target=self.populate_target,
            register=True,
            **extra,
        )
        return ProxyTransformer(store, self.async_resolve)


class ProxyTransformer:
    def __init__(self, store, async_resolve):
        self.store = store
        self.async_resolve = async_resolve

    def __getstate__(self):
        return {"config": self.store.config(), "async_resolve": self.async_resolve}

    def __setstate__(self, state):
        store = get_store(state["config"].name)
        self.__init__(store or Store.from_config(state["config"]), state["async_resolve"])

    def close(self):
        self.store.close()
        times = self.store.metrics.aggregate_times()
        metrics = self.store.metrics._metrics.values()
        return (
            json.dumps({name: dataclasses.asdict(stats) for name, stats in times.items()}),
            [json.dumps(dataclasses.asdict(each)) for each in metrics],
        )

    def is_identifier(self, obj):
        return isinstance(obj, Proxy)

    def transform(self, obj):
        return self.store.proxy(obj)

    def resolve(self, identifier):
        if self.async_resolve:
            resolve_async(identifier)
            return identifier
        return extract(identifier)


def _taps_task(transformer, identifier):
    assert transformer.is_identifier(identifier)
    assert not is_resolved(identifier)
    obj = transformer.resolve(identifier)
    result = transformer.transform([sum(obj)])
    metrics = transformer.store.metrics.get_metrics(get_key(identifier))
    return result, metrics.times["factory.resolve"].count


@pytest.mark.parametrize("async_resolve", [False, True])
def test_taps_proxy_transformer(tmp_path, async_resolve):
    options = {"store_dir": str(tmp_path / "taps"), "clear": True}
    config = ProxyTransformerConfig.model_validate(
        {
            "connector": {"kind": "file", "options": options},
            "metrics": True,
            "async_resolve": async_resolve,
        }
    )
    assert ProxyTransformerConfig.model_validate_json(config.model_dump_json()) == config
    transformer = config.get_transformer(verify=True)
    identifier = transformer.transform([1, 2])
    # A pool of its own: the workers of another would know another store by that name.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result, resolved = pool.submit(_taps_task, transformer, identifier).result()
    assert resolved == 1
    assert transformer.resolve(result) == [3]
    times, metrics = transformer.close()
    assert json.loads(times)["store.proxy"]["count"] == 1
    assert all(set(json.loads(each)) == {"attributes", "counters", "times"} for each in metrics)
    assert get_store("proxy-transformer") is None


def _must_not_be_called():
    raise RuntimeError("called")


def _identity(obj):
    return obj


def _length(obj):
    return len(obj)


def test_taps_engines_do_not_use_what_they_pass_on(pool):
    proxy = Proxy(_must_not_be_called, cache_defaults=True, target=b"")
    again = pool.submit(_identity, proxy).result()
    assert type(again) is Proxy
    assert not is_resolved(again)
    assert isinstance(again, bytes)
    with pytest.raises((ProxyResolveError, RuntimeError), match="called"):
        len(again)
    with pytest.raises((ProxyResolveError, RuntimeError), match="called"):
        pool.submit(_length, proxy).result()
    assert len(proxy) == 0, "this one had its target all along"


def _use_and_count(proxy, times):
    for _ in range(times):
        len(proxy)
    metrics = get_store(proxy).metrics.get_metrics(get_key(proxy))
    return metrics.times["factory.resolve"].count


def test_taps_counts_resolves_by_key(store, pool):
    proxy = store.proxy([1, 2], populate_target=True)
    other = store.proxy([3])
    assert pool.submit(_use_and_count, proxy, 3).result() == 1
    for each in (proxy, other):
        assert "factory.resolve" not in store.metrics.get_metrics(get_key(each)).times
    again = pickle.loads(pickle.dumps(proxy))
    assert _use_and_count(again, 2) == 1
    assert "factory.resolve" not in store.metrics.get_metrics(get_key(other)).times


def test_timer():
    with Timer() as timer:
        pass
    assert timer.elapsed_ms >= 0


# -- Colmena


class ColmenaStore(Store):
    """Adds a method."""

    def count_of(self, proxy):
        return self.metrics.get_metrics(proxy).times["store.proxy"].count


def test_colmena(tmp_path):
    assert all(isinstance(int(v), int) for v in proxystore.__version__.split("."))
    store = ColmenaStore("colmena", FileConnector(tmp_path / "s"), metrics=True)
    register_store(store)
    register_store(store, exist_ok=True)
    assert get_store("colmena") is store
    proxy = store.proxy([1], populate_target=False)
    assert store.count_of(proxy) == 1
    key = get_key(proxy)
    assert isinstance(str(key), str)
    assert str(key) == str(pickle.loads(pickle.dumps(key)))
    assert not is_resolved(proxy)
    resolve_async(proxy)
    assert extract(proxy) == [1]
    found = get_store(proxy).metrics.get_metrics(proxy).as_dict()
    assert found["times"]["factory.resolve"]["count"] == 1
    json.dumps(found)
    again = ColmenaStore.from_config(pickle.loads(pickle.dumps(store.config())))
    assert type(again) is ColmenaStore
    assert again.get(key) == [1]
    unregister_store(store)
    store.close()


class ColmenaResult(pydantic.BaseModel):
    inputs: str
    proxystore_config: StoreConfig | None = None


def _encode_text(text, method):
    assert method == "json"
    return text.encode()


def _decode_text(data, method):
    return json.loads(bytes(data).decode()) if method == "json" else None


def _colmena_task(message):
    result = ColmenaResult.model_validate_json(message)
    store = get_store(result.proxystore_config.name)
    store = store or Store.from_config(result.proxystore_config)
    register_store(store, exist_ok=True)
    proxy = pickle.loads(bytes.fromhex(result.inputs))
    resolve_async(proxy)
    return proxy == [1, 2], type(extract(proxy)) is list, store.exists(get_key(proxy))


def test_colmena_serializes_by_itself(store, pool):
    # It has the text already, having looked how long that is.
    options = {
        "serializer": functools.partial(_encode_text, method="json"),
        "deserializer": functools.partial(_decode_text, method="json"),
    }
    proxy = store.proxy("[1, 2]", evict=True, **options)
    stats = store.metrics.get_metrics(proxy).as_dict()
    assert json.loads(json.dumps({str(get_key(proxy)): stats}))
    config = store.config()
    message = ColmenaResult(inputs=pickle.dumps(proxy).hex(), proxystore_config=config)
    found = pool.submit(_colmena_task, message.model_dump_json()).result()
    assert found == (True, True, False)
    assert count(store) == 0


# -- Academy


class AcademyTransport:
    """Whatever is sent goes through a store that the other side makes from its configuration."""

    def __init__(self, store):
        self.store = store

    def __getstate__(self):
        return {"store_config": self.store.config()}

    def __setstate__(self, state):
        self.store = get_or_create_store(state.pop("store_config"), register=True)
        register_store(self.store, exist_ok=True)

    def send(self, item):
        return self.store.proxy(item) if type(item) is not Proxy else item

    def receive(self, item):
        if type(item) is Proxy:
            resolve_async(item)
        return item


def _academy_agent(transport, item):
    item = transport.receive(item)
    return transport.send([2 * each for each in item])


def test_academy_between_processes(store, pool):
    transport = AcademyTransport(store)
    result = pool.submit(_academy_agent, transport, transport.send([1, 2])).result()
    assert type(transport.send(result)) is Proxy
    assert transport.send(result) is result
    assert transport.receive(result) == [2, 4]
    assert get_store(result) is store
    assert pickle.loads(pickle.dumps(transport)).store is store


def test_academy(tmp_path):
    config = StoreConfig(
        name="academy",
        connector=ConnectorConfig(kind="file", options={"store_dir": str(tmp_path / "s")}),
    )
    store = get_or_create_store(config, register=True)
    assert get_or_create_store(config, register=True) is get_store("academy") is store
    register_store(store, exist_ok=True)
    items = [store.proxy([1]), [1], store.proxy("text", populate_target=False)]
    assert [type(item) is not Proxy for item in items] == [False, True, False]
    assert not is_resolved(items[2])
    assert readable_to_bytes("1 KB") == 1000
    unregister_store(store)
    store.close(clear=True)


# -- Benchmark suites


def _double(value):
    return [2 * each for each in value]


def test_benchmark_suites_on_stores(store):
    assert type(store.connector).__name__ == "FileConnector"
    for populate in (True, False):
        proxy = store.proxy([1], evict=True, populate_target=populate)
        assert is_resolved(proxy) is populate
        assert proxy == [1]
        assert store.exists(get_key(proxy)) is populate
        store.evict(get_key(proxy))
    future = store.future()
    proxy = future.proxy()
    future.set_result([1, 2])
    assert proxy == [1, 2]
    store.evict(get_key(proxy))
    assert count(store) == 0


def test_benchmark_suites_on_ownership(store, pool):
    owner = into_owned(store.proxy([1, 2], populate_target=False))
    borrowed = borrow(owner)
    future = submit(pool.submit, args=(_double, borrowed))
    assert future.result() == [2, 4]
    del borrowed
    del owner
    assert count(store) == 0


def test_connectors_by_position(tmp_path):
    FileConnector(str(tmp_path / "s")).close()
    redis = pytest.importorskip("proxystore.connectors.redis")
    connector = redis.RedisConnector("localhost", 6379)
    assert (connector.hostname, connector.port) == ("localhost", 6379)
    connector.close()


# -- Groundhog

CHILD = """
import base64, pickle, sys
from proxystore.connectors.file import FileConnector
from proxystore.store import Store, get_store
directory, encoded = sys.argv[1:]
store = Store("groundhog", FileConnector(directory), register=True)
assert get_store("groundhog") is store
args, kwargs = pickle.loads(base64.b64decode(encoded))
result = store.proxy([sum(args[0]), kwargs["none"]], evict=True, skip_nonproxiable=True)
print(base64.b64encode(pickle.dumps(result, pickle.HIGHEST_PROTOCOL)).decode())
"""


def test_groundhog(tmp_path):
    directory = tmp_path / "objects"
    store = Store("groundhog", FileConnector(str(directory)), register=True)
    assert get_store("groundhog") is get_store("groundhog") is store
    args, none = ([1, 2],), store.proxy(None, evict=True, skip_nonproxiable=True)
    assert none is None
    payload = [store.proxy(arg, evict=True, skip_nonproxiable=True) for arg in args], {"none": none}
    encoded = base64.b64encode(pickle.dumps(payload, pickle.HIGHEST_PROTOCOL)).decode()
    child = [sys.executable, "-c", CHILD, str(directory), encoded]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    assert directory.exists(), "the child has left without deleting anything"
    result = pickle.loads(base64.b64decode(done.stdout))
    assert result == [3, None]
    assert os.listdir(directory) == [], "all was evicted when it was used"
    key = store.put([1])
    shutil.rmtree(directory)
    store.evict(key)
    assert store.get(key) is None
    assert not store.exists(key)
    store.close()
    assert get_store("groundhog") is None


# -- Tool servers


@pytest.mark.redis
def test_tool_servers_over_redis(redis_server):
    from proxystore.connectors.redis import RedisConnector, RedisKey

    with Store("tools", RedisConnector("localhost", redis_server.port), register=True) as store:
        key = get_key(store.proxy({"answer": [42]}))
        assert isinstance(key, RedisKey)
        text = key.redis_key
        again = store.proxy_from_key(RedisKey(text))
        assert again["answer"] == [42]
        assert RedisKey(redis_key=text) == key
        store.evict(key)


# -- Private names that others use (section 25)


def test_private_names_that_others_use(store):
    assert proxystore.store._stores[store.name] is store
    assert isinstance(proxystore.store._stores, dict)
    assert proxystore.store.ref._proxy_trampoline.__name__ == "_proxy_trampoline"
    proxy = _proxy_trampoline(list, None, None)
    assert type(proxy) is Proxy
    assert proxy == []
    store.put(1)
    assert isinstance(store.metrics, StoreMetrics)
    (metrics,) = store.metrics._metrics.values()
    assert dataclasses.is_dataclass(metrics)
    unregister_store(store)
    assert store.name not in proxystore.store._stores


# -- Invariants (section 26) that no other test has


def _isinstance_of_proxy(proxy):
    return isinstance(proxy, Proxy), type(proxy) is Proxy, is_resolved(proxy)


def test_looking_whether_something_is_a_proxy_does_not_resolve_it(store, pool):
    made = [store.proxy([1]), *store.proxy_batch([[1], "x"], populate_target=False)]
    made.append(store.proxy_from_key(get_key(made[0])))
    for proxy in made:
        assert _isinstance_of_proxy(proxy)[:2] == (True, True)
        assert pool.submit(_isinstance_of_proxy, proxy).result() == (True, True, False)


def _looks_and_then_uses(proxy):
    looked = isinstance(proxy, str), is_resolved(proxy)
    return (*looked, proxy + "!", is_resolved(proxy), len(proxystore.store._stores))


def test_class_and_hash_are_known_until_first_use(store, pool):
    text = "x" * 10
    proxy = store.proxy(text)
    assert extract(proxy) is text
    again = pickle.loads(pickle.dumps(proxy))
    assert (isinstance(again, str), hash(again) == hash(text)) == (True, True)
    assert not is_resolved(again)
    assert pool.submit(_looks_and_then_uses, proxy).result()[:4] == (True, False, text + "!", True)


def test_a_missing_object_raises_what_says_so(store):
    key = store.put([1])
    proxy = store.proxy_from_key(key)
    future = store.future(polling_timeout=0)
    store.evict(key)
    with pytest.raises(ProxyResolveError) as caught:
        len(proxy)
    assert isinstance(caught.value.cause, ProxyResolveMissingKeyError)
    with pytest.raises(ProxyResolveMissingKeyError):
        proxy.__proxy_factory__()
    with pytest.raises(ProxyResolveMissingKeyError):
        future.result()
    factory = store.proxy_from_key(key).__proxy_factory__
    factory.resolve_async()
    with pytest.raises(ProxyResolveMissingKeyError):
        factory()


@pytest.mark.parametrize("value", [None, True, False])
def test_constants_are_stored_and_never_proxied(store, value):
    assert store.get(store.put(value), default="missing") is value
    for method in (store.proxy, store.locked_proxy, store.owned_proxy):
        with pytest.raises(NonProxiableTypeError):
            method(value, skip_nonproxiable=False)
        assert method(value, skip_nonproxiable=True) is value
    with pytest.raises(NonProxiableTypeError):
        store.proxy_batch([[1], value])
    assert store.proxy_batch([value], skip_nonproxiable=True) == [value]


def test_every_way_to_evict_is_silent_about_what_is_gone(store):
    from proxystore.store.lifetimes import ContextLifetime

    key = store.put([1])
    owner = store.owned_proxy([2])
    with ContextLifetime(store) as lifetime:
        proxies = [store.proxy([3], lifetime=lifetime), store.proxy_from_key(key)]
        for each in [key, get_key(proxies[0]), get_key(owner)]:
            store.connector.evict(each)
            store.evict(each)
            store.evict(each)
    del owner
    taken = store.proxy([4], evict=True, populate_target=False)
    assert taken == [4]
    store.evict(get_key(taken))
    assert count(store) == 0


def test_no_feature_needs_what_is_optional(tmp_path):
    # A process in which none of these can be imported.
    script = """
import sys
for name in "numpy pandas polars redis zmq dask distributed parsl".split():
    sys.modules[name] = None
from proxystore.connectors.file import FileConnector
from proxystore.connectors.multi import MultiConnector, Policy
from proxystore.connectors.local import LocalConnector
from proxystore.store import Store
multi = MultiConnector({"a": (LocalConnector(), Policy())})
for connector in (FileConnector(sys.argv[1]), LocalConnector(), multi):
    with Store("plain", connector, register=True, metrics=True) as store:
        proxy = store.proxy({"a": [1, b"x", "text", None]}, populate_target=False)
        assert proxy["a"] == [1, b"x", "text", None]
        assert store.owned_proxy([1]) == [1]
try:
    import proxystore.connectors.redis
except ImportError as error:
    assert "redis" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "s")], check=True)


def test_local_data_do_not_travel_unless_told(pool):
    with Store("stays", LocalConnector(), register=True) as store:
        error = pool.submit(_length, store.proxy([1, 2], populate_target=False)).exception()
    assert isinstance(error, ProxyResolveError)
    assert isinstance(error.cause, ProxyResolveMissingKeyError)
