"""The registry beyond the contract: what is made is given up, and nothing grows for ever."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxystore.connectors.exceptions import StoreDirectoryError
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.store import (
    Store,
    _registry,
    base,
    get_or_create_store,
    get_store,
    register_store,
    store_registration,
    unregister_store,
)
from proxystore.store.config import ConnectorConfig, StoreConfig
from proxystore.store.exceptions import StoreExistsError
from proxystore.store.utils import get_key


class Counted(FileConnector):
    """Counts those that are open."""

    opened = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        type(self).opened += 1

    def close(self, clear=None):
        super().close(clear)
        type(self).opened -= 1

    def abandon(self):
        super().abandon()
        type(self).opened -= 1


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(Counted, "opened", 0)
    return Counted


@pytest.fixture
def names():
    """Whatever a test leaves in the registry is removed."""
    before = set(_registry._stores)
    yield
    for name in set(_registry._stores) - before:
        unregister_store(name)


class OneThread(LocalConnector):
    thread_safe = False  # its store needs a lock


def test_a_store_is_complete_when_others_can_find_it(monkeypatch):
    # compat.md, row 33: it was published before its lock existed
    found = []

    def register(store, exist_ok=False):
        register_store(store, exist_ok)
        known = get_store("complete")
        found.append((known.get(get_key(known.proxy([1]))), known.config(), repr(known)))

    monkeypatch.setattr(base, "register_store", register)
    with Store("complete", OneThread(), register=True, metrics=True) as store:
        assert found == [([1], store.config(), repr(store))]


def test_a_name_that_is_taken_leaves_no_connector_open(tmp_path, counted):
    # compat.md, row 33
    config = Store("taken", counted(tmp_path / "s")).config()
    config.auto_register = True
    with Store("taken", LocalConnector(), register=True):
        key = counted(tmp_path / "s").put(b"x")
        before = counted.opened
        with pytest.raises(StoreExistsError):
            Store.from_config(config)
        assert counted.opened == before
        assert counted(tmp_path / "s").exists(key), "and what is there stays"


def test_a_connector_made_to_compare_is_closed(tmp_path, counted, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store("compared", counted(tmp_path / "s"), register=True) as store:
        config = store.config()
        config.connector.options = {"store_dir": "s"}  # the same place, spelled differently
        assert get_or_create_store(config) is get_or_create_store(config) is store
        assert counted.opened == 1


def test_a_registration_that_fails_half_way_is_undone():
    # compat.md, row 35
    first, second = Store("half", LocalConnector()), Store("half", LocalConnector())
    with pytest.raises(StoreExistsError), store_registration(first, second):
        raise AssertionError("not reached")
    assert get_store("half") is None


def test_closing_leaves_a_later_store_of_that_name_registered():
    # compat.md, row 34
    first = Store("later", LocalConnector(), register=True)
    second = Store("later", LocalConnector())
    register_store(second, exist_ok=True)
    first.close()
    assert get_store("later") is second
    unregister_store(second)


def config_for(tmp_path, name, directory="s"):
    options = {"store_dir": str(tmp_path / directory)}
    return StoreConfig(name=name, connector={"kind": "file", "options": options})


def test_stores_made_for_proxies_do_not_pile_up(tmp_path, names):
    # compat.md, row 36: one more for each job's name, with cache and connections, for ever
    with Store("mine", FileConnector(tmp_path / "mine"), register=True) as mine:
        local = StoreConfig(name="memory", connector={"kind": "local"})
        memory = get_or_create_store(local)
        proxies = []
        for i in range(3 * _registry._MOST_GUESTS):
            store = Store(f"job-{i}", FileConnector(tmp_path / "s"))
            proxies.append(store.proxy([i], populate_target=False))
            assert proxies[-1] == [i]
            again = store.proxy_from_key(proxies[-1].__proxy_factory__.key)
            proxies.append(again)
        guests = [name for name in _registry._stores if name.startswith("job-")]
        assert len(guests) == _registry._MOST_GUESTS
        assert guests[-1] == f"job-{i}", "the newest stay"
        assert get_store("mine") is mine, "and what somebody has registered"
        assert get_store("memory") is memory, "and what has its objects in this process"
        assert proxies[1] == [0], "one that is gone is made again"
        assert get_store("job-0") is not None


def test_a_store_that_was_registered_again_is_no_guest(tmp_path, names):
    store = get_or_create_store(config_for(tmp_path, "kept"))
    register_store(store, exist_ok=True)
    for i in range(_registry._MOST_GUESTS + 1):
        get_or_create_store(config_for(tmp_path, f"job-{i}"))
    assert get_store("kept") is store


def test_places_of_one_name_do_not_pile_up(tmp_path, names, caplog):
    # compat.md, row 36
    caplog.set_level(logging.ERROR)
    with Store("one-name", FileConnector(tmp_path / "s"), register=True):
        for i in range(_registry._MOST_GUESTS + 5):
            store = get_or_create_store(config_for(tmp_path, "one-name", str(i)))
            assert os.path.basename(store.connector.store_dir) == str(i)
        assert len(_registry._elsewhere["one-name"]) <= _registry._MOST_GUESTS


def test_guests_are_forgotten_while_others_ask(tmp_path, names, at_once):
    configs = [config_for(tmp_path, f"busy-{i}") for i in range(2 * _registry._MOST_GUESTS)]
    failures = []

    def ask():
        for config in configs:
            store = get_or_create_store(config)
            if store.name != config.name:
                failures.append(store.name)

    at_once(*[ask] * 4)
    assert not failures
    assert len(_registry._guests) <= _registry._MOST_GUESTS
    assert set(_registry._guests) <= set(_registry._stores)


class Shy(LocalConnector):
    """Can be asked for no text."""

    def __repr__(self):
        raise AssertionError("nobody reads this")


def test_nothing_is_written_down_that_nobody_logs(caplog):
    # compat.md, row 58
    caplog.set_level(logging.WARNING, "proxystore")
    with Store("quiet", Shy(), register=True) as store:
        key = store.put([1])
        assert store.get(key) == [1]
        assert store.proxy([1]) == [1]
        store.evict(key)
    assert not caplog.records


def test_a_directory_is_private_whatever_the_umask_says(tmp_path):
    # compat.md, row 57: where others may write, they have code run by who reads
    before = os.umask(0)
    try:
        connector = FileConnector(tmp_path / "a" / "b")
        key = connector.put(b"x")
    finally:
        os.umask(before)
    for path in ("a", "a/b", f"a/b/{key.filename}"):
        assert (tmp_path / path).stat().st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    for path in ("file", "file/store"):
        with pytest.raises(StoreDirectoryError, match="file"):
            FileConnector(tmp_path / path)


def test_one_store_is_made_for_all_who_ask_at_once(tmp_path, names, at_once):
    config = config_for(tmp_path, "asked")
    started = threading.Event()
    found = at_once(*[lambda: (started.set(), get_or_create_store(config))[1]] * 8)
    assert len({id(store) for store in found}) == 1


def test_nobody_waits_for_a_connection_but_who_needs_it(tmp_path, names, monkeypatch):
    connect = ConnectorConfig.get_connector
    connecting, go = threading.Event(), threading.Event()

    def get_connector(self):
        if self.kind != "slow":
            return connect(self)
        connecting.set()
        assert go.wait(30)
        return LocalConnector()

    monkeypatch.setattr(ConnectorConfig, "get_connector", get_connector)
    slow = StoreConfig(name="slow", connector={"kind": "slow"})
    with Store("there", LocalConnector(), register=True) as there, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get_or_create_store, slow)
        assert connecting.wait(30)
        try:
            assert get_store("there") is there
            assert get_store("slow") is None
            assert get_or_create_store(config_for(tmp_path, "other")) is get_store("other")
            register_store(there, exist_ok=True)
            unregister_store("other")
            assert not waiting.done()
        finally:
            go.set()
        assert waiting.result(30) is get_store("slow")
