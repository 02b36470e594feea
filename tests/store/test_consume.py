"""Objects for one consumer: who gets them, and what is left when consumers fail or die."""

from __future__ import annotations

import copy
import functools
import gc
import math
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import cloudpickle
import pytest
from waiting import wait_until

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.connectors.multi import MultiConnector, Policy
from proxystore.proxy import Proxy, ProxyResolveError, extract, get_factory, is_resolved
from proxystore.store import Store
from proxystore.store import consume as consume_module
from proxystore.store.consume import RetainingStoreFactory, acknowledge, consume, release
from proxystore.store.exceptions import ProxyResolveMissingKeyError, ProxyStoreFactoryError
from proxystore.store.executor import StoreExecutor
from proxystore.store.lifetimes import ContextLifetime
from proxystore.store.ref import into_owned
from proxystore.store.utils import get_key, resolve_async

AN_HOUR = 3600
KINDS = ["local", "file", "multi", pytest.param("redis", marks=pytest.mark.redis)]


def make(kind, request):
    """Return an empty connector, and what tells whether anything is left in it."""
    if kind == "local":
        connector = LocalConnector()
        return connector, lambda: [*connector._store]
    if kind == "redis":
        from proxystore.connectors.redis import RedisConnector

        path = request.getfixturevalue("redis_server").socket_path
        prefix = f"consume-{uuid.uuid4().hex}:"
        connector = RedisConnector(url=f"unix://{path}", prefix=prefix, clear=True)
        return connector, lambda: [name for page in connector._scan() for name in page]
    path = request.getfixturevalue("tmp_path") / "objects"
    files = FileConnector(path)
    if kind == "file":
        return files, lambda: os.listdir(path)
    members = {"a": (LocalConnector(), Policy(max_size_bytes=1)), "b": (files, Policy())}
    return MultiConnector(members), lambda: os.listdir(path)


@pytest.fixture(params=KINDS)
def any_store(request):
    connector, left = make(request.param, request)
    with Store(f"consume-{uuid.uuid4()}", connector, register=True) as store:
        store.left = left
        yield store


@pytest.fixture(params=["file", pytest.param("redis", marks=pytest.mark.redis)])
def shared_store(request):
    """A store that other processes see."""
    connector, left = make(request.param, request)
    with Store(f"consume-{uuid.uuid4()}", connector, register=True) as store:
        store.left = left
        yield store


@pytest.fixture
def store():
    with Store(f"consume-{uuid.uuid4()}", LocalConnector(), register=True) as made:
        yield made


def other(proxy):
    """Return another consumer of the object."""
    return pickle.loads(pickle.dumps(proxy))


def is_gone(proxy):
    with pytest.raises(ProxyResolveError) as caught:
        extract(other(proxy))
    return isinstance(caught.value.__cause__, ProxyResolveMissingKeyError)


# -- one consumer ---------------------------------------------------------------------------


def test_used_once_and_nothing_is_left(any_store):
    proxy = any_store.proxy([1, 2, 3], retain=AN_HOUR)
    assert not is_resolved(proxy), "it would be used without being taken"
    assert isinstance(proxy, list)
    assert not is_resolved(proxy), "the class is known all the same"
    with consume(proxy) as obj:
        assert obj == [1, 2, 3]
    assert any_store.left() == []
    assert proxy == [1, 2, 3], "what was got stays"
    assert is_gone(proxy)
    assert any_store.left() == [], "and to ask for it leaves nothing"
    with pytest.raises(ProxyResolveError), consume(proxy):
        pass
    assert acknowledge(proxy) is False
    release(proxy)


def test_a_second_attempt_after_a_failure_sees_what_was_stored(any_store):
    proxy = any_store.proxy([1], retain=AN_HOUR)
    for attempt in (proxy, proxy, other(proxy)):
        with pytest.raises(ZeroDivisionError), consume(attempt) as obj:  # noqa: PT012 - the block
            obj.append(2)
            assert obj == [1, 2]
            raise ZeroDivisionError
        assert not is_resolved(attempt)
    with consume(proxy) as obj:
        assert obj == [1]
    assert any_store.left() == []


