"""What must not go wrong here, row by row: see the table in docs/compat.md.

Most rows have their tests where the code they are about has its own; these are the others.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.connectors.multi import MultiConnector, Policy
from proxystore.proxy import Proxy, is_resolved
from proxystore.serialize import deserialize, serialize
from proxystore.store import Store, store_registration, unregister_store
from proxystore.store.cache import LRUCache
from proxystore.store.utils import resolve_async
from proxystore.workflow import Ledger, Packer, ProxyRef, unpack
from proxystore.workflow.policy import measure

LARGE = 8_000_000  # bytes


def run_in_another_process(script, *args, pickled=None):
    """Run a script with arguments, and on its standard input an object; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        input=pickle.dumps(pickled),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


# -- 4: who deletes what

IN_A_TASK = """
import pickle, sys
from proxystore.connectors.file import FileConnector
from proxystore.store import Store, get_or_create_store
key, config = pickle.load(sys.stdin.buffer)
how = sys.argv[1]
if how == "constructor":
    store = Store("in-task", FileConnector(config.connector.options["store_dir"]))
elif how == "from_config":
    store = Store.from_config(config)
else:
    store = get_or_create_store(config)
with store:
    assert store.get(key) == [1]
"""


@pytest.mark.parametrize("how", ["constructor", "from_config", "get_or_create_store"])
def test_a_task_that_closes_a_store_of_its_own_deletes_nothing(tmp_path, how):
    """Whichever way it has made one over the directory that another process uses (row 4)."""
    directory = tmp_path / "objects"
    with Store("creator", FileConnector(directory)) as store:
        key = store.put([1])
        run_in_another_process(IN_A_TASK, how, pickled=(key, store.config()))
        assert store.get(key, cache=False) == [1]
        (directory / "thesis.tex").write_text("not ours")
    assert os.listdir(directory) == ["thesis.tex"]


def test_who_comes_when_nobody_has_the_directory_open_is_its_creator(tmp_path):
    """And deletes what an earlier program has left there, as it was told to (row 4)."""
    first = FileConnector(tmp_path / "objects", clear=False)
    with Store("kept", first) as store:
        key = store.put([1])
    run_in_another_process(IN_A_TASK, "constructor", pickled=(key, store.config()))
    assert not (tmp_path / "objects").exists()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_not_the_creator_and_does_not_hinder_the_next_one(tmp_path):
    """It neither deletes what its parent has, nor keeps it open in the parent's place (row 4)."""
    directory = tmp_path / "objects"
    parents = Store("parent's", FileConnector(directory, clear=False))
    key = parents.put([1])
    ours, theirs = multiprocessing.Pipe()

    def child():
        FileConnector(directory).close()
        theirs.send(parents.exists(key))
        theirs.recv()

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    assert ours.poll(30)
    assert ours.recv()
    parents.close()
    run_in_another_process(IN_A_TASK, "constructor", pickled=(key, parents.config()))
    assert not directory.exists(), "cleared by the next one, though the child is still there"
    ours.send("done")
    process.join()


def test_two_connectors_made_at_once_in_one_process_are_both_its(tmp_path, at_once):
    """Of threads that open a directory together none is a stranger to it (row 4)."""
    connectors = at_once(*[lambda: FileConnector(tmp_path / "objects")] * 8)
    for connector in connectors:
        key = FileConnector(tmp_path / "objects").put(b"x")
        connector.close()
        assert not connector.exists(key)


# -- 10: daemons, and processes that end


def file_store(directory, request):
    return Store("daemons", FileConnector(directory))


def multi_store(directory, request):
    members = {"files": (FileConnector(directory), Policy())}
    return Store("daemons", MultiConnector(members))


def redis_store(directory, request):
    from proxystore.connectors.redis import RedisConnector  # needs an optional package

    server = request.getfixturevalue("redis_server")
    url = f"unix://{server.socket_path}"
    return Store("daemons", RedisConnector(url=url, clear=True, prefix=f"{uuid4()}:"))


