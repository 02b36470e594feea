"""Results that stay in the store: what workers keep of them, and how everybody gets them back.

A task whose results may go to the store runs its function by a `Leave`. If the result is large, the
worker stores it and keeps a *stored result*: a proxy with a factory of a class of its own. It is
small, Dask can look at it without fetching anything, and whoever does not know of us (a function
of a plain client's, given such a future) can use it as if it were the object.

* The client that asked gets objects when it gathers, and its tasks get them by a `fetch` around
  the reference to the future: in both cases a copy of their own, so that nothing large is left in
  the proxy that lies in the worker's memory.
* The object lives as long as Dask keeps the result: `StoreLifetimes` is told of it before the
  scheduler hears that the task is done. Objects of a worker that dies before it has told are found
  by their names, which begin with the scheduler's `group` and the worker's `tag`.

A *durable* result has a name before the task runs (`Keep`), and lives until the scheduler has
forgotten the task. A task that has to run again, because the worker that had its result is gone,
finds the object and does not call its function.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import logging
import pickle
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from dask.context import thread_state
from dask.utils import funcname
from distributed import Client as DaskClient
from distributed import Worker, get_worker
from distributed.utils import iscoroutinefunction, sync

from proxystore.connectors.exceptions import StorageFullError
from proxystore.connectors.protocols import EnumerableConnector
from proxystore.proxy import Proxy
from proxystore.serialize import frames
from proxystore.store import Store, StoreConfig, get_or_create_store
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.store.factory import store_factory
from proxystore.workflow import Ref, parse_size, size_at_least
from proxystore.workflow.refs import ref_to
from proxystore_dask._dask import (
    Alias,
    GraphNode,
    Task,
    TaskRef,
    changed_task,
    low_level_expr,
    materialize,
)
from proxystore_dask.graph import is_native
from proxystore_dask.measures import MeasuredFactory

logger = logging.getLogger(__name__)

RESULT = "proxystore-result"
HURRY = "proxystore_hurry"

# How long to wait for room in a store that is full.
_SECONDS_TO_EVICT = 2

# Where the names of others have the worker's tag: no worker's death ends a durable result.
KEPT = "kept"

_numbers = itertools.count()
_MISSING = object()


class Results(NamedTuple):
    """Which results go to the store.

    Attributes:
        limit: From which size a worker keeps nothing but a stored result, in bytes.
        durable: Every result is stored, also a small one, until its task is forgotten.
    """

    limit: int
    durable: bool = False


def results_setting(value: Any, threshold: int, *, name: str = "ps_results") -> Results | None:
    """Which results go to the store; None: none.

    Args:
        value: What the user says: "never", "large", "durable" or a size.
        threshold: What "large" means, in bytes.
        name: What the error calls it.

    Raises:
        ValueError: `value` is none of these.
    """
    if value == "never":
        return None
    if value in ("large", "durable"):
        return Results(threshold, durable=value == "durable")
    try:
        return Results(parse_size(value, name=name))
    except ValueError as error:
        raise ValueError(
            f"{name} must be 'never' (results stay in Dask), 'large' (those of the size of "
            "ps_threshold or more go to the store), 'durable' (all go to the store, and no task "
            "runs again because its worker is gone) or a size such as 4096 or '10 MiB', got "
            f"{value!r}"
        ) from error


# ------------------------------------------------------------------------ on the worker


class ResultFactory(MeasuredFactory):
    """Gets what a task has returned, each time a copy of its own."""


async def hurry(scheduler: Any) -> bool:
    """Have a scheduler evict at once what nobody needs; whether there was any."""
    try:
        return bool(await asyncio.wait_for(getattr(scheduler, HURRY)(), _SECONDS_TO_EVICT))
    except asyncio.TimeoutError:
        return True  # it is still about it


def _with_room(worker: Worker, put: Callable[[], Ref]) -> Ref:
    """What `put` returns; if the store is full, it is called again once there is more room."""
    try:
        return put()
    except StorageFullError:
        with contextlib.suppress(Exception):  # whatever it is, the store is full
            if sync(worker.loop, hurry, worker.scheduler):
                return put()
        raise


def stored_result(value: object) -> ResultFactory | None:
    """What gets the object, if `value` stands for one that a task has left in the store."""
    if type(value) is not Proxy:
        return None
    factory = store_factory(value)
    return factory if isinstance(factory, ResultFactory) else None


def fetch(value: Any) -> Any:
    """The object that a task has left in the store; any other value as it is."""
    factory = stored_result(value)
    return value if factory is None else factory.resolve()


def tag(worker_id: str) -> str:
    """What stands for a worker in the names of its objects."""
    return hashlib.sha256(worker_id.encode()).hexdigest()[:16]


class Leave:
    """The function of a task, followed by leaving in the store what it returns, if that is large.

    Args:
        func: The user's function.
        store_config: The store.
        limit: The size from which a result is large, in bytes.
        group: That of the scheduler's plugin: a UUID, with which names begin.
    """

    __slots__ = ("func", "group", "limit", "store_config")

    def __init__(
        self, func: Callable[..., Any], store_config: StoreConfig, limit: int, group: str
    ) -> None:
        self.func = func
        self.store_config = store_config
        self.limit = limit
        self.group = group

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns, or a stored result."""
        value = self.func(*args, **kwargs)
        worker = _worker()
        if worker is None or _stays_in_dask(value) or not size_at_least(value, self.limit):
            return value
        try:
            store = get_or_create_store(self.store_config)
            data = store.dump(value)
            ref = self._put(store, data, frames.type_name(value), worker)
        except Exception as error:  # noqa: BLE001 - whatever it is, the result must not be lost
            logger.warning("a result of %s stays in Dask: %s", funcname(self.func), error)
            return value
        _tell(worker, ref)
        return ref.proxy()

    def _put(self, store: Store[Any], data: Any, type_name: str, worker: Worker) -> Ref:
        name = f"{self.group}.{tag(worker.id)}-{next(_numbers)}"
        put = functools.partial(ref_to, store, data, type_name, digest=False)
        try:
            ref = _with_room(worker, functools.partial(put, name=name))
        except NotImplementedError:  # a connector without names
            ref = _with_room(worker, put)
        factory = ResultFactory(ref.factory.key, ref.factory.store_config, ref.nbytes)
        return Ref(factory, "", ref.nbytes, type_name)

    def __reduce__(self) -> Any:
        return type(self), (self.func, self.store_config, self.limit, self.group)

    def __repr__(self) -> str:
        return funcname(self.func)  # what Dask prints for the task


