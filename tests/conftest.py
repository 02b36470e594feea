"""What all tests share."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import settings
from waiting import wait_until

from proxystore.testing.redis_server import RedisServer

# Machines are shared and slow at times: how long an example took says nothing about it.
settings.register_profile("local", deadline=None)
# In CI the same commit must give the same answer twice.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session", name="wait_until")
def _wait_until() -> Callable[..., None]:
    return wait_until


@pytest.fixture
def at_once() -> Iterator[Callable[..., list[Any]]]:
    """Return a function that runs each of its arguments in a thread of its own, all at once.

    Results come in the order of the arguments; the first exception is raised again. While
    this is used, the interpreter switches threads as often as it can.
    """

    def run(*functions: Callable[[], Any]) -> list[Any]:
        barrier = threading.Barrier(len(functions))

        def start(function: Callable[[], Any]) -> Any:
            barrier.wait(timeout=30)
            return function()

        with ThreadPoolExecutor(len(functions)) as pool:
            return list(pool.map(start, functions))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield run
    sys.setswitchinterval(interval)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Return a server that tests share: their objects are theirs, and nobody stops it."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """Return a server that one test has for itself."""
    with RedisServer() as server:
        yield server