def work_and_die(task):
    """Do what a task may do with a store, and be killed."""
    from proxystore.store import get_store
    from proxystore.store.lifetimes import LeaseLifetime

    given, future, pipe = task
    assert multiprocessing.current_process().daemon
    resolve_async(given)
    assert given == [1]
    store = get_store(given)
    proxies = store.proxy_batch([[2], "x" * 100_000], populate_target=False)
    store.put("leased", lifetime=LeaseLifetime(store, 3600))
    owned = store.owned_proxy([3], populate_target=False)
    assert owned == [3]
    future.set_result([4])
    pipe.send(pickle.dumps(proxies))
    pipe.recv()


@pytest.mark.parametrize(
    "make",
    [file_store, multi_store, pytest.param(redis_store, marks=pytest.mark.redis)],
    ids=["file", "multi", "redis"],
)
def test_a_daemon_may_do_everything_and_its_objects_outlive_it(tmp_path, request, make):
    """A default Dask worker must not have children, and does not live for ever (row 10)."""
    with make(tmp_path / "objects", request) as store, store_registration(store):
        given = store.proxy([1], populate_target=False)
        future = store.future(polling_timeout=30) if make is not multi_store else None
        ours, theirs = multiprocessing.Pipe()
        task = (given, future or Unset(), theirs)
        child = multiprocessing.get_context("spawn").Process(
            target=work_and_die, args=(task,), daemon=True
        )
        child.start()
        assert ours.poll(60)
        sent = ours.recv()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert pickle.loads(sent) == [[2], "x" * 100_000]
        if future is not None:
            assert future.result() == [4]


class Unset:
    """In place of a future, where there can be none."""

    def set_result(self, obj):
        pass


# -- 11: what fails half-way


@pytest.mark.parametrize("put_batch", ["connector", "store", "proxies"])
def test_a_batch_that_fails_half_way_leaves_no_file(tmp_path, put_batch):
    """What was stored before the failure is taken back (rows 11, 21)."""

    class Failing(FileConnector):
        def put_buffers(self, parts):
            if len(os.listdir(self.store_dir)) == 2:
                raise OSError("broken")
            return super().put_buffers(parts)

    store = Store("half", Failing(tmp_path / "objects"))
    put = {
        "connector": store.connector.put_batch,
        "store": store.put_batch,
        "proxies": store.proxy_batch,
    }[put_batch]
    with pytest.raises(OSError, match="broken"):
        put([b"1", b"2", b"3", b"4"])
    assert os.listdir(tmp_path / "objects") == []


# -- 15: nobody waits behind another one's transfer


def test_objects_are_decoded_side_by_side():
    """Eight threads are in eight decoders at once, also with a connector for one (row 15)."""

    class Alone(LocalConnector):
        thread_safe = False

    for connector in (LocalConnector(), Alone()):
        together = threading.Barrier(8)

        def decode(data, together=together):
            together.wait(30)
            return deserialize(data)

        store = Store("side by side", connector, deserializer=decode)
        keys = store.put_batch(list(range(8)))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(store.get, keys)) == list(range(8))


def test_questions_are_answered_during_a_transfer():
    """`exists`, `is_cached`, `get` of what is cached, `put` and `evict` (row 15)."""
    reading, go = threading.Event(), threading.Event()

    class Slow(LocalConnector):
        def get(self, key):
            if key == slow:
                reading.set()
                assert go.wait(30)
            return super().get(key)

    slow = None
    store = Store("questions", Slow())
    slow, cached = store.put_batch(["slow", "cached"])
    store.get(cached)
    with ThreadPoolExecutor(1) as pool:
        transfer = pool.submit(store.get, slow)
        assert reading.wait(30)
        try:
            assert store.exists(slow)
            assert not store.is_cached(slow)
            assert store.get(cached) == "cached"
            other = store.put("other")
            assert store.get(other) == "other"
            store.evict(other)
            assert not transfer.done()
        finally:
            go.set()
        assert transfer.result(30) == "slow"


