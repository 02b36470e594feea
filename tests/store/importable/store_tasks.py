"""Functions that processes of a pool can import."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from proxystore.connectors.file import FileConnector
from proxystore.proxy import Proxy, is_resolved
from proxystore.store import Store, get_store
from proxystore.store.executor import ProxyNever
from proxystore.store.lifetimes import LeaseLifetime

kept: list[Any] = []


def identity(x: Any) -> Any:
    return x


def add(x: Any, y: Any) -> Any:
    return x + y


def nested(x: Any, how: str = "list") -> Any:
    """Return something that holds `x`."""
    return {"list": [x], "dict": {"x": x}, "closure": lambda: x}[how]


def changed(x: list[int]) -> Any:
    """Return something that holds `x`, and a change of it that is nowhere else."""
    x.append(99)
    return {"x": x}


def changed_and_stored(x: list[int], name: str) -> Any:
    """As `changed`, but stored by the call itself."""
    x.append(99)
    return owned({"x": x}, name)


def which_are_proxies(*args: Any, **kwargs: Any) -> tuple[str, ...]:
    """Return the names of those arguments that are proxies."""
    named = {**{str(i): arg for i, arg in enumerate(args)}, **kwargs}
    return tuple(name for name, arg in named.items() if type(arg) is Proxy)


def fail(x: Any) -> Any:
    raise ValueError("failed on purpose", x)


def owned(x: Any, name: str) -> Any:
    store = get_store(name)
    assert store is not None
    return store.owned_proxy(x)


def id_of_store(x: Any, name: str) -> tuple[int, int]:
    """Return the process, and the identity of its store."""
    assert len(x)
    return os.getpid(), id(get_store(name))


def die(x: Any) -> None:
    assert len(x)
    os.kill(os.getpid(), signal.SIGKILL)


def is_there(x: Any) -> bool:
    return is_resolved(x)


def lease_for_an_hour(directory: str) -> None:
    store = Store("in-worker", FileConnector(directory, clear=False))
    store.put("a", lifetime=LeaseLifetime(store, 3600))


def is_same(x: Any, y: Any) -> bool:
    return x is y


def new_lock(x: Any) -> Any:
    return threading.Lock()


class OnlyHere:
    """A policy that proxies lists where it was made, and nothing where a function runs."""

    def __call__(self, item: Any) -> bool:
        return type(item) is list and threading.current_thread() is threading.main_thread()

    def __reduce__(self) -> Any:
        return ProxyNever, ()
