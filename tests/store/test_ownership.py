"""Ownership beyond the contract: threads, processes, cycles, and stores that went before."""

from __future__ import annotations

import atexit
import contextlib
import copy
import gc
import multiprocessing
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ProcessPoolExecutor

import cloudpickle
import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.factory import SimpleFactory
from proxystore.proxy import Proxy, ProxyResolveError, is_resolved
from proxystore.store import Store, _stores, get_store, unregister_store
from proxystore.store import ref as ref_module
from proxystore.store.config import ConnectorConfig, StoreConfig
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.store.factory import StoreFactory
from proxystore.store.ref import (
    MutableBorrowError,
    OwnedProxy,
    ReferenceInvalidError,
    ReferenceNotOwnedError,
    RefProxy,
    borrow,
    clone,
    into_owned,
    mut_borrow,
    update,
)
from proxystore.store.scopes import mark_refs_out_of_scope
from proxystore.store.utils import get_key


@pytest.fixture
def store():
    with Store("ownership", LocalConnector(), register=True) as made:
        yield made


@pytest.fixture
def file_store(tmp_path):
    with Store("ownership-files", FileConnector(tmp_path / "objects"), register=True) as made:
        yield made


@pytest.fixture
def no_gc():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def counts(owner):
    return owner.__proxy_ref_count__, owner.__proxy_ref_mut_count__


