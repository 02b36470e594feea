"""The executor beyond the contract: what leaks, dangles or fails where it should not."""

from __future__ import annotations

import functools
import gc
import itertools
import multiprocessing
import pickle
import subprocess
import sys
import threading
import uuid
import weakref
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in from 3.11 on
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from waiting import wait_until

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.proxy import Proxy, ProxyResolveError, extract
from proxystore.store import Store, get_store, unregister_store
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.store.executor import ProxyAlways, ProxyNever, ProxyType, StoreExecutor
from proxystore.store.ref import OwnedProxy, borrow
from proxystore.store.scopes import submit

# Processes get the search path of the one that starts them.
sys.path.insert(0, str(Path(__file__).parent / "importable"))
import store_tasks
from store_tasks import (
    OnlyHere,
    add,
    changed,
    changed_and_stored,
    die,
    fail,
    identity,
    is_same,
    is_there,
    nested,
    owned,
    which_are_proxies,
)


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(params=["threads", "processes"])
def pool(request):
    """An executor of either kind, which nobody should shut down."""
    if request.param == "processes":
        yield request.getfixturevalue("processes")
        return
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "objects"


def new_store(directory, **options):
    name = f"executor-{uuid.uuid4().hex[:8]}"
    return Store(name, FileConnector(directory), **{"register": True, **options})


@pytest.fixture(params=[True, False], ids=["populated", "bare"])
def any_store(request, directory):
    with new_store(directory, populate_target=request.param, cache_size=0) as store:
        yield store


@pytest.fixture
def store(directory):
    with new_store(directory) as store:
        yield store


def wrap(pool, store, should_proxy=None, **options):
    policy = ProxyAlways() if should_proxy is None else should_proxy
    return StoreExecutor(pool, store, policy, **{"close_store": False, **options})


def count(directory):
    return len(list(directory.iterdir()))


def wait_until_empty(directory):
    gc.collect()
    wait_until(lambda: not count(directory))


class Gate:
    """A function that waits until it is let go."""

    def __init__(self):
        self.go = threading.Event()
        self.inside = threading.Semaphore(0)

    def __call__(self, x):
        self.inside.release()
        assert self.go.wait(30)
        return len(x)


# -- what is proxied


def test_map_asks_about_the_items(pool, store, directory):
    executor = wrap(pool, store, ProxyType(str))
    rows = executor.map(which_are_proxies, ["a", "b"], [1, "c"], iter([[], "d"]))
    assert list(rows) == [("0",), ("0", "1", "2")]
    wait_until_empty(directory)


def test_map_of_generators(pool, store, directory):
    executor = wrap(pool, store)
    items = ([i] for i in range(4))
    assert [list(x) for x in executor.map(add, items, itertools.repeat([9]))] == [
        [i, 9] for i in range(4)
    ]
    wait_until_empty(directory)


def test_map_of_nothing(pool, store, directory):
    executor = wrap(pool, store)
    assert list(executor.map(len, [])) == list(executor.map(len)) == []
    assert not count(directory)


@pytest.mark.parametrize("ownership", [True, False])
@pytest.mark.parametrize("obj", [None, True, False])
def test_none_and_bools_pass_everywhere(pool, store, obj, ownership):
    executor = wrap(pool, store, ownership=ownership)
    assert executor.submit(identity, x=obj).result() is obj
    assert executor.submit(nested, obj).result() == [obj]


def test_numpys_bool_is_proxied(store, threads):
    executor = wrap(threads, store)
    assert executor.submit(which_are_proxies, np.bool_(True)).result() == ("0",)


def test_references_pass_as_they_are(threads, store):
    executor = wrap(threads, store, ProxyType(list))
    owner = store.owned_proxy([1, 2])
    assert executor.submit(type, owner).result() is OwnedProxy
    lent = borrow(owner)
    assert submit(executor.submit, args=(len, lent)).result() == 2
    assert owner == [1, 2]


def test_futures_pass_as_they_are(threads, store):
    """A client replaces its own futures by what they stand for."""
    future = Future()
    assert wrap(threads, store).submit(which_are_proxies, future).result() == ()


