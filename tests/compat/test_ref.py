"""Contract, section 13: who owns an object, and who has borrowed it."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import subprocess
import sys
import weakref

import cloudpickle
import pytest

import proxystore.store.ref
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.factory import SimpleFactory
from proxystore.proxy import Proxy, extract, get_factory, is_resolved, resolve
from proxystore.store import Store, get_store
from proxystore.store.exceptions import (
    NonProxiableTypeError,
    ProxyResolveMissingKeyError,
    ProxyStoreFactoryError,
)
from proxystore.store.factory import StoreFactory
from proxystore.store.ref import (
    BaseRefProxy,
    BaseRefProxyError,
    MutableBorrowError,
    OwnedProxy,
    ReferenceInvalidError,
    ReferenceNotOwnedError,
    RefMutProxy,
    RefProxy,
    borrow,
    clone,
    into_owned,
    mut_borrow,
    update,
)
from proxystore.store.utils import get_key


@pytest.fixture
def store():
    with Store("owned", LocalConnector(), register=True) as made:
        yield made


def get(ref, slot):
    return object.__getattribute__(ref, f"__proxy_{slot}__")


def counts(owner):
    return get(owner, "ref_count"), get(owner, "ref_mut_count")


def make_owned(store):
    return store.owned_proxy([1, 2, 3])


def make_ref(store):
    return borrow(store.owned_proxy([1, 2, 3]))


def make_ref_mut(store):
    return mut_borrow(store.owned_proxy([1, 2, 3]))


every_kind = pytest.mark.parametrize("make", [make_owned, make_ref, make_ref_mut])


# -- 7.14 Store.owned_proxy


def test_owned_proxy_owns_what_it_stores(store):
    owner = store.owned_proxy([1, 2, 3])
    key = get_key(owner)
    assert type(owner) is OwnedProxy
    assert owner == [1, 2, 3]
    assert store.get(key) == [1, 2, 3]
    assert not get_factory(owner).evict
    del owner
    assert not store.exists(key)


def test_owned_proxy_is_populated_as_the_store_says(store):
    assert is_resolved(store.owned_proxy("x"))
    assert not is_resolved(store.owned_proxy("x", populate_target=False))
    lazy = Store("lazy", LocalConnector(), populate_target=False)
    assert not is_resolved(lazy.owned_proxy("x"))
    target = [1]
    owner = lazy.owned_proxy(target, populate_target=True)
    assert extract(owner) is target


def test_owned_proxy_caches_class_and_hash(store):
    owner = store.owned_proxy("text", populate_target=True)
    del owner.__proxy_wrapped__
    assert isinstance(owner, str)
    assert hash(owner) == hash("text")
    assert not is_resolved(owner)


@pytest.mark.parametrize("obj", [None, True, False])
def test_owned_proxy_returns_what_cannot_be_proxied(store, obj):
    assert store.owned_proxy(obj) is obj
    with pytest.raises(NonProxiableTypeError):
        store.owned_proxy(obj, skip_nonproxiable=False)


def test_owned_proxy_takes_no_evict(store):
    with pytest.raises(TypeError):
        store.owned_proxy([1], evict=True)
    with pytest.raises(TypeError):
        store.owned_proxy([1], lifetime=None)
    assert not list(store.connector.keys())


def test_owned_proxy_with_a_serializer_of_its_own(store):
    owner = store.owned_proxy(
        "x", serializer=str.encode, deserializer=lambda data: bytes(data).decode() * 2
    )
    del owner.__proxy_wrapped__
    assert owner == "xx"


def test_owned_proxy_passes_options_to_the_connector(store):
    with pytest.raises(TypeError, match="surprise"):
        store.owned_proxy("x", surprise=1)


# -- 13.1 types


def test_exceptions():
    assert issubclass(BaseRefProxyError, Exception)
    for error in (MutableBorrowError, ReferenceNotOwnedError, ReferenceInvalidError):
        assert error.__mro__[1] is BaseRefProxyError


def test_classes():
    for kind in (OwnedProxy, RefProxy, RefMutProxy):
        assert issubclass(kind, BaseRefProxy)
    assert issubclass(BaseRefProxy, Proxy)


def test_constructors(store):
    factory = StoreFactory(store.put("text"), store.config())
    for kind in (OwnedProxy, RefProxy, RefMutProxy):
        ref = kind(factory)
        assert not is_resolved(ref)
        assert get_factory(ref) is factory
        ref = kind(factory, cache_defaults=True, target="text")
        assert is_resolved(ref)
        del ref.__proxy_wrapped__
        assert isinstance(ref, str)
        assert hash(ref) == hash("text")
        assert not is_resolved(ref)
        break_the_tie(ref)


def break_the_tie(ref):
    """Let an owner die without evicting, so that others can use the object."""
    ref.__reduce__()


def test_constructors_take_an_owner(store):
    owner = store.owned_proxy([1])
    factory = get_factory(owner)
    for kind in (RefProxy, RefMutProxy):
        ref = kind(factory, owner=owner)
        assert get(ref, "owner") is owner
        del ref
        assert counts(owner) == (0, 0)
        assert get(kind(factory), "owner") is None
    with pytest.raises(TypeError):
        RefProxy(factory, False)
    with pytest.raises(TypeError):
        OwnedProxy("no factory")


@every_kind
def test_slots(store, make):
    ref = make(store)
    assert get(ref, "valid") is True
    assert get(ref, "finalizer") is not None
    if make is make_owned:
        assert counts(ref) == (0, 0)
    else:
        assert isinstance(get(ref, "owner"), OwnedProxy)


@every_kind
def test_references_are_proxies(store, make):
    ref = make(store)
    assert isinstance(ref, Proxy)
    assert type(ref) is not Proxy
    assert isinstance(ref, list)
    assert ref == [1, 2, 3]
    assert len(ref) == 3
    assert ref[0] == 1
    assert operator.add(ref, [4]) == [1, 2, 3, 4]
    assert ref.index(2) == 1
    assert isinstance(get_factory(ref), StoreFactory)
    assert store.get(get_key(ref)) == [1, 2, 3]
    assert is_resolved(ref)
    assert extract(ref) == [1, 2, 3]
    assert get_store(ref) is store


@every_kind
def test_an_unresolved_reference_gets_its_object(store, make):
    ref = make(store)
    del ref.__proxy_wrapped__
    assert not is_resolved(ref)
    resolve(ref)
    assert is_resolved(ref)
    assert extract(ref) is store.get(get_key(ref))


# -- 13.2 validity

ATTEMPTS = {
    "==": lambda ref: ref == [1, 2, 3],
    "len": len,
    "isinstance": lambda ref: isinstance(ref, list),
    "hash": hash,
    "attribute": operator.attrgetter("index"),
    "hasattr": lambda ref: hasattr(ref, "anything"),
    "str": str,
    "bool": bool,
    "iter": list,
    "extract": extract,
    "resolve": resolve,
}


@every_kind
@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("resolved", [True, False])
def test_nothing_can_be_done_with_a_reference_that_was_pickled(store, make, attempt, resolved):
    ref = make(store)
    if not resolved:
        ref.__proxy_default_class__ = ref.__proxy_default_hash__ = None
        del ref.__proxy_wrapped__
    moved = pickle.loads(pickle.dumps(ref))
    with pytest.raises(ReferenceInvalidError, match="pickled"):
        ATTEMPTS[attempt](ref)
    assert moved == [1, 2, 3]


@every_kind
def test_an_invalid_reference_can_be_looked_at(store, make):
    ref = make(store)
    kind = type(ref)
    moved = pickle.loads(pickle.dumps(ref))
    assert get(ref, "valid") is False
    assert get(moved, "valid") is True
    assert is_resolved(ref) in (True, False)
    assert isinstance(ref, kind)
    assert isinstance(ref, Proxy)
    assert type(ref) is kind
    assert repr(ref).startswith(f"<{kind.__name__} at")
    assert "pickled" in repr(ref)
    assert isinstance(get_factory(ref), StoreFactory)
    assert get_key(ref) == get_key(moved)


@every_kind
def test_an_invalid_unresolved_reference_answers_from_its_cache(store, make):
    ref = make(store)
    ref.__proxy_wrapped__ = "text"
    ref.__proxy_default_class__, ref.__proxy_default_hash__ = str, hash("text")
    del ref.__proxy_wrapped__
    moved = pickle.loads(pickle.dumps(ref))
    assert isinstance(ref, str)
    assert hash(ref) == hash("text")
    with pytest.raises(ReferenceInvalidError):
        len(ref)
    del moved


@every_kind
@pytest.mark.parametrize("method", ["__reduce__", "__reduce_ex__"])
def test_asking_for_the_pickle_is_enough(store, make, method):
    ref = make(store)
    ref.__reduce__() if method == "__reduce__" else ref.__reduce_ex__(4)
    with pytest.raises(ReferenceInvalidError):
        len(ref)


@every_kind
def test_a_reference_whose_destructor_has_run_is_invalid(store, make):
    ref = make(store)
    ref.__del__()
    assert get(ref, "valid") is False
    with pytest.raises(ReferenceInvalidError, match="destructor"):
        len(ref)


@every_kind
@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize("resolved", [True, False])
def test_unpickling_gives_a_new_valid_reference(store, make, pickler, resolved):
    ref = make(store)
    ref.__proxy_wrapped__ = ref.__proxy_wrapped__ if resolved else [1, 2, 3]
    if not resolved:
        del ref.__proxy_wrapped__
    kind, key = type(ref), get_key(ref)
    moved = pickle.loads(pickler.dumps(ref))
    assert type(moved) is kind
    assert not is_resolved(moved)
    assert isinstance(moved, list)
    with pytest.raises(TypeError, match="unhashable"):
        hash(moved)
    assert not is_resolved(moved)
    if kind is OwnedProxy:
        assert counts(moved) == (0, 0)
    else:
        assert get(moved, "owner") is None
    assert get_key(moved) == key
    assert moved == [1, 2, 3]


def test_a_cached_hash_survives_in_the_same_process(store):
    moved = pickle.loads(pickle.dumps(store.owned_proxy("text")))
    assert hash(moved) == hash("text")
    assert not is_resolved(moved)


@every_kind
def test_what_a_reference_is_pickled_as(store, make):
    ref = make(store)
    kind, factory = type(ref), get_factory(ref)
    function, arguments = ref.__reduce__()
    assert function is proxystore.store.ref._proxy_trampoline
    assert arguments[:2] == (kind.__name__, factory)
    assert arguments[2] is list
    assert len(arguments) == 4
    rebuilt = function(*arguments)
    assert type(rebuilt) is kind
    assert rebuilt == [1, 2, 3]


def test_an_unpickled_owner_is_the_owner(store):
    owner = store.owned_proxy([1])
    key = get_key(owner)
    moved = pickle.loads(pickle.dumps(owner))
    del owner
    gc.collect()
    assert store.exists(key)
    assert moved == [1]
    del moved
    assert not store.exists(key)


@every_kind
def test_references_cannot_be_copied(store, make):
    ref = make(store)
    with pytest.raises(NotImplementedError, match=r"^Copy is not implemented"):
        copy.copy(ref)
    with pytest.raises(NotImplementedError, match=r"^Deep copy is not implemented"):
        copy.deepcopy(ref)
    with pytest.raises(NotImplementedError, match=r"^Deep copy is not implemented"):
        copy.deepcopy([ref])
    assert get(ref, "valid") is True
    assert ref == [1, 2, 3]


# -- 13.3 destruction


def test_an_owner_evicts_when_it_goes_out_of_scope(store):
    key = get_key(store.owned_proxy([1]))
    assert not store.exists(key)


def test_an_owner_without_borrows_can_be_deleted_by_hand(store):
    owner = store.owned_proxy([1])
    owner.__del__()
    assert not store.exists(get_key(owner))
    assert get(owner, "valid") is False
    store._set(get_key(owner), "new")
    owner.__del__()
    del owner
    assert list(store.connector.keys()), "twice evicts once"


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
def test_a_borrowed_owner_cannot_be_deleted_by_hand(store, lend):
    owner = store.owned_proxy([1])
    ref = lend(owner)
    with pytest.raises(RuntimeError, match=r"^Cannot safely delete OwnedProxy"):
        owner.__del__()
    assert owner == [1]
    assert store.exists(get_key(owner))
    del ref
    owner.__del__()
    assert not store.exists(get_key(owner))


def test_a_moved_owner_evicts_nothing(store):
    owner = store.owned_proxy([1])
    data = pickle.dumps(owner)
    del owner
    gc.collect()
    assert pickle.loads(data) == [1]


@pytest.mark.parametrize(("lend", "one"), [(borrow, (1, 0)), (mut_borrow, (0, 1))])
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_borrow_that_ends_is_not_counted_any_more(store, lend, one, by_hand):
    owner = store.owned_proxy([1])
    ref = lend(owner)
    assert counts(owner) == one
    if by_hand:
        ref.__del__()
        ref.__del__()
        assert get(ref, "owner") is None
        assert get(ref, "valid") is False
    else:
        del ref
    assert counts(owner) == (0, 0)


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
def test_a_borrow_from_elsewhere_only_becomes_invalid(store, lend):
    owner = store.owned_proxy([1])
    ref = lend(owner)
    there = pickle.loads(pickle.dumps(ref))
    before = counts(owner)
    there.__del__()
    assert get(there, "valid") is False
    assert counts(owner) == before
    assert store.exists(get_key(owner))


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
def test_a_borrow_keeps_its_owner_alive(store, lend):
    owner = store.owned_proxy([1])
    key = get_key(owner)
    ref = lend(owner)
    del owner
    gc.collect()
    assert store.exists(key)
    assert ref == [1]
    del ref
    assert not store.exists(key)


def test_an_exiting_interpreter_evicts(tmp_path):
    code = f"""
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.store.ref import borrow, mut_borrow