def run(code, *args):
    """Run code in a process of its own and return what it prints; it may not complain."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


ERRORS = [
    MutableBorrowError("borrow", 0, 1),
    ReferenceNotOwnedError("clone", "Proxy", "an OwnedProxy"),
    ReferenceInvalidError("RefProxy of LocalKey(id='x')", "it was pickled"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_errors_travel_between_processes(error, pickler):
    again = pickle.loads(pickler.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


# -- a borrow that was pickled is given back exactly once


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
@pytest.mark.parametrize("how", ["marked", "dropped", "both"])
def test_a_borrow_that_was_pickled_is_given_back_once(store, lend, how):
    owner = store.owned_proxy([1])
    ref = lend(owner)
    there = pickle.loads(pickle.dumps(ref))
    assert counts(owner) != (0, 0), "somebody still uses it"
    if how != "dropped":
        mark_refs_out_of_scope(ref)
        assert counts(owner) == (0, 0)
    if how != "marked":
        del ref
    assert counts(owner) == (0, 0)
    del there
    assert counts(owner) == (0, 0)
    assert mut_borrow(owner) == [1]


def test_a_pickler_may_need_a_second_attempt(store):
    class Unpicklable:
        def __reduce__(self):
            raise TypeError("not this time")

    owner = store.owned_proxy([1])
    key = get_key(owner)
    with pytest.raises(TypeError, match="not this time"):
        pickle.dumps([owner, Unpicklable()])
    moved = pickle.loads(cloudpickle.dumps([owner, lambda: 1]))[0]
    del owner
    assert moved == [1]
    assert isinstance(moved, list)
    del moved
    assert not store.exists(key)


@pytest.mark.parametrize("end", ["marked", "destroyed"])
def test_a_reference_that_has_ended_cannot_be_sent(store, end):
    ref = borrow(store.owned_proxy([1]))
    mark_refs_out_of_scope(ref) if end == "marked" else ref.__del__()
    with pytest.raises(ReferenceInvalidError):
        pickle.dumps(ref)


# -- one owner


def test_of_two_owners_in_one_process_the_second_is_invalid(store):
    owner = store.owned_proxy([1])
    key, data = get_key(owner), pickle.dumps(owner)
    first, second = pickle.loads(data), pickle.loads(data)
    with pytest.raises(ReferenceInvalidError, match="unpickled twice"):
        len(second)
    with pytest.raises(ReferenceInvalidError, match="unpickled twice"):
        pickle.dumps(second)
    del second
    assert first == [1]
    assert store.exists(key)
    del first
    assert not store.exists(key)


def test_an_owner_may_come_and_go(store):
    owner = store.owned_proxy([1])
    data = pickle.dumps(owner)
    for _ in range(3):
        owner = pickle.loads(pickle.dumps(pickle.loads(data)))
        assert owner == [1]
        data = pickle.dumps(owner)
    owner = pickle.loads(data)
    late = pickle.loads(data)
    with pytest.raises(ReferenceInvalidError):
        len(late)
    assert owner == [1]


def test_nothing_is_remembered_of_owners_that_have_gone(store):
    owner = pickle.loads(pickle.dumps(store.owned_proxy([1])))
    assert list(ref_module._arrived) == [get_key(owner)]
    owner = pickle.loads(pickle.dumps(owner))
    assert list(ref_module._arrived) == [get_key(owner)]
    data = pickle.dumps(owner)
    assert not ref_module._arrived
    owner = pickle.loads(data)
    del owner
    assert not ref_module._arrived


def test_of_two_owners_in_two_processes_the_second_dies_in_silence(file_store, tmp_path, caplog):
    path = tmp_path / "pickle"
    path.write_bytes(pickle.dumps(file_store.owned_proxy([1])))
    here = pickle.loads(path.read_bytes())
    code = (
        "import pickle, pathlib, sys; print(pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()))"
    )
    assert run(code, path) == "[1]\n"
    with pytest.raises(ProxyResolveError) as caught:
        len(here)
    assert isinstance(caught.value.cause, ProxyResolveMissingKeyError)
    del here
    assert not caplog.records


def test_a_hash_that_is_salted_does_not_travel(file_store, tmp_path):
    (tmp_path / "pickle").write_bytes(pickle.dumps(file_store.owned_proxy("text")))
    code = """if True:
        import pickle, sys
        with open(sys.argv[1], "rb") as file:
            owner = pickle.load(file)
        print(isinstance(owner, str), hash(owner) == hash("text"), {"text": 1}[owner])
    """
    assert run(code, tmp_path / "pickle") == "True True 1\n"


def test_another_wording_of_the_pickle_may_have_four_parts(store):
    key = store.put([1])
    function, _ = store.owned_proxy([1]).__reduce__()
    owner = function("OwnedProxy", StoreFactory(key, store.config()))
    assert type(owner) is OwnedProxy
    assert owner == [1]


def test_a_subclass_is_not_pickled_as_something_else(store):
    class Mine(RefProxy):
        pass

    ref = Mine(SimpleFactory([1]))
    with pytest.raises(TypeError, match="Mine"):
        pickle.dumps(ref)
    assert ref == [1]


# -- eviction uses what is there, and makes nothing


def test_an_owner_of_an_unregistered_store_evicts_from_that():
    store = Store("never-registered", LocalConnector())
    owner, taken = store.owned_proxy([1]), into_owned(store.proxy([2]))
    cloned = clone(owner)
    owner.append(3)
    update(owner)
    assert store.get(get_key(owner)) == [1, 3]
    assert len(list(store.connector.keys())) == 3
    del owner, taken, cloned
    assert not list(store.connector.keys())
    assert get_store("never-registered") is None


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("clear", [True, False])
def test_an_owner_does_not_bring_a_closed_store_back(tmp_path, keep, moved, clear):
    directory = tmp_path / "objects"
    store = Store("closed", FileConnector(directory, clear=clear), register=True)
    owner, other = store.owned_proxy([1]), store.put([2])
    if moved:
        owner = pickle.loads(pickle.dumps(owner))
    store.close()
    assert directory.exists() is not clear
    if not keep:
        gone = weakref.ref(store)
        del store
        assert gone() is None, "an owner keeps no store alive"
    del owner
    assert "closed" not in _stores
    left = [entry.name for entry in tmp_path.rglob("*")]
    assert sorted(left) == ([] if clear else sorted(["objects", other[0]]))


def test_an_owner_that_came_finds_the_store_when_it_is_not_registered_any_more():
    store = Store("unregistered", LocalConnector(), register=True)
    owner = pickle.loads(pickle.dumps(store.owned_proxy([1])))
    store.close()
    assert list(store.connector.keys())
    del owner
    assert not list(store.connector.keys())


def test_an_owner_evicts_where_its_object_is(tmp_path):
    first = Store("same-name", FileConnector(tmp_path / "first", clear=False), register=True)
    owner = pickle.loads(pickle.dumps(first.owned_proxy([1])))
    first.close()
    del first
    with Store("same-name", FileConnector(tmp_path / "second"), register=True) as second:
        key = second.put([2])
        assert list((tmp_path / "first").iterdir())
        del owner
        assert not list((tmp_path / "first").iterdir())
        assert second.get(key) == [2]
        assert get_store("same-name") is second


def test_of_two_stores_by_one_name_each_evicts_its_own():
    first = Store("twice", LocalConnector(), register=True)
    mine = pickle.loads(pickle.dumps(first.owned_proxy([1])))
    first.close()
    with Store("twice", LocalConnector(), register=True) as second:
        owner = pickle.loads(pickle.dumps(second.owned_proxy([1])))
        key = get_key(owner)
        del owner
        assert not second.exists(key)
        del mine


def test_what_is_evicted_leaves_the_cache_too(file_store):
    owner = pickle.loads(pickle.dumps(file_store.owned_proxy([1])))
    key = get_key(owner)
    assert owner == [1]
    assert file_store.is_cached(key)
    del owner
    assert not file_store.is_cached(key)


def test_a_place_spelled_differently_is_the_same_place(tmp_path):
    config = StoreConfig(
        name="spelled",
        connector=ConnectorConfig(kind="file", options={"store_dir": str(tmp_path)}),
    )
    with Store("spelled", FileConnector(tmp_path), register=True) as store:
        key = store.put([1])
        store.get(key)
        del_me = OwnedProxy(StoreFactory(key, config))
        del del_me
        assert not store.exists(key)
        assert not store.is_cached(key)


def test_what_cannot_be_made_here_means_the_store_of_that_name(store):
    key = store.put([1])
    config = StoreConfig(name=store.name, connector=ConnectorConfig(kind="nowhere"))
    OwnedProxy(StoreFactory(key, config)).__del__()
    assert not store.exists(key)


class Cleared(FileConnector):
    """Deletes all on close unless told not to, like connectors that know no guests."""

    disown = None
    abandon = None
    closed: list[bool] = []  # noqa: RUF012

    def close(self, clear=True):
        self.closed.append(clear)
        super().close(clear)


def test_a_connector_made_to_evict_deletes_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(Cleared, "closed", [])
    store = Store("cleared", Cleared(tmp_path / "objects"), register=True)
    owner, key = store.owned_proxy([1]), store.put([2])
    store.close(clear=False)
    del store
    gone = get_key(owner)
    del owner
    assert Cleared.closed == [False, False]
    assert [entry.name for entry in (tmp_path / "objects").iterdir()] == [key[0]]
    assert gone != key


@pytest.mark.parametrize("moved", [True, False])
def test_an_error_while_evicting_is_logged(tmp_path, caplog, moved, monkeypatch):
    store = Store("failing", FileConnector(tmp_path / "objects"))
    owner = store.owned_proxy([1])
    if moved:
        owner = pickle.loads(pickle.dumps(owner))

    def fail(self, key):
        raise OSError("the network is down")

    monkeypatch.setattr(FileConnector, "evict", fail)
    key = get_key(owner)
    del owner
    # Owners that earlier tests have left behind may be collected meanwhile.
    (record,) = (record for record in caplog.records if str(key) in record.getMessage())
    assert record.levelname == "ERROR"
    assert "the network is down" in str(record.exc_info[1])
    assert store.exists(key)


def test_an_owner_of_what_no_store_has_made(caplog):
    owner = OwnedProxy(SimpleFactory([1]))
    assert owner == [1]
    del owner
    assert "cannot evict" in caplog.text


# -- threads and finalizers


def test_threads_that_borrow_are_all_counted(store, at_once):
    owner = store.owned_proxy([1])

    def work():
        kept = []
        for i in range(200):
            ref = borrow(owner)
            if i % 3 == 0:
                mark_refs_out_of_scope(ref)
            if i % 50 == 1:
                kept.append(ref)
        return kept

    kept = at_once(*[work] * 8)
    valid = [ref for refs in kept for ref in refs if ref.__proxy_valid__]
    assert 0 < len(valid) < 32
    assert counts(owner) == (len(valid), 0)
    del kept, valid
    assert counts(owner) == (0, 0)


def test_one_of_many_threads_gets_to_write(store, at_once):
    owner = store.owned_proxy([1])

    def try_to(lend):
        with contextlib.suppress(MutableBorrowError):
            return lend(owner)

    for _ in range(30):
        got = at_once(*[lambda: try_to(mut_borrow)] * 4, *[lambda: try_to(borrow)] * 4)
        # `is not None`: a reference is as true as its target, and compares as that.
        writers, readers = (sum(ref is not None for ref in group) for group in (got[:4], got[4:]))
        assert (writers, readers) == (1, 0) or (writers == 0 and readers)
        assert counts(owner) == (readers, writers)
        del got
    assert counts(owner) == (0, 0)


def test_one_of_many_threads_that_mark_gives_back(store, at_once):
    owner = store.owned_proxy([1])
    other = borrow(owner)
    for _ in range(30):
        ref = borrow(owner)
        at_once(*[lambda ref=ref: mark_refs_out_of_scope(ref)] * 4, ref.__del__)
        assert counts(owner) == (1, 0)
    assert other == [1]


def test_one_of_many_threads_that_destroy_evicts(store, at_once):
    evicted = []
    store.connector.evict = evicted.append
    for _ in range(30):
        owner = store.owned_proxy([1])
        at_once(*[lambda owner=owner: owner.__del__()] * 4)
        assert evicted == [get_key(owner)]
        evicted.clear()


def test_a_reference_that_is_moved_while_it_is_resolved_gets_no_target(store):
    started, go = threading.Event(), threading.Event()

    def slow(data):
        started.set()
        assert go.wait(30)
        return [1]

    owner = store.owned_proxy([1], deserializer=slow, populate_target=False)
    errors = []

    def use():
        try:
            len(owner)
        except ReferenceInvalidError as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    assert started.wait(30)
    owner.__reduce__()
    go.set()
    thread.join()
    assert len(errors) == 1
    assert not is_resolved(owner)


class Node:
    """Something that can be part of a cycle."""


def cycle_of(*refs):
    nodes = [Node() for _ in refs]
    for node, ref, following in zip(nodes, refs, [*nodes[1:], nodes[0]], strict=True):
        node.ref, node.following = ref, following


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
@pytest.mark.parametrize("owner_first", [True, False])
def test_an_owner_in_a_cycle_with_its_borrow_is_evicted(store, no_gc, lend, owner_first):
    owner = store.owned_proxy([1])
    ref = lend(owner)
    cycle_of(owner, ref) if owner_first else cycle_of(ref, owner)
    del owner, ref
    assert list(store.connector.keys())
    gc.collect()  # an exception in a finalizer would fail the test
    assert not list(store.connector.keys())


def test_an_owner_in_a_cycle_with_its_own_target_is_evicted(store, no_gc):
    target = [1]
    owner = store.owned_proxy(target)
    target.append(owner)
    del owner, target
    gc.collect()
    assert not list(store.connector.keys())


def test_finalizers_in_the_middle_of_everything(store):
    """The collector runs as often as it can, and what it finds gives back and evicts."""
    owner = store.owned_proxy([1])
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(200):
            cycle_of(borrow(owner), store.owned_proxy([2]))
            ref = borrow(owner)
            moved = pickle.loads(pickle.dumps(ref))
            cycle_of(clone(owner), moved)
            del ref, moved
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert counts(owner) == (0, 0)
    assert list(store.connector.keys("")) == [get_key(owner)]


def test_a_reference_dies_without_the_collector(store, no_gc):
    owner = store.owned_proxy([1])
    ref = borrow(owner)
    gone = weakref.ref(owner), weakref.ref(ref)
    with pytest.raises(MutableBorrowError):
        mut_borrow(owner)
    del owner, ref
    assert [weak() for weak in gone] == [None, None]


def test_the_target_goes_when_the_reference_ends(store, no_gc):
    class Target(list):
        pass

    def target_of(end):
        target = Target()
        owner = OwnedProxy(StoreFactory(store.put(1), store.config()), target=target)
        ref = borrow(owner)
        gone = weakref.ref(target)
        del target
        for each in (ref, owner):
            end(each)
        return gone, owner, ref

    for end in (lambda ref: ref.__reduce__(), lambda ref: ref.__del__()):
        gone, *refs = target_of(end)
        assert gone() is None
        del refs


def test_thousands_of_owners_need_one_hook(store):
    before = atexit._ncallbacks()
    owners = [store.owned_proxy(i) for i in range(1000)]
    refs = [borrow(owner) for owner in owners]
    assert atexit._ncallbacks() - before <= 1
    del owners, refs
    assert not list(store.connector.keys())


# -- clone and update


def test_a_clone_that_fails_stores_nothing(store):
    class NotCopied(list):
        def __deepcopy__(self, memo):
            raise ValueError("not to be copied")

    owner = OwnedProxy(StoreFactory(store.put([1]), store.config()), target=NotCopied())
    with pytest.raises(ValueError, match="not to be copied"):
        clone(owner)
    assert len(list(store.connector.keys())) == 1


def test_a_clone_has_a_hash_of_its_own(store):
    class ByIdentity:
        pass

    target = ByIdentity()
    factory = StoreFactory(store.put(1), store.config())
    owner = OwnedProxy(factory, cache_defaults=True, target=target)
    cloned = clone(owner)
    assert isinstance(cloned, ByIdentity)
    del cloned.__proxy_wrapped__
    assert cloned.__proxy_default_hash__ is None
    text = clone(store.owned_proxy("text"))
    del text.__proxy_wrapped__
    assert hash(text) == hash("text")
    assert not is_resolved(text)


def test_a_clone_may_have_none_for_a_target(store):
    owner = into_owned(store.proxy_from_key(store.put(None)))
    assert owner == None  # noqa: E711
    cloned = clone(owner)
    assert is_resolved(cloned)
    assert cloned == None  # noqa: E711


def test_a_clone_leaves_its_source_as_it_is(store):
    owner = store.owned_proxy([1])
    ref, writer = borrow(owner), None
    cloned = clone(owner)
    assert counts(owner) == (1, 0)
    assert counts(cloned) == (0, 0)
    del ref
    writer = mut_borrow(owner)
    assert clone(owner) == [1]
    del writer


def test_a_process_that_has_cached_the_object_sees_the_update(file_store, tmp_path):
    """Also if the update was made by yet another process."""
    owner = file_store.owned_proxy([1])
    assert file_store.get(get_key(owner)) == [1]
    del owner.__proxy_wrapped__
    writer = mut_borrow(owner)
    (tmp_path / "pickle").write_bytes(pickle.dumps(writer))
    code = """if True:
        import pickle, sys
        from proxystore.store.ref import update
        with open(sys.argv[1], "rb") as file:
            writer = pickle.load(file)
        writer.append(2)
        update(writer)
    """
    run(code, tmp_path / "pickle")
    del writer
    assert owner == [1, 2]
    reader = pickle.loads(pickle.dumps(borrow(owner)))
    assert reader.__proxy_version__ == 1, "which tells a third process that has cached it"
    assert reader == [1, 2]


def test_an_update_reaches_caches_with_the_reference(store):
    owner = store.owned_proxy([1])
    store.get(get_key(owner))
    owner.append(2)
    update(owner)
    store.cache.set(get_key(owner), store.cache.get(get_key(owner)))
    there = pickle.loads(pickle.dumps(borrow(owner)))
    assert there == [1, 2]
    moved = pickle.loads(pickle.dumps(owner))
    assert there.__proxy_version__ == moved.__proxy_version__ == 1


def test_copying_what_holds_a_reference_does_not_move_it(store):
    owner = store.owned_proxy([1])
    held = {"owner": owner}
    assert copy.copy(held)["owner"] is owner
    with pytest.raises(NotImplementedError):
        copy.deepcopy(held)
    assert owner == [1]


# -- processes


def test_a_forked_child_evicts_nothing(file_store, tmp_path):
    code = """if True:
        import os, pickle, sys
        from proxystore.connectors.file import FileConnector
        from proxystore.store import Store
        from proxystore.store.ref import ReferenceInvalidError, borrow

        store = Store("forked", FileConnector(sys.argv[1]), register=True)
        owner = store.owned_proxy([1])
        ref = borrow(owner)
        child = os.fork()
        if not child:
            assert len(owner) == len(ref) == 1
            try:
                pickle.dumps(owner)
            except ReferenceInvalidError as error:
                assert "forked" in str(error)
            else:
                raise AssertionError
            mine = store.owned_proxy([2])
            del ref, owner
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        assert list(store.connector.keys()) == [owner.__proxy_factory__.key]
        del ref, owner
        print(len(list(store.connector.keys())))
    """
    assert run(code, tmp_path / "forked") == "0\n"


def test_a_forked_child_does_not_wait_for_threads_it_has_not(tmp_path):
    code = """if True:
        import os, sys, threading
        from proxystore.connectors.local import LocalConnector
        from proxystore.store import Store, ref

        store = Store("forked", LocalConnector(), register=True)
        owner = store.owned_proxy([1])
        held, end = threading.Event(), threading.Event()

        def hold():
            with ref._lock:
                held.set()
                end.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if not child:
            assert len(ref.borrow(owner)) == 1
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        end.set()
        thread.join()
        sys.exit(status)
    """
    run("import warnings; warnings.simplefilter('ignore')\n" + code, tmp_path)


# Children that were forked end without what the interpreter does at its exit.
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_worker_of_a_pool_evicts_at_its_end(file_store, method):
    code = """if True:
        import sys
        from proxystore.store import get_or_create_store
        sys.kept = get_or_create_store(config).owned_proxy([1])
    """
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(exec, code, {"config": file_store.config()}).result(60)
        assert len(list(file_store.connector.keys())) == 1
    assert not list(file_store.connector.keys())


def test_an_owner_that_a_worker_returns_is_the_owner(file_store):
    code = """if True:
        import sys
        from proxystore.store import get_or_create_store
        sys.owner = get_or_create_store(config).owned_proxy([1])
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(exec, code, {"config": file_store.config()}).result(60)
        owner = pool.submit(eval, "__import__('sys').owner").result(60)
    assert type(owner) is OwnedProxy
    assert owner == [1]
    key = get_key(owner)
    assert file_store.exists(key)
    del owner
    assert not file_store.exists(key)