def test_one_object_is_stored_once_for_a_call(pool, store, directory):
    stored = []
    put = store.connector.put_buffers
    store.connector.put_buffers = lambda parts: (stored.append(1), put(parts))[1]
    executor = wrap(pool, store, ProxyType(list))
    obj = [1]
    assert executor.submit(add, obj, y=obj).result() == [1, 1]
    assert executor.submit(is_same, obj, obj).result() is True
    # Each result is stored by the thread that runs the call.
    assert sum(stored) == (3 if type(executor.executor) is ThreadPoolExecutor else 2)
    wait_until_empty(directory)


@pytest.mark.parametrize("chunksize", [1, 2, 5])
def test_one_object_is_stored_once_for_a_map(pool, any_store, directory, chunksize):
    puts = []
    proxy = any_store.proxy
    any_store.proxy = lambda obj, **kwargs: (puts.append(obj), proxy(obj, **kwargs))[1]
    executor = wrap(pool, any_store, ProxyType(tuple))
    big, items = ("big",) * 3, [("a",), ("b",), ("a",)]
    items[2] = items[0]
    results = executor.map(add, items, itertools.repeat(big), chunksize=chunksize)
    assert list(map(tuple, results)) == [("a", *big), ("b", *big), ("a", *big)]
    inputs = [obj for obj in puts if len(obj) != 4]
    assert len(inputs) == 3
    wait_until_empty(directory)


