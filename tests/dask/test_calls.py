"""Arguments on their way into a graph, without a cluster."""

from __future__ import annotations

import functools
import pickle
from collections import OrderedDict, namedtuple
from typing import Any

import dask
import dask.array
import numpy as np
import pytest
from dask._expr import LLGExpr
from dask.sizeof import sizeof
from dask.tokenize import tokenize
from dask.utils import funcname
from dask_tasks import Model, OnlyForDask, Unpicklable, total

from proxystore.proxy import is_resolved
from proxystore.workflow import (
    Ledger,
    Packer,
    ProxyRef,
    UnpicklableArgumentError,
    size_at_least,
    store_object,
)
from proxystore_dask._dask import (
    MAP_OPTIONS,
    SUBMIT_OPTIONS,
    DataNode,
    GraphNode,
    Task,
    TaskRef,
    parse_input,
)
from proxystore_dask.calls import pack_map, split
from proxystore_dask.graph import Load, carries, counted_refs, inline, is_native, load_node, unfold
from proxystore_dask.literals import Scale

Pair = namedtuple("Pair", "first second")


@pytest.fixture
def packer(objects: Any) -> Any:
    ledger = Ledger(objects.store)
    yield Packer(ledger, threshold=10_000, is_native=is_native, carries=carries)
    ledger.close()


@pytest.fixture
def ref(objects: Any, array: Any) -> Any:
    ref = store_object(objects.store, array)
    yield ref
    ref.evict()


class TestLoadNode:
    def test_evaluates_to_the_object(self, ref, array):
        assert np.array_equal(load_node(ref)(), array)

    def test_travels_small(self, ref):
        data = pickle.dumps(load_node(ref))
        assert len(data) < 1000
        again = pickle.loads(data)
        assert again.func.ref == ref

    def test_has_a_token_of_its_content(self, ref, objects, array):
        same, other = store_object(objects.store, array), store_object(objects.store, array + 1)
        assert tokenize(load_node(same)) == tokenize(load_node(ref))
        assert tokenize(load_node(other)) != tokenize(load_node(ref))
        same.evict()
        other.evict()

    def test_of_a_users_proxy_has_a_token_of_its_own(self, ref):
        proxies = [ProxyRef(ref.factory, "", 0, "")]
        assert tokenize(load_node(proxies[0])) != tokenize(load_node(ref))
        assert not is_resolved(load_node(proxies[0])())

    def test_says_what_it_stands_for(self, ref):
        assert repr(Load(ref)) == "<stored numpy.ndarray, 156.50 kiB>"
        assert "numpy.ndarray" in repr(Task("key", total, load_node(ref)))


class TestCountedRefs:
    def test_in_containers_and_keywords(self, ref):
        node = load_node(ref)
        spec = Task("key", total, parse_input([{"a": (node, 1)}]), times=node)
        assert list(counted_refs(spec)) == [ref, ref]

    def test_in_fused_tasks(self, ref):
        first = Task("first", total, load_node(ref))
        fused = GraphNode.fuse(first, Task("second", total, TaskRef("first")))
        assert list(counted_refs(fused)) == [ref]

    def test_not_in_what_belongs_to_the_user(self, ref):
        assert list(counted_refs(load_node(ProxyRef(ref.factory, "", 0, "")))) == []
        assert list(counted_refs(Task("key", total, {"a": ref}, [ref]))) == []


