"""Lifetimes beyond the contract: failures, races, many leases, forks and exits."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.store import Store, lifetimes
from proxystore.store.lifetimes import ContextLifetime, LeaseLifetime, StaticLifetime

# Processes get the search path of the one that starts them.
sys.path.insert(0, str(Path(__file__).parent / "importable"))
from store_tasks import lease_for_an_hour

has_notes = pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")


class Failing(LocalConnector):
    """Cannot evict the keys in `stuck`; raises what is assigned to `error`."""

    def __init__(self):
        super().__init__()
        self.stuck = []
        self.error = OSError

    def evict(self, key):
        if key in self.stuck:
            raise self.error(f"cannot evict {key.id}")
        super().evict(key)


class Slow(LocalConnector):
    """Holds evictions until `go` is set."""

    def __init__(self):
        super().__init__()
        self.evicting = threading.Event()
        self.go = threading.Event()

    def evict(self, key):
        self.evicting.set()
        assert self.go.wait(30)
        super().evict(key)


@pytest.fixture
def failing():
    return Store("failing", Failing())


@pytest.fixture
def store():
    return Store("lifetimes", LocalConnector())


def objects(store):
    return list(store.connector.keys())


def expire(lease):
    lease.extend(-1e6)
    lease._timer.join()


def start(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


# -- failures


def test_an_object_that_cannot_be_evicted_does_not_keep_the_others(failing):
    lifetime = ContextLifetime(failing)
    keys = failing.put_batch(list("abcdef"), lifetime=lifetime)
    failing.connector.stuck = keys[2:4]
    with pytest.raises(OSError, match="cannot evict"):
        lifetime.close()
    assert lifetime.done()
    assert set(objects(failing)) == set(keys[2:4])
    lifetime.close()  # it has ended


@has_notes
def test_the_first_error_tells_of_the_others(failing):
    lifetime = ContextLifetime(failing)
    failing.connector.stuck = failing.put_batch(range(30), lifetime=lifetime)
    with pytest.raises(OSError, match="cannot evict") as caught:
        lifetime.close()
    first, *others, last = caught.value.__notes__
    assert first.startswith("raised when evicting LocalKey(")
    assert len(others) == 10
    assert last == "and so on, 19 times more"


def test_stores_are_closed_although_an_object_cannot_be_evicted(failing):
    closed = []
    failing.connector.close = lambda: closed.append(True)
    lifetime = ContextLifetime(failing)
    failing.connector.stuck = [failing.put("a", lifetime=lifetime)]
    with pytest.raises(OSError, match="cannot evict"):
        lifetime.close(close_stores=True)
    assert closed


def test_the_error_of_the_block_comes_first(failing, caplog):
    with pytest.raises(ZeroDivisionError), ContextLifetime(failing) as lifetime:  # noqa: PT012
        failing.connector.stuck = [failing.put("a", lifetime=lifetime)]
        raise ZeroDivisionError
    assert lifetime.done()
    assert "cannot evict" in caplog.text
    with pytest.raises(OSError, match="cannot evict"), ContextLifetime(failing) as lifetime:
        failing.connector.stuck = [failing.put("a", lifetime=lifetime)]


def test_an_interrupted_close_can_be_repeated(failing):
    lifetime = ContextLifetime(failing)
    keys = failing.put_batch(list("abc"), lifetime=lifetime)
    failing.connector.stuck, failing.connector.error = keys[1:2], KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        lifetime.close()
    assert not lifetime.done()
    failing.connector.stuck = []
    lifetime.close()
    assert lifetime.done()
    assert not objects(failing)


def test_what_a_lease_cannot_evict_is_logged_and_other_leases_end(failing, caplog):
    lease, other = LeaseLifetime(failing, 3600), LeaseLifetime(failing, 3601)
    failing.connector.stuck = [failing.put("a", lifetime=lease)]
    failing.put("b", lifetime=other)
    expire(lease)
    expire(other)
    assert lease.done()
    assert other.done()
    assert objects(failing) == failing.connector.stuck
    assert "cannot evict" in caplog.text


def test_a_store_that_fails_does_not_stop_the_static_lifetime(failing, store, monkeypatch):
    monkeypatch.setattr(StaticLifetime, "_instance", None)
    static = StaticLifetime()
    failing.connector.stuck = [failing.put("a", lifetime=static)]
    store.put("b", lifetime=static)
    with pytest.raises(OSError, match="cannot evict"):
        static.close()
    assert static.done()
    assert not objects(store)


def test_an_ended_static_lifetime_keeps_no_store_alive(monkeypatch):
    monkeypatch.setattr(StaticLifetime, "_instance", None)
    store = Store("pinned", LocalConnector())
    store.put("a", lifetime=StaticLifetime())
    there = weakref.ref(store)
    del store
    assert there() is not None
    StaticLifetime().close()
    gc.collect()
    assert there() is None


def test_what_was_added_too_late_is_not_left_behind(failing):
    """The lifetime ends between the look at it and the attaching, and evicting fails too."""

    class Ending(ContextLifetime):
        def done(self):
            ended, _ = super().done(), self.close()
            return ended

    for put in (failing.put, failing.proxy, lambda obj, **kw: failing.put_batch([obj], **kw)):
        with pytest.raises(RuntimeError, match="ended"):
            put("a", lifetime=Ending(failing))
    assert not objects(failing)
    failing.connector.evict = lambda key: 1 / 0
    with pytest.raises(RuntimeError, match="ended"):
        failing.put("a", lifetime=Ending(failing))


# -- threads


def test_adding_while_it_ends_leaves_nothing(store, at_once):
    for _ in range(20):
        lifetime = ContextLifetime(store)
        refused = []

        def add(lifetime=lifetime, refused=refused):
            try:
                for i in range(20):
                    store.put(i, lifetime=lifetime)
            except RuntimeError:
                refused.append(True)

        at_once(add, add, add, lifetime.close)
        assert not objects(store)
        assert lifetime.done()


def test_a_lease_that_ends_while_keys_are_added_leaves_nothing(store, at_once):
    def add():
        with pytest.raises(RuntimeError, match="ended"):  # noqa: PT012
            while True:
                store.put("a", lifetime=lease)

    lease = LeaseLifetime(store, 0.05)
    at_once(add, add, add, add)
    lease._timer.join()
    assert not objects(store)


def test_whoever_closes_waits_until_it_is_closed():
    store = Store("slow", Slow())
    lifetime = ContextLifetime(store)
    key = store.put("a", lifetime=lifetime)
    first = start(lifetime.close)
    assert store.connector.evicting.wait(30)
    left = []

    def close():
        lifetime.close()
        left.append(store.connector.exists(key))

    second = start(close)
    assert not lifetime.done()
    assert not left
    with pytest.raises(RuntimeError, match="ended"):
        lifetime.add_key(key)
    store.connector.go.set()
    first.join()
    second.join()
    assert left == [False]


def test_one_static_lifetime_however_many_ask(at_once, monkeypatch):
    monkeypatch.setattr(StaticLifetime, "_instance", None)
    found = at_once(*[StaticLifetime] * 8)
    assert len(set(map(id, found))) == 1
    found[0].close()


def test_extending_and_expiring_agree(store, at_once):
    """Either the lease was extended and lives, or it had ended and says so."""
    for _ in range(50):
        lease = LeaseLifetime(store, 3600)
        key = store.put("a", lifetime=lease)
        lease.extend(-3599.998)
        alarm = lease._timer

        def extend(lease=lease):
            try:
                lease.extend(3600)
            except RuntimeError:
                return False
            return True

        _, extended = at_once(alarm.join, extend)
        if extended:
            assert not lease.done()
            assert store.exists(key)
            lease.close()
        else:
            lease._timer.join()
            assert lease.done()
        assert not store.exists(key)


def test_an_alarm_that_was_replaced_at_the_last_moment_is_ignored(store):
    with LeaseLifetime(store, 3600) as lease:
        alarm = lease._timer
        lease.extend(1)
        lease._expire(alarm)  # it had gone off, and its thread was about to look
        assert not lease.done()
        store.put("a", lifetime=lease)


# -- leases


def test_ten_thousand_leases_take_one_thread(store):
    before = threading.active_count()
    leases = [LeaseLifetime(store, timedelta(hours=1)) for _ in range(5000)]
    leases += [LeaseLifetime(store, 0.001 * (i % 100)) for i in range(5000)]
    for i, lease in enumerate(leases[:5000]):
        store.put(i, lifetime=lease)
    assert threading.active_count() <= before + 1
    for lease in leases[5000:]:
        lease._timer.join()
        assert lease.done()
    assert len(objects(store)) == 5000
    thread = store_thread(leases[0])
    for lease in leases[:5000]:
        lease.close()
    assert not objects(store)
    thread.join(30)
    assert not thread.is_alive(), "it is there while there are leases"


def store_thread(lease):
    return lease._clock._thread


def test_the_thread_comes_back_for_another_lease(store):
    for _ in range(3):
        lease = LeaseLifetime(store, 0.001)
        thread = store_thread(lease)
        lease._timer.join()
        assert lease.done()
        if thread is not None:
            thread.join()


def test_a_shortened_lease_ends_at_once(store):
    lease = LeaseLifetime(store, 3600)
    key = store.put("a", lifetime=lease)
    lease.extend(-3599.99)
    lease._timer.join()
    assert not store.exists(key)
    lease = LeaseLifetime(store, 3600)
    lease.extend(datetime.now())
    lease._timer.join()
    assert lease.done()


def test_setting_the_clock_does_not_matter(store, monkeypatch):
    lease = LeaseLifetime(store, datetime.now() + timedelta(hours=1))
    now = time.time()
    monkeypatch.setattr(lifetimes.time, "time", lambda: now + 1e6)
    LeaseLifetime(store, 0.005)._timer.join()  # the thread has looked at the time
    assert not lease.done()
    monkeypatch.setattr(lifetimes.time, "time", lambda: now - 1e6)
    short = LeaseLifetime(store, 0.005)
    short._timer.join()
    assert short.done()
    lease.close()


@pytest.mark.parametrize("expiry", [float("inf"), timedelta.max, 1e300])
def test_a_lease_for_ever(store, expiry):
    lease = LeaseLifetime(store, expiry)
    LeaseLifetime(store, 0.001)._timer.join()
    assert not lease.done()
    lease.close()


def test_not_a_number_is_no_time(store):
    with pytest.raises(ValueError, match="nan"):
        LeaseLifetime(store, float("nan"))


def test_a_store_that_hangs_delays_no_other_stores_leases(store):
    slow = Store("slow", Slow())
    hanging = LeaseLifetime(slow, 3600)
    slow.put("a", lifetime=hanging)
    hanging.extend(-3600)
    assert slow.connector.evicting.wait(30)
    lease = LeaseLifetime(store, 0.001)
    lease._timer.join(30)
    assert lease.done()
    assert not hanging.done()
    slow.connector.go.set()
    hanging._timer.join()
    assert hanging.done()


def test_a_lease_that_nobody_holds_ends_all_the_same(store):
    lease = LeaseLifetime(store, 3600)
    key = store.put("a", lifetime=lease)
    lease.extend(-3599.99)
    del lease
    gc.collect()
    LeaseLifetime(store, 0.02)._timer.join()
    assert not store.exists(key)


def test_a_closed_lease_is_not_kept_until_it_would_have_expired(store):
    with LeaseLifetime(store, 3600) as waiting:
        thread = store_thread(waiting)
        closed = LeaseLifetime(store, 3600)
        closed.close()
        there = weakref.ref(closed)
        del closed
        LeaseLifetime(store, 0.001)._timer.join()  # the thread has come by
        waited = threading.Event()
        for _ in range(1000):
            gc.collect()
            if there() is None:
                break
            waited.wait(0.01)
        assert there() is None
    thread.join(30)
    assert not thread.is_alive()


# -- the end of a process

PROGRAM = """
import os, sys, time
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.store.lifetimes import ContextLifetime, LeaseLifetime, StaticLifetime

