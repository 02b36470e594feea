"""How large the literals of a graph are, before the graph is made.

Dask sends an *expression*, of which the scheduler makes the tasks. To make them here, in the
client, only to look at them would cost every program what only those with large literals need.
So the look goes over what an expression holds: its operands, the layers of high-level graphs, the
tasks in those that have any. It may take something for a large literal that is none (a million
keys); never the other way round.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import Any

from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer

from proxystore.proxy import Proxy
from proxystore.workflow.policy import measure
from proxystore_dask._dask import Alias, DataNode, Expr, GraphNode, HLGExpr, Task, TaskRef
from proxystore_dask.graph import Load, carried

# About what pickle takes for a number.
_NUMBER = 9
_NUMBERS = frozenset({type(None), bool, int, float})
_PLAIN = _NUMBERS | {str}

_TEXT: tuple[type, ...] = (str, bytes, bytearray)
_COLLECTIONS: tuple[type, ...] = (list, tuple, set, frozenset)

# Code is sent by its name, or is a closure: then what it closes over travels with it.
_WEIGHTLESS: frozenset[type] = _NUMBERS | {
    *(complex, slice, range, type(Ellipsis), type),
    *(types.FunctionType, types.BuiltinFunctionType, types.ModuleType),
    *(Alias, TaskRef, Load),
}


class _LargeFound(Exception):
    """There is a large literal; no need to look on."""


class Scale:
    """Tells which literals of one graph are large, without making the graph.

    Args:
        threshold: Size from which a literal is large, in bytes.
    """

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        # By exact class; None: nothing to weigh.
        self._weighers: dict[type, Callable[[Any], int] | None] = {
            **dict.fromkeys(_WEIGHTLESS),
            **dict.fromkeys(_TEXT, len),
            **dict.fromkeys(_COLLECTIONS, self._members),
            dict: self._items,
            DataNode: self._data_node,
            HighLevelGraph: self._high_level_graph,
        }
        # By identity, with the object, which keeps the identity its own meanwhile.
        self._measured: dict[int, tuple[Any, int]] = {}
        self._seen: dict[int, Any] = {}

    def is_large(self, value: object) -> bool:
        """Whether a value is a large literal, or (an expression, a task) holds one."""
        try:
            return self._weigh(value) >= self.threshold
        except _LargeFound:
            return True
        except RecursionError:
            return False  # it holds itself, or is absurdly deep: Dask itself will say so

    def _weigh(self, value: Any) -> int:
        cls = type(value)
        try:
            weigher = self._weighers[cls]
        except KeyError:
            weigher = self._weighers[cls] = self._weigher_for(cls)
        return 0 if weigher is None else weigher(value)

    def _weigher_for(self, cls: type) -> Callable[[Any], int] | None:
        if issubclass(cls, Task):
            return self._task
        if issubclass(cls, HLGExpr):
            return self._high_level_expr
        if issubclass(cls, Expr):
            return self._expr
        if issubclass(cls, Blockwise):
            return self._blockwise
        if issubclass(cls, MaterializedLayer):
            return self._materialized
        if issubclass(cls, Layer):
            return self._layer
        if issubclass(cls, (GraphNode, TaskRef, Proxy, type)):
            return None
        if hasattr(cls, "__dask_graph__"):
            return self._collection
        return self._other

    def _check(self, values: Iterable[Any]) -> int:
        """Look at each by itself."""
        for value in values:
            if self._weigh(value) >= self.threshold:
                raise _LargeFound
        return 0

    # ------------------------------------------------------------------------- values

    def _members(self, values: Collection[Any]) -> int:
        return self._sum(values, len(values))

    def _items(self, mapping: Mapping[Any, Any]) -> int:
        return self._sum(mapping.values(), len(mapping))

    def _sum(self, values: Iterable[Any], count: int) -> int:
        # A million numbers take a moment together, and a second one by one.
        if _PLAIN.issuperset(map(type, values)):
            total = _NUMBER * count
            if total >= self.threshold or _NUMBERS.issuperset(map(type, values)):
                return total
            return total + sum(len(value) for value in values if type(value) is str)
        return sum(map(self._weigh, values))

    def _other(self, value: Any) -> int:
        if id(value) not in self._measured:
            self._measured[id(value)] = (value, measure(value, self.threshold) or 0)
        return self._measured[id(value)][1]

    # -------------------------------------------------------------------------- tasks

    def _task(self, task: Task) -> int:
        if type(task.func) is not types.FunctionType:
            self._check(carried(task.func))
        self._check(task.args)
        return self._check(task.kwargs.values()) if task.kwargs else 0

    def _data_node(self, node: DataNode) -> int:
        return self._check((node.value,))

    # ------------------------------------------------------------------------- graphs

    def _high_level_expr(self, expr: HLGExpr) -> int:
        return self._check((expr.operand("dsk"),))

    def _expr(self, expr: Expr) -> int:
        if id(expr) in self._seen:  # several others share it
            return 0
        self._seen[id(expr)] = expr
        for operand in expr.operands:
            # A whole graph (its keys do not count), or named operands.
            self._check(operand.values() if type(operand) is dict else (operand,))
        return 0

    def _collection(self, collection: Any) -> int:
        return self._check((getattr(collection, "dask", None),))

    def _high_level_graph(self, graph: HighLevelGraph) -> int:
        return self._check(graph.layers.values())

    def _materialized(self, layer: MaterializedLayer) -> int:
        return self._check(layer.mapping.values())

    def _blockwise(self, layer: Blockwise) -> int:
        literals = (value for value, index in layer.indices if index is None)
        return self._check(chain((layer.task,), literals, layer.io_deps.values()))

    def _layer(self, layer: Layer) -> int:
        for value in vars(layer).values():
            self._check(value.values() if type(value) is dict else (value,))
        return 0
