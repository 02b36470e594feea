"""The executor that passes arguments and results through a store."""

from __future__ import annotations

import gc
import multiprocessing
import operator
import pickle
import sys
import threading
import uuid
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in from 3.11 on
from functools import partial
from pathlib import Path

import pytest
from waiting import wait_until

from proxystore.connectors.file import FileConnector
from proxystore.proxy import Proxy
from proxystore.store import Store, get_store, unregister_store
from proxystore.store.executor import ProxyAlways, ProxyNever, ProxyType, StoreExecutor
from proxystore.store.ref import OwnedProxy

# Processes get the search path of the one that starts them.
sys.path.insert(0, str(Path(__file__).parent.parent / "store" / "importable"))
from store_tasks import add, fail, id_of_store, identity, which_are_proxies


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
def directory(tmp_path):
    return tmp_path / "objects"


@pytest.fixture
def store(directory):
    name = f"executor-{uuid.uuid4().hex[:8]}"
    with Store(name, FileConnector(directory), register=True) as store:
        yield store


class Recording(Executor):
    """Runs each call at once, and remembers how it was called."""

    def __init__(self):
        self.submitted = []
        self.mapped = []
        self.shut = []

    def submit(self, function, /, *args, **kwargs):
        self.submitted.append((function, args, kwargs))
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - raised by whoever asks for the result
            future.set_exception(error)
        return future

    def map(self, function, *iterables, **kwargs):
        self.mapped.append((function, kwargs))
        return map(function, *iterables)

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.shut.append((wait, cancel_futures))


class Client:
    """Like Dask's client: has submit, map and close, and its map gives futures."""

    def __init__(self, workers=2):
        self._pool = ThreadPoolExecutor(workers)
        self.timeouts = []

    def submit(self, function, *args, **kwargs):
        return self._pool.submit(function, *args, **kwargs)

    def map(self, function, *iterables, timeout=None):
        futures = [self.submit(function, *args) for args in zip(*iterables, strict=True)]
        for future in futures:
            future.result = self._noting(future.result)
        return futures

    def _noting(self, result):
        def noting(timeout=None):
            self.timeouts.append(timeout)
            return result(timeout)

        return noting

    def close(self):
        self._pool.shutdown()


def wrap(pool, store, should_proxy=None, **options):
    return StoreExecutor(pool, store, should_proxy, **{"close_store": False, **options})


def is_empty(directory):
    return not list(directory.iterdir())


# -- 15.1 should-proxy callables


def test_always_and_never():
    for item in (None, True, 1, [], "a"):
        assert ProxyAlways()(item) is True
        assert ProxyNever()(item) is False


def test_by_type():
    policy = ProxyType(str, list)
    assert policy.types == (str, list)
    assert policy("a") is True
    assert policy([]) is True
    assert policy(1) is False
    assert not ProxyType()(1)


@pytest.mark.parametrize("policy", [ProxyAlways(), ProxyNever(), ProxyType(str, int)], ids=str)
def test_they_travel(policy):
    arrived = pickle.loads(pickle.dumps(policy))
    assert type(arrived) is type(policy)
    assert [arrived(x) for x in ("a", 1, [])] == [policy(x) for x in ("a", 1, [])]


def test_any_picklable_callable_will_do(processes, store):
    executor = wrap(processes, store, partial(operator.eq, "a"))
    assert type(executor.submit(identity, "a").result()) is OwnedProxy
    assert type(executor.submit(identity, "b").result()) is str


# -- 15.2 StoreExecutor


def test_attributes_and_defaults(store):
    pool, policy = Recording(), ProxyAlways()
    executor = StoreExecutor(pool, store)
    assert isinstance(executor, Executor)
    assert (executor.executor, executor.store) == (pool, store)
    assert type(executor.should_proxy) is ProxyNever
    assert (executor.ownership, executor.close_store) == (True, True)
    executor = StoreExecutor(pool, store, policy, ownership=False, close_store=False)
    assert executor.should_proxy is policy
    assert (executor.ownership, executor.close_store) == (False, False)
    with pytest.raises(TypeError):
        StoreExecutor(pool, store, policy, False)


def test_nothing_is_proxied_by_default(pool, store, directory):
    executor = wrap(pool, store)
    assert executor.submit(which_are_proxies, "a", x=[1]).result() == ()
    assert type(executor.submit(add, [1], [2]).result()) is list
    assert list(executor.map(which_are_proxies, ["a", "b"])) == [(), ()]
    assert is_empty(directory)


def test_positional_and_keyword_arguments_are_proxied_if_decided_so(pool, store):
    executor = wrap(pool, store, ProxyType(str))
    found = executor.submit(which_are_proxies, "a", 1, "b", x="c", y=["d"], z=2).result()
    assert found == ("0", "2", "x")