# -- 17: proxies of unknown class


def test_proxies_that_know_no_class_are_packed_without_a_look():
    """Those of a key, and those of futures, which would wait for ever (row 17)."""
    store = Store("unknown", LocalConnector())
    with store_registration(store):
        bare = store.proxy_from_key(store.put([1]))
        pending = store.future().proxy()
        ledger = Ledger(store)
        packed = Packer(ledger, threshold=0).pack((bare, [pending]), {"named": bare})
        assert [type(packed.args[0]), type(packed.args[1][0])] == [ProxyRef, ProxyRef]
        arrived, (other,) = unpack(pickle.loads(pickle.dumps(packed.args)))
        assert type(arrived) is type(other) is Proxy
        assert [is_resolved(p) for p in (bare, pending, arrived, other)] == [False] * 4
        assert arrived == [1]
        ledger.close()


# -- 18: copies


def test_to_serialize_an_array_takes_the_memory_of_its_bytes_and_no_more():
    """And what can be written to is not copied when it is deserialized (row 18)."""
    array = np.ones(LARGE // 8)
    serialize(array[:10])  # what is imported once, is now
    tracemalloc.start()
    try:
        data = serialize(array)
        _, most = tracemalloc.get_traced_memory()
        assert most < 1.02 * LARGE
        own = bytearray(data)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        again = deserialize(own)
        _, most = tracemalloc.get_traced_memory()
        assert most - before < LARGE / 50
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        copied = deserialize(data)
        _, most = tracemalloc.get_traced_memory()
        assert most - before < 1.02 * LARGE
    finally:
        tracemalloc.stop()
    assert again[-1] == copied[-1] == 1


# -- 19: one copy a node

READER = """
import pickle, sys

def memory(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

proxies = pickle.load(sys.stdin.buffer)
assert proxies[0].sum() == 10  # what is imported once, is now
own, shared = memory("RssAnon"), memory("RssFile") + memory("RssShmem")
assert proxies[1][-1] == 1
touched = memory("RssFile") + memory("RssShmem") - shared
assert proxies[1].sum() == len(proxies[1])
print(memory("RssAnon") - own, memory("RssFile") + memory("RssShmem") - shared, touched)
"""


def test_processes_of_a_node_share_one_copy_of_an_array(tmp_path):
    """Each maps the file, and has of its own only what it writes to (row 19)."""
    with Store("node", FileConnector(tmp_path / "objects", mmap=True)) as store:
        objs = [np.ones(10), np.ones(8 * LARGE // 8)]
        proxies = store.proxy_batch(objs, populate_target=False)
        found = run_in_another_process(READER, pickled=proxies)
        own, shared, touched = (int(word) / (8 * LARGE) for word in found.split())
    assert own < 0.1, "times the size of the object"
    assert shared > 0.9, "which shows that this measures"
    assert touched < 0.5, "what is not used is not read"


# -- 20: the cache


class CountedKey(NamedTuple):
    """Counts how often it is compared with others; equal to none but itself."""

    name: int

    def __eq__(self, other):
        CountedKey.compared += 1
        return self is other

    def __hash__(self):
        return hash(self.name)


def test_a_hit_costs_the_same_however_many_are_cached():
    """No list is searched for the key, neither on a hit nor when one is replaced (row 20)."""
    cache = LRUCache(20_000)
    keys = [CountedKey(i) for i in range(20_000)]
    for key in keys:
        cache.set(key, key.name)
    CountedKey.compared = 0
    for key in keys[10_000:10_100]:
        assert cache.get(key) == key.name
        cache.set(key, -1)
        assert cache.exists(key)
        cache.evict(key)
        cache.set(key, key.name)
    assert CountedKey.compared < 100 * 20


# -- 23: those who wait for futures


def test_any_number_of_pending_futures_starves_no_prefetch():
    """Each waits in a thread of its own, and a prefetch does not queue behind them (row 23)."""
    with Store("pending", LocalConnector(), register=True) as store:
        futures = [store.future(polling_interval=3600) for _ in range(64)]
        waiting = [future.proxy() for future in futures]
        for proxy in waiting:
            resolve_async(proxy)
        ready = store.proxy([1], populate_target=False)
        resolve_async(ready)
        assert ready.__proxy_factory__._obj_future.result(30) == [1]
        assert ready == [1]
        assert not any(map(is_resolved, waiting))
        for i, future in enumerate(futures):
            future.set_result([i])
        assert waiting == [[i] for i in range(64)]


# -- 24, 25, 26: what a proxy, and a look at an argument, costs


class Unlooked(list):
    """Must not be hashed, nor compared."""

    def __hash__(self):
        raise AssertionError("hashed")

    def __eq__(self, other):
        raise AssertionError("compared")


def test_without_its_target_a_proxy_costs_no_look_at_it():
    """Neither does a reference that an adapter makes: only known classes are hashed (row 24)."""
    store = Store("unlooked", LocalConnector())
    with store_registration(store):
        store.proxy(Unlooked([1]), populate_target=False)
        store.proxy_batch([Unlooked([1]), None], populate_target=False, skip_nonproxiable=True)
        ledger = Ledger(store)
        packed = Packer(ledger, threshold=0).pack((Unlooked([1]),), {})
        assert len(packed.holds) == 1
        packed.release()
        ledger.close()


def test_a_packed_call_keeps_no_large_argument_alive():
    """Memory of the client is free for the next one once the caller drops it (row 25)."""
    store = Store("unpinned", LocalConnector())
    with store_registration(store):
        ledger = Ledger(store)
        array = np.zeros(100_000)
        gone = weakref.ref(array)
        packer = Packer(ledger, threshold=1000)
        packed = packer.pack((array, [array]), {"x": {"y": array}})
        del array
        assert gone() is None
        assert unpack(packed.args[0]).sum() == 0
        packed.release()
        ledger.close()


class Pickled:
    """Counts how often it is pickled."""

    times = 0

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        Pickled.times += 1
        return Pickled, (self.data,)


def test_what_tells_its_size_is_not_pickled_to_see_it():
    """Looking at small arrays and texts is free (row 26)."""

    class Array(np.ndarray):
        def __reduce_ex__(self, protocol):
            raise AssertionError("pickled")

    for value in (np.zeros(100).view(Array), "x" * 100, b"x" * 100, 1, None):
        assert measure(value, 1000) is not None


def test_what_is_large_is_pickled_whole_once():
    """Before that only about as much of it as the threshold, to see its size (row 26)."""
    store = Store("once", LocalConnector())
    with store_registration(store):
        ledger = Ledger(store)
        value = {Pickled(bytes(1000)) for _ in range(2000)}
        Pickled.times = 0
        packed = Packer(ledger, threshold=50_000).pack((value,), {})
        assert len(packed.holds) == 1
        assert 2000 <= Pickled.times < 2200, "a pickler hands over 64 kB at a time"
        packed.release()
        ledger.close()


# -- 29, 30


def test_references_to_one_object_are_resolved_to_objects_of_their_own():
    """What one task writes into its argument no other task sees (row 30)."""
    store = Store("own", LocalConnector())
    with store_registration(store):
        ledger = Ledger(store)
        packer = Packer(ledger, threshold=0)
        first, second = (packer.pack(([1],), {}) for _ in range(2))
        unpack(first.args[0]).append(2)
        assert unpack(second.args[0]) == unpack(first.args[0]) == [1]
        first.release()
        second.release()
        ledger.close()


@pytest.fixture(autouse=True)
def _no_store_is_left():
    yield
    unregister_store("daemons")
