"""What travels between the submit process and a worker, and what a worker does with it.

Parsl looks at everything it carries, and unpickles it in threads that do not survive a
failure. So it carries nothing of the user's that it could look at:

- A large argument is a `Ref`: inert, and turned into the object in the task, before the
  user's function runs.
- A result is plain (numbers, text, small containers of those), or an `Envelope`: bytes
  that only this package unpickles, and references to the large objects in it.
- An exception is a `Failure`: bytes again, with a description in case they cannot be
  unpickled.

Bytes have been unpickled once where they were made, before they are sent.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import socket
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import cloudpickle
import dill  # type: ignore[import-untyped]  # it has no types
from parsl.app.errors import AppTimeout, RemoteExceptionWrapper
from parsl.data_provider.files import File
from parsl.serialize import deserialize, serialize

from proxystore.connectors.exceptions import (
    ConnectorError,
    ForeignObjectError,
    StorageFullError,
)
from proxystore.connectors.protocols import EnumerableConnector
from proxystore.proxy import Proxy, ProxyResolveError, extract, is_resolved
from proxystore.serialize import SerializationError
from proxystore.store import Store, StoreConfig, get_or_create_store
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.utils.imports import get_object_path
from proxystore.workflow import ProxyRef, Ref, size_at_least, store_object
from proxystore_parsl._log import logger
from proxystore_parsl.errors import (
    ObjectLostError,
    RemoteTaskError,
    StoreUnreachableError,
    UnpicklableResultError,
)
from proxystore_parsl.proxies import (
    Holds,
    Scope,
    counted_factory,
    counted_proxy,
    lend,
    notice,
    of_main,
)

# The keyword argument that tells a worker which task it runs, by number; with `Plan.tasks`
# before it, what the names of the objects start with that it stores. None: it stores nothing.
# (Parsl pickles it for each task: a number in half the time that the name takes.)
TASK = "_proxystore_task"

_NUMBERS = frozenset({type(None), bool, int, float, complex})
_TEXT = frozenset({str, bytes})
# Results of more items than this are not plain, however simple: looking at each one costs
# more than it saves.
_FEW = 64
# Lists of more items than this are one object if all are numbers and text.
_MANY = 1000
# Deeper containers are not looked into, as by `Packer.pack`.
_DEEPEST = 100


# -- looking into containers


def replaced(value: Any, swap: Callable[[Any], Any], _inside: tuple[int, ...] = ()) -> Any:
    """Return a value in which `swap` has replaced what it wanted to.

    Looks into what `Packer.pack` looks into, and into sets. What does not change is not
    copied.

    Args:
        value: Any object.
        swap: Called with everything that is no container; returns it, or something else.
    """
    cls = type(value)
    mapping = cls is dict
    named = issubclass(cls, tuple) and hasattr(cls, "_fields")
    if not (mapping or named or cls in (list, tuple, set, frozenset)):
        return swap(value)
    items = list(value.values()) if mapping else list(value)
    if _NUMBERS.issuperset(map(type, items)):
        return value
    if id(value) in _inside or len(_inside) >= _DEEPEST:
        return value
    inside = (*_inside, id(value))
    new = [replaced(item, swap, inside) for item in items]
    if all(map(_same, new, items)):
        return value
    if mapping:
        return dict(zip(value, new, strict=True))
    return cls(*new) if named else cls(new)


def _same(a: object, b: object) -> bool:
    return a is b


def is_native(obj: Any) -> bool:
    """Say whether Parsl, or this package at the other end, has to see an object itself."""
    return isinstance(obj, (Future, File, Ref, Envelope))


def dill_takes(obj: Any) -> bool:
    """Say whether Parsl can send an object that neither pickle nor cloudpickle takes."""
    try:
        dill.dumps(obj)
    except Exception:  # noqa: BLE001 - any __reduce__ may raise anything
        return False
    return True


# -- results


class _Leaf:
    """The place of a large object in the rest of a result."""

    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content  # an object, or a reference to one


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
    """Leaves out leaves and writes their numbers."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.leaves: list[_Leaf] = []

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not _Leaf:
            return None
        if obj not in self.leaves:
            self.leaves.append(obj)
        return self.leaves.index(obj)


class _Unpickler(pickle.Unpickler):
    """Puts in the place of each leaf what `leaf` gives for its number, once."""

    def __init__(self, body: bytes, leaf: Callable[[int], Any]) -> None:
        super().__init__(io.BytesIO(body))
        self._leaf = functools.cache(leaf)

    def persistent_load(self, number: Any) -> Any:
        return self._leaf(number)


