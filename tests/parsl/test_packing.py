"""What a worker makes of a result, without a worker."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from parsl_tasks import Box, Pair

from proxystore.connectors.exceptions import StorageFullError
from proxystore.connectors.file import FileConnector
from proxystore.store import Store, unregister_store
from proxystore.workflow import Ref
from proxystore_parsl.packing import Envelope, Failure, Plan, replaced, seal

TASK = "00000000-0000-4000-8000-000000000000.7."


class SmallConnector(FileConnector):
    """A file system with room for one more array of 20,000 floats."""

    room = 200_000

    def set_buffers(self, key, parts):
        needed = sum(memoryview(part).nbytes for part in parts)
        if needed > self.room:
            raise StorageFullError(self.store_dir, needed, self.room)
        super().set_buffers(key, parts)
        self.room -= needed


@pytest.fixture
def store(tmp_path):
    store = Store("packing", FileConnector(tmp_path / "packing"), register=True)
    yield store
    unregister_store(store)


@pytest.fixture
def plan(store):
    return Plan("app", store.config(), 50_000)


def opened(sealed):
    return pickle.loads(pickle.dumps(sealed)).open(Ref.resolve)


@pytest.mark.parametrize("value", [None, 1, "text", b"", [1, "a"], {"a": 1}, (2.5,), []])
def test_plain_results_are_not_sealed(plan, value):
    assert seal(value, plan, TASK) is value


@pytest.mark.parametrize("value", [{1}, [[1]], np.arange(3), Box(1), Pair(1, 2), list(range(100))])
def test_others_are_bytes_to_parsl(plan, value):
    sealed = seal(value, plan, TASK)
    assert type(sealed) is Envelope
    assert sealed.refs == ()
    assert type(opened(sealed)) is type(value)


def test_objects_are_named_after_the_task(plan, store):
    sealed = seal([np.ones(20_000), np.zeros(20_000)], plan, TASK)
    assert len(sealed.refs) == 2
    assert set(store.connector.keys(TASK)) == {ref.factory.key for ref in sealed.refs}


def test_an_object_in_two_places_is_stored_once(plan):
    array = np.ones(20_000)
    value = {"a": array, "b": [array]}
    sealed = seal(value, plan, TASK)
    assert len(sealed.refs) == 1
    result = opened(sealed)
    assert result["a"] is result["b"][0]
    assert value == {"a": array, "b": [array]}


def test_what_is_left_is_large_itself(plan):
    value = {"a": np.ones(20_000), "b": [str(i) * 10 for i in range(900)] * 5}
    assert np.array_equal(opened(seal(value, plan, TASK))["a"], value["a"])
    value["c"] = [Box(i) for i in range(5_000)]
    assert len(opened(seal(value, plan, TASK))["c"]) == 5_000


def test_a_list_that_holds_itself(plan):
    value = [np.ones(20_000)]
    value.append(value)
    result = opened(seal(value, plan, TASK))
    assert np.array_equal(result[0], value[0])
    assert replaced(value, lambda obj: obj) is value


def test_deep_lists_are_left_alone(plan):
    value = []
    for _ in range(300):
        value = [value]
    assert replaced(value, lambda obj: obj) is value


def test_by_value_if_told_so(plan, store):
    sealed = seal({"a": np.ones(20_000)}, plan, None)
    assert sealed.refs == ()
    assert opened(sealed)["a"].sum() == 20_000
    assert list(store.connector.keys()) == []


def test_by_value_if_the_embedded_store_is_full(tmp_path):
    store = Store("small", SmallConnector(tmp_path / "small"), register=True)
    value = [np.ones(20_000), np.zeros(20_000)]
    sealed = seal(value, Plan("app", store.config(), 50_000, embedded=True), TASK)
    assert sealed.refs == ()
    assert opened(sealed)[0].sum() == 20_000
    assert list(store.connector.keys()) == []
    store.connector.room = 200_000
    with pytest.raises(StorageFullError):
        seal(value, Plan("app", store.config(), 50_000), TASK)
    assert list(store.connector.keys()) == []
    unregister_store(store)


def test_memo_ids_are_by_content(plan):
    from parsl.dataflow.memoization import id_for_memo

    first, again, other = (seal([np.full(20_000, x), 1], plan, TASK) for x in (1.0, 1.0, 2.0))
    assert first.refs != again.refs
    assert id_for_memo(first) == id_for_memo(again) != id_for_memo(other)
    assert id_for_memo(first.refs[0]) == id_for_memo(again.refs[0])


def test_references_are_inert(plan):
    sealed = seal(np.ones(20_000), plan, TASK)
    for obj in (sealed, sealed.refs[0]):
        assert not callable(obj)
        assert hash(obj) == hash(pickle.loads(pickle.dumps(obj)))
        assert len(pickle.dumps(obj)) < 1_000
        assert len(repr(obj)) < 100


def test_a_failure_never_fails_to_be_unpickled():
    class Local(Exception):
        pass

    for error in (ValueError("text"), Local("text"), KeyError(lambda: 1)):
        failure = pickle.loads(pickle.dumps(Failure.of(error, "app")))
        assert isinstance(failure.get_exception(), Exception)
    broken = Failure(b"no pickle", failure.described)
    assert broken.get_exception() is failure.described
