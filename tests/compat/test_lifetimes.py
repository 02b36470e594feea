"""Lifetimes: ended by a block, after a time, or with the program."""

from __future__ import annotations

import atexit
import gc
import logging
import subprocess
import sys
import uuid
import weakref
from datetime import datetime, timedelta, timezone

import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.factory import SimpleFactory
from proxystore.proxy import Proxy, is_resolved
from proxystore.store import Store, get_store, unregister_store
from proxystore.store.exceptions import ProxyStoreFactoryError
from proxystore.store.lifetimes import (
    ContextLifetime,
    LeaseLifetime,
    Lifetime,
    StaticLifetime,
    register_lifetime_atexit,
)


@pytest.fixture
def store():
    with Store(f"lifetimes-{uuid.uuid4().hex[:8]}", LocalConnector(), register=True) as store:
        yield store


@pytest.fixture
def static(monkeypatch):
    """The static lifetime of a program of its own."""
    monkeypatch.setattr(StaticLifetime, "_instance", None)
    lifetime = StaticLifetime()
    yield lifetime
    lifetime.close()


class Closes(LocalConnector):
    """Says whether it has been closed."""

    closed = 0

    def close(self):
        self.closed += 1


# -- 12.1 protocol


def test_lifetimes_are_lifetimes(store, static):
    class Other:
        def add_key(self, *keys, store=None): ...
        def add_proxy(self, *proxies): ...
        def close(self, *, close_stores=False): ...
        def done(self): ...

    class Lacking:
        def add_key(self, *keys, store=None): ...
        def add_proxy(self, *proxies): ...
        def done(self): ...

    assert isinstance(Other(), Lifetime)
    assert not isinstance(Lacking(), Lifetime)
    assert isinstance(ContextLifetime(store), Lifetime)
    assert isinstance(static, Lifetime)
    with LeaseLifetime(store, 60) as lease:
        assert isinstance(lease, Lifetime)
        assert isinstance(lease, ContextLifetime)


def test_a_lifetime_of_ones_own_will_do(store):
    class Mine:
        keys = ()

        def add_key(self, *keys, store=None):
            self.keys += keys

        def add_proxy(self, *proxies):
            self.keys += tuple(proxy.__proxy_factory__.key for proxy in proxies)

        def close(self, *, close_stores=False): ...

        def done(self):
            return False

    mine = Mine()
    key = store.put("a", lifetime=mine)
    proxy = store.proxy("b", lifetime=mine)
    assert mine.keys == (key, proxy.__proxy_factory__.key)


# -- 12.2 ContextLifetime


def test_attributes_and_repr(store):
    lifetime = ContextLifetime(store)
    assert lifetime.store is store
    assert uuid.UUID(lifetime.name).version == 4
    assert ContextLifetime(store).name != lifetime.name
    named = ContextLifetime(store, name="mine")
    assert named.name == "mine"
    assert repr(named) == f"Lifetime(name=mine, store={store!r})"


def test_leaving_the_block_evicts_what_was_attached(store):
    before = store.put("before")
    with ContextLifetime(store) as lifetime:
        assert isinstance(lifetime, ContextLifetime)
        assert not lifetime.done()
        keys = [
            store.put("a", lifetime=lifetime),
            *store.put_batch(["b", "c"], lifetime=lifetime),
            store.proxy("d", lifetime=lifetime).__proxy_factory__.key,
            *(p.__proxy_factory__.key for p in store.proxy_batch(["e", "f"], lifetime=lifetime)),
            store.locked_proxy("g", lifetime=lifetime).unlock().__proxy_factory__.key,
        ]
        late = store.put("late")
        store.proxy_from_key(late, lifetime=lifetime)
        assert all(map(store.exists, [*keys, late]))
    assert lifetime.done()
    assert not any(map(store.exists, [*keys, late]))
    assert store.exists(before)


def test_objects_are_evicted_by_the_store():
    class Telling(Store):
        evicted = ()

        def evict(self, key):
            self.evicted += (key,)
            super().evict(key)

    store = Telling("telling", LocalConnector())
    with ContextLifetime(store) as lifetime:
        keys = store.put_batch(["a", "b"], lifetime=lifetime)
        assert store.get(keys[0]) == "a"
    assert set(store.evicted) == set(keys)
    assert not store.is_cached(keys[0])


