"""What cannot be meant is refused at once, by name, before anything is stored or resolved."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future as PlainFuture
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector, LocalKey
from proxystore.connectors.multi import MultiConnector, Policy
from proxystore.factory import SimpleFactory
from proxystore.proxy import Proxy, is_resolved
from proxystore.store import Store, get_store
from proxystore.store.config import size_from
from proxystore.store.consume import acknowledge, consume, release
from proxystore.store.exceptions import ProxyStoreFactoryError
from proxystore.store.executor import ProxyType, StoreExecutor
from proxystore.store.lifetimes import ContextLifetime, LeaseLifetime, StaticLifetime
from proxystore.store.ref import into_owned
from proxystore.store.utils import aresolve, get_key, resolve_async, resolve_batch


class Unusable(Exception):
    """Raised where nothing should have been resolved."""


def unresolved():
    def fail():
        raise Unusable

    return Proxy(fail)


@pytest.fixture
def store():
    with Store("arguments", LocalConnector(), register=True) as made:
        yield made


# -- making things


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 5}, "name of a store must be a str, got int"),
        ({"name": None}, "must be a str, got NoneType"),
        ({"connector": None}, "connector must be an open connector.*got NoneType"),
        ({"connector": "redis://:secret@host"}, "got str$"),
        ({"connector": LocalConnector}, "got the class LocalConnector"),
        ({"cache_size": "16"}, "cache_size must be .* an int, got str"),
        ({"cache_size": 1.0}, "cache_size .* got float"),
        ({"cache_size": True}, "cache_size .* got bool"),
        ({"cache_size": None}, "cache_size .* got NoneType"),
        ({"verify": "no"}, "verify must be True, False or None, got str"),
        ({"verify": 1}, "verify .* got int"),
        ({"cache_bytes": True}, "cache_bytes must be .* got bool"),
    ],
    ids=str,
)
def test_a_store_takes_nothing_of_another_type(changes, message):
    arguments = {"name": "wrong", "connector": LocalConnector(), "register": True, **changes}
    with pytest.raises(TypeError, match=message):
        Store(**arguments)
    assert get_store("wrong") is None


def test_a_size_is_not_true():
    with pytest.raises(TypeError, match=r"limit must be .* got bool"):
        size_from(False, "limit")


def test_a_mock_is_connector_enough():
    assert Store("mock", mock.Mock()).name == "mock"
    assert Store("magic", mock.MagicMock(spec=LocalConnector)).name == "magic"


@pytest.mark.parametrize("executor", [None, object(), "pool", ThreadPoolExecutor], ids=repr)
def test_an_executor_submits(store, executor):
    with pytest.raises(TypeError, match=r"executor must have a submit\(\)"):
        StoreExecutor(executor, store)


def test_an_executor_needs_a_store_and_a_policy_that_can_be_called(store):
    with ThreadPoolExecutor(1) as pool:
        for wrong in ("list", 5, [list]):
            with pytest.raises(TypeError, match="should_proxy must be callable, such as ProxyType"):
                StoreExecutor(pool, store, wrong)
        with pytest.raises(TypeError, match="store must be a Store"):
            StoreExecutor(pool, store.name)


@pytest.mark.parametrize("kinds", [("list",), (int, "list"), (None,), ([int],)], ids=str)
def test_a_policy_takes_classes(kinds):
    with pytest.raises(TypeError, match="ProxyType takes classes, such as list, got "):
        ProxyType(*kinds)


def test_a_policy_takes_what_isinstance_takes():
    policy = ProxyType(int | str, list)
    assert [policy(item) for item in (1, "a", [], 1.0)] == [True, True, True, False]
    assert repr(policy) == "ProxyType(int | str, list)"


@pytest.mark.parametrize("wrong", [None, "arguments", LocalConnector(), Store], ids=repr)
def test_a_lifetime_is_of_a_store(store, wrong):
    with pytest.raises(TypeError, match="store must be a Store"):
        ContextLifetime(wrong)
    with pytest.raises(TypeError, match="store must be a Store"):
        LeaseLifetime(wrong, 3600)
    if wrong is not None:  # else a ValueError, as ever
        with pytest.raises(TypeError, match="store must be a Store"):
            StaticLifetime().add_key(LocalKey("a"), store=wrong)


PUTS = {
    "put": lambda store, lifetime: store.put("a", lifetime=lifetime),
    "put_batch": lambda store, lifetime: store.put_batch(["a"], lifetime=lifetime),
    "proxy": lambda store, lifetime: store.proxy("a", lifetime=lifetime),
    "proxy_batch": lambda store, lifetime: store.proxy_batch(["a"], lifetime=lifetime),
    "locked_proxy": lambda store, lifetime: store.locked_proxy("a", lifetime=lifetime),
    "proxy_from_key": lambda store, lifetime: store.proxy_from_key(
        LocalKey("a"), lifetime=lifetime
    ),
}


@pytest.mark.parametrize("put", PUTS.values(), ids=PUTS)
@pytest.mark.parametrize("wrong", ["x", 5, PlainFuture(), StaticLifetime], ids=["x", 5, "f", "cls"])
def test_what_is_no_lifetime_is_seen_before_anything_is_stored(store, put, wrong):
    with pytest.raises(TypeError, match="lifetime must be a Lifetime, such as ContextLifetime"):
        put(store, wrong)
    assert list(store.connector.keys()) == []


@pytest.mark.parametrize("done", [False, True])
def test_a_callback_of_a_future_can_be_called(store, done):
    future = store.future()
    if done:
        future.set_result("x")
    for wrong in (None, "fn"):
        with pytest.raises(TypeError, match="fn must be callable"):
            future.add_done_callback(wrong)


# -- keys

USES = {
    "get": lambda store, key: store.get(key),
    "get without cache": lambda store, key: store.get(key, cache=False),
    "get_async": lambda store, key: asyncio.run(store.get_async(key)),
    "exists": lambda store, key: store.exists(key),
    "evict": lambda store, key: store.evict(key),
    "info": lambda store, key: store.info(key),
    "get_batch": lambda store, key: store.get_batch([key]),
    "proxy_from_key": lambda store, key: store.proxy_from_key(key),
    "add_key": lambda store, key: ContextLifetime(store).add_key(LocalKey("fine"), key),
    "static": lambda store, key: StaticLifetime().add_key(key, store=store),
}


@pytest.mark.parametrize("metrics", [False, True], ids=["silent", "observed"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_is_no_key_is_refused(use, metrics):
    store = Store("keys", LocalConnector(), metrics=metrics)
    for wrong in ("a-key", None, 5, ["a"]):
        with pytest.raises(TypeError, match=r"a key is a tuple|pass a list of keys") as caught:
            use(store, wrong)
        assert repr(wrong) in str(caught.value)
    with pytest.raises(TypeError, match=r"get_key\(proxy\) is the key of a proxy"):
        use(store, store.proxy([1]))
    hidden = unresolved()
    with pytest.raises(TypeError, match=r"get_key\(proxy\)"):
        use(store, hidden)
    assert not is_resolved(hidden)


def test_a_lifetime_attaches_all_keys_or_none(store):
    key = store.put("a")
    with ContextLifetime(store) as lifetime, pytest.raises(TypeError):
        lifetime.add_key(key, "a-key")
    assert store.exists(key)


def test_the_list_of_a_batch_is_not_forgotten(tmp_path):
    files = FileConnector(tmp_path / "objects")
    for connector in (LocalConnector(), files, MultiConnector({"a": (files, Policy())})):
        store = Store("lists", connector)
        key = store.put("a")
        with pytest.raises(TypeError, match="pass a list of keys") as caught:
            store.get_batch(key)
        assert repr(key)[:100] in str(caught.value)
        with pytest.raises(TypeError, match=r"get_key\(proxy\)"):
            store.get_batch(store.proxy("text"))
        for wrong in ("a-key", None, 5):
            with pytest.raises(TypeError, match="pass a list of keys"):
                store.get_batch(wrong)
        assert store.get_batch((key, key)) == store.get_batch(iter([key, key])) == ["a", "a"]
        assert store.get_batch(store.proxy([key])) == ["a"], "a proxy of a list is one"


# -- proxies


@pytest.mark.parametrize(
    "use",
    [
        get_key,
        into_owned,
        resolve_async,
        acknowledge,
        release,
        lambda it: consume(it).__enter__(),
        lambda it: ContextLifetime(get_store("arguments")).add_proxy(it),
        lambda it: StaticLifetime().add_proxy(it),
    ],
)
def test_what_no_store_has_made_a_proxy_of_is_named(store, use):
    for wrong in ([1], 5, None):
        with pytest.raises(
            ProxyStoreFactoryError, match=f"got no proxy but a {type(wrong).__name__}"
        ):
            use(wrong)
    with pytest.raises(ProxyStoreFactoryError, match="this one's is a SimpleFactory"):
        use(Proxy(SimpleFactory(1)))


def test_only_proxies_are_resolved(store):
    with pytest.raises(TypeError, match=r"aresolve\(\) needs a proxy, got a int"):
        asyncio.run(aresolve(5))
    proxy = store.proxy("a", populate_target=False)
    with pytest.raises(TypeError, match=r"resolve_batch\(\) needs a proxy, got a list"):
        resolve_batch([proxy, [1]])
    assert not is_resolved(proxy)
