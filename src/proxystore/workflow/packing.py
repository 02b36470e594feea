"""Arguments of a call, with large objects replaced by references.

Packing goes in three steps, so that a call that cannot be made stores nothing: find
what is large, serialize all of it, then store it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxystore.connectors.exceptions import StorageFullError
from proxystore.proxy import Proxy
from proxystore.serialize import SerializationError, frames
from proxystore.store.factory import store_factory
from proxystore.utils.imports import get_object_path
from proxystore.workflow.embedded import is_embedded
from proxystore.workflow.leases import Hold, Ledger
from proxystore.workflow.policy import are_small, is_small, measure, surely_below
from proxystore.workflow.refs import ProxyRef, Ref

logger = logging.getLogger(__name__)

# Deeper containers are not looked into: below Python's own limit of recursion, and
# nobody writes arguments like that by hand.
_DEEPEST = 100


class UnpicklableArgumentError(TypeError):
    """An argument cannot be sent to another process; nothing of the call was stored.

    Attributes:
        position: Number of the argument, from 1, or its name; with what leads to the
            object in it (``"2['weights'][0]"``).
        type_name: ``module.qualname`` of the class of the object in it that fails.
        reason: What the pickler said.
    """

    def __init__(self, position: int | str, type_name: str, reason: str) -> None:
        super().__init__(position, type_name, reason)
        self.position = position
        self.type_name = type_name
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"argument {self.position} is a {self.type_name}, which cannot be pickled: "
            f"{self.reason}; pass what it is made of, or make it in the task"
        )


@dataclass(eq=False)
class _Leaf:
    """An object to be replaced by a reference."""

    obj: Any
    position: int | str
    data: Any = None
    replacement: Any = None


@dataclass(eq=False)
class _Branch:
    """A container in which something is to be replaced."""

    cls: type
    children: list[_Plan]
    keys: list[Any] | None = None

    def rebuild(self) -> Any:
        items = [_built(child.node) for child in self.children]
        if self.keys is not None:
            return dict(zip(self.keys, items, strict=True))
        return self.cls(*items) if hasattr(self.cls, "_fields") else self.cls(items)


def _built(node: Any) -> Any:
    if type(node) is _Leaf:
        return node.replacement
    return node.rebuild() if type(node) is _Branch else node


@dataclass(frozen=True)
class _Plan:
    """What becomes of an object.

    Attributes:
        node: The object as it is, a `_Leaf`, or a `_Branch`.
        inline: About how many bytes of it stay in the call.
        storable: Whether it may be stored whole: nothing in it is a framework's.
    """

    node: Any
    inline: int = 0
    storable: bool = True


@dataclass(frozen=True)
class Packed:
    """A call's arguments, ready to travel.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        holds: One for each stored object in them, to be released when the call can
            never again need it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    holds: tuple[Hold, ...] = field(default=())

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The objects that the call needs from the store."""
        return tuple(hold.ref for hold in self.holds)

    def release(self) -> None:
        """Release all holds; safe in finalizers."""
        for hold in self.holds:
            hold.release()


def _as_it_is(ref: Ref) -> Any:
    return ref


def _never(obj: Any) -> bool:
    return False


def _by_size(obj: Any) -> None:
    return None


class Packer:
    """Replaces large objects in calls by references. Thread-safe.

    Args:
        ledger: Stores the objects and counts who needs them.
        threshold: Objects that take this many bytes or more, pickled, are replaced.
        is_native: Says which objects the framework has to see itself, wherever they
            are (futures, files, nodes of its graph).
        carries: Asked about an object that neither pickle nor cloudpickle takes:
            whether the framework can send it nevertheless.
        policy: Asked about an object before its size is: whether it is to be replaced.
            None: that depends on its size.
        digest: Whether content that is there already is found, and not stored again.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        threshold: int,
        is_native: Callable[[Any], bool] = _never,
        carries: Callable[[Any], bool] = _never,
        policy: Callable[[Any], bool | None] = _by_size,
        digest: bool = True,
    ) -> None:
        self.ledger = ledger
        self.threshold = threshold
        self._is_native = is_native
        self._carries = carries
        self._policy = policy
        self._digest = digest

    def pack(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        wrap: Callable[[Ref], Any] = _as_it_is,
    ) -> Packed:
        """Store what is large in a call's arguments and return what is to travel.

        Lists, tuples, named tuples and dictionaries (exactly these, to any depth) are
        looked into; a large object in one is replaced, and one that is large only as a
        whole is replaced as a whole. Containers that change are copied; the caller's
        stay as they are. The same content is stored once; an object that is there twice
        is one reference, two objects of equal content are two equal ones. Proxies
        made by a store become a `ProxyRef`; no proxy is resolved.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.
            wrap: Makes of a reference what the framework is to carry.

        Raises:
            UnpicklableArgumentError: An object can neither be pickled nor carried; a
                `TypeError`. Nothing has been stored.
            ConnectorError: Storing failed; what this call had stored is released. (What
                does not fit into the embedded store stays in the call, with a warning.)
        """
        walk = _Walk(self.threshold, self._is_native, self._carries, self._policy)
        planned = [walk.plan(arg, i).node for i, arg in enumerate(args, start=1)]
        named = {name: walk.plan(arg, name).node for name, arg in kwargs.items()}
        if not walk.leaves:
            return Packed(tuple(args), dict(kwargs))
        for leaf in walk.leaves:
            self._dump(leaf)
        holds: list[Hold] = []
        try:
            for leaf in walk.leaves:
                ref = self._ref(leaf, holds)
                leaf.replacement = leaf.obj if ref is None else wrap(ref)
        except BaseException:
            for hold in holds:
                hold.release()
            raise
        return Packed(
            tuple(_built(node) for node in planned),
            {name: _built(node) for name, node in named.items()},
            tuple(holds),
        )

    def _dump(self, leaf: _Leaf) -> None:
        if isinstance(leaf.obj, Ref):
            return
        try:
            leaf.data = self.ledger.store.dump(leaf.obj)
        except SerializationError as error:
            raise _unpicklable(leaf.obj, leaf.position, error.__cause__ or error) from error

    def _ref(self, leaf: _Leaf, holds: list[Hold]) -> Ref | None:
        """Store a leaf; None if it has to stay in the call."""
        if isinstance(leaf.obj, Ref):
            return leaf.obj
        try:
            name = frames.type_name(leaf.obj)
            hold = self.ledger.hold_dumped(leaf.data, name, digest=self._digest)
        except StorageFullError as error:
            if not is_embedded(self.ledger.store):
                raise
            # Who has named no store has no say in how large it is, and is not to lose a
            # program that works without one.
            logger.warning("an argument travels by value: %s", error)
            return None
        leaf.data = None
        holds.append(hold)
        # One for each object of the caller's: equal content is one object in the store, and
        # still two to a function that writes into one of them.
        return copy.copy(hold.ref)


