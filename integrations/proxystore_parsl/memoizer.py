"""Memoization and checkpoints of what is in a store.

Parsl finds a result again by an id of each argument, and knows ids of numbers, text and
containers of those. Here everything that can be pickled has one, from its content. An id
that the program has registered for a class (`parsl.dataflow.memoization.id_for_memo`) is
the one that counts, also for objects that are in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal

from parsl.dataflow.memoization import BasicMemoizer, id_for_memo
from parsl.dataflow.taskrecord import TaskRecord
from parsl.utils import RepresentationMixin

from proxystore.proxy import Proxy
from proxystore.serialize import SerializationError, frames
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.store.factory import store_factory
from proxystore.utils.imports import import_from_path
from proxystore.workflow import ProxyRef, Ref
from proxystore_parsl._log import logger
from proxystore_parsl.packing import Envelope, is_native, replaced
from proxystore_parsl.proxies import counted_factory

_UNKNOWN = id_for_memo.dispatch(object)


class _Content:
    """Stands in a task's arguments for an object that Parsl has no id for."""

    def __init__(self, memo_id: bytes) -> None:
        self.memo_id = memo_id


class StoreMemoizer(BasicMemoizer, RepresentationMixin):
    """A memoizer for apps with ``cache=True`` whose arguments and results are in a store.

    For `parsl.config.Config`, in place of `parsl.dataflow.memoization.BasicMemoizer`, which
    it is but for this:

    - Arguments of any class that can be pickled are accepted, but for `File`. They are the
      same if their content is, also in another program, in the store or not.
    - Checkpoints of `StoreApps` with a store that the user has named hold references, and
      the objects stay in the store. (Without one, results are in the checkpoint.)
    - A result whose objects are gone, or that cannot be read any more, is computed again.

    All arguments are those of `BasicMemoizer`.

    Args:
        checkpoint_files: Directories with checkpoints to load. None: all in the run
            directory, if `checkpoint_mode` is set.
        checkpoint_period: ``"HH:MM:SS"``, for the mode ``"periodic"``.
        checkpoint_mode: When to write checkpoints. None: never.
        memoize: Whether results are looked for at all.
    """

    def __init__(
        self,
        *,
        checkpoint_files: Sequence[str] | None = None,
        checkpoint_period: str | None = None,
        checkpoint_mode: Literal["task_exit", "periodic", "dfk_exit", "manual"] | None = None,
        memoize: bool = True,
    ) -> None:
        super().__init__(
            checkpoint_files=checkpoint_files,
            checkpoint_period=checkpoint_period,
            checkpoint_mode=checkpoint_mode,
            memoize=memoize,
        )

    def check_memo(self, task: TaskRecord) -> Future[Any] | None:
        """Return the future of a result that was found, or None; as for Parsl."""
        if not self.memoize or not task["memoize"]:
            return super().check_memo(task)
        known = TaskRecord(**task)
        known["args"] = [replaced(arg, _with_id) for arg in task["args"]]
        known["kwargs"] = {
            name: arg if name in task["ignore_for_cache"] else replaced(arg, _with_id)
            for name, arg in task["kwargs"].items()
        }
        found = super().check_memo(known)
        task["hashsum"] = known["hashsum"]
        if found is None or not found.done() or found.exception() is not None:
            return found
        reason = _why_stale(found.result())
        if reason is None:
            return found
        logger.warning("task %s is run again: %s", task["id"], reason)
        return None


def _with_id(obj: Any) -> Any:
    """Return an object that Parsl has an id for, which is that of the given one."""
    if issubclass(type(obj), Proxy):  # first: whatever looks at it may fetch it
        factory = counted_factory(obj)
        if factory is not None:
            return factory.ref
        made = store_factory(obj)
        return obj if made is None else _Content(memo_id_of_ref(ProxyRef(made, "", 0, "")))
    if type(obj) is Envelope:
        found = _as_an_argument(obj)
        return obj if found is obj else replaced(found, _with_id)
    # What is in a file is not in a `File`: whoever wants to use one here has to say how.
    if is_native(obj) or id_for_memo.dispatch(type(obj)) is not _UNKNOWN:
        return obj
    try:
        return _Content(_id_of_content(obj))
    except SerializationError:
        return obj  # Parsl then says that it has no id


def _as_an_argument(envelope: Envelope) -> Any:
    """Return a result as an argument of the same content is: large objects as references.

    Or the envelope, if there are some inside others: those are one object as an argument.
    """
    if envelope.escaped:
        return envelope
    try:
        opened = envelope.open(_itself)
    except Exception:  # noqa: BLE001 - its classes may be gone
        return envelope
    seen: list[Ref] = []

    def see(obj: Any) -> Any:
        if type(obj) is Ref:
            seen.append(obj)
        return obj

    replaced(opened, see)
    return opened if set(envelope.refs) <= set(seen) else envelope


def _itself(ref: Ref) -> Ref:
    return ref


def _id_of_content(obj: Any) -> bytes:
    return frames.dump(obj).digest.encode()


def _why_stale(result: Any) -> str | None:
    """Return why a result cannot be used, or None if it can."""
    for envelope in result if type(result) is list else [result]:
        if type(envelope) is not Envelope:
            continue
        try:
            envelope.open(_nothing)
            gone = [ref for ref in envelope.refs + envelope.escaped if not ref.exists()]
        except Exception as error:  # noqa: BLE001 - its store or its classes may be gone
            return f"its result cannot be read any more ({type(error).__name__}: {error})"
        if gone:
            return f"its result is not in the store any more ({gone[0]!r})"
    return None


def _nothing(ref: Ref) -> None:
    return None


# -- the same content is the same argument, for any memoizer


def _own_id(ref: Ref) -> Callable[[Any], bytes] | None:
    """Return the function that the program has registered for an object's class, if any."""
    try:
        found = id_for_memo.dispatch(import_from_path(ref.type_name))
    except ImportError:  # a class that is local to a function
        return None
    of_parsl = found.__module__ == id_for_memo.__module__
    return None if of_parsl else found


@id_for_memo.register(Ref)
def memo_id_of_ref(ref: Ref, output_ref: bool = False) -> bytes:
    """Return what makes a stored object the same argument as another one."""
    known = ref.digest.encode()
    own = _own_id(ref) if ref.type_name else None
    if own is None and known:
        return known
    try:
        obj = Ref.resolve(ref)  # of a `ProxyRef`, too, what the proxy stands for
    except (ProxyResolveMissingKeyError, SerializationError):
        return repr(ref.id).encode()  # the task will say what is wrong with it
    own = own or id_for_memo.dispatch(type(obj))
    if own is _UNKNOWN or own.__module__ == id_for_memo.__module__:
        return _id_of_content(obj)
    return own(obj)


@id_for_memo.register(Envelope)
def _memo_id_of_envelope(envelope: Envelope, output_ref: bool = False) -> bytes:
    found = _as_an_argument(envelope)
    if type(found) is Ref:
        return memo_id_of_ref(found)
    return envelope.body + b"".join(map(memo_id_of_ref, envelope.refs))


@id_for_memo.register(_Content)
def _memo_id_of_content(content: _Content, output_ref: bool = False) -> bytes:
    return content.memo_id