store = Store("exit", FileConnector({str(tmp_path)!r}, clear=False), register=True)
owners = [store.owned_proxy(i) for i in range(3)]
readers = [borrow(owners[0]), borrow(owners[0])]
writer = mut_borrow(owners[1])
print(len(list(store.connector.keys())))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("3\n", "")
    assert not list(tmp_path.iterdir())


def test_the_exit_hook_keeps_no_reference_alive(store):
    owner = store.owned_proxy([1])
    assert isinstance(get(owner, "finalizer"), weakref.ref)
    key = get_key(owner)
    gc.disable()
    try:
        del owner
        assert not store.exists(key)
    finally:
        gc.enable()


# -- 13.4 functions


def other_kinds(store):
    owner = store.owned_proxy([1])
    yield borrow(owner)
    yield store.proxy([1])
    del owner
    yield mut_borrow(store.owned_proxy([1]))


@pytest.mark.parametrize("function", [borrow, mut_borrow, clone, update])
def test_who_is_no_owner_cannot_do_what_owners_do(store, function):
    for ref in other_kinds(store):
        if function is update and type(ref) is RefMutProxy:
            continue
        with pytest.raises(ReferenceNotOwnedError, match=type(ref).__name__):
            function(ref)


def test_the_kind_is_asked_without_resolving(store):
    proxy = store.proxy([1], populate_target=False)
    for function in (borrow, mut_borrow, clone, update):
        with pytest.raises(ReferenceNotOwnedError):
            function(proxy)
    assert not is_resolved(proxy)


