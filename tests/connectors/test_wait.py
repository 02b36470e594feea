"""Waiting for an object: at a connector in this process, and at a directory."""

from __future__ import annotations

import multiprocessing
import threading
import time

import pytest

from proxystore.connectors import file, local
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.connectors.protocols import WaitableConnector

AN_HOUR = 3600


@pytest.fixture(params=["local", "file"])
def connector(request, tmp_path):
    made = LocalConnector() if request.param == "local" else FileConnector(tmp_path / "dir")
    with made:
        yield made


def test_they_can_wait(connector):
    assert isinstance(connector, WaitableConnector)
    assert connector.thread_safe


@pytest.mark.parametrize("timeout", [0, -1, AN_HOUR, 1e9])
def test_what_is_there_is_not_waited_for(connector, timeout):
    assert connector.wait(connector.put(b""), timeout) is True


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
def test_what_does_not_come(connector, timeout):
    start = time.monotonic()
    assert connector.wait(connector.new_key(), timeout) is False
    assert time.monotonic() - start >= timeout


@pytest.mark.parametrize("method", ["set", "set_buffers"])
def test_all_who_wait_are_woken_by_whoever_sets_it(connector, at_once, method):
    key, other = connector.new_key(), connector.new_key()
    data = b"x" if method == "set" else [b"x", b"y"]
    for _ in range(20):
        woken = at_once(
            *[lambda: connector.wait(key, AN_HOUR)] * 4,
            lambda: connector.wait(other, 0.001),
            lambda: getattr(connector, method)(key, data),
        )
        assert woken == [True] * 4 + [False, None]
        connector.evict(key)
    assert not local._waiting, "nothing is left behind"


def test_what_is_evicted_again_has_not_come(connector):
    key = connector.new_key()
    connector.set(key, b"x")
    connector.evict(key)
    assert connector.wait(key, 0.01) is False


def test_equal_keys_in_two_dictionaries_are_two():
    first, second = LocalConnector(), LocalConnector()
    key = first.new_key()
    waiting = threading.Thread(target=first.wait, args=(key, AN_HOUR))
    waiting.start()
    second.set(key, b"x")
    assert waiting.is_alive()
    first.set(key, b"x")
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_connector_over_the_same_dictionary_is_noticed(at_once):
    shared = {}
    first, second = LocalConnector(shared), LocalConnector(shared)
    key = first.new_key()
    woken = at_once(lambda: first.wait(key, AN_HOUR), lambda: second.set(key, b"x"))
    assert woken == [True, None]


def test_a_dictionary_that_is_filled_in_another_way_is_noticed_in_the_end():
    shared = {}
    connector = LocalConnector(shared)
    key = connector.new_key()

    class Silent(threading.Event):
        def wait(self, timeout=None):
            shared[key] = b"x"
            return super().wait(timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxystore.connectors.local.threading.Event", Silent)
        assert connector.wait(key, 0.01) is True


def test_what_comes_while_it_gets_ready_to_wait_is_noticed():
    class Late(dict):
        """Gets the object just after it was first looked for."""

        def __contains__(self, key):
            found = super().__contains__(key)
            connector.set(key, b"x")
            return found

    connector = LocalConnector(Late())
    assert connector.wait(connector.new_key(), AN_HOUR) is True


def test_a_forked_child_waits_for_itself(at_once):
    connector = LocalConnector()
    key = connector.new_key()
    waiting = threading.Thread(target=connector.wait, args=(key, AN_HOUR))
    waiting.start()
    ours, theirs = multiprocessing.Pipe()

    def use():
        table = len(local._waiting)
        theirs.send(
            (table, at_once(lambda: connector.wait(key, 60), lambda: connector.set(key, b"x")))
        )

    held, forked = threading.Event(), threading.Event()

    def hold():
        with local._lock:
            held.set()
            assert forked.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    child = multiprocessing.get_context("fork").Process(target=use)
    child.start()
    forked.set()
    holder.join()
    assert ours.poll(60)
    assert ours.recv() == (0, [True, None])
    child.join()
    connector.set(key, b"x")
    waiting.join(60)
    assert not waiting.is_alive()


def test_another_process_is_noticed(tmp_path):
    with FileConnector(tmp_path / "dir") as connector:
        key = connector.new_key()
        child = multiprocessing.get_context("fork").Process(target=connector.set, args=(key, b"x"))
        child.start()
        assert connector.wait(key, AN_HOUR) is True
        child.join()


def test_a_directory_that_is_gone(tmp_path):
    connector = FileConnector(tmp_path / "dir")
    key = connector.new_key()
    connector.close()
    assert connector.wait(key, 0.01) is False


class Clock:
    def __init__(self):
        self.now = 0.0
        self.slept = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(
    ("kind", "first", "longest", "looks"), [("ext4", 0.001, 0.05, 1206), ("lustre", 0.02, 1.0, 65)]
)
def test_files_are_looked_for_ever_more_seldom(tmp_path, monkeypatch, kind, first, longest, looks):
    clock = Clock()
    monkeypatch.setattr(file, "monotonic", clock.monotonic)
    monkeypatch.setattr(file, "sleep", clock.sleep)
    monkeypatch.setattr(file, "_file_system", lambda path: kind)
    with FileConnector(tmp_path / "dir") as connector:
        assert connector.wait(connector.new_key(), 60) is False
    assert clock.now == pytest.approx(60), "and no longer than that"
    assert clock.slept[:2] == [first, 2 * first]
    assert max(clock.slept) == longest
    assert len(clock.slept) <= looks