class Inline(Executor):
    """Runs each call before `submit` returns."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_result(function(*args, **kwargs))
        return future


def test_what_is_shared_stays_while_a_further_call_may_need_it(directory):
    store = new_store(directory, populate_target=False, cache_size=0)
    puts = []
    proxy = store.proxy
    store.proxy = lambda obj: (puts.append(obj), proxy(obj))[1]
    executor = wrap(Inline(), store, ProxyType(list), ownership=False)
    assert list(executor.map(lambda x: sum(x), [[1, 2]] * 3)) == [3, 3, 3]
    shared = [1, 2]
    assert list(executor.map(sum, [shared, shared, [3]])) == [3, 3, 3]
    assert len(puts) == 3
    assert not count(directory)
    store.close()


def test_a_generator_may_use_one_object_again_and_again(pool, store):
    def growing():
        obj = []
        for i in range(4):
            obj.append(i)
            yield obj

    executor = wrap(pool, Store("unpopulated", store.connector, populate_target=False))
    assert [extract(x) for x in executor.map(sum, growing())] == [0, 1, 3, 6]
    unregister_store("unpopulated")


# -- what is left behind


def test_a_call_that_the_executor_refuses_leaves_nothing(store, directory):
    class Full(Executor):
        def submit(self, function, /, *args, **kwargs):
            assert count(directory)
            raise OSError("no more threads")

        def map(self, function, *iterables, **kwargs):
            return self.submit(function)

    executor = wrap(Full(), store)
    with pytest.raises(OSError, match="no more threads"):
        executor.submit(len, [1])
    with pytest.raises(OSError, match="no more threads"):
        executor.map(len, [[1], [2]])
    assert not count(directory)
    assert not executor._calls


def test_an_argument_that_cannot_be_stored_leaves_nothing(threads, store, directory):
    executor = wrap(threads, store)
    for call in (
        lambda: executor.submit(add, [1], threading.Lock()),
        lambda: executor.submit(add, [1], y=threading.Lock()),
        lambda: executor.map(len, [[1], [2], threading.Lock()]),
    ):
        with pytest.raises(Exception, match="lock"):
            call()
        wait_until_empty(directory)
    assert not executor._calls


def test_a_policy_that_fails_leaves_nothing(threads, store, directory):
    def policy(item):
        return 1 / item[0]

    executor = wrap(threads, store, policy)
    for call in (lambda: executor.submit(add, [1], [0]), lambda: executor.map(len, [[1], [0]])):
        with pytest.raises(ZeroDivisionError):
            call()
        wait_until_empty(directory)


def test_an_iterable_that_fails_leaves_nothing(threads, store, directory):
    def items():
        yield [1]
        yield [2]
        raise ZeroDivisionError

    executor = wrap(threads, store)
    with pytest.raises(ZeroDivisionError):
        executor.map(len, items())
    wait_until_empty(directory)
    assert not executor._calls


def test_a_cancelled_call_leaves_nothing(store, directory):
    gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        executor = wrap(pool, store)
        running, waiting = executor.submit(gate, [1]), executor.submit(gate, [2])
        assert gate.inside.acquire(timeout=30)
        assert waiting.cancel()
        assert count(directory) == 1
        gate.go.set()
        assert running.result() == 1
        with pytest.raises(CancelledError):
            waiting.result()
        del running
        wait_until_empty(directory)


def test_what_has_not_begun_of_a_dropped_map_never_does(store, directory):
    gates = [Gate() for _ in range(10)]
    with ThreadPoolExecutor(1) as pool:
        results = wrap(pool, store).map(lambda i: gates[i]("a"), range(10))
        gates[0].go.set()
        assert next(results) == 1
        assert gates[1].inside.acquire(timeout=30)
        del results
        gc.collect()
        for gate in gates:
            gate.go.set()
    assert not any(gate.inside.acquire(blocking=False) for gate in gates[2:])
    wait_until_empty(directory)


def test_a_map_that_cannot_be_submitted_whole_is_cancelled(store, directory):
    gate, done = Gate(), []

    def items():
        yield from ([1], [2])
        raise ZeroDivisionError

    with ThreadPoolExecutor(1) as pool:
        executor = wrap(pool, store)
        first = executor.submit(gate, "a")
        with pytest.raises(ZeroDivisionError):
            executor.map(done.append, items())
        gate.go.set()
        assert first.result() == 1
    assert not done
    del first
    wait_until_empty(directory)


def test_futures_of_a_client_are_dropped_not_cancelled(threads, store):
    """The client may have given the same one to somebody else."""

    class Client:
        submit = threads.submit

        def map(self, function, *iterables):
            self.futures = [
                threads.submit(function, *args) for args in zip(*iterables, strict=True)
            ]
            return list(self.futures)

    client, gates = Client(), [Gate() for _ in range(5)]
    results = wrap(client, store, ProxyNever()).map(lambda gate: gate("a"), gates)
    gates[0].go.set()
    assert next(results) == 1
    results.close()
    for gate in gates:
        gate.go.set()
    assert [future.result() for future in client.futures] == [1] * 5


@pytest.mark.parametrize("begun", [True, False])
def test_a_map_that_nobody_finishes_leaves_nothing(store, directory, begun):
    gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        executor = wrap(pool, store)
        results = executor.map(gate, [[i] for i in range(10)])
        assert gate.inside.acquire(timeout=30)
        assert count(directory) == 10
        gate.go.set()
        if begun:
            next(results)
        del results
        gc.collect()
    wait_until_empty(directory)
    assert not executor._calls


def test_calls_of_a_map_whose_results_nobody_wants_run_all_the_same(store, directory):
    """As with the executor itself, and with their arguments."""
    done = []
    with ThreadPoolExecutor(2) as pool:
        bare = Store("bare", store.connector, populate_target=False, cache_size=0)
        wrap(pool, bare).map(lambda x: done.append(sum(x)), [[i] for i in range(20)])
    assert sorted(done) == list(range(20))
    wait_until_empty(directory)
    unregister_store("bare")


def test_the_inputs_of_a_map_go_one_by_one(store, directory):
    with ThreadPoolExecutor(1) as pool:
        executor = wrap(pool, store, ProxyType(list))
        gates = [Gate() for _ in range(3)]
        results = executor.map(lambda i, x: gates[i](x), range(3), ([i] for i in range(3)))
        for left, gate in zip((3, 2, 1), gates, strict=True):
            assert gate.inside.acquire(timeout=30)
            wait_until(lambda left=left: count(directory) == left)
            gate.go.set()
        assert list(results) == [1, 1, 1]


def test_another_map_that_nobody_finishes_is_cleared_up_by_shutdown(store, directory):
    class Other(ThreadPoolExecutor):
        def map(self, *args, **kwargs):
            return super().map(*args, **kwargs)

    executor = wrap(Other(2), store, ProxyType(list))
    next(executor.map(len, [[1], [2]]))
    assert count(directory) == 2
    executor.shutdown()
    assert not count(directory)


def test_a_worker_that_dies_leaves_no_inputs(store, directory):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        executor = wrap(pool, store)
        futures = [executor.submit(die, [1]), executor.submit(len, [2])]
        for future in futures:
            with pytest.raises(BrokenProcessPool):
                future.result()
        with pytest.raises(BrokenProcessPool):
            executor.submit(len, [1])
    wait_until_empty(directory)


def test_proxies_of_the_users_are_never_evicted(pool, store, directory):
    executor = wrap(pool, store)
    mine = store.proxy([1], populate_target=False)
    executor.submit(add, mine, [2]).result()
    assert [len(x) for x in [*executor.map(add, [mine, mine], [[2], mine])]] == [2, 2]
    returned = executor.submit(identity, mine).result()
    gc.collect()
    wait_until(lambda: count(directory) == 1)
    assert returned == [1]


def test_what_cannot_be_evicted_is_logged_and_the_others_are(threads, store, caplog):
    evicted = []

    def evict(key):
        evicted.append(key)
        raise OSError("cannot evict")

    store.connector.evict = evict
    executor = wrap(threads, store, ProxyType(list))
    assert executor.submit(lambda x, y: 1, [1], [2]).result() == 1
    wait_until(lambda: len(evicted) == 2)
    wait_until(lambda: caplog.text.count("OSError: cannot evict") == 2)
    del store.connector.evict


def test_no_function_is_remembered(threads, store):
    executor = wrap(threads, store)

    def function(x):
        return len(x)

    there = weakref.ref(function)
    assert executor.submit(function, [1]).result() == 1
    assert list(executor.map(function, [[1]])) == [1]
    del function
    gc.collect()
    wait_until(lambda: there() is None)


def test_threads_may_share_an_executor(store, directory, at_once):
    with ThreadPoolExecutor(4) as pool:
        executor = wrap(pool, store)

        def work():
            for i in range(20):
                assert executor.submit(add, [i], [i]).result() == [i, i]

        at_once(work, work, work, work)
    wait_until_empty(directory)
    assert not executor._calls


FORK = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.store.executor import *

store = Store("forked", FileConnector(sys.argv[1]), register=True)
go, inside = threading.Event(), threading.Event()
executor = StoreExecutor(ThreadPoolExecutor(1), store, ProxyType(list))
running = executor.submit(lambda x: (inside.set(), go.wait()), [1])
waiting = executor.submit(len, [2])
results = executor.map(len, [[3], [4]])
inside.wait()
child = os.fork()
if not child:
    waiting.cancel()
    results.close()
    del running, waiting, results
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert len(os.listdir(sys.argv[1])) == 4
go.set()
assert waiting.result() == 1
executor.shutdown()
print("fine")
"""