def test_without_a_block(any_store):
    proxy = any_store.proxy("x", retain=AN_HOUR)
    assert len(proxy) == 1
    release(proxy)
    second = other(proxy)
    assert len(second) == 1
    assert acknowledge(second) is True
    assert acknowledge(second) is False
    assert any_store.left() == []


def test_whoever_comes_second_waits_until_it_is_released(any_store, at_once):
    first = any_store.proxy("x", retain=AN_HOUR)
    second = other(first)
    taken = threading.Event()

    def fail():
        with pytest.raises(KeyError), consume(first):  # noqa: PT012 - the block
            taken.set()
            time.sleep(0.02)
            assert not is_resolved(second)
            raise KeyError

    def use():
        taken.wait(30)
        with consume(second) as obj:
            return obj

    assert at_once(fail, use) == [None, "x"]
    assert any_store.left() == []


def test_whoever_waits_learns_that_it_was_acknowledged(any_store, at_once):
    first = any_store.proxy("x", retain=AN_HOUR)
    taken = threading.Event()

    def use():
        with consume(first):
            taken.set()

    def come_second():
        taken.wait(30)
        return is_gone(first)

    assert at_once(use, come_second) == [None, True]


def test_exactly_one_of_eight_threads_gets_it(any_store, at_once):
    for _ in range(3):
        proxy = any_store.proxy("x", retain=AN_HOUR)
        got = []

        def use(copied):
            try:
                with consume(copied) as obj:
                    got.append(obj)  # noqa: B023 - of this round
            except ProxyResolveError as error:
                return type(error.__cause__)
            return None

        ends = at_once(*[functools.partial(use, other(proxy)) for _ in range(8)])
        assert got == ["x"]
        assert sorted(map(str, ends)) == sorted(
            map(str, [None, *[ProxyResolveMissingKeyError] * 7])
        )
        assert any_store.left() == []


def test_the_same_proxy_in_two_threads_is_one_consumer(store, at_once):
    proxy = store.proxy("x", retain=AN_HOUR)
    assert at_once(*[lambda: extract(proxy)] * 4) == ["x"] * 4
    assert acknowledge(proxy)


def test_what_was_taken_over_is_not_evicted(any_store, caplog):
    first = any_store.proxy("x", retain=0.05)
    second = any_store.proxy_from_key(get_key(first), retain=AN_HOUR)
    with consume(first):
        assert len(second) == 1  # after a while
    (warning,) = (record.getMessage() for record in caplog.records)
    assert re.search(r" \d+\.\d{3} s after a block took its object for 0.05 s: consumer ", warning)
    assert f"in process {os.getpid()} on " in warning
    assert "has it now" in warning
    assert acknowledge(first) is False
    release(first)
    assert any_store.connector.exists(get_key(first))
    assert acknowledge(second) is True
    assert any_store.left() == []


def test_a_block_within_another_is_not_said_to_have_been_slow(any_store, caplog):
    proxy = any_store.proxy("x", retain=AN_HOUR)
    with consume(proxy), consume(proxy):
        pass
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "it was acknowledged or evicted meanwhile, and is gone" in warning
    assert "released" not in warning


def test_a_proxy_that_another_thread_has_released_is_not_said_to_have_been_slow(any_store, caplog):
    proxy = any_store.proxy("x", retain=AN_HOUR)
    second = other(proxy)
    with consume(proxy):
        thread = threading.Thread(target=release, args=(proxy,))
        thread.start()
        thread.join(30)
        assert extract(second) == "x"
    (warning,) = (record.getMessage() for record in caplog.records)
    assert re.search("it was released meanwhile and consumer .* has it now", warning)
    assert acknowledge(second)