def test_many_can_read_at_once(store):
    owner = store.owned_proxy([1])
    refs = [borrow(owner) for _ in range(5)]
    assert counts(owner) == (5, 0)
    assert all(type(ref) is RefProxy and get(ref, "owner") is owner for ref in refs)
    with pytest.raises(MutableBorrowError, match="5 RefProxy"):
        mut_borrow(owner)
    del refs
    writer = mut_borrow(owner)
    assert counts(owner) == (0, 1)
    assert type(writer) is RefMutProxy
    assert get(writer, "owner") is owner


def test_one_can_write_alone(store):
    owner = store.owned_proxy([1])
    writer = mut_borrow(owner)
    for function in (borrow, mut_borrow):
        with pytest.raises(MutableBorrowError, match="1 RefMutProxy"):
            function(owner)
    assert counts(owner) == (0, 1)
    del writer
    assert borrow(owner) == [1]


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
def test_a_borrow_has_the_target_of_its_owner(store, lend):
    owner = store.owned_proxy([1])
    ref = lend(owner)
    assert is_resolved(ref)
    assert extract(ref) is extract(owner)
    assert ref.__proxy_default_class__ is list
    del ref

    ref = lend(owner, populate_target=False)
    assert not is_resolved(ref)
    assert ref.__proxy_default_class__ is None
    assert ref.__proxy_default_hash__ is None
    assert ref == [1]
    assert extract(ref) is not extract(owner)


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
def test_a_borrow_of_an_unresolved_owner_has_its_defaults(store, lend):
    owner = store.owned_proxy("text")
    del owner.__proxy_wrapped__
    ref = lend(owner)
    assert not is_resolved(ref)
    assert not is_resolved(owner)
    assert isinstance(ref, str)
    assert hash(ref) == hash("text")
    assert not is_resolved(ref)


