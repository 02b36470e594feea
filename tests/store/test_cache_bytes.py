"""A cache bounded by bytes as well as by the number of objects."""

from __future__ import annotations

import pickle
import weakref

import numpy as np
import pydantic
import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.store import Store, get_or_create_store, unregister_store
from proxystore.store._wire import decode, encode
from proxystore.store.cache import LRUCache
from proxystore.store.config import StoreConfig
from proxystore.store.factory import StoreFactory


class TestCache:
    def test_drops_as_many_as_make_room(self):
        cache = LRUCache(maxbytes=10)
        for key, nbytes in (("a", 3), ("b", 3), ("c", 4)):
            cache.set(key, key, nbytes)
        cache.get("a")
        cache.set("d", "d", 5)
        assert [key for key in "abcd" if cache.exists(key)] == ["a", "d"]
        assert cache.nbytes == 8

    def test_what_is_larger_than_all_is_not_held_and_drops_nothing_else(self):
        cache = LRUCache(maxbytes=10)
        cache.set("a", 1, 10)
        cache.set("b", 2, 11)
        assert cache.get("a") == 1
        assert not cache.exists("b")

    def test_an_old_value_is_not_kept_in_place_of_one_that_is_too_large(self):
        cache = LRUCache(maxbytes=10)
        cache.set("a", "old", 1)
        cache.set("a", "new", 11)
        assert not cache.exists("a")
        assert cache.nbytes == 0

    def test_setting_a_key_again_takes_its_new_size(self):
        cache = LRUCache(maxbytes=10)
        cache.set("a", 1, 10)
        cache.set("a", 2, 4)
        cache.set("b", 3, 6)
        assert (cache.get("a"), cache.get("b"), cache.nbytes) == (2, 3, 10)

    def test_without_a_limit_sizes_are_only_added_up(self):
        cache = LRUCache(2)
        cache.set("a", 1, 10**12)
        cache.set("b", 1, 1)
        assert cache.nbytes == 10**12 + 1
        cache.evict("a")
        assert cache.nbytes == 1

    def test_the_limit_must_not_be_negative(self):
        with pytest.raises(ValueError, match=r"maxbytes must be .* 0 or more, got -1"):
            LRUCache(maxbytes=-1)

    def test_values_are_dropped_when_the_lock_is_free(self):
        class Value:
            pass

        cache = LRUCache(maxbytes=3)
        free = []
        for key in "abc":
            value = Value()
            weakref.finalize(value, lambda: free.append(not _is_held(cache)))
            cache.set(key, value, 1)
        del value
        cache.set("d", 1, 3)
        assert free == [True] * 3

    def test_is_right_again_after_a_fork_in_the_middle_of_a_method(self, at_once):
        cache = LRUCache(maxbytes=3)
        cache.set("a", 1, 2)
        at_once(cache._lock.acquire)  # by a thread that is gone
        cache.nbytes = 7
        cache.after_fork()
        cache.set("b", 1, 1)
        assert cache.nbytes == 3


def _is_held(cache):
    return cache._lock._is_owned()


class TestStore:
    def test_counts_the_bytes_as_they_are_stored(self):
        store = Store("bytes", LocalConnector(), cache_bytes=10_000)
        keys = store.put_batch([bytes(4000), bytes(4000), bytes(4000)])
        for key in keys:
            store.get(key)
        assert [store.is_cached(key) for key in keys] == [False, True, True]
        stored = sum(len(store.connector.get(key)) for key in keys[1:])
        assert store.cache.nbytes == stored > 8000

    def test_what_is_too_large_comes_and_is_not_cached(self):
        store = Store("bytes", LocalConnector(), cache_bytes=1000)
        small, large = store.put_batch([b"small", bytes(2000)])
        assert store.get(small) == b"small"
        assert store.get(large) == bytes(2000)
        assert (store.is_cached(small), store.is_cached(large)) == (True, False)

    def test_counts_batches_and_mapped_files(self, tmp_path):
        with Store("b", FileConnector(tmp_path / "o", mmap=True), cache_bytes="1 MB") as store:
            keys = store.put_batch([np.zeros(50_000)] * 3)
            store.get_batch(keys)
            assert [store.is_cached(key) for key in keys] == [False, True, True]

    def test_the_number_of_objects_still_counts(self):
        store = Store("bytes", LocalConnector(), cache_size=1, cache_bytes=10**9)
        keys = store.put_batch([1, 2])
        store.get_batch(keys)
        assert [store.is_cached(key) for key in keys] == [False, True]
        none = Store("bytes", store.connector, cache_size=0, cache_bytes=10**9)
        none.get(keys[0])
        assert not none.is_cached(keys[0])

    def test_by_default_there_is_no_limit(self):
        store = Store("bytes", LocalConnector())
        key = store.put(bytes(10**7))
        store.get(key)
        assert store.is_cached(key)
        assert store.cache.maxbytes is None

    @pytest.mark.parametrize(
        ("given", "meant"),
        [(None, None), (0, 0), (4096, 4096), ("1 GB", 10**9), ("2KiB", 2048), (np.int64(5), 5)],
    )
    def test_takes_sizes_as_people_write_them(self, given, meant):
        assert Store("bytes", LocalConnector(), cache_bytes=given).cache.maxbytes == meant

    @pytest.mark.parametrize("wrong", [-1, "1 XB", "-1 KB", "", 1.5, b"1", [1]])
    def test_refuses_what_is_no_size(self, wrong):
        with pytest.raises(ValueError, match=r"cache_bytes must be .* got") as caught:
            Store("bytes", LocalConnector(), cache_bytes=wrong)
        assert repr(wrong) in str(caught.value)

    def test_the_repr_is_that_of_other_stores(self):
        connector = LocalConnector()
        assert repr(Store("n", connector, cache_bytes=1)) == repr(Store("n", connector))