def test_a_consumer_that_was_collected_is_passed_over_at_once(any_store):
    first = any_store.proxy("x", retain=AN_HOUR)
    key, second = get_key(first), other(first)
    assert len(first) == 1
    name = get_factory(first)._name()
    del first
    gc.collect()
    with consume(second):
        pass
    assert not any_store.connector.exists(key)
    assert name not in consume_module._taken


def test_an_exception_is_not_hidden_by_a_release_that_fails(store, monkeypatch, caplog):
    proxy = store.proxy("x", retain=AN_HOUR)

    def fail(self, key, claimant):
        raise OSError("down")

    context = monkeypatch.context()
    with context as patch, pytest.raises(KeyError, match="mine"), consume(proxy):  # noqa: PT012
        patch.setattr(LocalConnector, "release", fail)
        raise KeyError("mine")
    assert "cannot release" in caplog.text


def test_it_is_not_cached(store):
    proxy = store.proxy("x", retain=AN_HOUR)
    assert len(proxy) == 1
    assert not store.is_cached(get_key(proxy))
    assert acknowledge(proxy)


def test_what_cannot_be_deserialized_is_given_back(store):
    def fail(data):
        raise ValueError

    broken = store.proxy("x", retain=AN_HOUR, deserializer=fail)
    with pytest.raises(ProxyResolveError):
        extract(broken)
    whole = store.proxy_from_key(get_key(broken), retain=AN_HOUR)
    with consume(whole) as obj:
        assert obj == "x"


# -- in the background ----------------------------------------------------------------------


def test_a_prefetch_takes_it(any_store):
    proxy = any_store.proxy("x", retain=AN_HOUR)
    resolve_async(proxy)
    with consume(proxy) as obj:
        assert obj == "x"
    assert any_store.left() == []


def test_a_prefetch_that_is_released_while_it_waits_gives_up(store):
    first, second = (lambda p: (p, other(p)))(store.proxy("x", retain=AN_HOUR))
    assert len(first) == 1
    resolve_async(second)
    release(second)
    assert not get_factory(second).is_under_way()
    release(first)
    with consume(other(first)) as obj:
        assert obj == "x"


# -- consumers that say nothing -------------------------------------------------------------


def test_it_is_evicted_once_nobody_can_need_it(any_store):
    proxy = any_store.proxy("x", retain=0.05)
    assert len(proxy) == 1
    time.sleep(0.3)  # several looks
    assert any_store.connector.exists(get_key(proxy)), "its factory lives"
    name = get_factory(proxy)._name()
    del proxy
    gc.collect()
    wait_until(lambda: any_store.left() == [])
    wait_until(lambda: name not in consume_module._taken)


def test_it_is_not_evicted_while_another_has_it(any_store):
    first = any_store.proxy("x", retain=0.05)
    second = any_store.proxy_from_key(get_key(first), retain=AN_HOUR)
    assert len(first) == 1
    name = get_factory(first)._name()
    assert len(second) == 1
    del first
    gc.collect()
    wait_until(lambda: name not in consume_module._taken)
    assert any_store.connector.exists(get_key(second))
    assert acknowledge(second)


def test_all_silent_consumers_share_one_thread(store):
    proxies = [store.proxy("x", retain=AN_HOUR) for _ in range(5)]
    assert all(map(len, proxies))
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("proxystore-leases") == 1
    for proxy in proxies:
        assert acknowledge(proxy)


# -- processes ------------------------------------------------------------------------------


def use_at_once(barrier, proxy, results):
    barrier.wait(60)
    try:
        with consume(proxy) as obj:
            results.put(obj)
    except ProxyResolveError as error:
        results.put(type(error.__cause__).__name__)