def _unpicklable(
    obj: Any, position: int | str, error: BaseException | None
) -> UnpicklableArgumentError:
    reason = f"{type(error).__name__}: {error}" if error else "pickle and cloudpickle refuse it"
    return UnpicklableArgumentError(position, frames.type_name(obj), reason)


class _Walk:
    """One look at the arguments of one call."""

    def __init__(
        self,
        threshold: int,
        is_native: Callable[[Any], bool],
        carries: Callable[[Any], bool],
        policy: Callable[[Any], bool | None],
    ) -> None:
        self.leaves: list[_Leaf] = []
        self._threshold = threshold
        self._is_native = is_native
        self._carries = carries
        self._policy = policy
        # By identity, with the object, which keeps the identity its own meanwhile.
        self._seen: dict[int, tuple[Any, _Leaf]] = {}
        self._inside: set[int] = set()

    def plan(self, obj: Any, position: int | str) -> _Plan:
        if is_small(obj):
            return _Plan(obj)
        if id(obj) in self._seen:
            return _Plan(self._seen[id(obj)][1], storable=False)
        if issubclass(type(obj), Proxy):
            return self._proxy(obj, position)
        if self._is_native(obj):
            return _Plan(obj, storable=False)
        wanted = self._policy(obj)
        if wanted is not None:
            return self._leaf(obj, position) if wanted else _Plan(obj, storable=False)
        cls = type(obj)
        if cls is dict or cls is list or cls is tuple or _is_named_tuple(cls):
            return self._container(obj, position)
        # Members of sets are hashable: no arrays to look for.
        if (cls is set or cls is frozenset) and any(map(self._is_native, obj)):
            return _Plan(obj, storable=False)
        return self._whole(obj, position)

    def _whole(self, obj: Any, position: int | str) -> _Plan:
        size = measure(obj, self._threshold)
        if size is None:
            if self._carries(obj):
                return _Plan(obj, storable=False)
            raise _unpicklable(obj, position, _why(obj))
        if size < self._threshold:
            return _Plan(obj, size)
        return self._leaf(obj, position)

    def _leaf(self, obj: Any, position: int | str) -> _Plan:
        leaf = _Leaf(obj, position)
        self.leaves.append(leaf)
        self._seen[id(obj)] = (obj, leaf)
        return _Plan(leaf, storable=False)

    def _proxy(self, proxy: Proxy[Any], position: int | str) -> _Plan:
        factory = store_factory(proxy)
        if factory is None or type(proxy) is not Proxy:
            return _Plan(proxy, storable=False)  # pickles small, and owners must not be copied
        cached = object.__getattribute__(proxy, "__proxy_default_class__")
        name = get_object_path(cached) if cached is not None else ""
        ref = ProxyRef(factory, "", 0, name)
        leaf = self._leaf(ref, position)
        self._seen[id(proxy)] = (proxy, leaf.node)
        return leaf

    def _container(self, obj: Any, position: int | str) -> _Plan:
        mapping = type(obj) is dict
        items = list(obj.values()) if mapping else list(obj)
        by_size = self._policy is _by_size
        if are_small(items) and (by_size or str not in map(type, items)):
            # Nothing to be replaced in it. And a million items, as one object, take a
            # moment to look at; one by one they would take a second.
            return self._whole(obj, position)
        # Not in another container: there its size is needed, too.
        if not self._inside and by_size and surely_below(obj, self._threshold):
            return _Plan(obj)
        if id(obj) in self._inside or len(self._inside) >= _DEEPEST:
            return _Plan(obj, storable=False)  # it holds itself, or is absurdly deep
        self._inside.add(id(obj))
        places = obj if mapping else range(len(items))
        plans = [
            self.plan(item, f"{position}[{place!r}]")
            for place, item in zip(places, items, strict=True)
        ]
        self._inside.discard(id(obj))
        storable = all(plan.storable for plan in plans)
        inline = sum(plan.inline for plan in plans)
        if inline >= self._threshold:
            if storable:
                return self._leaf(obj, position)
            inline = self._shrink(plans, inline, position)
        if all(plan.node is item for plan, item in zip(plans, items, strict=True)):
            return _Plan(obj, inline, storable)
        return _Plan(_Branch(type(obj), plans, list(obj) if mapping else None), inline, False)

    def _shrink(self, plans: list[_Plan], inline: int, position: int | str) -> int:
        """Make leaves of the largest of the rest until what stays is below the threshold.

        Returns:
            About how many bytes stay.
        """
        for siblings, i in sorted(_movable(plans), key=lambda at: -at[0][at[1]].inline):
            if inline < self._threshold:
                break
            inline -= siblings[i].inline
            siblings[i] = self._leaf(siblings[i].node, position)
        return inline


