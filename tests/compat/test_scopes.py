"""Contract, section 14: a borrow that ends with the task it was submitted to."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import operator
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.factory import SimpleFactory
from proxystore.proxy import extract, is_resolved
from proxystore.store import Store
from proxystore.store.ref import (
    ReferenceInvalidError,
    RefMutProxy,
    RefProxy,
    borrow,
    clone,
    mut_borrow,
    update,
)
from proxystore.store.scopes import FutureWithCallback, mark_refs_out_of_scope, submit
from proxystore.store.utils import get_key


@pytest.fixture
def store():
    with Store("scopes", LocalConnector(), register=True) as made:
        yield made


@pytest.fixture
def file_store(tmp_path):
    with Store("scopes-files", FileConnector(tmp_path / "objects"), register=True) as made:
        yield made


@pytest.fixture
def pool():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as made:
        yield made


def get(ref, slot):
    return object.__getattribute__(ref, f"__proxy_{slot}__")


def counts(owner):
    return get(owner, "ref_count"), get(owner, "ref_mut_count")


def wait_for_callbacks(future):
    """Return once the callbacks added so far have run: they run in the order of adding."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(30)


class Pending:
    """Submits nothing; the future of each call is done when told to."""

    def __init__(self):
        self.calls = []

    def submit(self, *args, **kwargs):
        future = Future()
        self.calls.append((args, kwargs, future))
        return future


# -- FutureWithCallback


def test_what_is_a_future():
    class Mine:
        def add_done_callback(self, callback):
            """Do nothing."""

    async def of_asyncio():
        return asyncio.get_running_loop().create_future()

    assert isinstance(Future(), FutureWithCallback)
    assert isinstance(asyncio.run(of_asyncio()), FutureWithCallback)
    assert isinstance(Mine(), FutureWithCallback)
    assert not isinstance(object(), FutureWithCallback)


# -- mark_refs_out_of_scope


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
def test_marking_ends_a_borrow(store, lend):
    owner = store.owned_proxy([1])
    ref = lend(owner)
    mark_refs_out_of_scope(ref)
    assert counts(owner) == (0, 0)
    assert get(ref, "owner") is None
    assert get(ref, "valid") is False
    with pytest.raises(ReferenceInvalidError, match="out of scope"):
        len(ref)
    again = mut_borrow(owner)
    assert counts(owner) == (0, 1)
    del ref
    assert counts(owner) == (0, 1), "what has ended is not given back twice"
    del again


def test_marking_several(store):
    owner, other = store.owned_proxy([1]), store.owned_proxy([2])
    first, second, third = borrow(owner), borrow(owner), mut_borrow(other)
    mark_refs_out_of_scope(first, third)
    assert (counts(owner), counts(other)) == ((1, 0), (0, 0))
    mark_refs_out_of_scope(second)
    assert counts(owner) == (0, 0)
    mark_refs_out_of_scope()


def test_marking_twice_counts_once(store):
    owner = store.owned_proxy([1])
    ref, other = borrow(owner), borrow(owner)
    mark_refs_out_of_scope(ref, ref)
    mark_refs_out_of_scope(ref)
    assert counts(owner) == (1, 0)
    assert other == [1]


@pytest.mark.parametrize("kind", [RefProxy, RefMutProxy])
def test_a_reference_without_an_owner_cannot_be_marked(kind):
    ref = kind(SimpleFactory([1]))
    with pytest.raises(RuntimeError, match="no reference to its owner"):
        mark_refs_out_of_scope(ref)
    assert ref == [1]


def test_a_reference_that_was_pickled_is_given_back_by_marking(store):
    owner = store.owned_proxy([1])
    ref = borrow(owner)
    ref.__reduce__()
    assert counts(owner) == (1, 0), "whoever has it may be reading"
    mark_refs_out_of_scope(ref)
    mark_refs_out_of_scope(ref)
    del ref
    assert counts(owner) == (0, 0)


# -- submit