def _dump(skeleton: Any) -> tuple[bytes, list[_Leaf]]:
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(skeleton)
    return file.getvalue(), pickler.leaves


@dataclass(frozen=True, repr=False)
class Envelope:
    """A result on its way: Parsl sees bytes.

    Attributes:
        body: The pickled result, large objects left out.
        refs: Those objects. Whoever has the envelope answers for them.
        escaped: Objects that the task was given, and that proxies somewhere in the
            result still refer to.
    """

    body: bytes
    refs: tuple[Ref, ...] = ()
    escaped: tuple[Ref, ...] = ()

    def open(
        self,
        leaf: Callable[[Ref], Any],
        holds: Holds | None = None,
        scope: Scope | None = None,
    ) -> Any:
        """Return the result.

        Args:
            leaf: Gives what to put in the place of a large object, from its reference.
            holds: Of the objects in `escaped`, by id.
            scope: Of the proxies of those.
        """
        with lend(holds or {}, scope):
            return of_main(_Unpickler(self.body, lambda i: leaf(self.refs[i])).load())

    def select(self, pick: Callable[[Any], Any]) -> Any:
        """Return a part of the result, in an envelope unless it is in memory.

        Large objects are not fetched, unless the result as a whole is one.
        """
        skeleton = self.open(_Leaf)
        if type(skeleton) is _Leaf:
            return pick(skeleton.content.resolve())
        body, leaves = _dump(pick(skeleton))
        return Envelope(body, tuple(leaf.content for leaf in leaves), self.escaped)

    def __repr__(self) -> str:
        return f"<Envelope: {len(self.body)} B and {len(self.refs)} objects>"


def inert(obj: Any) -> Any:
    """Return an object, or its envelope if proxies that count are hidden in it."""
    if is_native(obj):
        return obj
    with notice() as noticed:
        body, _ = _dump(obj)
    return Envelope(body) if noticed else obj


def is_plain(value: Any, limit: int) -> bool:
    """Say whether a result is so simple that it may travel as it is.

    Numbers, text, and small lists, tuples and dictionaries of those: nothing that could
    fail to be unpickled, and less than `limit` bytes of text.
    """
    cls = type(value)
    if cls in _NUMBERS:
        return True
    if cls in _TEXT:
        return len(value) < limit
    if cls is dict:
        items = [*value, *value.values()]
    elif cls in (list, tuple):
        items = value
    else:
        return False
    if len(items) > _FEW or not (_NUMBERS | _TEXT).issuperset(map(type, items)):
        return False
    return sum(len(item) for item in items if type(item) in _TEXT) < limit


def seal(value: Any, plan: Plan, task: str | None) -> Any:
    """Return a task's result as it travels; called on the worker.

    Args:
        value: What the user's function returned.
        plan: Of the app.
        task: What the names of its objects start with. None: it stores nothing.

    Raises:
        UnpicklableResultError: It cannot be pickled and unpickled again. Nothing is left in
            the store; neither is it with those below.
        StoreUnreachableError: The store cannot be used here.
        StorageFullError: There is no room in the store that the user has named.
    """
    if isinstance(value, RemoteExceptionWrapper):
        return value  # of Parsl's, for the caller to deal with
    if is_plain(value, plan.threshold) and (plan.policy is None or type(value) in _NUMBERS):
        return value
    try:
        if task is not None:
            try:
                return _sealed(value, plan, task)
            except StorageFullError as error:
                if not plan.embedded:
                    raise
                # As for arguments: who has named no store is not to lose a program for it.
                logger.warning("a result of app %r travels by value: %s", plan.app, error)
        return _sealed(value, plan, None)
    except UnpicklableResultError:
        sealed = _sealed_by_dill(value)
        if sealed is None:
            raise
        return sealed


def _sealed(value: Any, plan: Plan, task: str | None) -> Envelope:
    splitter = _Splitter(plan.threshold, plan.policy)
    with notice() as noticed, _returned(value, plan.app):
        body, leaves = _dump(value if task is None else splitter.split(value))
        if task is not None and len(body) >= plan.threshold and not splitter.refused:
            body, leaves = _dump(_Leaf(value))
        _Unpickler(body, _nothing).load()
        refs = _store_leaves(leaves, plan, task)
    escaped = {factory.ref: None for factory in noticed}
    return Envelope(body, refs, tuple(ref for ref in escaped if ref not in refs))