def test_a_forked_child_evicts_nothing(directory):
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(directory)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "fine\n"


# -- what can be called


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return len(x)


def test_callables_that_cannot_be_hashed(threads, store):
    executor = wrap(threads, store)
    assert executor.submit(Unhashable(), [1]).result() == 1
    assert list(executor.map(Unhashable(), [[1]])) == [1]
    hash(executor._task(Unhashable()))


def test_partials_methods_and_builtins(pool, store):
    executor = wrap(pool, store, ProxyType(list))
    assert executor.submit(functools.partial(add, [1]), [2]).result() == [1, 2]
    assert executor.submit([1, 2].index, 2).result() == 1
    assert executor.submit(sum, [1, 2]).result() == 3


def test_equal_wrappers_are_equal_wherever_they_go(store, threads):
    executor, other = wrap(threads, store), wrap(threads, store, ProxyNever())
    task = executor._task(add)
    assert task == executor._task(add) == wrap(threads, store)._task(add)
    assert task != executor._task(identity)
    assert task != other._task(add)
    assert task != wrap(threads, store, ownership=False)._task(add)
    assert task != add
    arrived = pickle.loads(pickle.dumps(task))
    assert arrived == task
    assert hash(arrived) == hash(task)
    assert pickle.dumps(task) == pickle.dumps(executor._task(add))
    assert task.__name__ == "add"


