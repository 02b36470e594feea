"""Contract, section 26: what holds across all parts.

Covered by tests of the parts:

-  1, 3, 5, 7, 8, 15: the end of test_third_parties.py
-  2: test_store.py, "the pickle of a proxy does not grow with the object"
-  6: test_store.py, "evict happens on resolving", "evict and lifetime exclude each other"
- 10: tests/properties/test_ownership_machine.py
- 12: test_serialize.py, "of existing installations"; test_private_names.py
"""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.connectors.redis import RedisConnector
from proxystore.proxy import Proxy
from proxystore.store import Store, get_store, register_store, unregister_store
from proxystore.store.executor import ProxyAlways, StoreExecutor
from proxystore.store.lifetimes import ContextLifetime, LeaseLifetime, StaticLifetime
from proxystore.store.ref import borrow, clone, mut_borrow, update
from proxystore.store.utils import get_key

# -- 4

FIRST_USE = """
import logging, pickle, sys, threading

made = []

class Log(logging.Handler):
    def emit(self, record):
        if record.levelno == logging.INFO and record.name == "proxystore.store.base":
            made.append(record.getMessage())

logging.getLogger("proxystore.store").addHandler(Log())
logging.getLogger("proxystore.store").setLevel(logging.INFO)
proxies = pickle.load(sys.stdin.buffer)
import proxystore.store
assert not proxystore.store._stores
barrier = threading.Barrier(len(proxies))
found = [None] * len(proxies)

def use(i):
    barrier.wait(30)
    found[i] = sum(proxies[i])

threads = [threading.Thread(target=use, args=(i,)) for i in range(len(proxies))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
stores = proxystore.store._stores
assert all(proxystore.store.get_store(p) is stores[p.__proxy_factory__.store_config.name] for p in proxies)
print(found, sorted(stores), len(made))
"""  # noqa: E501


def test_4_first_use_makes_and_registers_one_store_a_name(tmp_path):
    stores = [Store(f"first-use-{i}", FileConnector(tmp_path / f"{i}")) for i in range(2)]
    proxies = [stores[i % 2].proxy([i]) for i in range(8)]
    for _ in range(3):  # threads meet differently each time
        run = subprocess.run(
            [sys.executable, "-c", FIRST_USE],
            input=pickle.dumps(proxies),
            capture_output=True,
            check=False,
        )
        assert run.stderr == b""
        expected = f"{list(range(8))} ['first-use-0', 'first-use-1'] 2\n"
        assert run.stdout.decode() == expected


# -- 9


def test_9_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(StaticLifetime, "_instance", None)
    directory = tmp_path / "objects"
    with Store("nothing-left", FileConnector(directory), register=True) as store:
        lease, static = LeaseLifetime(store, 3600), StaticLifetime()
        with ContextLifetime(store) as block, lease:
            for lifetime in (block, lease, static):
                store.put([1], lifetime=lifetime)
                store.put_batch([[1], [2]], lifetime=lifetime)
                store.proxy([1], lifetime=lifetime)
                store.proxy_batch([[1], [2]], lifetime=lifetime)
        static.close()
        owner = store.owned_proxy([1])
        copied, lent = clone(owner), mut_borrow(owner)
        lent.append(2)
        update(lent)
        assert (borrow(copied), owner) == ([1], [1, 2])
        del owner, copied, lent
        with ThreadPoolExecutor(2) as pool:
            executor = StoreExecutor(pool, store, ProxyAlways(), close_store=False)
            assert executor.submit(sorted, [2, 1]).result() == [1, 2]
            assert list(executor.map(sorted, [[2, 1]], timeout=60)) == [[1, 2]]
            assert executor.submit(int, "x").exception() is not None
        taken = store.proxy([1], evict=True, populate_target=False)
        assert taken == [1]
        gc.collect()
        assert not list(directory.iterdir())


# -- 11