def _sealed_by_dill(value: Any) -> Envelope | None:
    """Return a result by value, as Parsl sends it, if that can be done (locks, for example)."""
    with notice() as noticed:
        try:
            body = dill.dumps(value)
            _Unpickler(body, _nothing).load()
        except AppTimeout:
            raise
        except Exception:  # noqa: BLE001 - any __reduce__ may raise anything
            return None
    return Envelope(body, (), tuple({factory.ref: None for factory in noticed}))


def _nothing(number: int) -> None:
    return None


@contextmanager
def _returned(value: Any, app: str) -> Iterator[None]:
    """Say of whatever fails here that it is a result which cannot travel."""
    try:
        yield
    except (AppTimeout, ConnectorError, StoreUnreachableError):
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, SerializationError) else None
        reason = cause or error
        raise UnpicklableResultError(
            app, get_object_path(type(value)), f"{type(reason).__name__}: {_text(reason)}"
        ) from error


class _Splitter:
    """Puts a `_Leaf` in the place of each large object in a result.

    Args:
        threshold: As for `Plan`.
        policy: As for `Plan`.

    Attributes:
        refused: By identity: what is to travel by value, as the policy says, and the
            containers it is in.
    """

    def __init__(self, threshold: int, policy: Callable[[Any], bool | None] | None) -> None:
        self.refused: set[int] = set()
        self._threshold = threshold
        self._policy = policy
        # By identity, so that what is there twice stays one object; and that object, which
        # keeps the identity its own meanwhile.
        self._done: dict[int, tuple[Any, Any]] = {}

    def split(self, value: Any) -> Any:
        """Return a value with leaves in its containers, or a leaf.

        A container without leaves that is large is one itself.
        """
        if type(value) in _NUMBERS:
            return value
        if self._policy is None and is_plain(value, self._threshold):
            return value  # of which there may be a million in a list
        if id(value) in self._done:
            return self._done[id(value)][1]
        new = self._split_new(value)
        self._done[id(value)] = value, new
        return new

    def _split_new(self, value: Any) -> Any:
        cls = type(value)
        if issubclass(cls, Proxy):
            return self._split_proxy(value)
        wanted = None if self._policy is None else self._policy(value)
        if wanted is not None:
            if not wanted:
                self.refused.add(id(value))
            return _Leaf(value) if wanted else value
        if cls in (list, tuple, dict) or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
            self._done[id(value)] = value, value  # one that holds itself stays one object
            items = list(value.values()) if cls is dict else list(value)
            new = self._rebuilt(value, items)
            if not self.refused.isdisjoint(map(id, items)):
                self.refused.add(id(value))
                return new
            if new is not value:
                return new
        return _Leaf(value) if size_at_least(value, self._threshold) else value

    def _rebuilt(self, value: Any, items: list[Any]) -> Any:
        cls = type(value)
        kinds = set(map(type, items))
        if kinds <= _NUMBERS or (len(items) > _MANY and kinds <= _NUMBERS | _TEXT):
            return value
        new = [self.split(item) for item in items]
        if all(map(_same, new, items)):
            return value
        if cls is dict:
            return dict(zip(value, new, strict=True))
        return cls(*new) if hasattr(cls, "_fields") else cls(new)

    def _split_proxy(self, proxy: Proxy[Any]) -> Any:
        factory = counted_factory(proxy)
        if factory is None:
            return proxy  # the user's own: it travels as it is
        if is_resolved(proxy):
            # The function may have changed its copy: what it returns is what it has made of it.
            return self.split(extract(proxy))
        return _Leaf(factory.ref)


def _store_leaves(leaves: Sequence[_Leaf], plan: Plan, task: str | None) -> tuple[Ref, ...]:
    if not leaves:
        return ()
    store = _open_store(plan.store, plan.app)
    attempt = uuid.uuid4().hex[:8]
    named = isinstance(store.connector, EnumerableConnector)
    stored: list[Ref] = []
    refs: list[Ref] = []
    try:
        for number, leaf in enumerate(leaves):
            if isinstance(leaf.content, Ref):
                refs.append(leaf.content)
                continue
            name = f"{task}{attempt}.{number}" if named else None
            with _reaching(plan.store, plan.app):
                stored.append(store_object(store, leaf.content, name=name, digest=plan.digest))
            refs.append(stored[-1])
            if not comes_back(leaf.content):
                stored[-1].resolve()
    except BaseException:
        for ref in stored:
            ref.evict()
        raise
    return tuple(refs)


def comes_back(obj: Any) -> bool:
    """Say whether an object is of a kind that never fails to be unpickled.

    Anything else is unpickled once before its reference is sent.
    """
    cls = type(obj)
    if cls in (bytes, bytearray, str):
        return True
    is_array = (cls.__module__, cls.__name__) == ("numpy", "ndarray")
    return is_array and not obj.dtype.hasobject


