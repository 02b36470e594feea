"""Every private name of Dask that this package leans on; nothing else here imports any.

Checked against dask and distributed 2025.7.0 and 2026.8.0. `tests/dask/test_seam.py` looks at each
name and says which of them has changed. Nothing in here decides anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import inspect
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

# The graph's own vocabulary. Dask has no public name for "a node inside a task's arguments".
from dask._expr import Expr, HLGExpr, LLGExpr
from dask._task_spec import (
    Alias,
    DataNode,
    GraphNode,
    Task,
    TaskRef,
    convert_legacy_graph,
    parse_input,
)
from distributed import Client as DaskClient
from distributed.client import ClosedClientError, Future, FutureState

from proxystore_dask.outbox import Outbox

__all__ = [
    "MAP_OPTIONS",
    "SUBMIT_OPTIONS",
    "Alias",
    "DataNode",
    "Expr",
    "GraphNode",
    "HLGExpr",
    "HookedClient",
    "Task",
    "TaskRef",
    "as_expr",
    "changed_task",
    "is_of_worker",
    "low_level_expr",
    "materialize",
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


class AnnotatedGraph(LLGExpr):
    """A low-level graph with the annotations of the expression that it was made from."""

    _parameters = ["dsk", "annotations"]  # noqa: RUF012 - as LLGExpr has it

    def __dask_annotations__(self) -> dict[str, dict[Any, Any]]:
        annotations: dict[str, dict[Any, Any]] = self.operand("annotations")
        return annotations


def as_expr(graph: Any) -> Any:
    """A graph as an expression, which the scheduler needs.

    `recreate_error_locally` of distributed 2026.8 asks for a task's inputs with a dictionary, which
    the scheduler refuses.
    """
    return LLGExpr(graph) if type(graph) is dict else graph


def materialize(expr: Any) -> dict[Any, GraphNode]:
    """The tasks of an expression, as the scheduler would make them of it."""
    graph: dict[Any, GraphNode] = convert_legacy_graph(expr.__dask_graph__())
    return graph


def low_level_expr(graph: dict[Any, GraphNode], like: Any) -> Any:
    """An expression of these tasks, with the annotations of the expression `like`."""
    annotations = {kind: dict(of_keys) for kind, of_keys in like.__dask_annotations__().items()}
    # As `Client.submit` does: with a token of its own the graph is not tokenized.
    return AnnotatedGraph(graph, annotations, _determ_token=uuid.uuid4().hex)


def changed_task(
    task: Task, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Task:
    """A copy of a task, of the same class and with the same key, that makes another call.

    The new call must have the dependencies of the old one.
    """
    new: Task = copy.copy(task)
    new.func, new.args, new.kwargs = func, args, kwargs
    new._token = new._repr = None
    return new


class HookedClient(DaskClient, ABC):
    """A client that says when it has connected, lost its scheduler, been restarted, and closed.

    distributed calls these methods in its event loop, for synchronous and asynchronous clients
    alike. It has no public hook at these points (`preload` runs too early, and never again after a
    reconnect).

    And it says which graph it is about to send, in the thread of whoever sends it: every graph goes
    through `_graph_to_futures`, whatever verb or collection it comes from.

    What is then to be done is abstract here, and `Client`'s.
    """

    _ps_outbox: Outbox
    _ps_reconnecting: asyncio.Task[None] | None = None

    def _graph_to_futures(self, expr: Any, keys: Any, *args: Any, **kwargs: Any) -> Any:
        keys = list(keys)
        send = super()._graph_to_futures
        prepare, later = self._ps_graph(expr, keys)
        if not later:
            graph, keep = prepare()
            # `expr` stays referenced until the graph is sent: a future in it may have no other
            # owner, and would take its task along.
            futures = send(graph, keys, *args, **kwargs)
            keep(futures)
            return futures
        # Of others, earlier graphs say what becomes of them.
        own = set(keys).difference(self.futures)
        futures = {key: Future(key, self) for key in set(keys)}
        context = contextvars.copy_context()  # with Dask's annotations

        def deliver(prepared: tuple[Any, Callable[[Any], None]]) -> None:
            graph, keep = prepared
            keep(context.run(send, graph, keys, *args, **kwargs))
            futures.clear()  # and not before: without futures their tasks are not wanted

        def fail(error: BaseException) -> None:
            for key in own:
                state = self.futures.get(key)
                if state is not None:
                    state.set_error(error, None)
                    _raise_copies(state)
            futures.clear()

        made = dict(futures)
        self._ps_outbox.add(prepare, deliver, fail)
        return made

    def _send_to_scheduler(self, msg: Any) -> None:
        send = super()._send_to_scheduler
        if self._ps_outbox.holds_back:
            self._ps_outbox.say(lambda: send(msg))
        else:
            send(msg)

    @abstractmethod
    def _ps_graph(
        self, expr: Any, keys: list[Any]
    ) -> tuple[Callable[[], tuple[Any, Callable[[Any], None]]], bool]:
        """What returns what to send instead of `expr`; and whether it takes its time.

        That is the graph, and what to call with the futures, by key. If it takes its time, it is
        called in a thread, and the futures are there before.
        """

    async def _gather(
        self, futures: Any, errors: Any = "raise", direct: Any = None, local_worker: Any = None
    ) -> Any:
        if local_worker is not None:
            local_worker = self._ps_local(local_worker)
        return await super()._gather(futures, errors, direct, local_worker)

    async def _gather_remote(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        response = await super()._gather_remote(*args, **kwargs)
        # What is then named in "keys" is asked for again, once the scheduler says that it is there.
        return await self._ps_gathered(response) if response["status"] == "OK" else response

    @abstractmethod
    def _ps_local(self, worker: Any) -> Any:
        """What has the ``data`` of the worker of this task that may be taken as they are."""

    @abstractmethod
    async def _ps_gathered(self, response: dict[str, Any]) -> dict[str, Any]:
        """A response with the objects of results, or one that says which cannot be had."""

    async def _start(self, *args: Any, **kwargs: Any) -> DaskClient:
        await super()._start(*args, **kwargs)
        try:
            await self._ps_connected()
        except BaseException:
            await self._close()
            raise
        return self

    async def _reconnect(self) -> None:
        await self._ps_stop_reconnecting()
        self._ps_disconnected()
        await super()._reconnect()
        if self.status == "running":
            # Not awaited: it takes as long as the slowest worker, and distributed listens to the
            # scheduler again when this method returns.
            self._ps_reconnecting = asyncio.ensure_future(self._ps_reconnected())

    async def _ps_stop_reconnecting(self) -> None:
        task, self._ps_reconnecting = self._ps_reconnecting, None
        while task is not None and not task.done():
            task.cancel()  # more than once: `wait_for` may miss one, before Python 3.12
            await asyncio.wait([task], timeout=1)

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
        self._ps_cancelled(keys)

    async def _close(self, *args: Any, **kwargs: Any) -> None:
        if self.status == "closed":
            return
        self.status = "closing"  # nothing more is stored from now on
        try:
            # As long as Dask waits for a connection: half of what `close` has by default.
            await self._ps_outbox.drain(self._timeout, lambda: self._ps_scheduler() is None)
        finally:  # also if whoever closes it does not wait that long
            if self.status != "closed":
                await self._ps_stop_reconnecting()
                scheduler = self._ps_scheduler()
                await super()._close(*args, **kwargs)
                await self._ps_closed(scheduler)

    def _ps_scheduler(self) -> str | None:
        """The address of a scheduler that is still there, as far as is known, and stays."""
        comm = getattr(self.scheduler_comm, "comm", None)
        # Without an address that was given, the scheduler was made for this client, and goes
        # with it.
        if comm is None or comm.closed() or self._start_arg is None:
            return None
        address: str = comm.peer_address
        return address

    @abstractmethod
    async def _ps_connected(self) -> None: ...

    @abstractmethod
    async def _ps_reconnected(self) -> None:
        """Runs beside everything else; cancelled when the connection is lost again, or closed."""

    @abstractmethod
    def _ps_disconnected(self) -> None: ...

    @abstractmethod
    def _ps_restarted(self) -> None: ...

    @abstractmethod
    def _ps_cancelled(self, keys: Any) -> None: ...

    @abstractmethod
    async def _ps_closed(self, scheduler: str | None) -> None:
        """`scheduler` is the address of one that is still there, as far as is known."""


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
            fresh = _copied(error)
        except Exception:  # noqa: BLE001 - a class of the user's, which may refuse in any way
            return error
        fresh.__cause__, fresh.__context__ = error.__cause__, error.__context__
        fresh.__suppress_context__ = error.__suppress_context__
        return fresh.with_traceback(error.__traceback__)

    @exception.setter
    def exception(self, error: BaseException | None) -> None:
        _EXCEPTION.__set__(self, error)


def _copied(error: BaseException) -> BaseException:
    try:
        return copy.copy(error)
    except Exception:  # noqa: BLE001 - mostly, that its arguments are not those of `__init__`
        fresh = type(error).__new__(type(error), *error.args)
        vars(fresh).update(vars(error))
        return fresh


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


def is_of_worker(client: DaskClient) -> bool:
    """Whether this is the client that a worker makes for `get_client()` in its tasks."""
    return str(client.id).startswith("Client-worker-")


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
        # Past the outbox: a lease is for a graph that waits there, its end for one that was sent.
        DaskClient._send_to_scheduler(client, message)