class Keep:
    """The function of a task that is not called if its result is in the store already.

    Args:
        func: The user's function.
        factory: Where the result will be.
        name: The same, as `Store.put_dumped` takes it.
        limit: The size from which the worker keeps nothing but a stored result, in bytes.
    """

    __slots__ = ("factory", "func", "limit", "name")

    def __init__(
        self, func: Callable[..., Any], factory: ResultFactory, name: str, limit: int
    ) -> None:
        self.func = func
        self.factory = factory
        self.name = name
        self.limit = limit

    @property
    def ref(self) -> Ref:
        """What refers to the result, whether or not it is there; its size is not known."""
        return self._ref(0, "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns, or has returned before; if that is large, a stored result."""
        worker = _worker()
        if worker is None:
            return self.func(*args, **kwargs)
        found = self._found(worker)
        if found is not _MISSING:
            return found
        value = self.func(*args, **kwargs)
        return value if _stays_in_dask(value) else self._stored(value, worker)

    def _found(self, worker: Worker) -> Any:
        try:
            store = get_or_create_store(self.factory.store_config)
            info = store.info(self.factory.key)
            if info is None:
                return _MISSING
            ref = self._ref(info.nbytes, info.type_name or "")
            value = ref.proxy() if self._is_large(ref) and ref.type_name else ref.resolve()
        except Exception as error:  # noqa: BLE001 - whatever it is, the function can be called
            logger.warning("%s runs, perhaps again: %s", funcname(self.func), error)
            return _MISSING
        _tell(worker, ref, kept=True)
        return value

    def _stored(self, value: Any, worker: Worker) -> Any:
        try:
            store = get_or_create_store(self.factory.store_config)
            data = store.dump(value)
            kind = frames.type_name(value)
            put = functools.partial(ref_to, store, data, kind, name=self.name, digest=False)
            made = _with_room(worker, put)
        except Exception as error:  # noqa: BLE001 - whatever it is, the result must not be lost
            logger.warning(
                "a result of %s stays in Dask, and is lost with its worker: %s",
                funcname(self.func),
                error,
            )
            return value
        ref = self._ref(made.nbytes, made.type_name)
        _tell(worker, ref, kept=True)
        return ref.proxy() if self._is_large(ref) else value

    def _is_large(self, ref: Ref) -> bool:
        return ref.nbytes >= self.limit

    def _ref(self, nbytes: int, type_name: str) -> Ref:
        factory = ResultFactory(self.factory.key, self.factory.store_config, nbytes)
        return Ref(factory, "", nbytes, type_name)

    def __reduce__(self) -> Any:
        return type(self), (self.func, self.factory, self.name, self.limit)

    def __repr__(self) -> str:
        return funcname(self.func)


def _stays_in_dask(value: Any) -> bool:
    """Whether a result would come back as something else, or is Dask's or somebody's own."""
    if type(value) is Proxy or type(value) is memoryview or is_native(value):
        return True
    # What is broadcast is small in memory, and not in a file. (Where there is such an array, its
    # package was imported; and others have strides that mean something else.)
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None
        and isinstance(value, numpy.ndarray)
        and any(n > 1 and not step for n, step in zip(value.shape, value.strides, strict=True))
    )


