"""Lending a stored object to a task: the borrow ends when the task is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from proxystore.store.ref import RefMutProxy, RefProxy, end_borrow

__all__ = ["FutureWithCallback", "mark_refs_out_of_scope", "submit"]

FutureT = TypeVar("FutureT", bound="FutureWithCallback")


@runtime_checkable
class FutureWithCallback(Protocol):
    """A future that tells when it is done."""

    def add_done_callback(self, callback: Callable[[Any], Any], /) -> Any:
        """Call `callback` with the future once that is done."""
        ...


def mark_refs_out_of_scope(*refs: RefProxy[Any] | RefMutProxy[Any]) -> None:
    """End borrows: their owners no longer count them, and they cannot be used any more.

    Args:
        refs: Those that have ended already do no harm. One that was pickled is counted by its
            owner until then.

    Raises:
        RuntimeError: A reference has no reference to its owner, which is in another process.
    """
    for ref in refs:
        end_borrow(ref)


def submit(
    submit_func: Callable[..., FutureT],
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    register_custom_refs: Iterable[Any] = (),
) -> FutureT:
    """Submit a task, and end the borrows it was given when it is done.

    No proxy is resolved. If submitting fails, no borrow has ended.

    Args:
        submit_func: An executor's `submit`, or the like: what returns a future.
        args: Its positional arguments. Each that is itself a `RefProxy` or `RefMutProxy` ends
            with the task; those in containers do not, nor do other proxies.
        kwargs: Its keyword arguments, likewise.
        register_custom_refs: More references to end with the task; what is none is ignored.

    Returns:
        What `submit_func` has returned.

    Raises:
        TypeError: That has no `add_done_callback`. The task was submitted, and the borrows go
            on until they are deleted.
    """
    kwargs = {} if kwargs is None else kwargs
    candidates = (*register_custom_refs, *args, *kwargs.values())
    # type() and not isinstance(), which would resolve proxies.
    refs = [ref for ref in candidates if type(ref) is RefProxy or type(ref) is RefMutProxy]
    future = submit_func(*args, **kwargs)
    if not isinstance(future, FutureWithCallback):
        raise TypeError(
            f"submit_func must return a future with add_done_callback(), "
            f"it returned a {type(future).__name__}"
        )
    if refs:
        future.add_done_callback(lambda _: _end_all(refs))
    return future


def _end_all(refs: list[Any]) -> None:
    while refs:  # the future keeps this list alive, but need not keep them
        ref = refs.pop()
        end_borrow(ref, must_have_owner=False)
