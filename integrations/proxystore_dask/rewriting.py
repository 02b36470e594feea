"""Graphs with load nodes in place of their large literals.

`submit` and `map` know the arguments of a call; everything else (collections, `dask.delayed`,
`Client.get`) hands an expression to the client. One that holds nothing large is sent as it is,
the very object. Of one that does, the tasks are made here instead of on the scheduler, so that
their literals can be replaced:

* a literal inside a task by an inline load node, as for an argument of `submit`;
* a value that has a key of its own (`delayed(x)`, a chunk of `from_array`, a partition of
  `from_pandas`) by a task that loads it: Dask tracks, spills and moves that as it would the value.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxystore.workflow import Hold, Packer, UnpicklableArgumentError
from proxystore_dask._dask import (
    DataNode,
    GraphNode,
    Task,
    TaskRef,
    changed_task,
    low_level_expr,
    materialize,
    parse_input,
)
from proxystore_dask.graph import Load, carried, counted_refs, load_node, same, unfold
from proxystore_dask.literals import Scale


@dataclass(frozen=True)
class Rewritten:
    """A graph to be sent instead of another one.

    Attributes:
        expr: The expression to be sent.
        holds: Holds on the stored objects that each output needs, by its key.
    """

    expr: Any
    holds: Mapping[Any, tuple[Hold, ...]]


def rewrite(expr: Any, keys: Iterable[Any], packer: Packer) -> Rewritten | None:
    """Store the large literals of a graph; None if it has none.

    Tasks that none of the `keys` needs are left out.

    Raises:
        UnpicklableArgumentError: One of them cannot be pickled. Nothing has been stored.
    """
    scale = Scale(packer.threshold)
    if not scale.is_large(expr):
        return None
    keys = list(keys)
    graph = _needed(materialize(expr), keys)
    # One object may be in many tasks; it is one object in the store, too.
    places: list[Any] = []
    literals: dict[int, Any] = {}
    for key, node in graph.items():
        for literal in _literals(node):
            if id(literal) not in literals and scale.is_large(literal):
                literals[id(literal)] = literal
                places.append(key)
    try:
        packed = packer.pack(list(literals.values()), {}, wrap=load_node)
    except UnpicklableArgumentError as error:
        raise _in_task(error, places) from error.__cause__
    replaced = {
        ident: parse_input(new)
        for (ident, old), new in zip(literals.items(), packed.args, strict=True)
        if new is not old
    }
    if not replaced:
        return None
    graph = {key: _replace(node, replaced) for key, node in graph.items()}
    return Rewritten(low_level_expr(graph, like=expr), _by_output(graph, keys, packed.holds))


def _needed(graph: Mapping[Any, GraphNode], keys: Iterable[Any]) -> dict[Any, GraphNode]:
    """The part of a graph that `keys` need, each task after those that it needs itself."""
    needed: dict[Any, GraphNode] = {}
    pending = [key for key in keys if key in graph]
    opened: set[Any] = set()
    while pending:
        key = pending[-1]
        if key in opened:
            needed[key] = graph[pending.pop()]
            continue
        opened.add(key)
        pending += [k for k in graph[key].dependencies if k in graph and k not in opened]
    return needed


def _literals(node: GraphNode) -> Iterator[Any]:
    """The values in a task that are not graph nodes, those that its function carries included."""
    if isinstance(node, DataNode):
        yield node.value
    if not isinstance(node, Task):
        return
    yield from carried(node.func)
    for value in _arguments(node):
        if isinstance(value, GraphNode):
            yield from _literals(value)
        elif not isinstance(value, TaskRef):
            yield value


def _arguments(task: Task) -> Iterator[Any]:
    args = iter(task.args)
    if task.has_subgraph():
        yield from next(args).values()
    yield from args
    yield from task.kwargs.values()


def keyed(key: Any, value: GraphNode) -> Task:
    """A task of its own for what `Packer.pack` has made of a value."""
    if isinstance(value, Task) and isinstance(value.func, Load):
        return Task(key, value.func, _data_producer=True)
    return Task(key, same, value, _data_producer=True)


def _replace(node: GraphNode, new: Mapping[int, Any]) -> GraphNode:
    """The node with other literals; itself if there are none for it.

    Args:
        node: A task, or what is an argument of one.
        new: Replacements, by the identity of what they replace.
    """

    def value(old: Any) -> Any:
        return _replace(old, new) if isinstance(old, GraphNode) else new.get(id(old), old)

    if isinstance(node, DataNode):
        held = value(node.value)
        return node if held is node.value else keyed(node.key, held)
    if not isinstance(node, Task):
        return node
    func, leading, named = unfold(node.func, lambda held: id(held) in new)
    args = tuple(map(value, (*leading, *node.args)))
    if node.has_subgraph():
        inner = {key: value(old) for key, old in node.args[0].items()}
        if any(inner[key] is not old for key, old in node.args[0].items()):
            args = (inner, *args[1:])
    kwargs = {name: value(old) for name, old in {**named, **node.kwargs}.items()}
    if (
        func is node.func
        and all(map(operator.is_, args, node.args))
        and all(kwargs[name] is old for name, old in node.kwargs.items())
    ):
        return node
    return changed_task(node, func, args, kwargs)


def _by_output(
    graph: Mapping[Any, GraphNode], keys: Iterable[Any], holds: Iterable[Hold]
) -> dict[Any, tuple[Hold, ...]]:
    """The holds on what each output needs, itself or by what it is made from."""
    held = {hold.ref.id: hold for hold in holds}
    below: dict[Any, frozenset[Any]] = {}
    for key, node in graph.items():  # each after those that it needs
        sets = {below[k] for k in node.dependencies if below.get(k)}
        sets.add(frozenset(ref.id for ref in counted_refs(node)))
        # Mostly the same as that of its dependency: then the same set.
        below[key] = max(sets, key=len).union(*sets) if len(sets) > 1 else sets.pop()
    return {
        key: tuple(held[ident] for ident in below[key] if ident in held)
        for key in keys
        if key in below
    }


def _in_task(error: UnpicklableArgumentError, keys: Sequence[Any]) -> UnpicklableArgumentError:
    """The error with the task instead of the number of the literal."""
    number, bracket, inside = str(error.position).partition("[")
    position = f"{bracket}{inside} of task {keys[int(number) - 1]!r}".lstrip()
    return UnpicklableArgumentError(position, error.type_name, error.reason)
