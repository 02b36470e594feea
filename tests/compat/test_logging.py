"""Contract, section 1.3: what is logged, by whom, at which level."""

from __future__ import annotations

import atexit
import logging
import re

import pytest

from proxystore.connectors.local import LocalConnector
from proxystore.proxy import extract
from proxystore.store import Store, register_store, unregister_store
from proxystore.store.lifetimes import ContextLifetime, register_lifetime_atexit
from proxystore.store.utils import get_key, resolve_async


@pytest.fixture
def log(caplog):
    """Return a function that gives the lines of a logger, as (level, text), and forgets all."""
    caplog.set_level(logging.DEBUG, "proxystore")

    def lines(logger):
        found = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == logger]
        caplog.clear()
        return found

    return lines


@pytest.fixture
def store():
    with Store("logged", LocalConnector(), register=True) as made:
        yield made


def test_registering_and_unregistering_name_the_store(log):
    store = Store("comes-and-goes", LocalConnector())
    for change in (register_store, unregister_store):
        log("proxystore.store")
        change(store)
        ((level, text),) = log("proxystore.store")
        assert level == "INFO"
        assert "comes-and-goes" in text


def test_a_new_store_is_shown(log):
    store = Store("shown", LocalConnector())
    ((level, text),) = log("proxystore.store.base")
    assert level == "INFO"
    assert repr(store) in text


OPERATIONS = {
    "PUT": lambda s, key: s.put("x"),
    "GET": lambda s, key: [s.get(key), key][1],
    "EXISTS": lambda s, key: [s.exists(key), key][1],
    "EVICT": lambda s, key: [s.evict(key), key][1],
    "SET": lambda s, key: [s._set(key, "y"), key][1],
    "FUTURE": lambda s, key: s.future()._factory.key,
    "PROXY": lambda s, key: get_key(s.proxy("x")),
    "PROXY_FROM_KEY": lambda s, key: get_key(s.proxy_from_key(key)),
}


@pytest.mark.parametrize("word", OPERATIONS)
def test_an_operation_names_store_and_key_and_its_time(store, log, word):
    key = store.put("x")
    log("proxystore.store.base")
    key = OPERATIONS[word](store, key)
    ((level, text),) = [
        line for line in log("proxystore.store.base") if re.search(rf"\b{word}\b", line[1])
    ]
    assert level == "DEBUG"
    assert "logged" in text
    assert repr(key) in text
    assert bool(re.search(r"\d ms$", text)) is (word != "PROXY_FROM_KEY")


@pytest.mark.parametrize("word", ["PUT_BATCH", "PROXY_BATCH"])
def test_a_batch_names_store_and_number_of_items_and_its_time(store, log, word):
    getattr(store, word.lower())(["a", "b", "c"])
    ((level, text),) = [
        line for line in log("proxystore.store.base") if re.search(rf"\b{word}\b", line[1])
    ]
    assert level == "DEBUG"
    assert "logged" in text
    assert re.search(r"\b3 items\b", text)
    assert re.search(r"\d ms$", text)


def test_a_small_batch_names_its_keys(store, log):
    keys = store.put_batch(range(20))
    log("proxystore.store.base")
    assert store.get_batch(keys) == list(range(20))
    ((_, text),) = log("proxystore.store.base")
    assert "GET_BATCH 20 items" in text
    assert all(repr(key) in text for key in keys)
    assert store.get_batch(keys + keys[:1])
    ((_, text),) = log("proxystore.store.base")
    assert "GET_BATCH 21 items" in text
    assert repr(keys[0]) not in text


def test_unintended_resolves_can_be_counted(store, log):
    # As the user documentation tells people to: lines with the word and the key.
    proxy = store.proxy("x", evict=True, populate_target=False)
    key = repr(get_key(proxy))
    log("proxystore.store.base")
    extract(proxy)
    lines = [text for level, text in log("proxystore.store.base") if key in text]
    (got,) = [text for text in lines if re.search(r"\bGET\b", text)]
    assert "cached=False" in got
    assert len([text for text in lines if re.search(r"\bEVICT\b", text)]) == 1


def test_each_get_says_whether_it_was_cached(store, log):
    key = store.put("x")
    log("proxystore.store.base")
    for cached in (False, True):
        store.get(key)
        ((_, text),) = log("proxystore.store.base")
        assert f"cached={cached}" in text


def test_the_start_of_a_background_resolve(store, log):
    proxy = store.proxy("x", populate_target=False)
    resolve_async(proxy)
    ((level, text),) = log("proxystore.store.factory")
    assert level == "DEBUG"
    assert repr(get_key(proxy)) in text
    assert proxy == "x"


def test_lifetimes(store, log):
    lifetime = ContextLifetime(store)
    assert [level for level, _ in log("proxystore.store.lifetimes")] == ["INFO"]
    key = store.put("x", lifetime=lifetime)
    ((level, text),) = log("proxystore.store.lifetimes")
    assert level == "DEBUG"
    assert repr(key) in text
    hook = register_lifetime_atexit(lifetime)
    try:
        assert [level for level, _ in log("proxystore.store.lifetimes")] == ["DEBUG"]
    finally:
        atexit.unregister(hook)
    lifetime.close()
    assert [level for level, _ in log("proxystore.store.lifetimes")] == ["INFO"]