def test_clone_stores_the_object_again(store):
    owner = store.owned_proxy([1, 2])
    cloned = clone(owner)
    assert type(cloned) is OwnedProxy
    assert get_key(cloned) != get_key(owner)
    assert bytes(store.connector.get(get_key(cloned))) == bytes(store.connector.get(get_key(owner)))
    assert get_store(cloned) is store
    assert is_resolved(cloned)
    cloned.append(3)
    assert owner == [1, 2]
    del owner
    assert cloned == [1, 2, 3]
    del cloned.__proxy_wrapped__
    assert isinstance(cloned, list)
    assert not is_resolved(cloned)
    assert cloned == [1, 2]


def test_clone_does_not_resolve(store):
    owner = store.owned_proxy("text")
    del owner.__proxy_wrapped__
    cloned = clone(owner)
    assert not is_resolved(owner)
    assert not is_resolved(cloned)
    assert isinstance(cloned, str)
    assert cloned == "text"


def test_clone_does_not_deserialize(store):
    def deserializer(data):
        raise AssertionError

    owner = store.owned_proxy([1], deserializer=deserializer)
    cloned = clone(owner)
    assert get_factory(cloned).deserializer is deserializer
    assert get_factory(cloned).evict is get_factory(owner).evict is False


def test_into_owned_takes_over(store):
    proxy = store.proxy([1], evict=True)
    factory = get_factory(proxy)
    owner = into_owned(proxy)
    assert type(owner) is OwnedProxy
    assert get_factory(owner) is factory
    assert factory.evict is False
    assert extract(owner) is extract(proxy)
    del proxy.__proxy_wrapped__
    assert proxy == [1]
    assert store.exists(get_key(proxy))
    del owner
    assert not store.exists(get_key(proxy))


