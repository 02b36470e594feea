"""Packing arguments: what is replaced, what is left alone, and what a failure leaves."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore.connectors.exceptions import StorageFullError
from proxystore.connectors.local import LocalConnector
from proxystore.factory import SimpleFactory
from proxystore.proxy import Proxy, is_resolved
from proxystore.store import Store, store_registration
from proxystore.workflow import (
    Ledger,
    Packer,
    ProxyRef,
    Ref,
    UnpicklableArgumentError,
    embedded,
    measure,
    packing,
    size_at_least,
    unpack,
)
from proxystore.workflow.policy import surely_below

THRESHOLD = 1000
LARGE = np.arange(THRESHOLD)


class Pair(NamedTuple):
    first: object
    second: object


class Many:
    """An object that does not tell its size."""

    def __init__(self, size):
        self.data = np.zeros(size, np.uint8)

    def __eq__(self, other):
        return (self.data == other.data).all()


@pytest.fixture
def store():
    made = Store("packing", LocalConnector())
    with store_registration(made):
        yield made


@pytest.fixture
def ledger(store):
    made = Ledger(store)
    yield made
    made.close()
    assert not store.connector._store, "nothing is left"


def packer(ledger, **kwargs):
    is_native = kwargs.pop("is_native", lambda obj: isinstance(obj, Future))
    return Packer(ledger, threshold=THRESHOLD, is_native=is_native, **kwargs)


def test_small_calls_stay_as_they_are(ledger):
    args, kwargs = ([1, "two", {"three": 3.0}], np.zeros(3), None), {"x": (1,)}
    packed = packer(ledger).pack(args, kwargs)
    assert all(a is b for a, b in zip(packed.args, args, strict=True))
    assert packed.kwargs["x"] is kwargs["x"]
    assert not packed.holds


@pytest.mark.parametrize(
    "value",
    [
        LARGE,
        b"x" * THRESHOLD,
        "x" * THRESHOLD,
        bytearray(THRESHOLD),
        list(range(THRESHOLD)),
        {i: i for i in range(THRESHOLD)},
        set(range(THRESHOLD)),
        Many(THRESHOLD),
        OrderedDict(a=b"x" * THRESHOLD),
        [bytes([i]) * 300 for i in range(10)],
    ],
    ids=lambda v: type(v).__name__,
)
def test_large_objects_become_references(ledger, value):
    packed = packer(ledger).pack((value, 1), {"named": value})
    ref = packed.args[0]
    assert type(ref) is Ref
    assert packed.kwargs["named"] is ref
    assert packed.args[1] == 1
    assert len(packed.holds) == 1
    again = unpack(pickle.loads(pickle.dumps(ref)))
    assert type(again) is type(value)
    assert np.all(again == value) if value is LARGE else again == value
    assert ref.nbytes >= THRESHOLD
    packed.release()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: [x, 1],
        lambda x: (1, x),
        lambda x: {"k": x},
        lambda x: Pair(x, [x]),
        lambda x: [[[({"k": [x]},)]]],
        lambda x: [x, b"small" * 100, b"smaller" * 50, b"more" * 100],
    ],
)
def test_large_objects_are_found_in_containers(ledger, wrap):
    value = wrap(LARGE)
    packed = packer(ledger).pack((value,), {})
    assert type(packed.args[0]) is type(value)
    assert len(pickle.dumps(packed.args[0])) < 3000
    assert repr(unpack(packed.args[0])) == repr(value)
    assert "Ref" not in repr(value), "the caller's containers stay as they are"
    packed.release()


def test_many_small_items_beside_a_large_one_do_not_add_up(ledger):
    value = [LARGE, *(bytes([i]) * 900 for i in range(20))]
    packed = packer(ledger).pack((value,), {})
    inline = [item for item in packed.args[0] if type(item) is bytes]
    assert sum(map(len, inline)) < THRESHOLD
    packed.release()


def test_what_is_the_framework_s_is_never_stored(ledger):
    future = Future()
    args = (future, [future, LARGE], {"f": [future] + [b"x" * 400] * 5}, {future})
    packed = packer(ledger).pack(args, {})
    assert packed.args[0] is future
    assert packed.args[1][0] is future
    assert type(packed.args[1][1]) is Ref
    assert packed.args[2]["f"][0] is future
    assert packed.args[3] is args[3]
    packed.release()


def test_the_same_content_is_stored_once(ledger, store):
    packed = packer(ledger).pack((LARGE, [LARGE.copy()]), {"x": LARGE})
    assert packed.args[0] == packed.args[1][0] == packed.kwargs["x"]
    assert packed.args[0] is packed.kwargs["x"], "one object is one reference"
    assert packed.args[0] is not packed.args[1][0], "two of equal content are two"
    assert len(store.connector._store) == 1
    second = packer(ledger).pack((LARGE.copy(),), {})
    assert second.args[0] == packed.args[0]
    packed.release()
    ledger.flush()
    assert packed.args[0].exists(), "the second call still needs it"
    second.release()
    ledger.flush()
    assert not packed.args[0].exists()


def test_content_that_changed_is_another_object(ledger):
    value = LARGE.copy()
    first = packer(ledger).pack((value,), {})
    value[0] = -1
    second = packer(ledger).pack((value,), {})
    assert first.args[0] != second.args[0]
    assert first.args[0].resolve()[0] == 0


def test_references_are_inert(ledger):
    packed = packer(ledger).pack((LARGE,), {})
    (ref,) = packed.args
    assert not callable(ref)
    assert repr(ref) == "<Ref to ndarray, 0.0 MB>"
    assert hash(ref) == hash(pickle.loads(pickle.dumps(ref)))
    assert not hasattr(ref, "__array__")
    assert not hasattr(ref, "__dask_graph__")


def test_what_a_task_gets_is_its_own(ledger):
    packed = packer(ledger).pack((LARGE,), {})
    (ref,) = packed.args
    ref.resolve()[:] = -1
    assert ref.resolve()[-1] == THRESHOLD - 1


def test_a_user_s_proxy_travels_as_a_reference_and_arrives_as_a_proxy(ledger, store):
    proxy = store.proxy(LARGE, populate_target=True)
    lazy = store.proxy([1], populate_target=False)
    packed = packer(ledger).pack((proxy, [lazy]), {})
    assert type(packed.args[0]) is ProxyRef
    assert not packed.holds
    again, (other,) = unpack(packed.args)
    assert type(again) is type(other) is Proxy
    assert isinstance(again, np.ndarray)
    assert not is_resolved(again)
    assert not is_resolved(other)
    assert not is_resolved(lazy)
    assert other == [1]
    for ref in (packed.args[0], packed.args[1][0]):
        ref.evict()


def test_other_proxies_stay_what_they_are(ledger):
    proxy = Proxy(SimpleFactory(LARGE))
    packed = packer(ledger).pack((proxy, [proxy]), {})
    assert packed.args[0] is proxy
    assert not is_resolved(proxy)


@pytest.mark.parametrize(
    ("args", "kwargs", "position"),
    [
        ((1, threading.Lock()), {}, 2),
        ((LARGE,), {"lock": threading.Lock()}, "lock"),
        ((LARGE, [1, {"k": threading.Lock()}]), {}, "2[1]['k']"),
        (([LARGE, *([0] * 5000), threading.Lock()],), {}, "1[5001]"),
    ],
)
def test_what_cannot_be_pickled_is_named_and_nothing_is_stored(
    ledger, store, args, kwargs, position
):
    with pytest.raises(UnpicklableArgumentError, match=r"argument .* is a _thread.lock") as caught:
        packer(ledger).pack(args, kwargs)
    assert caught.value.position == position
    assert caught.value.type_name == "_thread.lock"
    assert not store.connector._store


def test_what_fails_only_when_all_of_it_is_pickled_is_named_too(ledger, store):
    value = OrderedDict(data=bytes(10 * THRESHOLD), lock=threading.Lock())
    with pytest.raises(UnpicklableArgumentError, match="OrderedDict"):
        packer(ledger).pack((LARGE, value), {})
    assert not store.connector._store


def test_the_framework_may_carry_what_cannot_be_pickled(ledger):
    lock = threading.Lock()
    packed = packer(ledger, carries=lambda obj: obj is lock).pack((lock, LARGE), {})
    assert packed.args[0] is lock
    packed.release()


class Full(LocalConnector):
    """Has room for one object."""

    def put_buffers(self, parts):
        if self._store:
            raise StorageFullError("/dir", 2, 1)
        return super().put_buffers(parts)


def test_a_put_that_fails_leaves_nothing_of_the_call(store):
    full = Store("full", Full())
    ledger = Ledger(full)
    with store_registration(full):
        with pytest.raises(StorageFullError):
            packer(ledger).pack((LARGE, LARGE + 1), {})
        ledger.flush()
    assert not full.connector._store


def test_a_full_embedded_store_leaves_the_rest_in_the_call(store, monkeypatch, caplog):
    full = Store("full-embedded", Full())
    monkeypatch.setitem(embedded._stores, "this test's", full)
    ledger = Ledger(full)
    with store_registration(full):
        packed = packer(ledger).pack((LARGE, LARGE + 1), {})
        assert type(packed.args[0]) is Ref
        assert packed.args[1] is not packed.args[0]
        assert (packed.args[1] == LARGE + 1).all()
        assert "travels by value" in caplog.text
        ledger.close()


def test_a_full_store_is_tried_again_when_something_is_on_its_way_out(store):
    full = Store("full-late", Full())
    evicting = threading.Event()

    def evict_late(ref):
        threading.Timer(0.1, lambda: (ref.evict(), evicting.set())).start()

    ledger = Ledger(full, on_unneeded=evict_late)
    with store_registration(full):
        packer(ledger).pack((LARGE,), {}).release()
        packed = packer(ledger).pack((LARGE + 1,), {})
        assert evicting.is_set()
        assert (packed.args[0].resolve() == LARGE + 1).all()
        packed.args[0].evict()


def test_a_full_store_is_tried_again_when_others_have_made_room(store):
    full = Store("full-others", Full())
    others = []

    def make_room():
        if others:
            full.evict(others.pop())
            return True
        return False

    ledger = Ledger(full, make_room=make_room)
    with store_registration(full):
        others.append(full.put(LARGE))
        packed = packer(ledger).pack((LARGE + 1,), {})
        assert (packed.args[0].resolve() == LARGE + 1).all()
        with pytest.raises(StorageFullError):
            packer(ledger).pack((LARGE,), {})
        packed.release()
        ledger.close()


def test_containers_that_hold_themselves_are_survived(ledger):
    value = [LARGE]
    value.append(value)
    packed = packer(ledger).pack((value,), {})
    assert type(packed.args[0][0]) is Ref
    packed.release()


def test_each_reference_is_wrapped(ledger):
    packed = packer(ledger).pack((LARGE, [LARGE]), {}, wrap=lambda ref: ("node", ref))
    assert packed.args[0][0] == "node"
    assert packed.args[1][0] is packed.args[0]
    packed.release()


leaves = st.integers() | st.text(max_size=20) | st.builds(bytes, st.integers(0, 3000))
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=3), inner, max_size=5)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=30,
)


@given(st.lists(nested, max_size=3), st.dictionaries(st.text(max_size=3), nested, max_size=3))
def test_what_is_packed_comes_back_and_is_small(args, kwargs):
    store = Store("hypothesis", LocalConnector())
    with store_registration(store):
        ledger = Ledger(store)
        packed = packer(ledger).pack(args, kwargs)
        again = pickle.loads(pickle.dumps((packed.args, packed.kwargs)))
        assert unpack(again) == (tuple(args), kwargs)
        for value in (*packed.args, *packed.kwargs.values()):
            assert sum(map(len, re_bytes(value))) < THRESHOLD
        ledger.close()
    assert not store.connector._store


counts = st.integers(0, 70)
plain = st.recursive(
    st.none() | st.floats() | st.integers() | st.text(max_size=9) | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=40)
        | st.builds(lambda item, n: [item] * n, inner, counts)
        | st.dictionaries(st.text(max_size=3), inner, max_size=9)
        | st.tuples()
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.sets(st.integers(0, 300), max_size=9)
        | st.frozensets(st.none())
    ),
    max_leaves=60,
)


@given(st.lists(plain))
def test_what_is_surely_below_is_so_piece_by_piece(value):
    with mock.patch.object(packing, "surely_below", return_value=False):
        walk = packing._Walk(1 << 40, packing._never, packing._never, packing._by_size)
        inline = walk.plan(value, 1).inline
    assert not surely_below(value, inline)


def test_small_data_are_measured_in_one_go(ledger, monkeypatch):
    rows = [[float(i), {"n": i}] for i in range(15)]
    with monkeypatch.context() as patched:
        patched.setattr(packing, "measure", None)
        assert packer(ledger).pack((rows,), {}).args[0] is rows


@pytest.mark.parametrize(
    "value",
    [
        *([[Future()]], [(Proxy(SimpleFactory(1)),)], {"k": [LARGE]}, [[Pair(1, 2)]]),
        *([[{Future()}]], [[OrderedDict()]], [[len]], [[bytes(THRESHOLD)]]),
    ],
    ids=repr,
)
def test_nothing_else_is_surely_below(value):
    assert not surely_below(value, THRESHOLD)


def test_what_holds_itself_is_not_surely_below():
    value = [[1]]
    value[0].append(value)
    assert not surely_below(value, THRESHOLD)


def re_bytes(value):
    """Yield the bytes objects that are still inline."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from re_bytes(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from re_bytes(item)