def test_exactly_one_of_four_processes_gets_it(shared_store):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    proxy = shared_store.proxy("x", retain=AN_HOUR)
    processes = [
        context.Process(target=use_at_once, args=(barrier, other(proxy), results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    got = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert got == ["ProxyResolveMissingKeyError"] * 3 + ["x"]
    assert shared_store.left() == []


PROGRAM = """
import os, pickle, signal, sys
from proxystore.store.consume import acknowledge, consume, release
proxy = pickle.loads(sys.stdin.buffer.read())
assert len(proxy) == 1
"""


def run(proxy, code):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + code], input=pickle.dumps(proxy), timeout=60, check=False
    ).returncode


def test_a_claimant_that_was_killed_is_passed_over_at_once(shared_store):
    proxy = shared_store.proxy("x", retain=AN_HOUR)
    assert run(proxy, "os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    with consume(proxy) as obj:
        assert obj == "x"
    assert shared_store.left() == []


@pytest.mark.parametrize("end", ["", "release(proxy)", "sys.exit(1)", "1 / 0"])
def test_a_process_that_ends_gives_back_what_it_has(shared_store, end):
    proxy = shared_store.proxy("x", retain=AN_HOUR)
    key = get_key(proxy)
    run(proxy, end)
    assert shared_store.connector.exists(key), "released, never evicted"
    assert shared_store.connector.claim(key, "me", 1) == "me", "and not only passed over"
    shared_store.connector.release(key, "me")
    assert run(proxy, "assert acknowledge(proxy)") == 0, "another process can try again"
    assert shared_store.left() == []


def test_a_forked_child_has_nothing_of_its_parents(shared_store):
    proxy = shared_store.proxy("x", retain=AN_HOUR)
    assert len(proxy) == 1
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def use():
        results.put((len(consume_module._taken), acknowledge(proxy)))
        mine = shared_store.proxy("y", retain=AN_HOUR)
        with consume(mine) as obj:
            results.put(obj)

    child = context.Process(target=use)
    child.start()
    assert results.get(timeout=60) == (0, False)
    assert results.get(timeout=60) == "y"
    child.join(60)
    assert acknowledge(proxy) is True, "the child has neither evicted nor released it"
    assert shared_store.left() == []


# -- making and sending them ----------------------------------------------------------------


def test_all_ways_to_make_one(store):
    batch = store.proxy_batch(["a", None, "b"], retain=AN_HOUR, skip_nonproxiable=True)
    locked = store.locked_proxy("c", retain=AN_HOUR).unlock()
    known = store.proxy_from_key(store.put("d"), retain=AN_HOUR)
    assert batch[1] is None
    for proxy, value in [(batch[0], "a"), (batch[2], "b"), (locked, "c"), (known, "d")]:
        with consume(proxy) as obj:
            assert obj == value
    assert not store.connector._store


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"retain": 0}, ValueError, "more than 0 seconds"),
        ({"retain": -1}, ValueError, "more than 0 seconds"),
        ({"retain": math.nan}, ValueError, "got nan"),
        ({"retain": math.inf}, ValueError, "got inf"),
        ({"retain": 10**400}, ValueError, "got inf"),
        ({"retain": "600"}, TypeError, "got str"),
        ({"retain": True}, TypeError, "got bool"),
        ({"retain": timedelta(1)}, TypeError, "got timedelta"),
        ({"retain": 1, "evict": True}, ValueError, "The evict and retain parameters exclude"),
        ({"retain": 1, "lifetime": "yes"}, ValueError, "The lifetime and retain parameters"),
    ],
)
def test_what_is_refused_is_not_stored(store, options, error, match):
    with ContextLifetime(store) as lifetime:
        if "lifetime" in options:
            options = {**options, "lifetime": lifetime}
        for make in (
            lambda: store.proxy("x", **options),
            lambda: store.proxy_batch(["x"], **options),
            lambda: store.locked_proxy("x", **options),
            lambda: store.proxy_from_key(store.connector.new_key(), **options),
        ):
            with pytest.raises(error, match=match):
                make()
    with pytest.raises(TypeError, match="retain"):
        store.owned_proxy("x", retain=1)
    assert not store.connector._store