def test_keys_are_a_set(store):
    lifetime = ContextLifetime(store)
    key, other = store.put("a"), store.put("b")
    lifetime.add_key(key, key, other)
    lifetime.add_key(key)
    lifetime.add_key()
    lifetime.add_proxy()
    lifetime.close()
    assert not store.exists(key)
    assert not store.exists(other)


def test_the_store_parameter_is_ignored(store):
    other = Store("ignored", LocalConnector())
    lifetime = ContextLifetime(store)
    key = store.put("a")
    lifetime.add_key(key, store=other)
    lifetime.close()
    assert not store.exists(key)


def test_adding_a_proxy_resolves_nothing_and_makes_no_store():
    store = Store("unregistered", LocalConnector())
    lifetime = ContextLifetime(store)
    proxy = store.proxy("a", populate_target=False)
    lifetime.add_proxy(proxy)
    assert not is_resolved(proxy)
    assert get_store("unregistered") is None
    lifetime.close()
    assert not store.exists(proxy.__proxy_factory__.key)


def test_a_proxy_of_another_kind_is_refused_and_none_is_added(store):
    lifetime = ContextLifetime(store)
    good = store.proxy("a")
    with pytest.raises(ProxyStoreFactoryError):
        lifetime.add_proxy(good, Proxy(SimpleFactory("b")))
    lifetime.close()
    assert store.exists(good.__proxy_factory__.key)


def test_nothing_can_be_added_after_the_end(store):
    lifetime = ContextLifetime(store)
    lifetime.close()
    with pytest.raises(RuntimeError, match="ended"):
        lifetime.add_key(store.put("a"))
    with pytest.raises(RuntimeError, match="ended"):
        lifetime.add_proxy(store.proxy("a"))


def test_closing_again_does_nothing():
    store = Store("twice", Closes())
    lifetime = ContextLifetime(store)
    lifetime.close()
    lifetime.close(close_stores=True)
    assert store.connector.closed == 0


def test_the_store_is_closed_if_asked_for():
    store = Store("closed", Closes())
    with ContextLifetime(store):
        pass
    assert store.connector.closed == 0
    lifetime = ContextLifetime(store)
    key = store.put("a", lifetime=lifetime)
    lifetime.close(close_stores=True)
    assert store.connector.closed == 1
    assert not store.exists(key)
    ContextLifetime(store).close(close_stores=True)
    assert store.connector.closed == 2, "also with nothing attached"


# -- 12.3 LeaseLifetime


def test_a_lease_ends_by_itself(store):
    lease = LeaseLifetime(store, 0.2, name="short")
    key = store.put("a", lifetime=lease)
    assert lease.name == "short"
    lease._timer.join()
    assert lease.done()
    assert not store.exists(key)


@pytest.mark.parametrize(
    "expiry",
    [
        datetime.fromtimestamp(0),
        datetime.fromtimestamp(0, tz=timezone.utc),
        datetime.min,
        timedelta(0),
        timedelta(days=-1),
        0,
        0.0,
        -1,
    ],
    ids=str,
)
def test_a_lease_that_has_expired_is_done_from_the_start(store, expiry):
    lease = LeaseLifetime(store, expiry)
    assert lease.done()
    lease._timer.join()
    with pytest.raises(RuntimeError):
        store.put("a", lifetime=lease)


@pytest.mark.parametrize(
    "soon",
    [
        lambda: datetime.now() + timedelta(milliseconds=5),
        lambda: datetime.now(tz=timezone(timedelta(hours=-7))) + timedelta(milliseconds=5),
        lambda: timedelta(milliseconds=5),
        lambda: 0.005,
    ],
    ids=["naive datetime", "aware datetime", "timedelta", "float"],
)
@pytest.mark.parametrize(
    "later", [datetime.now() + timedelta(days=1), timedelta(days=1), 86400, datetime.max], ids=str
)
def test_all_kinds_of_expiry(store, soon, later):
    long, short = LeaseLifetime(store, later), LeaseLifetime(store, soon())
    short._timer.join()
    assert short.done()
    assert not long.done()
    long.close()


@pytest.mark.parametrize("expiry", ["1", None, [1], 1j])
def test_other_kinds_are_refused(store, expiry):
    with pytest.raises(TypeError, match=f"number of seconds, got {type(expiry).__name__}"):
        LeaseLifetime(store, expiry)
    with LeaseLifetime(store, 60) as lease, pytest.raises(TypeError, match="datetime"):
        lease.extend(expiry)