store = Store("ending", FileConnector(sys.argv[1], clear=False))
"""


def spawn(program, directory, **options):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM + program, str(directory)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def run(program, directory):
    """Run a program; return what it has printed."""
    with spawn(program, directory, text=True, start_new_session=True) as child:
        try:
            printed, errors = child.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # and what it has forked
            raise
    assert not errors
    assert child.returncode == 0
    return printed.split()


def test_a_lease_does_not_keep_the_interpreter_and_ends_with_it(tmp_path):
    start = time.monotonic()
    program = """
lease = LeaseLifetime(store, 3600)
store.put("a", lifetime=lease)
store.put("b", lifetime=LeaseLifetime(store, 7200))
store.put("stays")
"""
    assert run(program, tmp_path) == []
    assert time.monotonic() - start < 60
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_at_exit_is_logged_and_the_next_lease_ends(tmp_path):
    program = """
import logging
logging.basicConfig(stream=sys.stdout, format="%(levelname)s")
class Stuck(FileConnector):
    def evict(self, key):
        raise OSError("stuck")
stuck = Store("stuck", Stuck(sys.argv[1], clear=False))
stuck.put("a", lifetime=LeaseLifetime(stuck, 3600))
store.put("b", lifetime=LeaseLifetime(store, 3600))
"""
    printed = run(program, tmp_path)
    assert "ERROR" in printed
    assert len(list(tmp_path.iterdir())) == 1


def test_an_eviction_under_way_at_exit_is_finished(tmp_path):
    program = """
