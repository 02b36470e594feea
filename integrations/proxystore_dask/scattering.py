"""What `Client.scatter` is given, and what becomes of it.

A scattered object of plain Dask is data that no task makes: it is gone with the last worker that
holds it, and every task that needs it with it. Here a large one is a task that loads it from the
store: Dask has it run ahead of those that need it, and again when its result is lost.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from dask.tokenize import tokenize

from proxystore.workflow import Hold, Packer, UnpicklableArgumentError
from proxystore_dask._dask import DataNode, GraphNode, parse_input
from proxystore_dask.graph import counted_refs, load_node
from proxystore_dask.rewriting import keyed


@dataclass(frozen=True)
class Parts:
    """The values that get a future each.

    Attributes:
        values: By position; by name if the caller has named them.
        named: Whether the caller has.
        together: Makes of all futures, in order, what `scatter` returns.
    """

    values: Mapping[Any, Any]
    named: bool
    together: Callable[[list[Any]], Any]

    def some(self, places: Collection[Any]) -> Any:
        """A part of the values, to be scattered by itself."""
        chosen = {place: self.values[place] for place in places}
        return chosen if self.named else list(chosen.values())


def parts(data: Any) -> Parts:
    """Take apart what is to be scattered, as `distributed.Client.scatter` does."""
    if isinstance(data, range):
        data = list(data)
    cls = type(data)
    if cls is dict:
        return Parts(data, True, lambda made: dict(zip(data, made, strict=True)))
    if cls in (list, tuple, set, frozenset):
        return Parts(dict(enumerate(data)), False, cls)
    if isinstance(data, tuple) and hasattr(cls, "_make"):
        return Parts(dict(enumerate(data)), False, cls._make)
    return Parts({0: data}, False, itemgetter(0))


@dataclass(frozen=True)
class Loading:
    """A task that loads a scattered value.

    Attributes:
        node: The task, under its key.
        holds: Holds on the stored objects that it needs.
    """

    node: GraphNode
    holds: tuple[Hold, ...]


def pack_values(
    packer: Packer, values: Mapping[Any, Any], *, named: bool, hash: bool
) -> list[Loading]:
    """Store values, and return the tasks that load them.

    Args:
        packer: Stores them.
        values: As in `Parts`.
        named: As in `Parts`.
        hash: Whether values without a name get one from their content, and not a random one.

    Raises:
        UnpicklableArgumentError: A value cannot be pickled. Nothing has been stored.
    """
    try:
        packed = packer.pack(list(values.values()), {}, wrap=load_node)
    except UnpicklableArgumentError as error:
        raise _at_place(error, list(values)) from error.__cause__
    held = {hold.ref.id: hold for hold in packed.holds}
    made = []
    for (place, old), new in zip(values.items(), packed.args, strict=True):
        node: Any = parse_input(new)
        key = place
        if not named:
            # Made of digests: not of the content itself, which takes Dask long for some types.
            key = f"{type(old).__name__}-{tokenize(node) if hash else uuid.uuid4().hex}"
        # One that had to stay travels in the graph.
        task = DataNode(key, old) if new is old else keyed(key, node)
        made.append(Loading(task, tuple(held[ref.id] for ref in counted_refs(task))))
    return made


def _at_place(error: UnpicklableArgumentError, places: list[Any]) -> UnpicklableArgumentError:
    number, bracket, inside = str(error.position).partition("[")
    position = f"{places[int(number) - 1]!r}{bracket}{inside}"
    return UnpicklableArgumentError(position, error.type_name, error.reason)