def test_extending_adds_to_the_expiry(store):
    with LeaseLifetime(store, 100) as lease:
        start = lease._timer.deadline
        lease.extend(10)
        lease.extend(timedelta(minutes=1))
        lease.extend(0.5)
        assert lease._timer.deadline == pytest.approx(start + 70.5)
        armed = lease._timer
        lease.extend(-20.5)
        assert lease._timer.deadline == pytest.approx(start + 50)
        assert lease._timer is not armed
        assert (armed.is_alive(), lease._timer.is_alive()) == (False, True)


@pytest.mark.parametrize("hours", [2, 0.5], ids=["later", "earlier"])
def test_a_datetime_replaces_the_expiry(store, hours):
    with LeaseLifetime(store, 3600) as lease:
        start = lease._timer.deadline - 3600
        lease.extend(datetime.now() + timedelta(hours=hours))
        assert lease._timer.deadline == pytest.approx(start + hours * 3600, abs=5)


def test_an_extended_lease_lasts_on(store):
    lease = LeaseLifetime(store, 0.2)
    later = LeaseLifetime(store, 0.2)
    lease.extend(3600)
    key = store.put("a", lifetime=lease)
    later._timer.join()  # what was due earlier has gone off before
    assert not lease.done()
    assert store.exists(key)
    lease.extend(datetime.now())
    lease._timer.join()
    assert lease.done()
    assert not store.exists(key)


def test_a_lease_can_be_ended_early(store):
    lease = LeaseLifetime(store, 3600)
    key = store.put("a", lifetime=lease)
    timer = lease._timer
    assert timer.is_alive()
    lease.close()
    timer.join()
    assert not timer.is_alive()
    assert lease.done()
    assert not store.exists(key)
    lease.close()


def test_closing_after_it_has_expired_does_nothing():
    store = Store("expired", Closes())
    lease = LeaseLifetime(store, 0.001)
    lease._timer.join()
    lease.close(close_stores=True)
    assert lease.done()
    assert store.connector.closed == 0
    LeaseLifetime(store, 60).close(close_stores=True)
    assert store.connector.closed == 1


def test_extending_after_the_end_is_an_error(store):
    expired, closed = LeaseLifetime(store, 0.001), LeaseLifetime(store, 60)
    expired._timer.join()
    closed.close()
    for lease in (expired, closed):
        with pytest.raises(RuntimeError, match="ended"):
            lease.extend(1)
        with pytest.raises(RuntimeError, match="ended"):
            lease.add_key(store.put("a"))


def test_a_lease_is_a_context(store):
    with LeaseLifetime(store, 3600) as lease:
        key = store.put("a", lifetime=lease)
    assert lease.done()
    assert not store.exists(key)


# -- 12.4 StaticLifetime


def test_there_is_one_static_lifetime(static):
    assert StaticLifetime() is static is StaticLifetime()
    assert StaticLifetime.name == static.name == "static"


def test_static_keys_need_their_store(static, store):
    with pytest.raises(ValueError, match="requires the store parameter"):
        static.add_key(store.put("a"))


def test_static_keys_of_several_stores(static, store):
    with Store("second", Closes(), register=True) as second:
        keys = store.put("a", lifetime=static), second.put("b", lifetime=static)
        proxies = store.proxy("c", lifetime=static), second.proxy("d", lifetime=static)
        # A key of both stores, attached to one.
        second.connector.set(keys[0], second.connector.get(keys[1]))
        StaticLifetime().close()
        assert second.connector.closed == 0
        for key in (keys[0], proxies[0].__proxy_factory__.key):
            assert not store.exists(key)
        for key in (keys[1], proxies[1].__proxy_factory__.key):
            assert not second.exists(key)
        assert second.exists(keys[0])
    assert static.done()


def test_closing_the_static_lifetime_closes_the_stores_if_asked_for(static):
    stores = [Store(f"s{i}", Closes()) for i in range(2)]
    for store in stores:
        store.put("a", lifetime=static)
    static.close(close_stores=True)
    static.close(close_stores=True)
    assert [store.connector.closed for store in stores] == [1, 1]


def test_a_static_proxy_makes_its_store_if_there_is_none(static, tmp_path):
    store = Store("made-for-static", FileConnector(tmp_path / "objects"))
    proxy = store.proxy("a", populate_target=False)
    try:
        static.add_proxy(proxy)
        assert not is_resolved(proxy)
        assert get_store("made-for-static") is not None
        static.close()
        assert not store.connector.exists(proxy.__proxy_factory__.key)
    finally:
        unregister_store("made-for-static")


