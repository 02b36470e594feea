"""What a worker's tasks get from stores, measured.

Dask attributes what is measured while a task runs to the task's prefix, and sends the sums with
the worker's heartbeats; they also appear among the "Fine Performance Metrics" of its dashboard.
No message is sent for it, and outside of tasks nothing is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed import get_worker
from distributed.metrics import context_meter

from proxystore.store import StoreConfig, StoreFactory
from proxystore.workflow import Ref

if TYPE_CHECKING:
    from dask.typing import Key

LOAD = "proxystore-load"
HIT = "proxystore-hit"
FAILURE = "proxystore-failure"

PREFETCH = "proxystore-prefetch"  # the plugin that may have it already

_MISSING = object()


def resolve(ref: Ref, task: Key | None = None) -> Any:
    """`Ref.resolve`, measured; or what has been got ahead for this task."""
    try:
        with context_meter.meter(LOAD):
            obj = _MISSING if task is None else _got_ahead(task, ref)
            if obj is _MISSING:
                obj = ref.resolve()
    except BaseException:
        context_meter.digest_metric(FAILURE, 1, "count")
        raise
    context_meter.digest_metric(LOAD, 1, "count")
    context_meter.digest_metric(LOAD, ref.nbytes, "bytes")
    return obj


def _got_ahead(task: Key, ref: Ref) -> Any:
    try:
        plugin: Any = get_worker().plugins.get(PREFETCH)
    except ValueError:  # a task of another scheduler than distributed's
        return _MISSING
    return _MISSING if plugin is None else plugin.ahead.take(task, ref.id, _MISSING)


class MeasuredFactory(StoreFactory[Any]):
    """Gets a copy of its own of an object: the store's cache would give one to several tasks.

    Args:
        key: As for `StoreFactory`.
        store_config: As for `StoreFactory`.
        nbytes: The size of the object, in bytes; 0: not known.
    """

    def __init__(self, key: Any, store_config: StoreConfig, nbytes: int = 0) -> None:
        super().__init__(key, store_config)
        self.nbytes = nbytes

    def resolve(self) -> Any:
        """As `Ref.resolve`, measured."""
        return resolve(Ref(self, "", self.nbytes, ""))


def hit() -> None:
    """A task has asked for an object that it has got already."""
    context_meter.digest_metric(HIT, 1, "count")
