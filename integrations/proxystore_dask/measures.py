"""What a worker's tasks get from stores, measured.

Dask attributes what is measured while a task runs to the task's prefix, and sends the sums with
the worker's heartbeats; they also appear among the "Fine Performance Metrics" of its dashboard.
No message is sent for it, and outside of tasks nothing is measured.
"""

from __future__ import annotations

from typing import Any

from distributed.metrics import context_meter

from proxystore.workflow import Ref

LOAD = "proxystore-load"
HIT = "proxystore-hit"
FAILURE = "proxystore-failure"


def resolve(ref: Ref) -> Any:
    """`Ref.resolve`, measured."""
    try:
        with context_meter.meter(LOAD):
            obj = ref.resolve()
    except BaseException:
        context_meter.digest_metric(FAILURE, 1, "count")
        raise
    context_meter.digest_metric(LOAD, 1, "count")
    context_meter.digest_metric(LOAD, ref.nbytes, "bytes")
    return obj


def hit() -> None:
    """A task has asked for an object that it has got already."""
    context_meter.digest_metric(HIT, 1, "count")