def test_submit_passes_on_what_it_is_given(store):
    pending = Pending()
    future = submit(pending.submit, args=(sum, [1]), kwargs={"start": 2})
    assert pending.calls == [((sum, [1]), {"start": 2}, future)]
    assert submit(pending.submit) is pending.calls[1][2]


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
def test_a_borrow_ends_with_the_task(store, lend):
    pending = Pending()
    owner = store.owned_proxy([1])
    ref = lend(owner)
    future = submit(pending.submit, args=(sum, ref))
    assert ref == [1]
    assert counts(owner) != (0, 0)
    future.set_result(1)
    assert counts(owner) == (0, 0)
    with pytest.raises(ReferenceInvalidError):
        len(ref)


@pytest.mark.parametrize("end", ["exception", "cancel"])
def test_a_borrow_ends_with_a_task_that_fails(store, end):
    pending = Pending()
    owner = store.owned_proxy([1])
    future = submit(pending.submit, args=(sum, borrow(owner)))
    assert counts(owner) == (1, 0)
    future.set_exception(ValueError()) if end == "exception" else future.cancel()
    assert counts(owner) == (0, 0)


def test_borrows_are_found_in_keywords_and_where_they_are_named(store):
    pending = Pending()
    owner = store.owned_proxy([1])
    positional, keyword, custom, nested = (borrow(owner) for _ in range(4))
    future = submit(
        pending.submit,
        args=(sum, positional, [nested]),
        kwargs={"ref": keyword, "other": 1},
        register_custom_refs=iter([custom, "no reference"]),
    )
    future.set_result(None)
    assert counts(owner) == (1, 0)
    assert nested == [1]
    for ref in (positional, keyword, custom):
        assert get(ref, "valid") is False


def test_other_proxies_are_left_alone(store):
    pending = Pending()
    owner, proxy = store.owned_proxy([1]), store.proxy([2])
    future = submit(pending.submit, args=(owner, proxy), register_custom_refs=[owner, proxy])
    future.set_result(None)
    assert owner == [1]
    assert proxy == [2]
    assert get(owner, "valid") is True


def test_submit_resolves_nothing(store):
    pending = Pending()
    owner = store.owned_proxy([1], populate_target=False)
    proxy, ref = store.proxy([2], populate_target=False), borrow(owner)
    submit(pending.submit, args=(owner, proxy, ref), kwargs={"p": proxy}).set_result(None)
    assert not any(map(is_resolved, (owner, proxy, ref)))


def test_a_custom_reference_may_be_an_argument_too(store):
    pending = Pending()
    owner = store.owned_proxy([1])
    ref, other = borrow(owner), borrow(owner)
    submit(pending.submit, args=(ref,), register_custom_refs=[ref]).set_result(None)
    assert counts(owner) == (1, 0)
    assert other == [1]


def test_nothing_ends_if_submitting_fails(store):
    def fail(*args):
        raise OSError("no pool")

    owner = store.owned_proxy([1])
    ref = borrow(owner)
    with pytest.raises(OSError, match="no pool"):
        submit(fail, args=(ref,))
    assert ref == [1]
    assert counts(owner) == (1, 0)


def test_what_is_no_future_is_an_error(store):
    ref = borrow(store.owned_proxy([1]))
    with pytest.raises(TypeError, match="add_done_callback"):
        submit(lambda ref: None, args=(ref,))


def test_a_reference_from_elsewhere_ends_with_its_task(caplog):
    pending = Pending()
    ref = RefProxy(SimpleFactory([1]))
    submit(pending.submit, args=(ref,)).set_result(None)
    assert get(ref, "valid") is False
    assert not caplog.records


def test_a_future_that_is_kept_keeps_no_owner_alive(store):
    pending = Pending()
    owner = store.owned_proxy([1])
    future = submit(pending.submit, args=(borrow(owner),))
    pending.calls.clear()
    future.set_result(None)
    del owner
    assert not list(store.connector.keys())


# -- real executors


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
def test_in_a_process(file_store, pool, lend):
    owner = file_store.owned_proxy([1, 2, 3])
    ref = lend(owner)
    future = submit(pool.submit, args=(sum, ref))
    assert future.result(60) == 6
    wait_for_callbacks(future)
    with pytest.raises(ReferenceInvalidError):
        len(ref)
    # While both the reference and the future are still here.
    assert counts(owner) == (0, 0)
    writer = mut_borrow(owner)
    assert writer == [1, 2, 3]