def test_a_static_proxy_of_another_kind_is_refused(static, store):
    good = store.proxy("a")
    with pytest.raises(ProxyStoreFactoryError):
        static.add_proxy(good, Proxy(SimpleFactory("b")))
    static.close()
    assert store.exists(good.__proxy_factory__.key)


def test_the_static_lifetime_stays_closed(static, store):
    assert not static.done()
    static.close()
    assert static.done()
    assert StaticLifetime() is static
    with pytest.raises(RuntimeError):
        static.add_key(store.put("a"), store=store)
    with pytest.raises(RuntimeError):
        static.add_proxy(store.proxy("a"))
    with pytest.raises(RuntimeError):
        store.put("a", lifetime=StaticLifetime())
    StaticLifetime._instance = None
    fresh = StaticLifetime()
    assert fresh is not static
    key = store.put("a", lifetime=fresh)
    fresh.close()
    assert not store.exists(key)


PROGRAM = """
import sys
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.store.lifetimes import *

class Telling(FileConnector):
    def close(self, clear=None):
        print("closed", len(list(self.keys())))

store = Store("at-exit", Telling(sys.argv[1]), register=True)
"""


def run(program, directory):
    """Run a program; return what it has printed, and the names of the objects it has left."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, str(directory)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not ran.stderr
    return ran.stdout.split("\n")[:-1], [path.name for path in directory.iterdir()]


def test_static_objects_go_and_their_stores_are_closed_at_exit(tmp_path):
    printed, left = run('store.put("a", lifetime=StaticLifetime())', tmp_path)
    assert printed == ["closed 0"]
    assert not left


def test_a_static_lifetime_that_is_closed_leaves_no_exit_hook(monkeypatch):
    monkeypatch.setattr(StaticLifetime, "_instance", None)
    there = weakref.ref(StaticLifetime())
    StaticLifetime().close()
    StaticLifetime._instance = None
    gc.collect()
    assert there() is None, "a hook would keep it alive"


# -- 12.5 register_lifetime_atexit


@pytest.mark.parametrize(
    ("arguments", "printed"), [("", ["closed 0"]), (", False", []), (", close_stores=False", [])]
)
def test_lifetimes_can_be_closed_at_exit(tmp_path, arguments, printed):
    program = f"""
lifetime = ContextLifetime(store)
store.put("a", lifetime=lifetime)
register_lifetime_atexit(lifetime{arguments})
"""
    assert run(program, tmp_path) == (printed, [])


def test_the_exit_hook_can_be_called_and_unregistered(store):
    lifetime = ContextLifetime(store)
    key = store.put("a", lifetime=lifetime)
    callback = register_lifetime_atexit(lifetime, close_stores=False)
    callback()
    assert lifetime.done()
    assert not store.exists(key)
    atexit.unregister(callback)


def test_an_unregistered_exit_hook_is_not_called(tmp_path):
    program = """
import atexit
lifetime = ContextLifetime(store)
store.put("a", lifetime=lifetime)
atexit.unregister(register_lifetime_atexit(lifetime))
"""
    printed, left = run(program, tmp_path)
    assert not printed
    assert len(left) == 1


# -- 1.3 logging


def test_what_is_logged(store, caplog, monkeypatch):
    monkeypatch.setattr(StaticLifetime, "_instance", None)
    caplog.set_level(logging.DEBUG, "proxystore.store.lifetimes")

    def lines():
        found = [
            (r.levelname, r.getMessage())
            for r in caplog.records
            if r.name == "proxystore.store.lifetimes"
        ]
        caplog.clear()
        return found

    lifetime = ContextLifetime(store, name="mine")
    assert lines() == [("INFO", f"created {lifetime!r}")]
    key = store.put("a", lifetime=lifetime)
    ((level, text),) = lines()
    assert level == "DEBUG"
    assert "added" in text
    assert repr(key) in text
    lifetime.close()
    lifetime.close()
    assert lines() == [("INFO", f"closed {lifetime!r}")]
    lease = LeaseLifetime(store, 0.001)
    lease._timer.join()
    assert lines() == [("INFO", f"created {lease!r}"), ("INFO", f"closed {lease!r}")]
    static = StaticLifetime()
    (made, registered) = lines()
    assert made[0] == "INFO"
    assert registered[0] == "DEBUG"
    assert "atexit hook" in registered[1]
    static.close()
    assert [level for level, _ in lines()] == ["INFO"]
    atexit.unregister(register_lifetime_atexit(lifetime))
    assert [level for level, _ in lines()] == ["DEBUG"]
