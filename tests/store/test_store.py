"""The store beyond the contract: races, integrity, and names that are used twice."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.proxy import Proxy, ProxyResolveError, is_resolved
from proxystore.serialize import CorruptDataError, SerializationError
from proxystore.store import Store, get_or_create_store, get_store, store_registration
from proxystore.store._wire import decode, encode
from proxystore.store.config import StoreConfig


class Slow(LocalConnector):
    """Counts reads, and holds each until `go` is set."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()
        self.reading = threading.Semaphore(0)
        self.reads = 0
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    def get(self, key):
        with self._lock:
            self.reads += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        self.reading.release()
        assert self.go.wait(30)
        with self._lock:
            self._now -= 1
        return super().get(key)


class SlowAndUnsafe(Slow):
    thread_safe = False


def start(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def test_threads_that_want_one_key_share_one_fetch():
    store = Store("n", Slow())
    key = store.put([1])
    barrier = threading.Barrier(64)
    found = []

    def get():
        barrier.wait()
        found.append(store.get(key))

    threads = [start(get) for _ in range(64)]
    assert store.connector.reading.acquire(timeout=30)
    store.connector.go.set()
    for thread in threads:
        thread.join()
    assert store.connector.reads == 1
    assert len({id(obj) for obj in found}) == 1


def test_threads_that_want_different_keys_do_not_wait_for_each_other():
    store = Store("n", Slow())
    threads = [start(store.get, store.put(i)) for i in range(8)]
    for _ in range(8):  # all eight are inside get at once, or this times out
        assert store.connector.reading.acquire(timeout=30)
    assert not store.is_cached(store.put("other")), "nothing else waits either"
    store.connector.go.set()
    for thread in threads:
        thread.join()
    assert store.connector.most_at_once == 8


def test_a_connector_that_is_not_thread_safe_is_used_by_one_thread():
    store = Store("n", SlowAndUnsafe())
    store.connector.go.set()
    threads = [start(store.get, store.put(i)) for i in range(8)]
    for thread in threads:
        thread.join()
    assert store.connector.most_at_once == 1


@pytest.mark.parametrize("change", ["evict", "_set"])
def test_a_fetch_that_was_overtaken_is_not_cached(change):
    store = Store("n", Slow())
    key = store.put("old")
    thread = start(store.get, key)
    assert store.connector.reading.acquire(timeout=30)
    store.evict(key) if change == "evict" else store._set(key, "new")
    store.connector.go.set()
    thread.join()
    assert not store.is_cached(key)


def test_the_failure_of_a_fetch_reaches_all_who_wait_and_is_forgotten():
    store = Store("n", Slow())
    key = store.put([1])
    good = store.connector._store[key]
    store.connector._store[key] = good[:-1]
    errors = []

    def get():
        try:
            store.get(key)
        except SerializationError as error:
            errors.append(error)

    threads = [start(get) for _ in range(4)]
    assert store.connector.reading.acquire(timeout=30)
    store.connector.go.set()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    store.connector._store[key] = good
    assert store.get(key) == [1]


def test_a_deserializer_may_use_the_store():
    store = Store("n", LocalConnector())
    inner = store.put("inner")
    key = store.put("outer")
    assert store.get(key, deserializer=lambda data: store.get(inner)) == "inner"
    assert store.get(key, deserializer=lambda data: store.get(key)) == "outer"


def test_another_decoder_is_another_object():
    # compat.md, row 28
    store = Store("n", LocalConnector())
    key = store.put("x")
    assert store.get(key, deserializer=bytes) != "x"
    assert store.get(key) == "x"


def test_an_object_of_one_s_own():
    store = Store("n", LocalConnector())
    key = store.put([1])
    store.get(key).append(2)
    assert store.get(key) == [1, 2], "the cached object is shared"
    assert store.get(key, cache=False) == [1]
    store.get(key, cache=False).append(3)
    assert store.get(key) == [1, 2]


def test_what_another_process_has_changed_is_seen_without_the_cache(tmp_path):
    ours = Store("n", FileConnector(tmp_path / "objects"))
    theirs = Store("n", FileConnector(tmp_path / "objects"))
    changed, gone = ours.put_batch(["old", "old"])
    assert ours.get_batch([changed, gone]) == ["old", "old"]
    theirs._set(changed, "new")
    theirs.evict(gone)
    assert ours.get(changed) == "old", "a cached object is what it was"
    assert ours.get(changed, cache=False) == "new"
    assert ours.get(gone, cache=False) is None
    uncached = Store("n", FileConnector(tmp_path / "objects"), cache_size=0)
    assert uncached.get(changed) == "new"
    assert not uncached.exists(gone)


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_truncated_objects_are_noticed(tmp_path, size):
    store = Store("n", FileConnector(tmp_path / "objects", mmap=True))
    key = store.put(np.zeros(size))
    path = tmp_path / "objects" / key.filename
    os.truncate(path, path.stat().st_size - 64)
    with pytest.raises(SerializationError, match=key.filename) as caught:
        store.get(key)
    assert isinstance(caught.value.__cause__, CorruptDataError)
    assert "length" in str(caught.value)


@pytest.mark.parametrize(("verify", "noticed"), [(True, True), (None, False), (False, False)])
def test_changed_bytes_of_a_mapped_file_are_noticed_when_asked(tmp_path, verify, noticed):
    store = Store("n", FileConnector(tmp_path / "objects", mmap=True), verify=verify)
    key = store.put(np.zeros(100_000))
    with open(tmp_path / "objects" / key.filename, "r+b") as file:
        file.seek(400_000)
        file.write(b"\xff")
    if noticed:
        with pytest.raises(SerializationError, match="checksum"):
            store.get(key)
    else:
        assert store.get(key) is not None


def test_changed_bytes_of_what_is_read_are_noticed(tmp_path):
    store = Store("n", FileConnector(tmp_path / "objects"))
    key = store.put("some text")
    path = tmp_path / "objects" / key.filename
    path.write_bytes(path.read_bytes().replace(b"some", b"same"))
    with pytest.raises(SerializationError, match="checksum"):
        store.get(key)


def test_an_array_from_the_store_is_writable_and_private(tmp_path):
    store = Store("n", FileConnector(tmp_path / "objects"), cache_size=0)
    key = store.put(np.zeros(1_000_000))
    array = store.get(key)
    array += 1
    assert store.get(key).sum() == 0


def test_one_name_two_places(tmp_path, caplog):
    # compat.md, row 6: the second store read from the first one's connector
    first = Store("default", FileConnector(tmp_path / "first"))
    second = Store("default", FileConnector(tmp_path / "second"))
    with store_registration(first):
        proxy = second.proxy("from the second", populate_target=False)
        assert proxy == "from the second"
        assert get_store("default") is first
        assert get_or_create_store(first.config()) is first
        assert get_or_create_store(second.config()) is get_or_create_store(second.config())
        assert [r.levelname for r in caplog.records if "names of their own" in r.getMessage()] == [
            "WARNING"
        ]
    first.close()
    second.close()


def test_one_place_spelled_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("spelled", FileConnector(tmp_path / "objects"))
    with store_registration(store):
        short = {"kind": "file", "options": {"store_dir": "objects"}}
        assert get_or_create_store(StoreConfig(name="spelled", connector=short)) is store
    store.close()


def test_a_guest_deletes_nothing_when_it_is_closed(tmp_path):
    # compat.md, row 4
    creator = Store("hosted", FileConnector(tmp_path / "objects"))
    key = creator.put("x")
    guest = get_or_create_store(creator.config(), register=False)
    guest.close()
    assert creator.exists(key)
    creator.close()
    assert not (tmp_path / "objects").exists()


def _get_in_child(store, key, pipe):
    pipe.send(store.get(key))


def test_a_forked_child_does_not_wait_for_its_parent_s_fetches():
    # compat.md, row 9
    store = Store("n", Slow(), cache_size=0)
    key = store.put([1])
    fetching = start(store.get, key)
    assert store.connector.reading.acquire(timeout=30)
    ours, theirs = multiprocessing.Pipe()
    store.connector.go.set()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_get_in_child, args=(store, key, theirs))
    child.start()
    assert ours.poll(30)
    assert ours.recv() == [1]
    child.join()
    fetching.join()