def _movable(plans: list[_Plan]) -> Iterator[tuple[list[_Plan], int]]:
    """Yield the places of what stays in the call and need not, at any depth."""
    for i, plan in enumerate(plans):
        if type(plan.node) is _Branch:
            yield from _movable(plan.node.children)
        elif plan.storable and plan.inline:
            yield plans, i


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def _why(obj: Any) -> BaseException | None:
    try:
        frames.dump(obj)
    except SerializationError as error:
        return error.__cause__
    return None


def unpack(value: Any, *, kinds: tuple[type, ...] = (Ref, ProxyRef)) -> Any:
    """Return a value in which references are what they refer to; for workers.

    Looks into the containers that `Packer.pack` looks into.

    Args:
        value: What arrived.
        kinds: Exact classes to resolve, by their method `resolve`.

    Raises:
        ProxyResolveMissingKeyError: An object is gone.
    """
    cls = type(value)
    if cls in kinds:
        return value.resolve()
    if cls is dict:
        new = {name: unpack(item, kinds=kinds) for name, item in value.items()}
        return new if any(new[name] is not value[name] for name in new) else value
    if cls is list or cls is tuple or _is_named_tuple(cls):
        items = [unpack(item, kinds=kinds) for item in value]
        if all(map(_identical, items, value)):
            return value
        return cls(*items) if hasattr(cls, "_fields") else cls(items)
    return value


def _identical(a: object, b: object) -> bool:
    return a is b