# -- the store, as a worker sees it


def _open_store(config: StoreConfig, app: str) -> Store[Any]:
    try:
        return get_or_create_store(config)
    except AppTimeout:
        raise
    except Exception as error:
        # A connector that is not installed here, options it does not take, a missing
        # directory, no server: to the user it is all the same.
        raise _unreachable(config, app, error) from error


@contextmanager
def _reaching(config: StoreConfig, app: str) -> Iterator[None]:
    try:
        yield
    except (StorageFullError, ForeignObjectError):
        raise  # they say what is to be done
    except ConnectorError as error:
        raise _unreachable(config, app, error) from error


def _unreachable(config: StoreConfig, app: str, error: Exception) -> StoreUnreachableError:
    reason = f"{type(error).__name__}: {_text(error)}"
    return StoreUnreachableError(app, _worker(), _place(config), reason)


def _worker() -> str:
    rank = os.environ.get("PARSL_WORKER_RANK")
    name = "process" if rank is None else f"worker {rank}, process"
    return f"host {socket.gethostname()} ({name} {os.getpid()})"


def _place(config: StoreConfig) -> str:
    return f"store {config.name!r} ({config.connector!r})"


def fetched(ref: Ref, app: str) -> Any:
    """Return an object that a task was given; called on the worker.

    Raises:
        ObjectLostError: It is gone; a `ProxyResolveMissingKeyError`.
        StoreUnreachableError: The store cannot be used here.
    """
    config = ref.factory.store_config
    _open_store(config, app)
    try:
        with _reaching(config, app):
            return ref.resolve()
    except ProxyResolveMissingKeyError as error:
        raise ObjectLostError(
            error.key, error.store_type, error.store_name, _worker(), _place(config)
        ) from None


# -- exceptions


class Failure(RemoteExceptionWrapper):
    """An exception on its way, in the form that Parsl takes for one.

    Parsl's own wrapper carries the exception itself, and the result thread unpickles
    it. This one carries bytes, and a description for when those cannot be unpickled.

    Attributes:
        body: The pickled exception with its cause and traceback. None: it does not
            survive that.
        described: What to raise then.
    """

    # The base's constructor is not called: its attributes are what must not be here.
    def __init__(self, body: bytes | None, described: RemoteTaskError) -> None:
        self.body = body
        self.described = described

    @classmethod
    def of(cls, error: Exception, app: str) -> Failure:
        """Return what to send for an exception that is being handled."""
        error = _timeout_behind(error)
        described = RemoteTaskError(
            app,
            get_object_path(type(error)),
            _text(error),
            "".join(traceback.format_exception(error)),
        )
        frames = error.__traceback__
        if frames is not None:
            frames = frames.tb_next or frames  # our own frame tells the user nothing
        try:
            body = serialize(RemoteExceptionWrapper(type(error), error, frames))
            _showable(deserialize(body).get_exception())
        except Exception:  # noqa: BLE001 - any __reduce__ may raise anything
            return cls(None, described)
        return cls(body, described)

    def get_exception(self) -> BaseException:
        """Return the exception; never fails."""
        if self.body is None:
            return self.described
        try:
            error = of_main(_showable(deserialize(self.body).get_exception()))
        except Exception:  # noqa: BLE001 - as above: its class may not exist here
            return self.described
        return error

    def reraise(self) -> None:
        """Raise the exception."""
        raise self.get_exception()

    def __reduce__(self) -> Any:
        return Failure, (self.body, self.described)


def _timeout_behind(error: Exception) -> Exception:
    """Return the end of the walltime if it came in the middle of a fetch, else `error`."""
    cause: BaseException | None = error
    while isinstance(cause, (SerializationError, ProxyResolveError, UnpicklableResultError)):
        cause = cause.__cause__
    return cause if isinstance(cause, AppTimeout) else error


def _showable(error: BaseException) -> BaseException:
    """Return an exception, or raise what its `repr` does: Parsl's tasks would never be final."""
    repr(error)
    return error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        return "(its text cannot be made)"


# -- what is called in place of the user's function


@dataclass(frozen=True)
class Plan:
    """What a worker has to know of an app; the same for all its calls.

    Attributes:
        app: Its name.
        store: Where large results go.
        threshold: From which size on, in bytes.
        arguments: As for `StoreApps`.
        embedded: The store is one that the user has not named.
        policy: As for `StoreApps`.
        digest: Whether references to large results say what their content is.
        tasks: What the names of objects start with; the task's number follows.
    """

    app: str
    store: StoreConfig
    threshold: int
    arguments: Literal["value", "proxy"] = "value"
    embedded: bool = False
    policy: Callable[[Any], bool | None] | None = None
    digest: bool = True
    tasks: str = ""


