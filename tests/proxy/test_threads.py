"""One resolve at a time, and what it must survive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from proxystore.proxy import Proxy, ProxyResolveError, extract, is_resolved, resolve

THREADS = 8


def test_threads_share_one_call_of_the_factory(at_once: Callable[..., list[Any]]) -> None:
    for _ in range(50):
        calls = []

        def factory(calls: list[int] = calls) -> object:
            calls.append(1)
            return object()

        proxy = Proxy(factory)
        targets = at_once(*[lambda proxy=proxy: extract(proxy)] * THREADS)
        assert len(calls) == 1
        assert all(target is targets[0] for target in targets)


def test_threads_leave_no_reference_behind(at_once: Callable[..., list[Any]]) -> None:
    target = [1]
    before = sys.getrefcount(target)
    for _ in range(200):
        proxy = Proxy(lambda: target)
        at_once(*[lambda proxy=proxy: len(proxy)] * THREADS)
        del proxy
    assert sys.getrefcount(target) == before


class Slow:
    """A factory that waits until another thread does, too."""

    def __init__(self, result: Callable[[], Any]) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.result = result
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        self.entered.set()
        assert self.go.wait(30)
        return self.result()


def while_resolving(factory: Slow, proxy: Proxy[Any]) -> list[Any]:
    """Use a proxy in two threads, the second while the first is in the factory.

    Returns:
        For each thread its result, or what it raised.
    """

    def use() -> Any:
        try:
            return extract(proxy)
        except BaseException as error:  # noqa: BLE001 - what each thread gets, whatever it is
            return error

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(use)
        assert factory.entered.wait(30)
        second = pool.submit(use)
        # It waits now, or will when it comes: either way the outcome is the same.
        factory.go.set()
        return [first.result(30), second.result(30)]


def test_those_who_wait_share_the_failure() -> None:
    cause = LookupError("gone")

    def fail() -> Any:
        raise cause

    factory = Slow(fail)
    proxy = Proxy(factory)
    errors = while_resolving(factory, proxy)
    assert all(isinstance(error, ProxyResolveError) for error in errors)
    assert all(error.cause is error.__cause__ is cause for error in errors)
    assert errors[0] is not errors[1], "each has a traceback of its own"
    assert not is_resolved(proxy)


def test_those_who_wait_try_again_if_the_first_was_interrupted() -> None:
    def interrupted_once() -> str:
        if factory.calls == 1:
            raise KeyboardInterrupt
        return "target"

    factory = Slow(interrupted_once)
    first, second = while_resolving(factory, Proxy(factory))
    assert isinstance(first, KeyboardInterrupt)
    assert second == "target"
    assert factory.calls == 2


def test_factory_may_use_its_own_proxy() -> None:
    depth = 0

    def factory() -> list[int]:
        nonlocal depth
        depth += 1
        return [len(proxy)] if depth == 1 else [1, 2]

    proxy = Proxy(factory)
    assert extract(proxy) == [2]
    assert depth == 2


def test_factory_that_never_ends_fails() -> None:
    proxy: Proxy[Any] = Proxy(lambda: len(proxy))
    with pytest.raises(ProxyResolveError):
        resolve(proxy)
    assert not is_resolved(proxy)


def test_factory_that_returns_its_own_proxy_fails() -> None:
    proxy: Proxy[Any] = Proxy(lambda: proxy)
    with pytest.raises(ProxyResolveError, match="returned the proxy that it should"):
        len(proxy)
    with pytest.raises(ValueError, match="its own target"):
        proxy.__proxy_wrapped__ = proxy


def test_two_proxies_resolve_at_the_same_time(at_once: Callable[..., list[Any]]) -> None:
    both = threading.Barrier(2)

    def factory() -> int:
        return both.wait(30)

    proxies = [Proxy(factory), Proxy(factory)]
    assert sorted(at_once(*[lambda proxy=p: extract(proxy) for p in proxies])) == [0, 1]


# Python 3.12 warns of every fork beside threads; that it works here is what is tested.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_while_another_thread_resolves() -> None:
    parent = os.getpid()

    def result() -> int:
        return os.getpid()

    factory = Slow(result)
    proxy = Proxy(lambda: factory() if os.getpid() == parent else result())
    thread = threading.Thread(target=resolve, args=(proxy,))
    thread.start()
    assert factory.entered.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that waits for a thread it does not have
        os._exit(0 if extract(proxy) == os.getpid() else 1)
    _, status = os.waitpid(child, 0)
    factory.go.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(status) == 0
    assert extract(proxy) == parent


def fail() -> Any:
    raise Demanding("key", host="h")


class Demanding(Exception):
    """Cannot be rebuilt from its args."""

    def __init__(self, key: str, *, host: str) -> None:
        super().__init__(key)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_failure_in_a_process_pool_leaves_the_pool_usable() -> None:
    with ProcessPoolExecutor(1) as pool:
        with pytest.raises(ProxyResolveError, match="Demanding: key") as caught:
            pool.submit(len, Proxy(fail)).result(60)
        assert "key" in str(caught.value.cause)
        assert pool.submit(len, Proxy(list)).result(60) == 0


TBLIB_FIRST = """
import pickle

from proxystore.proxy import Proxy, ProxyResolveError
from tblib import pickling_support

pickling_support.install()


class Late(Exception):
    def __init__(self, key, *, host):
        super().__init__(key)


def fail():
    raise Late("key", host="h")


try:
    len(Proxy(fail))
except ProxyResolveError as error:
    found = pickle.loads(pickle.dumps(error))
    print(type(found).__name__, found.cause)
"""


def test_a_cause_that_tblib_does_not_know_of_does_not_keep_the_error() -> None:
    pytest.importorskip("tblib")  # it registers the exceptions that exist when it is switched on
    done = subprocess.run([sys.executable, "-c", TBLIB_FIRST], capture_output=True, text=True)
    assert done.stdout.startswith("ProxyResolveError Late: key"), done.stderr