@pytest.mark.parametrize("value", [1, None, len, print, np, Many, lambda: 1])
def test_code_and_scalars_are_small(value):
    assert measure(value, 1) == 0


def test_measuring_stops_at_the_limit():
    class Endless:
        pickled = 0

        def __reduce__(self):
            Endless.pickled += 1
            assert Endless.pickled < 100, "measured far past the limit"
            return list, ((bytes(100_000),),), None, iter([Endless() for _ in range(1)])

    assert size_at_least(Endless(), 200_000)


def test_threshold_zero_takes_everything_that_is_data(ledger):
    packed = Packer(ledger, threshold=0).pack(("x", [], 1, None), {})
    assert [type(x) for x in packed.args] == [Ref, Ref, int, type(None)]
    assert unpack(packed.args) == ("x", [], 1, None)
    packed.release()


class TestPolicy:
    @staticmethod
    def packer(ledger, **answers):
        return Packer(
            ledger,
            threshold=THRESHOLD,
            policy=lambda obj: answers.get(type(obj).__name__),
        )

    def test_comes_before_the_size(self, ledger):
        packer = self.packer(ledger, str=False, ndarray=True)
        packed = packer.pack(("a" * 5000, np.zeros(1), LARGE, b"b" * 5000, 1), {})
        assert [type(arg) for arg in packed.args] == [str, Ref, Ref, Ref, int]

    def test_what_is_to_stay_keeps_its_containers(self, ledger):
        packer = self.packer(ledger, str=False)
        value = {"a": ["x" * 5000, LARGE], "b": ["x" * 5000]}
        (packed,) = packer.pack((value,), {}).args
        assert packed["b"] == value["b"]
        assert packed["a"][0] == "x" * 5000
        assert type(packed["a"][1]) is Ref

    def test_may_want_a_container_whole(self, ledger):
        packed = self.packer(ledger, tuple=True).pack(((1, 2), [3]), {})
        assert [type(arg) for arg in packed.args] == [Ref, list]
        assert packed.args[0].resolve() == (1, 2)


def test_without_a_digest_nothing_is_looked_for(ledger):
    packer = Packer(ledger, threshold=THRESHOLD, digest=False)
    first, second = packer.pack((LARGE, LARGE.copy()), {}).holds
    assert first.ref != second.ref
    assert first.ref.digest == ""
    assert (ledger.stats.puts, ledger.stats.reused) == (2, 0)
    first.release()
    ledger.flush()
    assert not first.ref.exists()
    assert np.array_equal(second.ref.resolve(), LARGE)