import threading
evicting = threading.Event()
class Slow(FileConnector):
    def evict(self, key):
        evicting.set()
        time.sleep(0.05)  # a slow server
        super().evict(key)
slow = Store("slow", Slow(sys.argv[1], clear=False))
lease = LeaseLifetime(slow, 3600)
slow.put("a", lifetime=lease); slow.put("b", lifetime=lease)
lease.extend(-3600)
evicting.wait()
"""
    assert run(program, tmp_path) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_lease_in_a_worker_of_a_pool_ends_with_the_worker(tmp_path, method):
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(lease_for_an_hour, str(tmp_path)).result()
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


def test_the_lease_of_a_killed_process_is_left_to_others(tmp_path, store):
    """What it had stored stays: there is nobody to evict it."""
    program = """
store.put("a", lifetime=LeaseLifetime(store, 3600))
print("ready", flush=True)
sys.stdin.read()
"""
    with spawn(program, tmp_path) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=30) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    files = Store("again", FileConnector(tmp_path, clear=False))
    lease = LeaseLifetime(files, 3600)
    lease.add_key(files.connector.named_key(left.name))
    expire(lease)
    assert not list(tmp_path.iterdir())


FORK = """
def fork(function):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        function()
        sys.exit()  # with all exit hooks
    _, status = os.waitpid(child, 0)
    assert status == 0, status