def test_a_parameter_may_be_called_anything(pool, store):
    executor = wrap(pool, store, ProxyType(str))
    names = {"function": "a", "self": "b", "fn": "c"}
    assert executor.submit(which_are_proxies, **names).result() == tuple(names)


def test_containers_are_not_looked_into(pool, store):
    executor = wrap(pool, store, ProxyType(str))
    (arg,) = executor.submit(identity, ["a"]).result()
    assert type(arg) is str


def test_a_proxy_is_passed_as_it_is_and_not_evicted(pool, store):
    executor = wrap(pool, store, ProxyAlways())
    proxy = store.proxy([1])
    result = executor.submit(identity, proxy).result()
    assert type(result) is Proxy
    assert result.__proxy_factory__.key == proxy.__proxy_factory__.key
    assert executor.submit(which_are_proxies, proxy, x=proxy).result() == ("0", "x")
    assert result == [1]
    assert store.exists(proxy.__proxy_factory__.key)


def test_submit_returns_the_executors_future(store):
    returned = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            returned.append(super().submit(*args, **kwargs))
            return returned[-1]

    with wrap(Pool(1), store, ProxyAlways()) as executor:
        assert executor.submit(identity, "a") is returned[0]


@pytest.mark.parametrize("function", [which_are_proxies, fail])
def test_inputs_are_evicted_when_the_future_is_done(pool, store, directory, function):
    executor = wrap(pool, store, ProxyType(str))
    future = executor.submit(function, "a")
    assert future.exception() is None or function is fail
    wait_until(lambda: is_empty(directory))


@pytest.mark.parametrize(("ownership", "kind"), [(True, OwnedProxy), (False, Proxy)])
def test_results_are_proxied_where_the_function_runs(pool, store, ownership, kind):
    executor = wrap(pool, store, ProxyType(list), ownership=ownership)
    result = executor.submit(add, [1], [2]).result()
    assert type(result) is kind
    assert isinstance(result, Proxy)
    assert result == [1, 2]
    assert type(executor.submit(add, "a", "b").result()) is str
    (result,) = executor.map(add, [[1]], [[2]])
    assert type(result) is kind


@pytest.mark.parametrize("ownership", [True, False])
def test_a_result_that_is_a_proxy_is_not_proxied_again(pool, store, ownership):
    executor = wrap(pool, store, ProxyAlways(), ownership=ownership)
    proxy = store.proxy("a")
    assert type(executor.submit(identity, proxy).result()) is Proxy


def test_the_worker_finds_the_store_by_its_name_or_makes_it_once(processes, directory):
    store = Store(f"unregistered-{uuid.uuid4().hex[:8]}", FileConnector(directory))
    executor = wrap(processes, store, ProxyType(list))
    found = {executor.submit(id_of_store, [1], store.name).result() for _ in range(3)}
    assert len(found) == 1
    store.close()
    unregister_store(store)


@pytest.mark.parametrize("obj", [None, True, False])
def test_none_and_bools_pass(pool, store, obj, directory):
    executor = wrap(pool, store, ProxyAlways())
    assert executor.submit(identity, obj).result() is obj
    assert list(executor.map(identity, [obj])) == [obj]
    assert is_empty(directory)


def test_map_gives_results_lazily_and_in_order(pool, store, directory):
    executor = wrap(pool, store, ProxyType(str))
    results = executor.map(add, ["a", "b", "c"], ["1", "2", "3"])
    assert iter(results) is results
    assert [next(results), *results] == ["a1", "b2", "c3"]
    del results
    gc.collect()
    wait_until(lambda: is_empty(directory))


def test_arguments_of_map_go_to_the_wrapped_map(store):
    pool = Recording()
    executor = wrap(pool, store, ProxyAlways())
    assert list(executor.map(add, ["a"], ["b"], timeout=5, chunksize=7, other=1)) == ["ab"]
    assert pool.mapped[0][1] == {"timeout": 5, "chunksize": 7, "other": 1}


def test_inputs_of_another_map_are_evicted_when_it_is_exhausted(store, directory):
    executor = wrap(Recording(), store, ProxyType(list))
    results = executor.map(len, [[1], [2]])
    assert next(results) == 1
    assert not is_empty(directory)
    assert list(results) == [1]
    assert is_empty(directory)


def test_futures_of_a_map_become_their_results(store, directory):
    client = Client()
    with wrap(client, store, ProxyType(list)) as executor:
        results = executor.map(add, [[1], [2]], [[3], [4]], timeout=30)
        assert [list(x) for x in results] == [[1, 3], [2, 4]]
        assert client.timeouts == [30, 30]
        assert list(executor.map(len, [[1, 2]])) == [2]
        assert client.timeouts[-1] is None
        assert list(executor.map(add, [], [])) == []
    gc.collect()
    wait_until(lambda: is_empty(directory))