def test_an_exiting_interpreter_evicts_what_it_does_not_destroy(tmp_path):
    code = """if True:
        import ctypes, sys
        from proxystore.connectors.file import FileConnector
        from proxystore.store import Store

        store = Store("exit", FileConnector(sys.argv[1], clear=False), register=True)
        owner = store.owned_proxy([1])
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))
    """
    run(code, tmp_path / "objects")
    assert not list((tmp_path / "objects").iterdir())


@pytest.mark.parametrize("first", ["the store", "the module"])
def test_an_exiting_interpreter_evicts_after_the_store_was_closed(tmp_path, first):
    code = """if True:
        import atexit, pickle, sys
        from proxystore.connectors.file import FileConnector
        from proxystore.store import Store
        from proxystore.store.ref import borrow, into_owned

        directory, first = sys.argv[1:]
        store = Store("exit", FileConnector(directory, clear=False), register=True)
        if first == "the store":
            atexit.register(store.close)
        owner = store.owned_proxy([1])
        if first == "the module":
            atexit.register(store.close)
        ref = borrow(owner)
        ref.__reduce__()
        moved = pickle.loads(pickle.dumps(store.owned_proxy([2])))
    """
    run(code, tmp_path / "objects", first)
    assert not list((tmp_path / "objects").iterdir())


