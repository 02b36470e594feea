"""The scheduler's figures beside Dask's own on ``/metrics``, if prometheus_client is installed.

Dask serves prometheus_client's registry of the process, and of several schedulers in it (in tests)
the one that started last. So there is one collector at a time here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import dask

if TYPE_CHECKING:
    from proxystore_dask.scheduler_plugin import StoreLifetimes

# Prometheus's name (counters get "_total"), ours in `StoreLifetimes.totals`, and the help.
_GAUGES = (
    ("objects", "objects", "Objects in stores"),
    ("bytes", "nbytes", "Size of the objects in stores"),
    ("leases", "leased", "Objects that a client keeps alive"),
    ("tasks", "tasks", "Tasks that mention an object"),
)
_COUNTERS = (
    ("puts", "puts", "Objects put into stores"),
    ("put_bytes", "put_bytes", "Size of the objects put into stores"),
    ("evictions", "evicted", "Objects evicted"),
    ("evicted_bytes", "evicted_bytes", "Size of the objects evicted"),
    ("eviction_failures", "failed", "Objects that could not be evicted"),
    ("load_misses", "misses", "Objects that workers got from stores"),
    ("load_bytes", "load_bytes", "Size of the objects that workers got from stores"),
    ("load_seconds", "load_seconds", "Time that it took workers to get objects from stores"),
    ("load_hits", "hits", "Objects that a task had already when it needed them"),
    ("load_failures", "load_failures", "Objects that workers could not get from stores"),
)


class Collector:
    """Collects the figures of one scheduler's plugin."""

    def __init__(self, plugin: StoreLifetimes) -> None:
        self._plugin = plugin
        namespace = dask.config.get("distributed.dashboard.prometheus.namespace", "dask")
        self._prefix = "_".join([*filter(None, [namespace]), "scheduler", "proxystore"])

    def collect(self) -> Iterator[Any]:
        """What Prometheus shall have."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        totals = self._plugin.totals()
        for name, ours, text in _GAUGES:
            yield GaugeMetricFamily(f"{self._prefix}_{name}", text, value=totals[ours])
        for name, ours, text in _COUNTERS:
            yield CounterMetricFamily(f"{self._prefix}_{name}", text, value=totals[ours])


_registered: Collector | None = None


def register(plugin: StoreLifetimes) -> Callable[[], None]:
    """Have Dask's ``/metrics`` show a plugin's figures, in place of an earlier one's.

    Returns:
        Undoes it.
    """
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return _nothing
    global _registered
    if _registered is not None:
        REGISTRY.unregister(_registered)
    collector = _registered = Collector(plugin)
    REGISTRY.register(collector)

    def unregister() -> None:
        global _registered
        if _registered is collector:
            REGISTRY.unregister(collector)
            _registered = None

    return unregister


def _nothing() -> None:
    pass
