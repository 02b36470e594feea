"""The arguments of one `submit` or `map`, ready for the graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from dask.sizeof import sizeof

from proxystore.workflow import Hold, Packer, Ref, UnpicklableArgumentError
from proxystore_dask._dask import Task, parse_input
from proxystore_dask.graph import Load, counted_refs, inline, load_node

# distributed's own limit, above which it would move a keyword argument of `map`; see `inline`.
_MAP_KEYWORD_LIMIT = 100_000


def split(
    kwargs: Mapping[str, Any], options: frozenset[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Dask's own keywords, and those of the user's function."""
    ours = {name: value for name, value in kwargs.items() if name in options}
    return ours, {name: value for name, value in kwargs.items() if name not in options}


@dataclass(frozen=True)
class PackedMap:
    """What `Client.map` is to be called with.

    Attributes:
        shared: Leading arguments of every call.
        iterables: The further ones, one iterable each.
        keywords: Keyword arguments of every call.
        shared_holds: Holds on the objects that every call needs.
        holds: Holds on the objects that only one call needs, by its number.
    """

    shared: tuple[Any, ...]
    iterables: tuple[Collection[Any], ...]
    keywords: dict[str, Any]
    shared_holds: tuple[Hold, ...]
    holds: Mapping[int, Sequence[Hold]]


def pack_map(
    packer: Packer,
    shared: Sequence[Any],
    iterables: Sequence[Collection[Any]],
    keywords: Mapping[str, Any],
    *,
    wrap: Callable[[Ref], Task] = load_node,
) -> PackedMap:
    """Store what is large among the arguments of all calls.

    Elements that no call gets, because another iterable is shorter, are not looked at.
    `wrap` is as for `Packer.pack`.

    Raises:
        UnpicklableArgumentError: An argument cannot be pickled. Nothing has been stored.
    """
    length = min(map(len, iterables), default=0)
    columns = [list(islice(iterable, length)) for iterable in iterables]
    try:
        packed = packer.pack([*shared, *chain(*columns)], keywords, wrap=wrap)
    except UnpicklableArgumentError as error:
        raise _in_iterable(error, len(shared), length) from error.__cause__
    held = {hold.ref.id: hold for hold in packed.holds}

    def node(old: Any, new: Any, holds: list[Hold]) -> Any:
        """The replacement as Dask will make it; what it needs goes to `holds`."""
        if new is old:
            return old
        made = parse_input(new)
        holds.extend(held[ref.id] for ref in counted_refs(made))
        return made

    values = iter(packed.args)
    shared_holds: list[Hold] = []
    holds: defaultdict[int, list[Hold]] = defaultdict(list)
    leading = tuple(node(old, next(values), shared_holds) for old in shared)
    packed_iterables: list[Collection[Any]] = []
    for iterable, column in zip(iterables, columns, strict=True):
        changed = False
        for i, (old, new) in enumerate(zip(column, islice(values, length), strict=True)):
            if new is not old:
                column[i] = node(old, new, holds[i])
                changed = True
        # An iterable that stays travels as it is: a range takes fewer bytes than its elements.
        packed_iterables.append(column if changed else iterable)
    named = {
        name: _left_in_place(node(old, packed.kwargs[name], shared_holds))
        for name, old in keywords.items()
    }
    return PackedMap(leading, tuple(packed_iterables), named, tuple(shared_holds), holds)


def _left_in_place(value: Any) -> Any:
    is_load = isinstance(value, Task) and isinstance(value.func, Load)
    return value if is_load or sizeof(value) <= _MAP_KEYWORD_LIMIT else inline(value)


def _in_iterable(
    error: UnpicklableArgumentError, shared: int, length: int
) -> UnpicklableArgumentError:
    """The error with a position as the caller of `map` counts: ``2[7]`` is in iterable 2."""
    number, bracket, inside = str(error.position).partition("[")
    if not number.isdigit() or int(number) <= shared:
        return error
    iterable, element = divmod(int(number) - 1 - shared, length)
    position = f"{iterable + 1}[{element}]{bracket}{inside}"
    return UnpicklableArgumentError(position, error.type_name, error.reason)