def name_of(function: Any) -> str:
    """Return what an app is called; a partial or an object that can be called has no name."""
    return str(getattr(function, "__name__", type(function).__name__))


def task_name(tasks: str, number: int) -> str:
    """Return what the names of a task's objects start with."""
    return f"{tasks}{number}."


class LocalTask:
    """The user's function, for executors in the submit process.

    Objects are handed over as they are; only what comes from remote tasks is fetched.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        args, kwargs = opened(args, kwargs, Ref.resolve)
        return self.function(*args, **kwargs)


class Task:
    """The user's function, for workers: fetches arguments and seals the result."""

    def __init__(self, function: Callable[..., Any], plan: Plan) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.plan = plan

    def __reduce__(self) -> Any:
        return type(self), (self.function, self.plan)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns, sealed, or a `Failure` with what it raises."""
        number = kwargs.pop(TASK)
        task = None if number is None else task_name(self.plan.tasks, number)
        # What stays out of the store must not refer to it either.
        by_value = self.plan.arguments == "value" or task is None
        leaf = functools.partial(fetched, app=self.plan.app) if by_value else counted_proxy
        try:
            args, kwargs = opened(args, kwargs, leaf)
            return seal(self.function(*args, **kwargs), self.plan, task)
        except Exception as error:  # noqa: BLE001 - as Parsl does: it is the app's outcome
            return Failure.of(error, self.plan.app)


def is_ours(function: Any) -> bool:
    """Say whether what an executor is given is a `Task`, or Parsl's wrapper of one."""
    return isinstance(getattr(function, "plan", None), Plan)


class TaskOfExecutor(Task):
    """What an executor was given, which Parsl has made of the user's function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what it returns, sealed; its exceptions are in that, as Parsl has them."""
        result = super().__call__(*args, **kwargs)
        if type(result) is not RemoteExceptionWrapper:
            return result
        try:
            raise result.get_exception()
        except Exception as error:  # noqa: BLE001 - the app's outcome
            return Failure.of(error, self.plan.app)


class Join(LocalTask):
    """The function of a join app, which runs in the submit process.

    Args:
        function: Calls apps and returns their futures.
        unwrap: Gives Parsl's future for one of ours; called with the call that joins it.
    """

    def __init__(self, function: Callable[..., Any], unwrap: Callable[[Any, Any], Any]) -> None:
        super().__init__(function)
        self.unwrap = unwrap

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the futures that the function returns, as Parsl knows them."""
        call = kwargs.pop(TASK)
        joined = super().__call__(*args, **kwargs)
        return replaced(joined, lambda future: self.unwrap(future, call))


def part_of(pick: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a function that picks a part of a result, in an envelope or not."""

    def part(result: Any, key: Any) -> Any:
        if type(result) is Envelope:
            return result.select(lambda opened: pick(opened, key))
        return pick(result, key)

    part.__name__ = pick.__name__
    return part


class CommandTask(LocalTask):
    """The function of a bash app: its result is a command line, and stays a `str`."""

    def __reduce__(self) -> Any:
        return type(self), (self.function,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the command line."""
        try:
            args, kwargs = opened(
                args, kwargs, functools.partial(fetched, app=name_of(self.function))
            )
            return self.function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - as Parsl does: it is the app's outcome
            failure = Failure.of(error, name_of(self.function))
        # Parsl makes errors of its own from some types, and sends the others as they are.
        return failure.reraise()


def opened(
    args: Sequence[Any], kwargs: dict[str, Any], leaf: Callable[[Ref], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments as the user's function gets them.

    Args:
        args: As they arrived.
        kwargs: As they arrived.
        leaf: Gives what to put in the place of a large object, from its reference.
    """
    # The same object in two places arrives as one object, as without us; two of equal content,
    # which are one in the store, arrive as two. By identity of the reference, which is kept.
    got: dict[int, tuple[Ref, Any]] = {}

    def once(ref: Ref) -> Any:
        if id(ref) not in got:
            got[id(ref)] = ref, leaf(ref)
        return got[id(ref)][1]

    def swap(obj: Any) -> Any:
        if type(obj) is Ref:
            return once(obj)
        if type(obj) is Envelope:
            return obj.open(once)
        return obj.resolve() if type(obj) is ProxyRef else obj

    return (
        tuple(replaced(arg, swap) for arg in args),
        {name: replaced(arg, swap) for name, arg in kwargs.items()},
    )