def test_into_owned_copies_what_is_cached(store):
    proxy = store.proxy("text")
    del proxy.__proxy_wrapped__
    owner = into_owned(proxy)
    assert isinstance(owner, str)
    assert hash(owner) == hash("text")
    assert not is_resolved(owner)
    assert not is_resolved(proxy)
    break_the_tie(owner)
    bare = into_owned(store.proxy([1]), populate_target=False)
    assert not is_resolved(bare)
    assert bare.__proxy_default_class__ is None
    assert bare.__proxy_default_hash__ is None


@every_kind
def test_a_reference_cannot_be_made_an_owner(store, make):
    with pytest.raises(ValueError, match="Only a base proxy can be"):
        into_owned(make(store))


def test_only_proxies_of_stores_can_be_owned():
    with pytest.raises(
        ProxyStoreFactoryError,
        match="The proxy must contain a factory with type StoreFactory",
    ):
        into_owned(Proxy(SimpleFactory([1])))


def test_update_of_an_owner(store):
    owner = store.owned_proxy([1, 2, 3])
    assert store.get(get_key(owner)) == [1, 2, 3]
    owner.append(4)
    update(owner)
    assert store.get(get_key(owner)) == [1, 2, 3, 4]


def test_update_with_a_serializer(store):
    owner = store.owned_proxy("x")
    update(owner, serializer=lambda text: b"other")
    assert bytes(store.connector.get(get_key(owner))) == b"other"


