"""What a large argument looks like in a Dask graph.

Not a transparent proxy: Dask tokenizes, compares, measures and pickles what it carries, on the
client, on the scheduler and in the workers' event loops, and each look would fetch the object.
Instead a *load node*, ``Task(None, Load(ref))``, stands in the argument's place. It weighs less
than a kilobyte, has a token made of the content's digest (so pure keys depend on the content),
and is evaluated where the task's other arguments are: in the task's own thread on the worker.
The user's function gets the object itself, private to that task.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from dask.context import thread_state
from dask.utils import format_bytes
from distributed.protocol import pickle

from proxystore.workflow import ProxyRef, Ref
from proxystore_dask._dask import GraphNode, Task, TaskRef, parse_input

_LOOKED_INTO = frozenset({dict, list, set, tuple})


class Load:
    """The function of a load node: brings the object behind `ref` to the worker."""

    __slots__ = ("ref",)

    def __init__(self, ref: Ref) -> None:
        self.ref = ref

    def __call__(self) -> Any:
        """The object; for a user's proxy, a proxy.

        Raises:
            ProxyResolveMissingKeyError: the object is gone.
        """
        return _loaded.get(self)

    def __reduce__(self) -> tuple[type[Load], tuple[Ref]]:
        return Load, (self.ref,)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        # A user's proxy has no digest: nobody has looked at what it refers to.
        content = self.ref.digest or self.ref.id
        return ("proxystore_dask.Load", type(self.ref).__name__, content)

    def __repr__(self) -> str:
        # What Dask prints for the argument: in a task's repr, in the log of one that failed.
        return f"<stored {self.ref.type_name}, {format_bytes(self.ref.nbytes)}>"


class _Loaded(threading.local):
    """What the task of this thread has loaded so far.

    Two arguments that are one array to the caller are one array to the function, as in plain
    Dask: what it writes into one it sees in the other. Two arrays with equal content, though one
    object in the store, stay two: so it is the `Load` that counts, of which the client makes one
    for each object, and not what it refers to. Weakly, so that nothing outlives its task; what
    takes no weak reference (a list, text) is loaded for each place.
    """

    def __init__(self) -> None:
        self._run: tuple[Any, Any] = (None, None)
        # By identity of the `Load`, which the running task keeps alive.
        self._objects: dict[int, weakref.ref[Any]] = {}

    def get(self, load: Load) -> Any:
        run = (getattr(thread_state, "key", None), getattr(thread_state, "start_time", None))
        if run != self._run:
            self._run = run
            self._objects = {}
        known = self._objects.get(id(load))
        obj = None if known is None else known()
        if obj is None:
            obj = load.ref.resolve()
            if not isinstance(load.ref, ProxyRef) and run[0] is not None:
                with contextlib.suppress(TypeError):
                    self._objects[id(load)] = weakref.ref(obj)
        return obj


_loaded = _Loaded()


def load_node(ref: Ref) -> Task:
    """A graph node that stands for the object behind `ref` among a task's arguments."""
    return Task(None, Load(ref))


def counted_refs(node: object) -> Iterator[Ref]:
    """The stored objects that a task, or an argument of one, mentions and that are ours to evict.

    Looks into graph nodes only, never into a user's object. A user's own proxy is never ours.
    """
    pending = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, Task):
            if isinstance(item.func, Load):
                if not isinstance(item.func.ref, ProxyRef):
                    yield item.func.ref
                continue
            pending.extend(item.args)
            pending.extend(item.kwargs.values())
        elif type(item) is dict:
            # The tasks inside a fused task.
            pending.extend(value for value in item.values() if isinstance(value, GraphNode))


def is_native(obj: object) -> bool:
    """Whether Dask must see `obj` itself: a future, a graph node, a collection.

    Dask replaces futures inside subclasses of list, tuple, set and dict too (an `OrderedDict`,
    say), so such a container must not disappear into the store. `Packer` looks into the exact
    types itself.
    """
    if isinstance(obj, (GraphNode, TaskRef)):
        return True
    cls = type(obj)
    if getattr(cls, "__dask_future__", False) or hasattr(cls, "__dask_graph__"):
        return True
    if (
        cls in _LOOKED_INTO
        or not isinstance(obj, (dict, list, set, tuple))
        or hasattr(cls, "_fields")
    ):
        return False
    return isinstance(parse_input(obj), GraphNode)


def carries(obj: object) -> bool:
    """Whether Dask can send an object that pickle cannot: it has serializers of its own."""
    try:
        pickle.dumps(obj)
    except Exception:  # noqa: BLE001 - any __reduce__ may raise anything; all of them mean no
        return False
    return True


class _Inline(Task):
    """A literal that Dask must leave where it is, whatever its size."""

    __slots__ = ()

    def __sizeof__(self) -> int:
        return object.__sizeof__(self)


def inline(value: object) -> Task:
    """A node that evaluates to `value`, futures in it replaced as Dask does, and that looks small.

    `Client.map` of distributed 2026.8 moves keyword arguments over 100 kB into a task named after
    the keyword, which its scheduler then cannot run (it never gets a priority): the call fails,
    and the next one hangs.
    """
    return _Inline(None, _same, parse_input(value))


def _same(value: object) -> object:
    return value