def test_policies_are_equal_if_they_decide_alike():
    assert ProxyAlways() == ProxyAlways() != ProxyNever()
    assert ProxyType(int) == ProxyType(int) != ProxyType(int, str)
    assert len({ProxyType(int), ProxyType(int), ProxyType(str), ProxyAlways()}) == 3
    assert repr(ProxyType(int, str)) == "ProxyType(int, str)"


# -- results that have to do with inputs


def test_a_returned_input_is_a_result_like_any_other(pool, any_store, directory):
    executor = wrap(pool, any_store)
    result = executor.submit(identity, [1, 2]).result()
    assert type(result) is OwnedProxy
    wait_until(lambda: count(directory) == 1)
    assert result == [1, 2]
    results = list(executor.map(identity, [[1], [2]], chunksize=2))
    wait_until(lambda: count(directory) == 3)
    assert results == [[1], [2]]
    del result, results
    wait_until_empty(directory)


def test_a_returned_input_is_itself_if_results_are_not_proxied(pool, any_store, directory):
    executor = wrap(pool, any_store, OnlyHere())
    result = executor.submit(identity, [1, 2]).result()
    assert type(result) is list
    assert result == [1, 2]
    wait_until_empty(directory)


@pytest.mark.parametrize("how", ["list", "dict"])
def test_an_input_within_a_result_stays_valid(pool, any_store, directory, how):
    executor = wrap(pool, any_store, OnlyHere())
    result = executor.submit(nested, [1, 2], how).result()
    wait_until_empty(directory)
    inner = result[0] if how == "list" else result["x"]
    assert inner == [1, 2]
    assert pickle.loads(pickle.dumps(inner)) == [1, 2]


def test_an_input_within_a_stored_result_stays_valid(pool, any_store, directory):
    executor = wrap(pool, any_store)
    result = executor.submit(nested, [1, 2]).result()
    wait_until(lambda: count(directory) == 1)
    assert type(result) is OwnedProxy
    assert result[0] == [1, 2]
    del result
    wait_until_empty(directory)


def test_an_input_within_a_closure_stays_valid(threads, any_store, directory):
    executor = wrap(threads, any_store, OnlyHere())
    result = executor.submit(nested, [1, 2], "closure").result()
    wait_until_empty(directory)
    assert result() == [1, 2]


def test_an_input_that_a_global_holds_stays_valid(threads, any_store, directory):
    executor = wrap(threads, any_store)
    executor.submit(store_tasks.kept.append, [1, 2]).result()
    wait_until_empty(directory)
    assert store_tasks.kept.pop() == [1, 2]


def test_a_change_of_an_input_within_a_result_is_not_lost(pool, any_store, directory):
    executor = wrap(pool, any_store, OnlyHere())
    result = executor.submit(changed, [1]).result()
    wait_until_empty(directory)
    assert result["x"] == [1, 99]
    assert pickle.loads(pickle.dumps(result))["x"] == [1, 99]


def test_an_input_that_is_not_used_is_not_fetched(processes, store):
    fetched = []
    get = store.connector.get
    store.connector.get = lambda key: (fetched.append(key), get(key))[1]
    bare = Store("bare", store.connector, populate_target=False)
    with ThreadPoolExecutor(1) as pool:
        assert wrap(pool, bare).submit(is_there, [1]).result() is False
    assert not fetched
    assert wrap(processes, store).submit(is_there, [1]).result() is False


def test_an_input_that_the_call_stores_itself_stays_valid(pool, any_store, directory):
    executor = wrap(pool, any_store)
    result = executor.submit(changed_and_stored, [1], any_store.name).result()
    wait_until(lambda: count(directory) == 1)
    assert result["x"] == [1, 99]


def test_an_input_within_an_error_stays_valid(pool, any_store, directory):
    future = wrap(pool, any_store).submit(fail, [1])
    with pytest.raises(ValueError, match="failed on purpose") as caught:
        future.result()
    wait_until_empty(directory)
    assert caught.value.args[1] == [1]