def test_update_through_a_mutable_borrow(store):
    owner = store.owned_proxy([1, 2, 3])
    writer = mut_borrow(owner)
    writer.append(4)
    assert owner == [1, 2, 3, 4], "seen at once"
    assert store.get(get_key(owner)) == [1, 2, 3]
    update(writer)
    assert store.get(get_key(owner)) == [1, 2, 3, 4]


@pytest.mark.parametrize("lend", [borrow, mut_borrow])
def test_a_borrowed_owner_cannot_be_updated(store, lend):
    owner = store.owned_proxy([1])
    ref = lend(owner)
    with pytest.raises(MutableBorrowError):
        update(owner)
    del owner.__proxy_wrapped__
    with pytest.raises(MutableBorrowError):
        update(owner)
    del ref
    update(owner)


def test_update_of_what_is_not_resolved_does_nothing(store):
    owner = store.owned_proxy([1], populate_target=False)
    update(owner)
    assert not is_resolved(owner)
    assert store.get(get_key(owner)) == [1]


class NotDeferrable:
    """A connector that cannot replace objects."""

    def __init__(self):
        self._inner = LocalConnector()

    def config(self):
        return {}

    def close(self):
        pass

    def put(self, obj):
        return self._inner.put(obj)

    def get(self, key):
        return self._inner.get(key)

    def evict(self, key):
        self._inner.evict(key)

    def exists(self, key):
        return self._inner.exists(key)


def test_update_where_the_connector_cannot():
    store = Store("not-deferrable", NotDeferrable())
    owner = store.owned_proxy([1])
    with pytest.raises(NotImplementedError, match="DeferrableConnector"):
        update(owner)
    del owner.__proxy_wrapped__
    update(owner)  # there is nothing to do


def test_clone_of_what_is_gone_says_so(store):
    owner = store.owned_proxy([1])
    store.evict(get_key(owner))
    with pytest.raises(ProxyResolveMissingKeyError) as caught:
        clone(owner)
    assert caught.value.key == get_key(owner)
    assert caught.value.store_name == "owned"


def test_nothing_can_be_asked_of_an_owner_that_was_pickled(store):
    owner = store.owned_proxy([1])
    moved = pickle.loads(pickle.dumps(owner))
    for function in (borrow, mut_borrow, clone, update):
        with pytest.raises(ReferenceInvalidError):
            function(owner)
    assert counts(owner) == (0, 0)
    assert moved == [1]


def test_ownership_over_files(tmp_path):
    with Store("files", FileConnector(tmp_path / "objects"), register=True) as store:
        owner = store.owned_proxy(list(range(1000)))
        cloned = clone(pickle.loads(pickle.dumps(owner)))
        assert cloned == list(range(1000))
        del cloned
        assert not list((tmp_path / "objects").iterdir())
