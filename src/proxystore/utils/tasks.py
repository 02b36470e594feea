"""Asyncio tasks in the background that do not fail unseen."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

__all__ = ["SafeTaskExitError", "exit_on_error", "spawn_guarded_background_task"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

# The event loop itself only holds tasks weakly.
_running: set[asyncio.Task[Any]] = set()


class SafeTaskExitError(Exception):
    """Raised by a task that ends early on purpose: `exit_on_error` lets it."""


def exit_on_error(task: asyncio.Task[Any]) -> None:
    """End the process when a task has failed; to be used as a done-callback.

    Tasks that were cancelled or raised `SafeTaskExitError` have not failed.

    Raises:
        SystemExit: The task failed. Raised in a done-callback it also ends `asyncio.run`.
    """
    if task.cancelled():
        return
    error = task.exception()
    if error is None or isinstance(error, SafeTaskExitError):
        return
    logger.error("Exiting because background task %s failed: %r", task.get_name(), error)
    raise SystemExit(1)


def spawn_guarded_background_task(
    coro_function: Callable[P, Coroutine[Any, Any, T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> asyncio.Task[T]:
    """Return a new task running `coro_function(*args, **kwargs)`; its failure ends the process.

    The traceback is logged at once, not when somebody awaits the task. The task is kept alive
    until it is done. Must be called with an event loop running.
    """
    task = asyncio.create_task(_log_failure(coro_function, *args, **kwargs))
    _running.add(task)
    task.add_done_callback(_running.discard)
    task.add_done_callback(exit_on_error)
    return task


async def _log_failure(
    coro_function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    try:
        return await coro_function(*args, **kwargs)
    except SafeTaskExitError:
        raise
    except Exception:
        logger.error("Background task %r failed\n%s", coro_function, traceback.format_exc())
        raise
