"""Several objects in one operation: `Store.get_batch` and `resolve_batch`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector, LocalKey
from proxystore.proxy import Proxy, ProxyResolveError, is_resolved
from proxystore.serialize import SerializationError
from proxystore.store import Store, store_registration
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.store.utils import get_key, resolve_async, resolve_batch


class Counting(LocalConnector):
    """Notes which keys each read asks for, and holds it until `go` is set."""

    def __init__(self):
        super().__init__()
        self.gets = []
        self.batches = []
        self.go = threading.Event()
        self.go.set()
        self.reading = threading.Semaphore(0)

    def get(self, key):
        self.gets.append(key)
        self.reading.release()
        assert self.go.wait(30)
        return super().get(key)

    def get_batch(self, keys):
        self.batches.append(list(keys))
        self.reading.release()
        assert self.go.wait(30)
        return [self._store.get(key) for key in keys]


@pytest.fixture
def store():
    store = Store("batch", Counting(), cache_size=100)
    with store_registration(store):
        yield store


def break_data(store, key):
    good = store.connector._store[key]
    store.connector._store[key] = bytes(good[:-1])
    return good


class TestOrder:
    def test_objects_come_in_the_order_of_the_keys(self, store):
        keys = store.put_batch(["a", "b", "c"])
        assert store.get_batch([keys[2], keys[0], keys[1]]) == ["c", "a", "b"]
        assert len(store.connector.batches) == 1
        assert not store.connector.gets

    def test_a_key_that_occurs_twice_is_fetched_once(self, store):
        key, other = store.put_batch([["a"], ["b"]])
        first, _, again = store.get_batch([key, other, key])
        assert first is again
        assert store.connector.batches == [[key, other]]

    def test_nothing_asked_is_nothing_done(self, store):
        assert store.get_batch([]) == []
        assert not store.connector.batches

    def test_the_keys_may_be_any_sequence(self, store):
        assert store.get_batch(tuple(store.put_batch([1, 2]))) == [1, 2]

    def test_the_default_stands_where_nothing_is(self, store):
        key = store.put(None)
        missing = store.connector.new_key()
        assert store.get_batch([missing, key, missing]) == [None, None, None]
        assert store.get_batch([missing, key, missing], default="x") == ["x", None, "x"]
        assert not store.is_cached(missing)

    def test_a_connector_that_answers_short_is_an_error(self, store):
        store.connector.get_batch = lambda keys: [b""]
        with pytest.raises(ValueError, match="1 items for 2 keys"):
            store.get_batch(store.put_batch([1, 2]))

    @pytest.mark.parametrize("thread_safe", [True, False])
    def test_through_files(self, tmp_path, thread_safe):
        class Connector(FileConnector):
            pass

        Connector.thread_safe = thread_safe
        with Store("files", Connector(tmp_path / "objects")) as store:
            objs = [bytes([i]) * 10 ** (i % 6) for i in range(20)]
            keys = store.put_batch(objs)
            store.evict(keys[3])
            objs[3] = None
            assert store.get_batch(keys) == objs


class TestCache:
    def test_is_filled(self, store):
        keys = store.put_batch([["a"], ["b"]])
        objs = store.get_batch(keys)
        assert all(store.get(key) is obj for key, obj in zip(keys, objs, strict=True))
        assert not store.connector.gets

    def test_is_used(self, store):
        keys = store.put_batch([["a"], ["b"], ["c"]])
        cached = store.get(keys[1])
        assert store.get_batch(keys)[1] is cached
        assert store.connector.batches == [[keys[0], keys[2]]]
        store.get_batch(keys)
        assert len(store.connector.batches) == 1

    def test_may_be_smaller_than_the_batch(self):
        store = Store("small", LocalConnector(), cache_size=2)
        keys = store.put_batch(list(range(10)))
        assert store.get_batch(keys) == list(range(10))
        assert [store.is_cached(key) for key in keys] == [False] * 8 + [True] * 2

    def test_may_be_off(self):
        store = Store("off", LocalConnector(), cache_size=0)
        keys = store.put_batch([1, 2])
        assert store.get_batch(keys) == [1, 2]
        assert not any(map(store.is_cached, keys))

    def test_does_not_take_another_decoder_s_object(self, store):
        keys = store.put_batch(["a", "b"])
        assert store.get_batch(keys, deserializer=lambda data: "mine") == ["mine", "mine"]
        assert store.get_batch(keys) == ["a", "b"]


class TestErrors:
    def test_a_corrupt_item_names_its_key(self, store):
        keys = store.put_batch(["a", "b", "c"])
        good = break_data(store, keys[1])
        with pytest.raises(SerializationError) as caught:
            store.get_batch(keys)
        assert repr(keys[1]) in str(caught.value)
        assert caught.value.__cause__ is not None
        assert not store.is_cached(keys[1])
        store.connector._store[keys[1]] = good
        assert store.get_batch(keys) == ["a", "b", "c"], "the failure is not remembered"

    def test_the_first_of_several_is_raised(self, store):
        keys = store.put_batch(["a", "b", "c"])
        break_data(store, keys[1])
        break_data(store, keys[2])
        with pytest.raises(SerializationError) as caught:
            store.get_batch(keys)
        assert repr(keys[1]) in str(caught.value)

    @pytest.mark.parametrize("kind", [ConnectionError, KeyboardInterrupt])
    def test_of_the_connector_are_raised_and_forgotten(self, store, kind):
        keys = store.put_batch(["a", "b"])

        def fail(keys):
            raise kind("lost")

        store.connector.get_batch = fail
        with pytest.raises(kind, match="lost"):
            store.get_batch(keys)
        del store.connector.get_batch
        assert store.get_batch(keys) == ["a", "b"]
        assert [store.get(key) for key in keys] == ["a", "b"]

    @pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
    def test_of_the_decoder_leave_no_fetch_behind(self, store, kind):
        keys = store.put_batch(["a", "b", "c"])

        def fail(data):
            raise kind("decoder")

        with pytest.raises((SerializationError, KeyboardInterrupt), match="decoder"):
            store.get_batch(keys, deserializer=fail)
        assert not store._flights._flights
        assert not store._flights._counts


class TestThreads:
    def test_share_what_another_one_is_getting(self, store):
        keys = store.put_batch([["a"], ["b"], ["c"]])
        store.connector.go.clear()
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(store.get, keys[1])
            assert store.connector.reading.acquire(timeout=30)
            batch = pool.submit(store.get_batch, keys)
            assert store.connector.reading.acquire(timeout=30)
            store.connector.go.set()
            assert batch.result(30)[1] is one.result(30)
        assert store.connector.gets == [keys[1]]
        assert store.connector.batches == [[keys[0], keys[2]]]

    def test_get_waits_for_a_batch(self, store):
        keys = store.put_batch([["a"], ["b"]])
        store.connector.go.clear()
        with ThreadPoolExecutor(2) as pool:
            batch = pool.submit(store.get_batch, keys)
            assert store.connector.reading.acquire(timeout=30)
            one = pool.submit(store.get, keys[1])
            store.connector.go.set()
            assert one.result(30) is batch.result(30)[1]
        assert not store.connector.gets

    def test_that_get_overlapping_batches_do_not_wait_in_a_circle(self, store, at_once):
        for _ in range(50):
            keys = store.put_batch([[i] for i in range(8)])
            turned = [keys[i:] + keys[:i] for i in range(8)]
            store.connector.batches.clear()
            found = at_once(*[lambda keys=keys: store.get_batch(keys) for keys in turned])
            assert found == [[[keys.index(key)] for key in order] for order in turned]
            fetched = [key for batch in store.connector.batches for key in batch]
            assert sorted(fetched) == sorted(keys), "each key once"

    def test_whose_decoders_use_the_store_do_not_wait_in_a_circle(self, store):
        # The first to be decoded of each batch needs what the other batch has yet to decode.
        a, b, c, d = store.put_batch(["a", "b", "c", "d"])
        needs = {a: d, c: b}
        both_fetched = threading.Barrier(2)
        decoding = threading.local()

        def decode(data):
            at = decoding.keys.pop(0)
            if at in needs:
                both_fetched.wait(30)
                return (at, store.get(needs[at], deserializer=decode_one))
            return at

        def decode_one(data):
            return "needed"

        def get(keys):
            decoding.keys = list(keys)
            return store.get_batch(keys, deserializer=decode)

        # One and the same decoder, so that the fetches are the same, too.
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.submit(get, [a, b]), pool.submit(get, [c, d])
            assert first.result(30) == [(a, "needed"), b]
            assert second.result(30) == [(c, "needed"), d]

    def test_learn_of_a_corrupt_item_and_get_the_others(self, store):
        good, bad = store.put_batch([["a"], ["b"]])
        break_data(store, bad)
        store.connector.go.clear()
        with ThreadPoolExecutor(3) as pool:
            batch = pool.submit(store.get_batch, [bad, good])
            assert store.connector.reading.acquire(timeout=30)
            one, other = pool.submit(store.get, good), pool.submit(store.get, bad)
            store.connector.go.set()
            assert one.result(30) == ["a"]
            for failed in (batch, other):
                with pytest.raises(SerializationError, match=bad.id):
                    failed.result(30)

    @pytest.mark.parametrize("waiting", ["get", "get_batch"])
    def test_are_not_interrupted_in_place_of_another(self, waiting):
        class Interrupted(Counting):
            def get(self, key):
                self.reading.release()
                assert self.go.wait(30)
                if threading.current_thread() is main:
                    raise KeyboardInterrupt
                return self._store.get(key)

        store = Store("interrupted", Interrupted())
        key = store.put([1])
        store.connector.go.clear()
        main = threading.Thread(target=lambda: raises.append(_raised(store.get, key)))
        raises = []
        main.start()
        assert store.connector.reading.acquire(timeout=30)
        with ThreadPoolExecutor(1) as pool:
            get = store.get if waiting == "get" else lambda key: store.get_batch([key])[0]
            got = pool.submit(get, key)
            store.connector.go.set()
            assert got.result(30) == [1]
        main.join()
        assert isinstance(raises[0], KeyboardInterrupt)

    @pytest.mark.parametrize("change", ["evict", "_set"])
    def test_that_change_a_key_meanwhile_leave_nothing_old_in_the_cache(self, store, change):
        keys = store.put_batch(["a", "b"])
        store.connector.go.clear()
        with ThreadPoolExecutor(1) as pool:
            batch = pool.submit(store.get_batch, keys)
            assert store.connector.reading.acquire(timeout=30)
            store.evict(keys[0]) if change == "evict" else store._set(keys[0], "new")
            store.connector.go.set()
            batch.result(30)
        assert [store.is_cached(key) for key in keys] == [False, True]


def _raised(function, *args):
    try:
        function(*args)
    except BaseException as error:  # noqa: BLE001 - whatever it is
        return error


def test_what_a_decoder_evicts_is_not_cached_by_the_fetch_around_it():
    store = Store("nested", LocalConnector())
    key = store.put("x")

    def decode(data):
        # A second fetch of the same key, by the same thread: both are outdated.
        return store.get(key, deserializer=decode_and_evict)

    def decode_and_evict(data):
        store.evict(key)
        return "decoded"

    assert store.get(key, deserializer=decode) == "decoded"
    assert not store.is_cached(key)


class TestMetrics:
    def test_are_filed_under_the_batch(self):
        store = Store("metrics", LocalConnector(), metrics=True)
        keys = store.put_batch(["aa", "bb", "cc"])
        size = sum(len(store.connector.get(key)) for key in keys[:2])
        store.get(keys[2])
        store.get_batch(keys)
        metrics = store.metrics.get_metrics(keys)
        assert metrics.times.keys() >= {
            "store.get_batch",
            "store.get_batch.connector",
            "store.get_batch.deserialize",
        }
        assert metrics.times["store.get_batch"].count == 1
        assert metrics.attributes["store.get_batch.object_sizes"] == size
        assert metrics.counters["store.get_batch.cache_hits"] == 1
        assert metrics.counters["store.get_batch.cache_misses"] == 2

    def test_of_what_is_cached_or_missing_tell_no_step_that_was_not_taken(self):
        store = Store("metrics", LocalConnector(), metrics=True)
        keys = store.put_batch(["aa", "bb"])
        store.get(keys[0])
        store.get_batch(keys[:1])
        times = store.metrics.get_metrics(keys[:1]).times
        assert times.keys() == {"store.get_batch"}
        missing = [LocalKey("missing")]
        store.get_batch(missing)
        times = store.metrics.get_metrics(missing).times
        assert times.keys() == {"store.get_batch", "store.get_batch.connector"}


class TestResolveBatch:
    def test_one_operation_for_all_proxies_of_a_store(self, store):
        proxies = store.proxy_batch([["a"], ["b"], ["c"]], populate_target=False)
        resolve_batch(proxies)
        assert all(map(is_resolved, proxies))
        assert proxies == [["a"], ["b"], ["c"]]
        assert len(store.connector.batches) == 1
        assert not store.connector.gets

    def test_one_operation_for_each_store(self, store):
        other = Store("other", Counting())
        with store_registration(other):
            proxies = [
                s.proxy([i], populate_target=False) for i in range(3) for s in (store, other)
            ]
            resolve_batch(iter(proxies))
            assert proxies == [[0], [0], [1], [1], [2], [2]]
        for each in (store, other):
            assert [len(batch) for batch in each.connector.batches] == [3]

    def test_what_is_resolved_is_left_alone(self, store):
        proxies = store.proxy_batch([["a"], ["b"]], populate_target=True)
        resolve_batch(proxies)
        assert not store.connector.batches

    def test_what_is_being_resolved_is_waited_for(self, store):
        proxies = store.proxy_batch([["a"], ["b"]], populate_target=False, evict=True)
        resolve_async(proxies[0])
        resolve_batch(proxies)
        assert proxies == [["a"], ["b"]]
        assert store.connector.gets == [get_key(proxies[0])]

    def test_proxies_that_no_store_has_made_are_resolved_too(self, store):
        proxies = [Proxy(lambda: [1]), store.proxy([2], populate_target=False)]
        resolve_batch(proxies)
        assert all(map(is_resolved, proxies))

    def test_one_proxy_twice_and_one_key_twice(self, store):
        proxy = store.proxy([1], populate_target=False)
        resolve_batch([proxy, proxy, store.proxy_from_key(get_key(proxy))])
        assert [len(batch) for batch in store.connector.batches] == [1]

    def test_evicts_what_is_to_be_evicted(self, store):
        proxies = store.proxy_batch([["a"], ["b"]], populate_target=False, evict=True)
        kept = store.proxy(["c"], populate_target=False)
        resolve_batch([*proxies, kept])
        assert [*proxies, kept] == [["a"], ["b"], ["c"]]
        assert store.connector._store.keys() == {get_key(kept)}

    def test_takes_each_proxy_s_decoder(self, store):
        plain = store.proxy("a", populate_target=False)
        decoded = store.proxy("a", populate_target=False, deserializer=lambda data: ["decoded"])
        resolve_batch([plain, decoded])
        assert (plain, decoded) == ("a", ["decoded"])

    def test_what_fails_is_told_when_all_else_is_done(self, store):
        proxies = store.proxy_batch([["a"], ["b"], ["c"]], populate_target=False, evict=True)
        store.evict(get_key(proxies[0]))
        broken = store.proxy(["d"], populate_target=False)
        break_data(store, get_key(broken))
        with pytest.raises(ProxyResolveError) as caught:
            resolve_batch([*proxies, broken])
        assert isinstance(caught.value.cause, ProxyResolveMissingKeyError)
        assert [is_resolved(proxy) for proxy in (*proxies, broken)] == [False, True, True, False]
        assert store.connector._store.keys() == {get_key(broken)}

    def test_by_many_threads(self, store, at_once):
        for _ in range(20):
            proxies = store.proxy_batch([[i] for i in range(10)], populate_target=False)
            at_once(*[lambda proxies=proxies: resolve_batch(proxies)] * 8)
            assert proxies == [[i] for i in range(10)]

    def test_by_many_threads_of_what_is_evicted(self, store, at_once):
        for _ in range(20):
            proxies = store.proxy_batch([[i] for i in range(4)], populate_target=False, evict=True)
            at_once(*[lambda proxies=proxies: resolve_batch(proxies)] * 8)
            assert proxies == [[i] for i in range(4)]
            assert not store.connector._store