def test_who_else_holds_an_argument_does_not_matter(any_store, directory):
    """Neither the caller that has not returned yet, nor one that returns meanwhile."""
    gate = Gate()

    class Entering(ThreadPoolExecutor):
        def submit(self, function, /, *args, **kwargs):
            future = super().submit(function, *args, **kwargs)
            assert gate.inside.acquire(timeout=30)
            return future

    with Entering(1) as threads:
        future = wrap(threads, any_store, OnlyHere()).submit(lambda x: (gate("a"), [x]), [1, 2])
        gate.go.set()
        _, (inner,) = future.result()
    wait_until_empty(directory)
    assert inner == [1, 2]


@pytest.mark.parametrize("ownership", [True, False])
def test_a_task_may_return_an_owned_proxy(pool, store, directory, ownership):
    executor = wrap(pool, store, ownership=ownership)
    result = executor.submit(owned, [1, 2], store.name).result()
    assert type(result) is OwnedProxy
    assert result == [1, 2]
    wait_until(lambda: count(directory) == 1)
    del result
    wait_until_empty(directory)


def test_a_result_that_nobody_asks_for_is_evicted(pool, store, directory):
    executor = wrap(pool, store)
    future = executor.submit(add, [1], [2])
    future.exception()
    wait_until(lambda: count(directory) == 1)
    del future
    wait_until_empty(directory)


# -- errors


def test_a_missing_object_is_an_error_and_the_pool_lives(processes, store):
    executor = wrap(processes, store)
    missing = store.proxy([1], populate_target=False)
    key = missing.__proxy_factory__.key
    store.evict(key)
    future = executor.submit(add, missing, [2])
    with pytest.raises(ProxyResolveError) as caught:
        future.result()
    assert type(caught.value.cause) is ProxyResolveMissingKeyError
    assert caught.value.cause.key == key
    with pytest.raises(ProxyResolveError):
        list(executor.map(add, [missing], [[2]]))
    assert executor.submit(add, [1], [2]).result() == [1, 2]


def test_a_result_that_cannot_be_stored_is_an_error(pool, store, directory):
    executor = wrap(pool, store)
    with pytest.raises(Exception, match="lock"):
        executor.submit(store_tasks.new_lock, [1]).result()
    wait_until_empty(directory)


def test_a_map_stops_at_the_first_failure(store, directory):
    gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        executor = wrap(pool, store)
        results = executor.map(lambda x: 1 / 0 if x == [0] else gate(x), [[0], [1], [2], [3]])
        with pytest.raises(ZeroDivisionError):
            next(results)
        gate.go.set()
    wait_until_empty(directory)


def test_a_timeout_is_for_the_whole_map(store, directory):
    gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        results = wrap(pool, store).map(gate, [[1], [2]], timeout=0.01)
        with pytest.raises(FutureTimeoutError):
            next(results)
        gate.go.set()
    wait_until_empty(directory)


def test_chunks_must_have_a_size(processes, store, directory):
    with pytest.raises(ValueError, match="chunksize must be 1 or more, got 0"):
        wrap(processes, store).map(len, [[1]], chunksize=0)
    assert not count(directory)


# -- stores that are not registered


def test_a_store_that_is_not_registered(pool, directory):
    store = new_store(directory, register=False, populate_target=False)
    executor = wrap(pool, store)
    assert [len(x) for x in executor.map(add, [[1], [2]], [[3], [4]])] == [2, 2]
    result = executor.submit(add, [1], [2]).result()
    assert result == [1, 2]
    del result
    wait_until_empty(directory)
    unregister_store(store)
    store.close()


def test_threads_use_the_very_store(threads):
    """One of the same name, made from its configuration, would not have the objects."""
    store = Store("in-memory", LocalConnector(), populate_target=False)
    executor = wrap(threads, store, ProxyType(list), ownership=False)
    result = executor.submit(lambda x, y: x + y, [1], [2]).result()
    assert store.get(result.__proxy_factory__.key) == [1, 2]
    assert get_store("in-memory") is None


# -- shutting down


def test_nothing_is_taken_after_shutdown(store, directory):
    executor = wrap(ThreadPoolExecutor(1), store)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(len, [1])
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(len, [[1]])
    assert not count(directory)
    executor.shutdown()