def _worker() -> Worker | None:
    try:
        return get_worker()
    except ValueError:
        return None


def _tell(worker: Worker, ref: Ref, *, kept: bool = False) -> None:
    # In order with what the worker says of the task itself, which it says from its event loop.
    message = {"op": RESULT, "key": thread_state.key, "ref": pickle.dumps(ref), "kept": kept}
    worker.loop.add_callback(worker.batched_send, message)


# ------------------------------------------------------------------------ in the client


def with_results(
    expr: Any,
    is_stored: Callable[[Any], bool],
    leave: Callable[[Callable[..., Any]], Leave | Keep] | None,
) -> Any | None:
    """The graph with stored results fetched where tasks take them, and new ones left; or None.

    Args:
        expr: What is about to be sent.
        is_stored: Whether the result of a task that the scheduler has already may be in the store.
        leave: What a task is to call in place of its function, so that its result goes to the
            store; None: results stay.

    Returns:
        An expression to send instead; None if this one is right.
    """
    graph = materialize(expr)

    def outside(key: Any) -> bool:
        return key not in graph and is_stored(key)

    changed: dict[Any, GraphNode] = {}
    for key, node in graph.items():
        new = _fetching(node, outside)
        if (
            leave is not None
            and isinstance(new, Task)
            and not new.data_producer
            and not iscoroutinefunction(new.func)
        ):
            new = changed_task(new, leave(new.func), new.args, new.kwargs)
        changed[key] = new
    if all(changed[key] is node for key, node in graph.items()):
        return None
    return low_level_expr(changed, like=expr)


def _fetching(node: GraphNode, is_stored: Callable[[Any], bool]) -> GraphNode:
    """The task, with a `fetch` around each reference to what may be a stored result."""
    if not any(map(is_stored, node.dependencies)):
        return node
    if isinstance(node, Alias):
        return Task(node.key, fetch, TaskRef(node.target))
    if not isinstance(node, Task):
        return node
    args = tuple(_argument(value, is_stored) for value in node.args)
    kwargs = {name: _argument(value, is_stored) for name, value in node.kwargs.items()}
    return changed_task(node, node.func, args, kwargs)


def _argument(value: Any, is_stored: Callable[[Any], bool]) -> Any:
    if isinstance(value, (TaskRef, Alias)):
        key = value.key if isinstance(value, TaskRef) else value.target
        return Task(None, fetch, TaskRef(key)) if is_stored(key) else value
    return _fetching(value, is_stored) if isinstance(value, GraphNode) else value


