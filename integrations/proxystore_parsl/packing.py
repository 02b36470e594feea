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
import logging
import pickle
import traceback
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import cloudpickle
import dill  # type: ignore[import-untyped]  # it has no types
from parsl.app.errors import AppTimeout, RemoteExceptionWrapper
from parsl.data_provider.files import File
from parsl.dataflow.memoization import id_for_memo
from parsl.serialize import deserialize, serialize

from proxystore.connectors.exceptions import StorageFullError
from proxystore.connectors.protocols import EnumerableConnector
from proxystore.proxy import Proxy, ProxyResolveError, extract, is_resolved
from proxystore.serialize import SerializationError
from proxystore.store import StoreConfig, get_or_create_store
from proxystore.utils.imports import get_object_path
from proxystore.workflow import ProxyRef, Ref, size_at_least, store_object
from proxystore_parsl.errors import RemoteTaskError
from proxystore_parsl.proxies import Holds, counted_factory, counted_proxy, lend, notice

logger = logging.getLogger("proxystore_parsl")

# The keyword argument that tells a worker which task it runs: what the names of the
# objects start with that it stores. None: it stores nothing.
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

    def open(self, leaf: Callable[[Ref], Any], holds: Holds | None = None) -> Any:
        """Return the result.

        Args:
            leaf: Gives what to put in the place of a large object, from its reference.
            holds: Of the objects in `escaped`, by id.
        """
        with lend(holds or {}):
            return _Unpickler(self.body, lambda i: leaf(self.refs[i])).load()

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
        task: As `TASK` says.

    Raises:
        Exception: Whatever pickling, unpickling or storing raises; then nothing is left
            in the store.
    """
    if is_plain(value, plan.threshold):
        return value
    if task is not None:
        try:
            return _sealed(value, plan, task)
        except StorageFullError as error:
            if not plan.embedded:
                raise
            # As for arguments: who has named no store is not to lose a program for it.
            logger.warning("a result of app %r travels by value: %s", plan.app, error)
    return _sealed(value, plan, None)


def _sealed(value: Any, plan: Plan, task: str | None) -> Envelope:
    with notice() as noticed:
        body, leaves = _dump(value if task is None else _split(value, plan.threshold, {}))
        if task is not None and len(body) >= plan.threshold:
            body, leaves = _dump(_Leaf(value))
        _Unpickler(body, _nothing).load()
        refs = _store_leaves(leaves, plan, task)
    escaped = {factory.ref: None for factory in noticed}
    return Envelope(body, refs, tuple(ref for ref in escaped if ref not in refs))


def _nothing(number: int) -> None:
    return None


def _split(value: Any, threshold: int, done: dict[int, tuple[Any, Any]]) -> Any:
    """Return a value with a `_Leaf` in the place of each large object in its containers.

    A container without leaves that is large is one itself. `done` keeps what was found
    by identity, so that what is there twice stays one object; it also keeps that object.
    """
    if is_plain(value, threshold):
        return value  # of which there may be a million in a list
    if id(value) in done:
        return done[id(value)][1]
    new = _split_new(value, threshold, done)
    done[id(value)] = value, new
    return new


def _split_new(value: Any, threshold: int, done: dict[int, tuple[Any, Any]]) -> Any:
    cls = type(value)
    if issubclass(cls, Proxy):
        return _split_proxy(value, threshold, done)
    if cls in (list, tuple, dict) or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
        done[id(value)] = value, value  # a container that holds itself stays one object
        new = _rebuilt(value, threshold, done)
        if new is not value:
            return new
    return _Leaf(value) if size_at_least(value, threshold) else value


def _rebuilt(value: Any, threshold: int, done: dict[int, tuple[Any, Any]]) -> Any:
    cls = type(value)
    items = list(value.values()) if cls is dict else list(value)
    kinds = set(map(type, items))
    if kinds <= _NUMBERS or (len(items) > _MANY and kinds <= _NUMBERS | _TEXT):
        return value
    new = [_split(item, threshold, done) for item in items]
    if all(map(_same, new, items)):
        return value
    if cls is dict:
        return dict(zip(value, new, strict=True))
    return cls(*new) if hasattr(cls, "_fields") else cls(new)


def _split_proxy(proxy: Proxy[Any], threshold: int, done: dict[int, tuple[Any, Any]]) -> Any:
    factory = counted_factory(proxy)
    if factory is None:
        return proxy  # the user's own: it travels as it is
    if is_resolved(proxy):
        # The function may have changed its copy: what it returns is what it has made of it.
        return _split(extract(proxy), threshold, done)
    return _Leaf(factory.ref)


def _store_leaves(leaves: Sequence[_Leaf], plan: Plan, task: str | None) -> tuple[Ref, ...]:
    if not leaves:
        return ()
    store = get_or_create_store(plan.store)
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
            stored.append(store_object(store, leaf.content, name=name))
            refs.append(stored[-1])
            if not _comes_back(leaf.content):
                stored[-1].resolve()
    except BaseException:
        for ref in stored:
            ref.evict()
        raise
    return tuple(refs)


def _comes_back(obj: Any) -> bool:
    """Say whether an object is of a kind that never fails to be unpickled.

    Anything else is unpickled once before its reference is sent.
    """
    cls = type(obj)
    if cls in (bytes, bytearray, str):
        return True
    is_array = (cls.__module__, cls.__name__) == ("numpy", "ndarray")
    return is_array and not obj.dtype.hasobject


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
            deserialize(body).get_exception()
        except Exception:  # noqa: BLE001 - any __reduce__ may raise anything
            return cls(None, described)
        return cls(body, described)

    def get_exception(self) -> BaseException:
        """Return the exception; never fails."""
        if self.body is None:
            return self.described
        try:
            error: BaseException = deserialize(self.body).get_exception()
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
    while isinstance(cause, (SerializationError, ProxyResolveError)):
        cause = cause.__cause__
    return cause if isinstance(cause, AppTimeout) else error


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
    """

    app: str
    store: StoreConfig
    threshold: int
    arguments: Literal["value", "proxy"] = "value"
    embedded: bool = False


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
        task = kwargs.pop(TASK)
        # What stays out of the store must not refer to it either.
        by_value = self.plan.arguments == "value" or task is None
        try:
            args, kwargs = opened(args, kwargs, Ref.resolve if by_value else counted_proxy)
            return seal(self.function(*args, **kwargs), self.plan, task)
        except Exception as error:  # noqa: BLE001 - as Parsl does: it is the app's outcome
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
            return super().__call__(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - as Parsl does: it is the app's outcome
            failure = Failure.of(error, self.function.__name__)
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


# -- memoization: the same content is the same argument


@id_for_memo.register(Ref)
def _memo_id_of_ref(ref: Ref, output_ref: bool = False) -> bytes:
    return (ref.digest or repr(ref.id)).encode()


@id_for_memo.register(Envelope)
def _memo_id_of_envelope(envelope: Envelope, output_ref: bool = False) -> bytes:
    return envelope.body + b"".join(map(_memo_id_of_ref, envelope.refs))