def test_a_proxy_is_proxied_without_resolving_it():
    store = Store("n", LocalConnector())
    calls = []
    inner = Proxy(lambda: calls.append(1) or [1])
    store.proxy(inner, populate_target=False)
    store.proxy_batch([inner, None], populate_target=False, skip_nonproxiable=True)
    assert not is_resolved(inner)
    assert not calls


class TestFactories:
    def test_a_missing_object_that_appears_is_found(self):
        # compat.md, row 37: a failed prefetch was remembered for ever
        store = Store("appears", LocalConnector())
        with store_registration(store):
            key = store.connector.new_key()
            factory = store.proxy_from_key(key).__proxy_factory__
            factory.resolve_async()
            with pytest.raises(Exception, match="no object"):
                factory()
            store._set(key, "x")
            assert factory() == "x"

    def test_prefetching_twice_is_prefetching_once(self):
        # compat.md, row 38
        store = Store("twice", LocalConnector())
        with store_registration(store):
            proxy = store.proxy([1], evict=True, populate_target=False)
            proxy.__proxy_factory__.resolve_async()
            proxy.__proxy_factory__.resolve_async()
            assert proxy == [1]

    def test_a_pending_prefetch_does_not_travel(self):
        store = Store("pending", Slow())
        with store_registration(store):
            key = store.put([1])
            factory = store.proxy_from_key(key).__proxy_factory__
            factory.resolve_async()
            again = pickle.loads(pickle.dumps(factory))
            assert again.__getstate__()["_obj_future"] is None
            store.connector.go.set()
            assert factory() == [1]