def test_a_timeout_of_a_map(store):
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        executor = wrap(pool, store, ProxyAlways())
        results = executor.map(go.wait, [30], timeout=0.01)
        with pytest.raises(FutureTimeoutError):
            next(results)
        go.set()


@pytest.mark.parametrize("arguments", [{}, {"wait": False}, {"cancel_futures": True}], ids=str)
def test_an_executor_is_shut_down_as_told(store, arguments):
    pool = Recording()
    wrap(pool, store).shutdown(**arguments)
    assert pool.shut == [(arguments.get("wait", True), arguments.get("cancel_futures", False))]


def test_a_client_is_closed(store):
    client = Client()
    wrap(client, store).shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError):
        client.submit(len, "a")


def test_what_cannot_be_shut_down_is_warned_of(store):
    class Odd:
        def submit(self):
            raise NotImplementedError

    with pytest.warns(RuntimeWarning, match="Cannot shutdown Odd"):
        StoreExecutor(Odd(), store).shutdown()
    assert get_store(store.name) is None, "the store is closed all the same"


@pytest.mark.parametrize("close_store", [True, False])
def test_the_store_is_closed_unless_told_otherwise(store, close_store):
    StoreExecutor(Recording(), store, close_store=close_store).shutdown()
    assert (get_store(store.name) is None) is close_store


def test_the_store_is_closed_after_the_executor(store):
    class Pool(Recording):
        def shutdown(self, *args, **kwargs):
            assert get_store(store.name) is store
            super().shutdown(*args, **kwargs)

    StoreExecutor(Pool(), store).shutdown()
    assert get_store(store.name) is None


def test_it_is_a_context(store):
    pool = Recording()
    with StoreExecutor(pool, store) as executor:
        assert type(executor) is StoreExecutor
        assert not pool.shut
    assert pool.shut == [(True, False)]
    assert get_store(store.name) is None


def test_equal_functions_are_wrapped_alike(store):
    """So that a client can tell that it has been given the same call before."""
    pool = Recording()
    executor = wrap(pool, store, ProxyType(list))
    for function in (add, add, len):
        executor.submit(function, *[[1]] * (2 if function is add else 1))
    first, again, other = (function for function, _, _ in pool.submitted)
    assert first == again != other
    assert hash(first) == hash(again)


def test_a_client_like_dasks(store, directory):
    with wrap(Client(), store, ProxyAlways()) as executor:
        result = executor.submit(add, [1], y=[2]).result()
        assert type(result) is OwnedProxy
        assert result == [1, 2]
        assert [list(x) for x in executor.map(add, [[1]], [[2]])] == [[1, 2]]
        del result
    gc.collect()
    wait_until(lambda: is_empty(directory))


@pytest.mark.dask
def test_a_dask_client_of_processes(store, directory):
    distributed = pytest.importorskip("distributed")
    client = distributed.Client(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", set_as_default=False
    )
    with StoreExecutor(client, store, ProxyType(list), close_store=False) as executor:
        assert executor.submit(which_are_proxies, [1], 2, x=[3]).result() == ("0", "x")
        result = executor.submit(add, [1], y=[2]).result()
        assert type(result) is OwnedProxy
        assert result == [1, 2]
        assert [list(x) for x in executor.map(add, [[1], [2]], [[3], [4]])] == [[1, 3], [2, 4]]
        with pytest.raises(ValueError, match="failed on purpose"):
            executor.submit(fail, [1]).result()
        del result
        gc.collect()
        wait_until(lambda: is_empty(directory))
    assert client.status == "closed"


@pytest.mark.parametrize("populate_target", [True, False])
def test_nothing_is_left_once_results_are_dropped(pool, directory, populate_target):
    name = f"nothing-left-{uuid.uuid4().hex[:8]}"
    with Store(
        name, FileConnector(directory), register=True, populate_target=populate_target
    ) as store:
        executor = wrap(pool, store, ProxyAlways())
        futures = [executor.submit(add, [i], [1]) for i in range(3)]
        results = [future.result() for future in futures]
        results += executor.map(add, [[0], [1], [2]], [[1], [1], [1]])
        for i, result in enumerate(results):
            assert isinstance(result, Proxy)
            assert result == [i % 3, 1]
        assert not is_empty(directory)
        del futures, results, result
        gc.collect()
        wait_until(lambda: is_empty(directory))


def test_what_the_function_raises_comes_home(pool, store, directory):
    executor = wrap(pool, store, ProxyType(list))
    with pytest.raises(ValueError, match="failed on purpose") as caught:
        executor.submit(fail, [1]).result()
    wait_until(lambda: is_empty(directory))
    assert caught.value.args[1] == [1], "although it was evicted"
    with pytest.raises(ValueError, match="failed on purpose"):
        list(executor.map(fail, [[1]]))