def test_the_store_is_closed_when_the_last_call_is_done(directory):
    store = new_store(directory, populate_target=False, cache_size=0)
    gate = Gate()
    executor = wrap(ThreadPoolExecutor(1), store, ProxyType(list), close_store=True)
    futures = [executor.submit(gate, [1]), executor.submit(gate, [1, 2])]
    assert gate.inside.acquire(timeout=30)
    executor.shutdown(wait=False)
    executor.shutdown(wait=False)
    assert get_store(store.name) is store
    gate.go.set()
    assert [future.result() for future in futures] == [1, 2]
    wait_until(lambda: get_store(store.name) is None)


def test_cancelled_calls_do_not_keep_the_store_open(directory):
    store = new_store(directory)
    gate = Gate()
    executor = wrap(ThreadPoolExecutor(1), store, ProxyType(list), close_store=True)
    futures = [executor.submit(gate, [1]) for _ in range(3)]
    assert gate.inside.acquire(timeout=30)
    executor.shutdown(wait=False, cancel_futures=True)
    assert [future.cancelled() for future in futures] == [False, True, True]
    gate.go.set()
    wait_until(lambda: get_store(store.name) is None)


def test_the_store_is_closed_once(directory):
    closed = []

    class Closing(LocalConnector):
        def close(self):
            closed.append(True)

    store = Store("once", Closing())
    with StoreExecutor(ThreadPoolExecutor(1), store) as executor:
        executor.shutdown()
    assert closed == [True]


def test_the_store_is_closed_although_the_executor_fails(store):
    class Failing(Executor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            raise OSError("cannot shut down")

    with pytest.raises(OSError, match="cannot shut down"):
        StoreExecutor(Failing(), store).shutdown()
    assert get_store(store.name) is None


def test_an_executor_that_knows_no_cancel_futures(store):
    class Old(Executor):
        shut = None

        def shutdown(self, wait=True):
            self.shut = wait

    pool = Old()
    wrap(pool, store).shutdown(wait=False)
    assert pool.shut is False
    with pytest.raises(TypeError):
        wrap(pool, store).shutdown(cancel_futures=True)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_results_that_outlive_the_store_bring_nothing_back(directory, kind):
    store = new_store(directory)
    name = store.name
    if kind == "threads":
        pool = ThreadPoolExecutor(1)
    else:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with StoreExecutor(pool, store, ProxyAlways()) as executor:
        used, unused = [executor.submit(add, [1], [2]).result() for _ in range(2)]
        assert used == [1, 2]
    del executor, pool, store
    gc.collect()
    assert used == [1, 2]
    del used, unused
    gc.collect()
    assert get_store(name) is None
    assert not directory.exists()


# -- Dask


@pytest.mark.dask
def test_dask_with_threads(store, directory):
    distributed = pytest.importorskip("distributed")
    from dask.tokenize import tokenize

    with distributed.Client(
        processes=False,
        n_workers=1,
        threads_per_worker=2,
        dashboard_address=":0",
        set_as_default=False,
    ) as client:
        executor = wrap(client, store, ProxyType(list), ownership=False)
        future = executor.submit(add, [1], [2])
        assert type(future) is distributed.Future
        assert future.key.startswith("add-")
        assert future.result() == [1, 2]
        assert type(future.result()) is Proxy
        assert executor.submit(len, future).result() == 2, "a future stands for its result"
        assert [list(x) for x in executor.map(add, [[1], [2]], [[3], [4]])] == [[1, 3], [2, 4]]
        assert list(executor.map(add, [1, 1], [2, 2])) == [3, 3], "two futures of one key"
        same = [executor.submit(add, 1, 2) for _ in range(2)]
        assert same[0].key == same[1].key
        assert tokenize(executor._task(add)) == tokenize(executor._task(add))
        wait_until(lambda: count(directory) == 3)
        through = wrap(client.get_executor(), store, ProxyType(list))
        assert list(through.map(len, [[1], [2, 3]])) == [1, 2]
        assert through.submit(len, [1]).result() == 1
        through.shutdown()
        wait_until(lambda: count(directory) == 3)
        executor.shutdown()
        assert client.status == "closed"