# 7.17, of a store that has done each of these once.
SAMPLES = {
    "store.put": 2,  # put, proxy
    "store.put.serialize": 2,
    "store.put.connector": 2,
    "store.put_batch": 2,  # put_batch, proxy_batch
    "store.put_batch.serialize": 2,
    "store.put_batch.connector": 2,
    "store.get": 4,  # a hit, one that is there, one that is not, and through the proxy
    "store.get.connector": 3,
    "store.get.deserialize": 2,
    "store.exists": 2,  # cached, and not
    "store.exists.connector": 1,
    "store.set": 1,
    "store.set.serialize": 1,
    "store.set.connector": 1,
    "store.evict": 2,  # evict, and through the proxy
    "store.evict.connector": 2,
    "store.proxy": 1,
    "store.proxy_batch": 1,
    "store.future": 1,
    "store.future.connector": 1,
    "factory.call": 1,
    "factory.resolve": 1,
}


def test_11_metrics_have_these_names_and_one_sample_an_operation():
    with Store("metric-names", LocalConnector(), metrics=True, register=True) as store:
        key = store.put([1])
        keys = store.put_batch([[1], [2]])
        store.exists(key)
        assert store.get(key) is store.get(key)
        store.exists(key)
        store.get(LocalConnector().new_key())
        store._set(key, [2])
        store.evict(key)
        proxy = store.proxy([1], evict=True, populate_target=False)
        assert proxy == [1]
        proxies = store.proxy_batch([[1], [2]])
        store.proxy_from_key(keys[0])
        future = store.future()
        metrics = store.metrics
        assert {name: stats.count for name, stats in metrics.aggregate_times().items()} == SAMPLES
        assert all(0 < s.max_time_ms < 10_000 for s in metrics.aggregate_times().values())
        # What is filed where.
        assert set(metrics.get_metrics(future._factory.key).times) == {
            "store.future", "store.future.connector"
        }  # fmt: skip
        assert metrics.get_metrics(keys[0]) is None
        assert set(metrics.get_metrics(keys).attributes) == {"store.put_batch.object_sizes"}
        assert metrics.get_metrics(proxies).times.keys() == {
            "store.proxy_batch",
            "store.put_batch",
            "store.put_batch.serialize",
            "store.put_batch.connector",
        }
        found = metrics.get_metrics(proxy)
        assert found.counters == {"store.get.cache_misses": 1}
        assert set(found.attributes) == {"store.put.object_size", "store.get.object_size"}
        assert (
            sum(m.counters.get("store.get.cache_hits", 0) for m in metrics._metrics.values()) == 1
        )


# -- 13


@pytest.mark.parametrize("register", [True, False])
def test_13_closing_unregisters_what_registered_itself_and_deletes_the_directory(
    tmp_path, register
):
    directory = tmp_path / "objects"
    store = Store("closed", FileConnector(directory), register=register)
    register_store(store, exist_ok=True)
    store.put([1])
    store.close()
    assert (get_store("closed") is None) is register
    assert not directory.exists()
    unregister_store("closed")


@pytest.mark.redis
def test_13_closing_leaves_what_a_server_has(redis_server):
    def connect():
        return RedisConnector("localhost", redis_server.port)

    with Store("closed", connect(), register=True) as store:
        key = store.put([1])
    assert get_store("closed") is None
    with Store("again", connect()) as again:
        assert again.get(key) == [1]
        again.evict(key)


# -- 14


def test_14_configurations_travel_and_stores_do_not():
    with Store("travels", LocalConnector(include_data_in_config=True), register=True) as store:
        proxy = store.proxy([1])
        for travelling in (store.config(), proxy, store.future(), proxy.__proxy_factory__):
            pickle.loads(pickle.dumps(travelling))
        assert pickle.loads(pickle.dumps(store.config())) == store.config()
        for holder in (store, [store], {"store": store}, ContextLifetime(store)):
            with pytest.raises(Exception, match="pickle"):
                pickle.dumps(holder)
        rebuilt = pickle.loads(pickle.dumps(proxy))
        assert type(rebuilt) is Proxy
        assert get_store(rebuilt) is store
        assert get_key(rebuilt) == get_key(proxy)
