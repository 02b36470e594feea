"""Every private name of Dask that this package leans on; nothing else here imports any.

Checked against dask and distributed 2026.8.0. `tests/dask/test_seam.py` looks at each name and says
which of them has changed. Nothing in here decides anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

# The graph's own vocabulary. Dask has no public name for "a node inside a task's arguments".
from dask._task_spec import GraphNode, Task, TaskRef, parse_input
from distributed import Client as DaskClient
from distributed.client import ClosedClientError, FutureState

__all__ = [
    "MAP_OPTIONS",
    "SUBMIT_OPTIONS",
    "GraphNode",
    "HookedClient",
    "Task",
    "TaskRef",
    "parse_input",
    "send",
    "start_with",
    "take_over",
]


def _options(method: Callable[..., Any]) -> frozenset[str]:
    parameters = inspect.signature(method).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


# What `submit` and `map` keep for themselves; every other keyword is the function's.
SUBMIT_OPTIONS = _options(DaskClient.submit)
MAP_OPTIONS = _options(DaskClient.map)


class HookedClient(DaskClient):
    """A client that says when it has connected, lost its scheduler, been restarted, and closed.

    distributed calls these methods in its event loop, for synchronous and asynchronous clients
    alike. It has no public hook at these points (`preload` runs too early, and never again after a
    reconnect).
    """

    async def _start(self, *args: Any, **kwargs: Any) -> DaskClient:
        await super()._start(*args, **kwargs)
        try:
            await self._ps_connected()
        except BaseException:
            await self._close()
            raise
        return self

    async def _reconnect(self) -> None:
        self._ps_disconnected()
        await super()._reconnect()
        if self.status == "running":
            await self._ps_reconnected()

    def _handle_restart(self) -> None:
        super()._handle_restart()
        self._ps_restarted()

    def _handle_task_erred(self, key: Any = None, *args: Any, **kwargs: Any) -> None:
        super()._handle_task_erred(key, *args, **kwargs)
        _raise_copies(self.futures.get(key))

    def _handle_cancelled_keys(self, keys: Any, *args: Any, **kwargs: Any) -> None:
        super()._handle_cancelled_keys(keys, *args, **kwargs)
        for key in keys:
            _raise_copies(self.futures.get(key))

    async def _close(self, *args: Any, **kwargs: Any) -> None:
        if self.status != "closed":
            await super()._close(*args, **kwargs)
            self._ps_closed()

    async def _ps_connected(self) -> None:
        raise NotImplementedError

    async def _ps_reconnected(self) -> None:
        raise NotImplementedError

    def _ps_disconnected(self) -> None:
        raise NotImplementedError

    def _ps_restarted(self) -> None:
        raise NotImplementedError

    def _ps_closed(self) -> None:
        raise NotImplementedError


_EXCEPTION: Any = vars(FutureState)["exception"]  # the slot


class _StateOfFailed(FutureState):
    """The state of a failed future, which gives out copies of its exception.

    A raised exception refers, by its traceback, to the frames that it has passed, and so to the
    future whose `result` was called; the client's table refers to the state. With the exception
    itself in the state, such a future, its task and its inputs would stay until the client closes
    (dask/distributed#8790).
    """

    __slots__ = ()

    @property  # type: ignore[override]  # inferred as None, from what it is at first
    def exception(self) -> BaseException | None:
        error: BaseException | None = _EXCEPTION.__get__(self)
        if error is None:
            return None
        try:
            fresh = copy.copy(error)
        except Exception:  # noqa: BLE001 - a class of the user's, which may refuse in any way
            return error
        fresh.__cause__, fresh.__context__ = error.__cause__, error.__context__
        fresh.__suppress_context__ = error.__suppress_context__
        return fresh.with_traceback(error.__traceback__)

    @exception.setter
    def exception(self, error: BaseException | None) -> None:
        _EXCEPTION.__set__(self, error)


def _raise_copies(state: FutureState | None) -> None:
    if type(state) is FutureState:
        state.__class__ = _StateOfFailed


def take_over(client: DaskClient, cls: type[HookedClient]) -> None:
    """Make an existing client an instance of `cls`, which has the client's class as a base."""
    client.__class__ = cls
    # distributed has bound these when it made the client.
    for handlers in (client._stream_handlers, client._state_handlers):
        for op, handler in handlers.items():
            if getattr(handler, "__self__", None) is client:
                handlers[op] = getattr(client, handler.__name__)


def start_with(client: DaskClient, coroutine: Callable[[], Awaitable[None]]) -> None:
    """Let ``await client`` wait for `coroutine` too, which starts once the client has connected."""
    connected = client._started

    async def start() -> DaskClient:
        await connected
        await coroutine()
        return client

    client._started = asyncio.ensure_future(start())


def send(client: DaskClient, message: dict[str, Any]) -> None:
    """Queue `message` on the client's stream to the scheduler; from any thread.

    The scheduler handles a client's stream strictly in order, graphs included: a lease that is
    sent before a graph is known before the graph's tasks are.

    A closed client sends nothing, silently: its scheduler has dropped everything of it already.
    """
    with contextlib.suppress(ClosedClientError):
        client._send_to_scheduler(message)