class TestIsNative:
    @pytest.mark.parametrize(
        "value",
        [
            TaskRef("key"),
            Task("key", total),
            dask.array.ones(3),
            OrderedDict(a=[TaskRef("key")]),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_dask_has_to_see(self, value):
        assert is_native(value)

    @pytest.mark.parametrize(
        "value",
        [1, "text", np.ones(3), [TaskRef("key")], Pair(TaskRef("key"), 1), OrderedDict(a=1)],
        ids=lambda value: type(value).__name__,
    )
    def test_what_it_does_not_or_the_packer_looks_into(self, value):
        assert not is_native(value)


class TestCarries:
    def test_an_object_that_only_dask_can_serialize(self):
        assert carries(OnlyForDask(1))
        assert not carries(Unpicklable())


def is_large(value: Any) -> bool:
    return size_at_least(value, 1000)


class TestUnfold:
    def test_a_partial_with_a_large_argument(self, array):
        func, args, keywords = unfold(functools.partial(total, array, times=2), is_large)
        assert func is total
        assert args == (array,)
        assert keywords == {"times": 2}

    @pytest.mark.parametrize(
        "make",
        [
            lambda array: total,
            lambda array: functools.partial(total, 1, times=2),
            lambda array: functools.partial(total, array, key="Dask's own, if it were an option"),
            lambda array: functools.partial(total, array, [TaskRef("not replaced by Dask")]),
        ],
        ids=["no partial", "small", "reserved name", "future"],
    )
    def test_what_stays_as_it_is(self, make, array):
        func = make(array)
        assert unfold(func, is_large, SUBMIT_OPTIONS) == (func, (), {})

    def test_options_are_dasks(self):
        assert {"key", "workers", "retries", "pure", "actor"} <= SUBMIT_OPTIONS & MAP_OPTIONS
        assert split({"key": 1, "a": 2}, SUBMIT_OPTIONS) == ({"key": 1}, {"a": 2})

    @pytest.mark.parametrize(
        "make",
        [
            lambda array: Model(array).predict,
            lambda array: functools.partial(Model(array).predict, 2),
            lambda array: array.sum,
            lambda array: functools.partial(functools.partial(total, array), 2, times=3),
        ],
        ids=["method", "partial of a method", "builtin method", "partial of a partial"],
    )
    def test_what_carries_a_large_object(self, make, array):
        func = make(array)
        plain, args, keywords = unfold(func, is_large, SUBMIT_OPTIONS)
        assert len(pickle.dumps(plain)) < 1000
        assert plain(*args, **keywords) == func()
        assert funcname(plain) == funcname(func)

    def test_a_coroutine_method_stays_one(self, array):
        func = Model(array).predict_in_the_loop
        assert unfold(func, is_large) == (func, (), {})

    def test_a_small_object_stays_with_its_method(self):
        func = Model(1).predict
        assert unfold(func, is_large) == (func, (), {})


BIG = np.ones(1_000)
SMALL = [
    None,
    1,
    "text",
    np.ones(3),
    slice(3),
    total,
    [1] * 10,
    {"a": [np.ones(3)] * 3},
    lambda: None,
    TaskRef("x" * 2_000),
    Task("x" * 2_000, total, 1),
    {"x" * 2_000: 1},
]
LARGE = [
    "x" * 2_000,
    b"x" * 2_000,
    BIG,
    [1] * 2_000,
    ["xxxxxxxxxx"] * 200,
    {"a": (BIG, 1)},
    [np.ones(100)] * 3,
    Model(BIG),
    Task("key", total, BIG),
    Task("key", total, times=BIG),
    Task("key", functools.partial(total, BIG)),
    Task("key", Model(BIG).predict),
    Task("key", BIG.sum),
    Task("key", total, parse_input([TaskRef("key"), {"a": BIG}])),
    DataNode("key", BIG),
    GraphNode.fuse(Task("first", total, BIG), Task("second", total, TaskRef("first"))),
    (total, BIG),
]


class TestScale:
    """What is looked for before a graph is made."""

    @pytest.mark.parametrize("value", SMALL, ids=lambda value: type(value).__name__)
    def test_small(self, value):
        assert not Scale(2_000).is_large(value)

    @pytest.mark.parametrize("value", LARGE, ids=lambda value: type(value).__name__)
    def test_large(self, value):
        assert Scale(2_000).is_large(value)

    def test_what_holds_itself(self):
        value: list[Any] = [np.ones(1)]
        value.append(value)
        assert not Scale(2_000).is_large(value)

    def test_many_small_tasks_are_not_large_together(self):
        arrays = [np.ones(20) for _ in range(500)]
        assert not Scale(2_000).is_large(dask.delayed(list)([dask.delayed(a) for a in arrays]))
        assert not Scale(2_000).is_large(LLGExpr({("x", i): a for i, a in enumerate(arrays)}))

    def test_a_proxy_is_not_resolved(self, objects, array):
        key = objects.store.put(array)
        proxy = objects.store.proxy_from_key(key)
        assert not Scale(2_000).is_large([proxy])
        assert not is_resolved(proxy)
        objects.store.evict(key)


class TestPackMap:
    def test_each_call_holds_what_it_needs(self, packer, array):
        packed = pack_map(packer, (), [[array, 1, array + 1], [array, array, 2]], {"times": array})
        assert {i: len(holds) for i, holds in packed.holds.items()} == {0: 2, 1: 1, 2: 1}
        assert len(packed.shared_holds) == 1
        assert packer.ledger.stats.puts == 2
        rows = list(zip(*packed.iterables, strict=True))
        assert rows[0][0] is rows[0][1] is rows[1][1]
        assert (rows[1][0], rows[2][1]) == (1, 2)

    def test_nested_arguments(self, packer, array):
        packed = pack_map(packer, [[array]], [[{"a": array + 1}]], {})
        (leading,), ((element,),) = packed.shared, packed.iterables
        assert np.array_equal(leading()[0], array)
        assert np.array_equal(element()["a"], array + 1)
        assert len(packed.holds[0]) == len(packed.shared_holds) == 1

    def test_iterables_that_stay_are_not_touched(self, packer, array):
        numbers = range(3)
        packed = pack_map(packer, (), [numbers, [array] * 3], {})
        assert packed.iterables[0] is numbers

    def test_what_no_call_gets_is_not_stored(self, packer, array):
        pack_map(packer, (), [[array, array + 1], [1]], {})
        assert packer.ledger.stats.puts == 1

    def test_an_error_says_where(self, packer, array):
        with pytest.raises(UnpicklableArgumentError) as caught:
            pack_map(packer, (array,), [[1, 2], [array, {"a": Unpicklable()}]], {})
        assert caught.value.position == "2[1]['a']"
        with pytest.raises(UnpicklableArgumentError) as caught:
            pack_map(packer, (array,), [[1, 2]], {"times": Unpicklable()})
        assert caught.value.position == "times"
        assert packer.ledger.stats.puts == 0


def test_inline_looks_small_and_evaluates_to_the_value():
    value = {"numbers": list(range(100_000)), "future": TaskRef("key")}
    node = pickle.loads(pickle.dumps(inline(value)))
    assert sizeof(value) > 100_000 > sizeof(node)
    assert node.dependencies == {"key"}
    assert node({"key": 7}) == {**value, "future": 7}