lifetime, lease, static = ContextLifetime(store), LeaseLifetime(store, 3600), StaticLifetime()
keys = [store.put(i, lifetime=owner) for i, owner in enumerate((lifetime, lease, static))]

def left():
    return [store.exists(key) for key in keys]
"""


def test_a_forked_child_evicts_nothing_of_its_parents(tmp_path):
    program = """
fork(lambda: None)
assert all(left()), "at exit"

def close():
    for owner in (lifetime, lease, static):
        owner.close(close_stores=True)
        assert owner.done()
fork(close)
assert all(left()), "closed"

def expire():
    lease.extend(-3600)
    lease._timer.join()
    assert lease.done()
fork(expire)
assert all(left()), "expired"

close()
assert not any(left())
print("fine")
"""
    assert run(FORK + program, tmp_path) == ["fine"]


def test_a_forked_child_evicts_what_it_has_attached_itself(tmp_path):
    program = """
def add_and_close():
    keys = [store.put(0, lifetime=owner) for owner in (lifetime, lease, static)]
    for owner in (lifetime, lease, static):
        owner.close()
    assert not any(map(store.exists, keys))
fork(add_and_close)

def expire():
    key = store.put(0, lifetime=lease)
    lease.extend(-3600)
    lease._timer.join()
    assert not store.exists(key)
    new = LeaseLifetime(store, 3600)
    key = store.put(0, lifetime=new)
    new.extend(-3600)
    new._timer.join()
    assert not store.exists(key)
fork(expire)

def leave_to_exit():
    for owner in (lease, static, LeaseLifetime(store, 3600)):
        store.put(0, lifetime=owner)
fork(leave_to_exit)
assert all(left())
assert len(os.listdir(sys.argv[1])) == len(keys)
print("fine")
"""
    assert run(FORK + program, tmp_path) == ["fine"]


def test_a_lease_ends_in_parent_and_child(tmp_path):
    program = """
lease = LeaseLifetime(store, 3600)
mine = store.put("parent", lifetime=lease)
lease.extend(-3599.9)
def wait():
    while not lease.done():  # its thread is the parent's: asking starts another
        time.sleep(0.01)
    print("child")
fork(wait)
lease._timer.join()
assert not store.exists(mine)
print("parent")
"""
    assert run(FORK + program, tmp_path) == ["child", "parent"]


def test_locks_that_are_held_when_forking_do_not_hang_the_child(tmp_path):
    program = """
import threading
held, done = threading.Event(), threading.Event()
def hold():
    with lifetime._lock, lifetime._closing, lease._lock, lease._clock._changed, static._lock:
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
def use():
    for owner in (lifetime, lease, static):
        store.put(0, lifetime=owner)
        owner.close()
fork(use)
done.set()
thread.join()
assert all(left())
print("fine")
"""
    assert run(FORK + program, tmp_path) == ["fine"]


def test_a_child_that_is_forked_while_a_lifetime_is_closed_sees_it_ended(tmp_path):
    program = """
import threading
evicting, go = threading.Event(), threading.Event()
class Slow(FileConnector):
    def evict(self, key):
        evicting.set()
        go.wait()
        super().evict(key)
slow = Store("slow", Slow(sys.argv[1], clear=False))
closing, expiring = ContextLifetime(slow), LeaseLifetime(slow, 3600)
key = slow.put("a", lifetime=closing)
slow.put("b", lifetime=expiring)
expiring.extend(-3600)
thread = threading.Thread(target=closing.close)
thread.start()
evicting.wait()
while expiring._attached is not None:
    time.sleep(0.001)
def look():
    for lifetime in (closing, expiring, expired):
        assert lifetime.done()
        lifetime.close()
other = Store("other", FileConnector(sys.argv[1], clear=False))
expired = LeaseLifetime(other, 3600)
with expired._closing:  # its thread is about to close it
    expired.extend(-3600)
    while not expired._expired:
        time.sleep(0.001)
    fork(look)
expired._timer.join()
go.set()
thread.join()
expiring._timer.join()
assert closing.done() and expiring.done()
assert not slow.connector.exists(key)
print("fine")
"""
    assert run(FORK + program, tmp_path) == ["fine"]
