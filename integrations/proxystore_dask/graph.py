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
import functools
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from dask.context import thread_state
from dask.utils import format_bytes, methodcaller
from distributed.protocol import pickle
from distributed.utils import iscoroutinefunction

from proxystore.workflow import ProxyRef, Ref
from proxystore.workflow.policy import is_small
from proxystore_dask import measures
from proxystore_dask._dask import GraphNode, Task, TaskRef, parse_input
from proxystore_dask.outbox import ValueRef

_MISSING = object()
# What is in no store, or not ours to evict.
_UNCOUNTED = (ProxyRef, ValueRef)
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

    def fetch(self) -> Any:
        """What `_Loaded` gives to a task that asks for the first time."""
        if isinstance(self.ref, _UNCOUNTED):
            return self.ref.resolve()
        return measures.resolve(self.ref, getattr(thread_state, "key", None))

    def __reduce__(self) -> tuple[type[Load], tuple[Ref]]:
        return type(self), (self.ref,)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        # A user's proxy has no digest: nobody has looked at what it refers to.
        content = self.ref.digest or self.ref.id
        return (f"proxystore_dask.{type(self).__name__}", type(self.ref).__name__, content)

    def __repr__(self) -> str:
        # What Dask prints for the argument: in a task's repr, in the log of one that failed.
        return f"<stored {self.ref.type_name}, {format_bytes(self.ref.nbytes)}>"


class LoadProxy(Load):
    """The function of a load node that brings a proxy, which gets the object when it is used."""

    __slots__ = ()

    def fetch(self) -> Any:
        """An unresolved proxy."""
        if isinstance(self.ref, _UNCOUNTED):
            return self.ref.resolve()
        of, nbytes = self.ref.factory, self.ref.nbytes
        factory = measures.MeasuredFactory(of.key, of.store_config, nbytes)
        return Ref(factory, self.ref.digest, nbytes, self.ref.type_name).proxy()


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
            obj = load.fetch()
            if not isinstance(load.ref, ProxyRef) and run[0] is not None:
                with contextlib.suppress(TypeError):
                    self._objects[id(load)] = weakref.ref(obj)
        else:
            measures.hit()
        return obj


_loaded = _Loaded()


def load_node(ref: Ref) -> Task:
    """A graph node that stands for the object behind `ref` among a task's arguments."""
    return Task(None, Load(ref))


def proxy_node(ref: Ref) -> Task:
    """A graph node that stands for a proxy of the object behind `ref`."""
    return Task(None, LoadProxy(ref))


# What the function of a task gets for a large argument, by the name that users give it.
NODES: dict[str, Callable[[Ref], Task]] = {"value": load_node, "proxy": proxy_node}


def carried(func: object) -> tuple[Any, ...]:
    """What travels with a function: the arguments in a `partial`, the object of a method."""
    if type(func) is functools.partial:
        return (*carried(func.func), *func.args, *func.keywords.values())
    if type(func) is types.MethodType or type(func) is types.BuiltinFunctionType:
        owner = func.__self__  # of a builtin function its module, of a class method the class
        return () if is_small(owner) else (owner,)
    return ()


def unfold(
    func: Callable[..., Any],
    is_large: Callable[[Any], bool],
    options: frozenset[str] = frozenset(),
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """A function, and the arguments it carries if there is a large one among them.

    Calling the function with these arguments before its others is calling `func`.

    Args:
        func: Any callable.
        is_large: Says which arguments are worth it.
        options: Dask's own keywords, which an argument of a partial must not become.
    """
    # A subclass may do anything when called.
    if type(func) is functools.partial:
        inner, args, keywords = unfold(func.func, is_large, options)
        own = (*func.args, *func.keywords.values())
        if _can_unfold(func, options) and (inner is not func.func or any(map(is_large, own))):
            return inner, (*args, *func.args), {**keywords, **func.keywords}
    elif any(map(is_large, carried(func))) and not iscoroutinefunction(func):
        # As pickle does: by its name, which is looked up in the object where that arrives.
        method: Any = func
        return methodcaller(method.__name__), (method.__self__,), {}
    return func, (), {}


def _can_unfold(func: functools.partial[Any], options: frozenset[str]) -> bool:
    carried = (*func.args, *func.keywords.values())
    placeholder = getattr(functools, "Placeholder", _MISSING)  # Python 3.14: filled by later ones
    if options & func.keywords.keys() or any(value is placeholder for value in carried):
        return False
    # Dask replaces futures among arguments, and leaves those inside a partial alone.
    return not isinstance(parse_input(carried), GraphNode)


def counted_refs(node: object) -> Iterator[Ref]:
    """The stored objects that a task, or an argument of one, mentions and that are ours to evict.

    Looks into graph nodes only, never into a user's object. A user's own proxy is never ours.
    """
    return (load.ref for load in _loads(node) if not isinstance(load.ref, _UNCOUNTED))


def fetched_refs(node: object) -> Iterator[Ref]:
    """Those of `counted_refs` that the task gets before its function runs."""
    return (
        load.ref
        for load in _loads(node)
        if type(load) is Load and not isinstance(load.ref, _UNCOUNTED)
    )


def _loads(node: object) -> Iterator[Load]:
    pending = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, Task):
            if isinstance(item.func, Load):
                yield item.func
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
    return _Inline(None, same, parse_input(value))


def same(value: object) -> object:
    """The value; for tasks that only hold one."""
    return value