FULL = {
    "kind": "proxystore.connectors.file.FileConnector",
    "options": {"store_dir": "/dir", "clear": True, "buffering": -1},
}


class TestWire:
    @pytest.mark.parametrize(
        "config",
        [
            StoreConfig(name="n", connector={"kind": "local"}),
            StoreConfig(name="ü", connector={"kind": "x.y.Z", "options": {"a": [1, {"b": None}]}}),
            StoreConfig(name="ü", connector={"kind": "x.y.Z", "options": {"a": ((), [(1, {})])}}),
            StoreConfig(name="n", connector={"kind": "file"}, cache_size=3, verify=True),
            StoreConfig(name="n", connector={"kind": "proxystore.connectors.file.FileConnector"}),
            StoreConfig(name="n", connector=FULL),
            StoreConfig(name="n", connector={**FULL, "options": {"clear": True}}),
            StoreConfig(name="n", connector={**FULL, "options": {"clear": 1, "buffering": -1}}),
            StoreConfig(name="n", connector={"kind": "local"}, populate_target=False),
            StoreConfig(name="n", connector={"kind": "local"}, metrics=True, auto_register=True),
        ],
        ids=repr,
    )
    def test_what_is_encoded_comes_back(self, config):
        assert decode(encode(config)) == config
        assert repr(decode(encode(config)).connector.options.get("clear")) == repr(
            config.connector.options.get("clear")
        )
        assert decode(encode(config)) is decode(encode(config))

    @pytest.mark.parametrize(
        "options",
        [{"a": {"()": [1]}}, {"a": b"x"}, {"a": {1: 2}}, {"a": float("nan")}, {"a": object()}],
    )
    def test_what_text_cannot_hold_travels_as_it_is(self, options):
        config = StoreConfig(name="n", connector={"kind": "local", "options": options})
        assert encode(config) is None

    def test_functions_travel_as_they_are(self):
        store = Store("functions", LocalConnector(), serializer=str.encode, deserializer=bytes)
        factory = store.proxy_from_key(("k",)).__proxy_factory__
        again = pickle.loads(pickle.dumps(factory))
        assert again.store_config.deserializer is bytes


def test_missing_objects_are_errors_through_proxies_and_without():
    store = Store("gone", LocalConnector())
    with store_registration(store):
        proxy = store.proxy([1], populate_target=False)
        store.evict(proxy.__proxy_factory__.key)
        with pytest.raises(ProxyResolveError, match="gone"):
            len(proxy)


def test_a_failed_resolve_says_in_short_what_its_cause_says_in_full():
    reason = "; ".join(f"line {i} of a very long reason" for i in range(100))

    def fail():
        raise ValueError(reason)

    with pytest.raises(ProxyResolveError, match=r"ValueError: line 0 of .*\.\.\.$") as caught:
        len(Proxy(fail))
    assert len(str(caught.value)) < 400
    assert str(caught.value.__cause__) == reason