def leaving(store: Store[Any], results: Results, group: str) -> Callable[..., Leave | Keep]:
    """What a task is to call in place of its function, so that its result goes to the store.

    Args:
        store: Where to.
        results: Which results.
        group: As for `Leave`.

    Raises:
        ValueError: They are to be durable, and the store's connector has no names.
    """
    config = store.config()
    if not results.durable:
        return functools.partial(Leave, store_config=config, limit=results.limit, group=group)
    connector = check_durable(store)
    # Two tasks of one key are two, if the first one is forgotten before the second one comes.
    token = uuid.uuid4().hex
    numbers = itertools.count()

    def keep(func: Callable[..., Any]) -> Keep:
        name = f"{group}.{KEPT}-{token}-{next(numbers)}"
        return Keep(func, ResultFactory(connector.named_key(name), config), name, results.limit)

    return keep


def check_durable(store: Store[Any]) -> EnumerableConnector[Any]:
    """The store's connector, if durable results can be found there.

    Raises:
        ValueError: They cannot.
    """
    connector = store.connector
    if not isinstance(connector, EnumerableConnector):
        raise ValueError(
            "ps_results='durable' needs a connector that can find an object by a name that is "
            f"known before (FileConnector, RedisConnector), which {connector!r} is not; use one "
            "of these, or ps_results='large'"
        )
    return connector


class StoredKeys:
    """The tasks of a client whose results may be in the store, and getting them from there."""

    # How often a result is asked for again: the worker that had it may be dying, which the
    # scheduler is about to notice. And how long to wait before, in seconds.
    _TRIES = 20
    _PAUSE = 0.25

    def __init__(self, client: DaskClient) -> None:
        self._client = weakref.ref(client)
        self._keys: set[Any] = set()
        self._prune_from = 1000
        self._misses: dict[Any, int] = {}
        # A future may come back from a variable, or be on its way from another thread.
        self._has_forgotten = False

    def __bool__(self) -> bool:
        return bool(self._keys) or self._has_forgotten

    def __contains__(self, key: Any) -> bool:
        return self._has_forgotten or key in self._keys

    def add(self, keys: Collection[Any]) -> None:
        """More of them. Those that no future is left of go, now and then."""
        client = self._client()
        if client is not None and len(self._keys) > self._prune_from:
            known = len(self._keys)
            self._keys.intersection_update(client.futures)
            self._has_forgotten |= len(self._keys) < known
            self._prune_from = 2 * len(self._keys) + 1000
        self._keys.update(keys)

    def fetch(self, factories: dict[Any, ResultFactory]) -> dict[Any, Any]:
        """The objects, without those that are gone at the moment.

        Raises:
            ProxyResolveMissingKeyError: One has been gone for some time.
        """
        objects = {}
        missing = None
        for key, factory in factories.items():
            try:
                objects[key] = factory.resolve()
                self._misses.pop(key, None)
            except ProxyResolveMissingKeyError as error:  # noqa: PERF203 - for each of them
                misses = self._misses.get(key, 0) + 1
                self._misses[key] = misses
                if misses > self._TRIES:
                    del self._misses[key]
                    raise
                missing = error
        if missing is not None:
            time.sleep(self._PAUSE)
        return objects


# --------------------------------------------------------------------- on the scheduler


def kept_result(node: object) -> Ref | None:
    """The durable result of a task, whether or not it is there."""
    return node.func.ref if isinstance(node, Task) and isinstance(node.func, Keep) else None


def takes_as_it_is(node: Any, key: Any) -> bool:
    """Whether a task is given the result of another one without a `fetch`.

    What it returns may then hold the proxy.
    """
    pending = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, TaskRef):
            if item.key == key:
                return True
        elif isinstance(item, Alias):
            if item.target == key:
                return True
        elif isinstance(item, Task) and item.func is not fetch:
            pending.extend(item.args)
            pending.extend(item.kwargs.values())
    return False


class LocalData:
    """A worker, for a client of one of its tasks: without results that have to be fetched."""

    def __init__(self, worker: Worker) -> None:
        self.data = _Plain(worker.data)


class _Plain:
    def __init__(self, data: Mapping[Any, Any]) -> None:
        self._data = data

    def __contains__(self, key: Any) -> bool:
        return key in self._data and stored_result(self._data[key]) is None

    def __getitem__(self, key: Any) -> Any:
        return self._data[key]