def test_what_is_left_in_a_cycle_is_evicted_at_exit(tmp_path):
    code = """if True:
        import gc, sys
        gc.disable()
        from proxystore.connectors.file import FileConnector
        from proxystore.store import Store

        store = Store("exit", FileConnector(sys.argv[1], clear=False), register=True)
        target = [1]
        target.append(store.owned_proxy(target))
        del target
    """
    run(code, tmp_path / "objects")
    assert not list((tmp_path / "objects").iterdir())


def test_plain_proxies_of_an_owned_object_hold_nothing(store):
    proxy = store.proxy([1])
    owner = into_owned(proxy)
    assert type(proxy) is Proxy
    del owner
    assert proxy == [1], "it has its target"
    del proxy.__proxy_wrapped__
    with pytest.raises(ProxyResolveError):
        len(proxy)
    unregister_store(store)


# -- what was sent away to be changed


@pytest.mark.parametrize("how", ["marked", "dropped"])
def test_an_owner_that_was_used_meanwhile_forgets_what_it_saw(store, how):
    owner = store.owned_proxy([1])
    ref = mut_borrow(owner)
    there = pickle.loads(pickle.dumps(ref))
    assert owner == [1]
    there.append(2)
    update(there)
    if how == "marked":
        mark_refs_out_of_scope(ref)
    del ref
    assert owner == [1, 2]
    assert borrow(owner) == [1, 2]
    assert clone(owner) == [1, 2]


def test_an_owner_forgets_a_hash_that_may_be_another_by_now(store):
    owner = store.owned_proxy(5)
    ref = mut_borrow(owner)
    there = pickle.loads(pickle.dumps(ref))
    there += 1
    update(there)
    del ref
    assert isinstance(owner, int)
    assert not is_resolved(owner), "the class is known"
    assert hash(owner) == hash(6)
    assert owner == 6


def test_a_target_is_let_go_of_without_the_lock(store):
    free = []

    def see():
        with contextlib.suppress(RuntimeError):
            free.append(ref_module._lock.acquire(timeout=5))
            ref_module._lock.release()

    class Watched(list):
        def __del__(self):
            thread = threading.Thread(target=see)
            thread.start()
            thread.join(10)

    owner = store.owned_proxy(5)
    owner.__proxy_wrapped__ = Watched()
    ref = mut_borrow(owner, populate_target=False)
    pickle.dumps(ref)
    owner.__proxy_wrapped__ = Watched()
    mark_refs_out_of_scope(ref)
    assert free == [True, True]
