"""What becomes of a call's arguments before Parsl sees them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from parsl.dataflow.futures import AppFuture

from proxystore.proxy import Proxy
from proxystore.workflow import Packer, UnpicklableArgumentError
from proxystore.workflow.policy import is_small, size_of
from proxystore_parsl.errors import AppArgumentError
from proxystore_parsl.lifetimes import Call, StoreAppFuture, by_reference, relay
from proxystore_parsl.packing import comes_back, inert, replaced
from proxystore_parsl.proxies import notice

# What Parsl itself reads of a call. ("inputs" it reads item by item, and so do we.)
_LEFT_ALONE = frozenset(
    {
        "_parsl_staging_inhibit",
        "label",
        "outputs",
        "parsl_resource_specification",
        "stderr",
        "stdin",
        "stdout",
        "walltime",
    }
)


def packed_for(
    call: Call,
    packer: Packer | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    by_size: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments as they go to Parsl; the call then needs what is in the store.

    Args:
        call: That is to need it.
        packer: Stores what is large. None: objects stay as they are.
        args: Positional arguments.
        kwargs: Keyword arguments.
        by_size: No policy has to be asked.

    Raises:
        AppArgumentError: One cannot be sent to another process; a `TypeError`. Nothing has
            been stored.
        ClosedError: A result or proxy among them was let go with its scope.
    """
    # So are most calls of programs with many tasks, and a longer look would take as long as all
    # else that is done here for a call.
    limit = packer.threshold if packer is not None and by_size else 0
    if all(_stays(arg, limit) for arg in (*args, *kwargs.values())):
        return tuple(args), dict(kwargs)
    swap = functools.partial(_swapped, call=call, packer=packer)
    untouched = {name: kwargs[name] for name in kwargs if name in _LEFT_ALONE}
    named = {name: arg for name, arg in kwargs.items() if name not in _LEFT_ALONE}
    # Parsl has to see the items, so each of them is an argument of its own.
    inputs = named.pop("inputs", None)
    listed = list(inputs) if type(inputs) in (list, tuple) else []
    items = {f"inputs[{i}]": item for i, item in enumerate(listed)}
    args = tuple(replaced(arg, swap) for arg in args)
    named = {name: replaced(arg, swap) for name, arg in {**named, **items}.items()}
    if packer is not None:
        with notice() as noticed:
            try:
                packed = packer.pack(args, named)
            except UnpicklableArgumentError as error:
                raise AppArgumentError(call.app, *error.args) from error.__cause__
        args, named = packed.args, packed.kwargs
        call.stored = packed.holds
        if noticed:  # hidden in the user's objects, which Parsl would keep, and so them
            call.need(*(factory.hold for factory in noticed if factory.hold is not None))
            args = tuple(replaced(arg, inert) for arg in args)
            named = {name: replaced(arg, inert) for name, arg in named.items()}
    if inputs is not None:
        packed_items = [named.pop(name) for name in items]
        named["inputs"] = type(inputs)(packed_items) if items else inputs
    return args, {**named, **untouched}


def _stays(arg: Any, limit: int) -> bool:
    """Say whether an argument goes to Parsl as it is, from its class and what it says of its size.

    That is so of numbers, and of short text and small arrays: with nothing in them, and less
    than `limit` bytes.
    """
    return is_small(arg) or (comes_back(arg) and (size_of(arg) or 0) < limit)


def unwrapped_future(obj: Any, call: Call) -> Any:
    """Return Parsl's future of one of ours, whose result the call then needs."""
    if type(obj) is not StoreAppFuture:
        return obj
    obj.require_there()
    if obj.done() and not obj._inner.done():
        return obj  # it was closed: Parsl would wait for ever
    call.need(obj._kept)
    return obj._inner


def _swapped(obj: Any, *, call: Call, packer: Packer | None) -> Any:
    """Return what is passed on for an object in a call's arguments.

    For our future: Parsl's. For a proxy of an object we count: as `by_reference`. The call
    then needs the object.
    """
    if issubclass(type(obj), Proxy):  # first: isinstance may resolve it
        return by_reference(obj, call)
    if not isinstance(obj, AppFuture):
        return obj
    inner = unwrapped_future(obj, call)
    if packer is None or (type(obj) is StoreAppFuture and obj._remote):
        return inner
    return relay(inner, packer, call)