class NoClaims:
    """A connector that cannot claim."""

    def __init__(self):
        self.puts = 0

    def put(self, obj):
        self.puts += 1

    def config(self):
        return {}

    def close(self):
        pass


def test_a_connector_that_cannot_claim_is_named_and_stores_nothing(tmp_path):
    plain = NoClaims()
    mixed = MultiConnector(
        {"a": (plain, Policy(priority=1)), "b": (FileConnector(tmp_path), Policy())}
    )
    for connector in (plain, mixed):
        store = Store("no-claims", connector)
        with pytest.raises(NotImplementedError, match="NoClaims"):
            store.proxy("x", retain=1)
    assert plain.puts == 0
    assert os.listdir(tmp_path) == []


def test_only_proxies_that_were_made_so_can_be_consumed(store):
    plain = store.proxy("x")
    for function in (acknowledge, release, lambda proxy: consume(proxy).__enter__()):
        with pytest.raises(ValueError, match="retain="):
            function(plain)
        with pytest.raises(ProxyStoreFactoryError):
            function(Proxy(lambda: "x"))


def test_an_owner_takes_it_over(store):
    proxy = store.proxy([1], retain=AN_HOUR)
    assert len(proxy) == 1
    name = get_factory(proxy)._name()
    owner = into_owned(proxy)
    with pytest.raises(ValueError, match="has an owner"):
        acknowledge(proxy)
    assert name not in consume_module._taken
    again = pickle.loads(pickle.dumps(owner))
    assert again == [1], "got like any other object"
    assert store.exists(get_key(again))
    del again
    assert not store.connector._store


@pytest.mark.parametrize("module", [pickle, cloudpickle])
@pytest.mark.parametrize("deserializer", [None, pickle.loads])
def test_what_travels(store, module, deserializer):
    proxy = store.proxy_from_key(
        store.put("x", serializer=pickle.dumps if deserializer else None),
        retain=1.5,
        deserializer=deserializer,
    )
    assert len(proxy) == 1
    again = module.loads(module.dumps(proxy))
    factory = get_factory(again)
    assert type(factory) is RetainingStoreFactory
    assert factory.retain == 1.5
    assert factory.deserializer is deserializer
    assert get_key(again) == get_key(proxy)
    assert vars(factory).keys() <= {"key", "store_config", "evict", "deserializer", "retain"} | {
        "_obj_future"
    }, "who it is in this process stays here"
    assert factory._name() != get_factory(proxy)._name()
    assert copy.copy(factory)._name() != factory._name()
    plain = module.dumps(store.proxy_from_key(get_key(proxy), deserializer=deserializer))
    assert len(module.dumps(proxy)) < len(plain) + 60
    acknowledge(proxy)


# -- executors ------------------------------------------------------------------------------


def length(x):
    return len(x)


def fail(x):
    raise ValueError(len(x))


def same(x):
    assert len(x)
    return x


@pytest.fixture(params=["threads", "processes"])
def executor(request, tmp_path):
    with FileConnector(tmp_path / "objects") as connector:
        store = Store(f"consume-{uuid.uuid4()}", connector, register=True)
        if request.param == "threads":
            pool = ThreadPoolExecutor(1)
        else:
            from concurrent.futures import ProcessPoolExecutor

            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
        with StoreExecutor(pool, store) as made:
            yield made


def test_a_call_consumes_what_it_is_given(executor):
    store = executor.store
    proxy = store.proxy("x", retain=AN_HOUR)
    for function in (fail, fail):
        with pytest.raises(ValueError, match="1"):
            executor.submit(function, proxy).result(60)
    assert executor.submit(length, x=proxy).result(60) == 1
    assert os.listdir(store.connector.store_dir) == []


def test_a_call_passes_on_what_it_returns(executor):
    proxy = executor.store.proxy("x", retain=AN_HOUR)
    with consume(executor.submit(same, proxy).result(60)) as obj:
        assert obj == "x"
    assert os.listdir(executor.store.connector.store_dir) == []