def test_in_a_process_that_updates(file_store, pool):
    owner = file_store.owned_proxy([1, 2, 3], populate_target=False)

    def there(function, ref, *args):
        future = submit(pool.submit, args=(function, ref, *args))
        result = future.result(60)
        wait_for_callbacks(future)
        return result

    assert there(operator.itemgetter(0), borrow(owner)) == 1  # its cache has the object now
    writer = mut_borrow(owner)
    writer[0] = 10
    update(writer)
    del writer
    assert there(operator.itemgetter(0), borrow(owner)) == 10
    assert owner[0] == 10


def test_in_a_thread(store):
    owner = store.owned_proxy([1, 2, 3])
    ref = borrow(owner)
    with ThreadPoolExecutor(1) as threads:
        future = submit(threads.submit, args=(sum, ref))
        assert future.result(30) == 6
        wait_for_callbacks(future)
    with pytest.raises(ReferenceInvalidError):
        len(ref)
    assert counts(owner) == (0, 0)


def test_in_asyncio(store):
    owner = store.owned_proxy([1, 2, 3])

    async def main():
        loop = asyncio.get_running_loop()
        ref = borrow(owner)
        future = submit(loop.run_in_executor, args=(None, sum, ref))
        assert await future == 6
        while counts(owner) != (0, 0):  # callbacks run in the loop
            await asyncio.sleep(0)
        assert get(ref, "valid") is False

    asyncio.run(main())


def test_owners_that_only_their_tasks_keep_alive(file_store, pool):
    futures = [
        submit(pool.submit, args=(sum, borrow(file_store.owned_proxy([i])))) for i in range(5)
    ]
    assert [future.result(60) for future in futures] == list(range(5))
    for future in futures:
        wait_for_callbacks(future)
    gc.collect()
    assert not list(file_store.connector.keys())


@pytest.mark.parametrize(
    ("protocol", "processes"),
    [("inproc", False), ("tcp", False), pytest.param("tcp", True, marks=pytest.mark.dask)],
)
def test_in_dask(file_store, protocol, processes):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            1, processes=processes, protocol=protocol, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        owner = file_store.owned_proxy([1, 2, 3])
        for version in range(3):  # another object each time, under the same key
            ref = borrow(owner)
            future = submit(client.submit, args=(sum, ref))
            assert future.result(60) == 6 + version
            wait_for_callbacks(future)
            assert counts(owner) == (0, 0)
            with pytest.raises(ReferenceInvalidError):
                len(ref)
            owner[0] += 1
            update(owner)


# -- what is written elsewhere


def add(ref):
    ref.append(99)
    update(ref)


def test_an_owner_sees_what_another_process_has_written(file_store, pool):
    owner = file_store.owned_proxy([1, 2, 3])
    key = get_key(owner)
    future = submit(pool.submit, args=(add, mut_borrow(owner)))
    future.result(60)
    assert list(owner) == [1, 2, 3, 99], "also before the borrow has ended"
    wait_for_callbacks(future)
    assert list(owner) == [1, 2, 3, 99]
    update(owner)
    assert file_store.get(key, cache=False) == [1, 2, 3, 99], "nothing stale is written back"
    assert clone(owner) == [1, 2, 3, 99]
    # A second time: the worker, and the store here, have cached what was there before.
    assert file_store.get(key) == [1, 2, 3, 99]
    wait_for_callbacks(submit(pool.submit, args=(add, mut_borrow(owner))))
    here = borrow(owner)
    assert submit(pool.submit, args=(list, borrow(owner))).result(60) == here
    assert here == clone(owner) == [1, 2, 3, 99, 99]


def test_threads_share_the_target_of_the_owner(store):
    owner = store.owned_proxy([1])
    target = extract(owner)
    with ThreadPoolExecutor(1) as threads:
        future = submit(threads.submit, args=(list.append, mut_borrow(owner), 2))
        # `append` is C code, and takes no proxy.
        with pytest.raises(TypeError):
            future.result(30)
        future = submit(threads.submit, args=(add, mut_borrow(owner)))
        future.result(30)
        wait_for_callbacks(future)
    assert extract(owner) is target
    assert target == [1, 99]