CONNECTOR = {
    "kind": "proxystore.connectors.local.LocalConnector",
    "options": {"include_data_in_config": False},
}


class TestConfig:
    def test_rebuilds_the_store(self):
        store = Store("bytes", LocalConnector(), cache_bytes="1 KB")
        assert store.config().cache_bytes == 1000
        again = Store.from_config(store.config())
        assert again.cache.maxbytes == 1000
        assert again.config() == store.config()

    def test_reaches_the_store_that_a_proxy_makes(self):
        store = Store("bytes in a worker", LocalConnector(), cache_bytes=1000)
        proxy = pickle.loads(pickle.dumps(store.proxy([1], populate_target=False)))
        made = get_or_create_store(proxy.__proxy_factory__.store_config)
        unregister_store(made)
        assert made is not store
        assert made.cache.maxbytes == 1000

    @pytest.mark.parametrize("given", ["1 GB", 10**9])
    def test_toml(self, tmp_path, given):
        config = StoreConfig(name="n", connector=CONNECTOR, cache_bytes=given)
        assert config.cache_bytes == 10**9
        config.write_toml(tmp_path / "store.toml")
        lines = (tmp_path / "store.toml").read_text().splitlines()
        assert lines[:7] == [
            'name = "n"',
            "cache_size = 16",
            "metrics = false",
            "populate_target = true",
            "auto_register = false",
            "cache_bytes = 1000000000",
            "",
        ]
        assert StoreConfig.from_toml(tmp_path / "store.toml") == config

    def test_toml_may_have_it_as_text(self, tmp_path):
        (tmp_path / "store.toml").write_text(
            'name = "n"\ncache_bytes = "64 MiB"\n[connector]\nkind = "local"\n'
        )
        assert StoreConfig.from_toml(tmp_path / "store.toml").cache_bytes == 64 * 2**20

    @pytest.mark.parametrize("wrong", ['"much"', "-1", "1.5", "true", '"-1 MB"'])
    def test_toml_is_validated(self, tmp_path, wrong):
        (tmp_path / "store.toml").write_text(
            f'name = "n"\ncache_bytes = {wrong}\n[connector]\nkind = "local"\n'
        )
        with pytest.raises(pydantic.ValidationError, match="cache_bytes"):
            StoreConfig.from_toml(tmp_path / "store.toml")

    def test_is_left_out_of_toml_and_text_when_there_is_none(self, tmp_path):
        config = StoreConfig(name="n", connector=CONNECTOR)
        config.write_toml(tmp_path / "store.toml")
        assert "cache_bytes" not in (tmp_path / "store.toml").read_text()
        assert encode(config) == '["n",".local",{}]'

    def test_travels_as_text(self):
        config = StoreConfig(name="n", connector=CONNECTOR, cache_bytes=5)
        assert decode(encode(config)) == config
        assert decode('["n",".local",{},3,true,true,false,null]').cache_bytes is None

    def test_pickles_of_those_that_had_no_such_field_are_read(self):
        config = StoreConfig(name="n", connector=CONNECTOR, cache_bytes=5)
        state = config.__getstate__()
        state["__dict__"].pop("cache_bytes")
        again = StoreConfig.__new__(StoreConfig)
        again.__setstate__(state)
        assert again.cache_bytes is None

    def test_factories_carry_it(self):
        store = Store("n", LocalConnector(), cache_bytes=5)
        factory = StoreFactory(store.put(1), store.config())
        assert pickle.loads(pickle.dumps(factory)).store_config.cache_bytes == 5
