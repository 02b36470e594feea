"""The ledger: stored once, given up once, by whichever thread lets go last."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import threading
import time
import uuid

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.store import Store, store_registration
from proxystore.workflow import Ledger, store_object, sweep
from proxystore.workflow.refs import idle_for


@pytest.fixture
def store():
    made = Store("ledger", LocalConnector())
    with store_registration(made):
        yield made


@pytest.fixture
def ledger(store):
    made = Ledger(store)
    yield made
    made.close()


def test_an_object_lives_until_its_last_hold_is_released(ledger):
    first, second = ledger.hold([1]), ledger.hold([1])
    assert first.ref == second.ref
    first.release()
    first.release()
    ledger.flush()
    assert second.ref.resolve() == [1]
    assert ledger.live == (second.ref,)
    second.release()
    ledger.flush()
    assert not second.ref.exists()
    assert ledger.live == ()
    assert "released" in repr(second)


def test_a_hold_that_nobody_has_is_released(ledger):
    ref = ledger.hold([1]).ref
    ledger.flush()
    assert not ref.exists()


def test_a_hold_in_a_cycle_is_released_by_the_collector(ledger):
    cycle = [ledger.hold([1])]
    ref = cycle[0].ref
    cycle.append(cycle)
    del cycle
    gc.collect()
    ledger.flush()
    assert not ref.exists()


def test_content_that_is_wanted_again_is_stored_again(ledger):
    first = ledger.hold([1])
    first.release()
    ledger.flush()
    second = ledger.hold([1])
    assert second.ref != first.ref
    assert second.ref.resolve() == [1]


def test_many_threads_store_the_same_content_once(ledger, store, at_once):
    holds = []
    at_once(*[lambda: holds.append(ledger.hold(np.zeros(100_000)))] * 16)
    assert len({hold.ref for hold in holds}) == 1
    assert len(store.connector._store) == 1
    assert (ledger.stats.puts, ledger.stats.reused) == (1, 15)


def test_if_the_first_of_many_threads_fails_another_one_stores(store, at_once):
    failures = iter([True])

    def fail_once(ref):
        if next(failures, False):
            raise ConnectionError("the scheduler is gone")

    ledger = Ledger(store, on_stored=fail_once)
    holds, errors = [], []

    def hold():
        try:
            holds.append(ledger.hold([1]))
        except ConnectionError as error:
            errors.append(error)

    at_once(*[hold] * 8)
    assert (len(holds), len(errors)) == (7, 1)
    assert len(store.connector._store) == 1
    ledger.close()


def test_who_stores_tells_before_anybody_can_have_it(store):
    told, unneeded = [], threading.Event()
    ledger = Ledger(store, on_stored=told.append, on_unneeded=lambda ref: unneeded.set())
    hold = ledger.hold([1])
    ledger.hold([1])
    assert told == [hold.ref]
    hold.release()
    assert unneeded.wait(10)
    assert hold.ref.exists(), "evicting is up to whom it was told"
    hold.ref.evict()
    ledger.close()


def test_an_object_made_elsewhere_is_adopted(ledger, store):
    ref = store_object(store, [1])
    first, second = ledger.adopt(ref), ledger.adopt(ref)
    first.release()
    ledger.flush()
    assert ref.exists()
    del second
    ledger.flush()
    assert not ref.exists()
    assert ledger.stats.adopted == 1


def test_what_is_kept_is_not_evicted(ledger):
    hold = ledger.hold([1])
    ledger.keep(hold.ref)
    hold.release()
    ledger.flush()
    ledger.close()
    assert hold.ref.resolve() == [1]


def test_close_gives_up_everything_and_refuses_more(ledger):
    hold = ledger.hold([1])
    ledger.close()
    ledger.close()
    assert not hold.ref.exists()
    with pytest.raises(RuntimeError, match="closed"):
        ledger.hold([1])
    hold.release()


def test_what_is_stored_while_it_is_being_closed_is_given_up(store):
    ledger = Ledger(store, on_stored=lambda ref: ledger.close())
    with pytest.raises(RuntimeError, match="closed"):
        ledger.hold([1])
    assert not store.connector._store


def test_what_is_stored_after_it_was_closed_is_evicted_by_nobody_else(store, monkeypatch):
    """Who is told of what nobody needs may be gone."""
    told = []
    ledger = Ledger(store, on_unneeded=told.append)
    put = store.put_dumped

    def closing(*args, **kwargs):
        key = put(*args, **kwargs)
        ledger.close()
        return key

    monkeypatch.setattr(store, "put_dumped", closing)
    with pytest.raises(RuntimeError, match="closed"):
        ledger.hold([1])
    assert not store.connector._store
    assert told == []


def test_what_others_have_evicted_is_stored_again(store):
    told = []
    ledger = Ledger(store, on_unneeded=told.append)
    gone, kept = ledger.hold([1]), ledger.hold([2])
    gone.ref.evict()
    assert ledger.disown(lambda ref: not ref.exists()) == [gone.ref]
    assert ledger.live == (kept.ref,)
    again = ledger.hold([1])
    assert again.ref.id != gone.ref.id
    gone.release()
    ledger.flush()
    assert told == []
    assert again.ref.exists()
    again.release()
    ledger.flush()
    assert told == [again.ref]
    ledger.close()


def test_what_was_disowned_may_be_taken_again(store):
    told = []
    theirs = store_object(store, [1])
    ledger = Ledger(store, on_unneeded=told.append, find=lambda digest: theirs)
    before = ledger.hold([1])
    ledger.disown(lambda ref: True)
    after = ledger.hold([1])
    before.release()
    ledger.flush()
    assert told == []
    assert ledger.live == (theirs,)
    after.release()
    ledger.flush()
    assert told == [theirs]


def test_content_that_may_be_gone_is_stored_again(store):
    ledger = Ledger(store)
    before = ledger.hold([1])
    ledger.forget_content()
    after = ledger.hold([1])
    assert after.ref.id != before.ref.id
    assert set(ledger.live) == {before.ref, after.ref}
    before.release()
    ledger.flush()
    assert not before.ref.exists()
    assert ledger.hold([1]).ref.id == after.ref.id


def test_an_eviction_that_fails_does_not_stop_the_others(store, caplog):
    def evict(ref):
        if ref.nbytes > 1000:
            raise ConnectionError("down")
        ref.evict()

    ledger = Ledger(store, on_unneeded=evict)
    bad, good = ledger.hold(bytes(2000)), ledger.hold([1])
    bad.release()
    good.release()
    ledger.flush()
    assert not good.ref.exists()
    assert "could not give up" in caplog.text
    ledger.close()


def _release_in_child(ledger, hold, pipe):
    hold.release()
    own = ledger.hold("the child's")
    pipe.send(own.ref.resolve())
    own.release()
    ledger.flush()
    pipe.send(own.ref.exists())
    ledger.close()


def test_a_forked_child_gives_up_nothing_of_its_parent(tmp_path):
    store = Store("forked", FileConnector(tmp_path / "objects"))
    with store_registration(store):
        ledger = Ledger(store)
        hold = ledger.hold("the parent's")
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        child = context.Process(target=_release_in_child, args=(ledger, hold, theirs))
        child.start()
        assert ours.poll(30)
        assert (ours.recv(), ours.recv()) == ("the child's", False)
        child.join()
        assert hold.ref.resolve() == "the parent's"
        ledger.close()
    store.close()


def test_a_closed_ledger_keeps_nobody_waiting(store):
    ledger = Ledger(store)
    hold = ledger.hold("an object")
    ledger.close()
    hold.release()
    start = time.monotonic()
    assert ledger.flush(timeout=30)
    assert time.monotonic() - start < 10


def test_what_others_have_stored_is_found_and_given_back(store):
    theirs = store_object(store, [1, 2, 3])
    asked, given_back = [], []

    def find(digest):
        asked.append(digest)
        return theirs if digest == theirs.digest else None

    ledger = Ledger(store, on_unneeded=given_back.append, find=find)
    holds = [ledger.hold([1, 2, 3]), ledger.hold([1, 2, 3])]
    assert [hold.ref for hold in holds] == [theirs, theirs]
    assert asked == [theirs.digest], "once"
    assert (ledger.stats.puts, ledger.stats.reused) == (0, 2)
    ours = ledger.hold("ours")
    assert ledger.stats.puts == 1
    holds.pop().release()
    assert ledger.flush()
    assert not given_back
    holds.pop().release()
    assert ledger.flush()
    assert given_back == [theirs]
    ours.release()
    ledger.close()


def test_objects_with_a_common_name_are_swept(store):
    uid = "9d4c3f4e-1234-4a4a-9a9a-1234567890ab"
    refs = [store_object(store, i, name=f"{uid}.{i}") for i in range(3)]
    other = store_object(store, "other")
    assert [ref.resolve() for ref in refs] == [0, 1, 2]
    assert sweep(store, uid, keep=lambda: None) == 0
    assert all(ref.exists() for ref in refs)
    assert sweep(store, uid, keep=lambda: {refs[1].id}) == 2
    assert [ref.exists() for ref in refs] == [False, True, False]
    assert sweep(store, uid) == 1
    assert sweep(store, uid) == 0
    assert other.exists()
    with pytest.raises(ValueError, match="UUID"):
        store_object(store, 1, name="../elsewhere")


def test_what_is_begun_of_such_objects_is_swept(tmp_path):
    """But not of those that stay: they may be being written."""
    uid = "9d4c3f4e-1234-4a4a-9a9a-1234567890ab"
    with Store("halves", FileConnector(tmp_path / "objects"), register=False) as store:
        halves = [tmp_path / "objects" / f".{uuid.uuid4()}.{uid}.{i}" for i in range(3)]
        halves.append(tmp_path / "objects" / f".{uuid.uuid4()}.{uuid.uuid4()}.1")
        for each in halves:
            each.touch()
        assert sweep(store, uid, keep=lambda: None) == 0
        assert sweep(store, uid, begun=False) == 0
        assert all(each.exists() for each in halves)
        stays = ("halves", *store.connector.named_key(f"{uid}.1"))
        assert sweep(store, uid, keep=lambda: {stays}) == 0
        assert [each.exists() for each in halves] == [False, True, False, True]


def test_how_long_nothing_was_added_to_what_is_begun(tmp_path):
    uid = str(uuid.uuid4())
    with Store("idle", FileConnector(tmp_path / "objects"), register=False) as store:
        assert idle_for(store, uid) == math.inf
        for seconds in (5000, 1000):
            half = tmp_path / "objects" / f".{uuid.uuid4()}.{uid}.{seconds}"
            half.touch()
            os.utime(half, (time.time() - seconds,) * 2)
        assert 1000 <= idle_for(store, uid) < 1100


class Counting(RuleBasedStateMachine):
    """Whatever the order of holding and releasing: there while held, gone after."""

    def __init__(self):
        super().__init__()
        self.store = Store("counting", LocalConnector())
        self.registration = store_registration(self.store)
        self.registration.__enter__()
        self.ledger = Ledger(self.store)
        self.holds = []

    @rule(content=st.integers(0, 3))
    def hold(self, content):
        self.holds.append((content, self.ledger.hold(content)))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def adopt(self, data):
        # By number: Hypothesis keeps what was drawn.
        content, hold = self.holds[data.draw(st.integers(0, len(self.holds) - 1))]
        self.holds.append((content, self.ledger.adopt(hold.ref)))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data):
        self.holds.pop(data.draw(st.integers(0, len(self.holds) - 1)))

    @invariant()
    def stored_is_what_is_held(self):
        self.ledger.flush()
        for content, hold in self.holds:
            assert hold.ref.resolve() == content
        assert len(self.store.connector._store) == len({content for content, _ in self.holds})

    def teardown(self):
        self.ledger.close()
        assert not self.store.connector._store
        self.registration.__exit__(None, None, None)


Counting.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestCounting = Counting.TestCase
