"""What a store has done, how often and how long it took, by object.

Times are in milliseconds. Memory is bounded: only the objects used last have an entry of their
own; the times of the others are kept as totals, so that `aggregate_times` counts everything.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeAlias

from proxystore.proxy import Proxy
from proxystore.store.types import ConnectorKeyT
from proxystore.store.utils import get_key

__all__ = ["Metrics", "StoreMetrics", "TimeStats"]

KeyOrProxy: TypeAlias = ConnectorKeyT | Proxy[Any] | Sequence[ConnectorKeyT] | Sequence[Proxy[Any]]
"""What an entry is filed under: a key or a batch of keys, each also as a proxy."""

# An object that was put and got takes 1.5 kB: 15 MB.
_MAX_ENTRIES = 10_000


@dataclasses.dataclass(slots=True)
class TimeStats:
    """Statistics of the durations of one operation.

    Attributes:
        count: Number of durations.
        avg_time_ms: Their mean.
        min_time_ms: The shortest; infinity if there are none.
        max_time_ms: The longest.
        last_time_ms: The one added last.
        last_timestamp: When that was, in seconds since the epoch.
    """

    count: int = 0
    avg_time_ms: float = 0
    min_time_ms: float = math.inf
    max_time_ms: float = 0
    last_time_ms: float = 0
    last_timestamp: float = 0

    def __add__(self, other: TimeStats) -> TimeStats:
        """Return the statistics of the durations of both."""
        # Apart from sparing a division by zero, this returns the mean itself, not mean * n / n.
        if not other.count:
            return dataclasses.replace(self)
        if not self.count:
            return dataclasses.replace(other)
        count = self.count + other.count
        last = self if self.last_timestamp > other.last_timestamp else other
        return TimeStats(
            count=count,
            avg_time_ms=(self.avg_time_ms * self.count + other.avg_time_ms * other.count) / count,
            min_time_ms=min(self.min_time_ms, other.min_time_ms),
            max_time_ms=max(self.max_time_ms, other.max_time_ms),
            last_time_ms=last.last_time_ms,
            last_timestamp=last.last_timestamp,
        )

    def add_time(self, time_ms: float) -> None:
        """Count a duration that ends now."""
        self.count += 1
        self.avg_time_ms += (time_ms - self.avg_time_ms) / self.count
        self.min_time_ms = min(self.min_time_ms, time_ms)
        self.max_time_ms = max(self.max_time_ms, time_ms)
        self.last_time_ms = time_ms
        self.last_timestamp = time.time()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name; `TimeStats(**fields)` is the way back."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(slots=True)
class Metrics:
    """What was recorded of one object, or of one batch of objects.

    Attributes:
        attributes: Facts by name, such as "store.put.object_size" in bytes.
        counters: Counts by name, such as "store.get.cache_hits".
        times: Durations by operation, such as "store.put".
    """

    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    times: dict[str, TimeStats] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, down to plain dictionaries."""
        return dataclasses.asdict(self)


class StoreMetrics:
    """The metrics of one store, by object.

    Wherever a `key` is asked for, it may be a key, a proxy made by a store, or a sequence of
    either, which is one entry of its own. Proxies are not resolved: theirs are the entries of
    their keys. Lists and tuples of the same keys are the same entry.

    Threads may share it: each method is one step under the lock.

    Args:
        max_entries: Most entries kept, at least 1. Beyond, the entry that was recorded to
            longest ago is dropped; its times still count in `aggregate_times`.

    Raises:
        ValueError: `max_entries` is less than 1.
    """

    def __init__(self, *, max_entries: int = _MAX_ENTRIES) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, got {max_entries}")
        self._max_entries = max_entries
        # Protects everything below. Re-entrant: the garbage collector may run a finalizer that
        # evicts an object, and records that, in a thread that is inside a method.
        self._lock = threading.RLock()
        self._metrics: OrderedDict[ConnectorKeyT, Metrics] = OrderedDict()  # oldest first
        self._dropped_times: dict[str, TimeStats] = {}

    def add_attribute(self, name: str, key: KeyOrProxy, value: Any) -> None:
        """Set an attribute of `key`, whatever it was before."""
        with self._lock:
            self._entry(key).attributes[name] = value

    def add_counter(self, name: str, key: KeyOrProxy, value: int) -> None:
        """Add `value` to a counter of `key`; counters start at 0."""
        with self._lock:
            counters = self._entry(key).counters
            counters[name] = counters.get(name, 0) + value

    def add_time(self, name: str, key: KeyOrProxy, time_ms: float) -> None:
        """Add a duration in milliseconds to the times of `key`."""
        with self._lock:
            times = self._entry(key).times
            stats = times.get(name)
            if stats is None:
                stats = times.setdefault(name, TimeStats())
            stats.add_time(time_ms)

    def aggregate_times(self) -> dict[str, TimeStats]:
        """Return the times of each operation over all objects, those of dropped entries too."""
        with self._lock:
            times: dict[str, TimeStats] = {}
            _merge(times, self._dropped_times)
            for metrics in list(self._metrics.values()):
                _merge(times, metrics.times)
            return times

    def get_metrics(self, key_or_proxy: KeyOrProxy) -> Metrics | None:
        """Return a copy of what was recorded under a key; None if nothing (or no longer kept).

        Raises:
            ProxyStoreFactoryError: A proxy was not made by a store.
        """
        with self._lock:
            # None is copied to None.
            return copy.deepcopy(self._metrics.get(_entry_key(key_or_proxy)))

    def after_fork(self) -> None:
        """Make this usable in a forked child; no other thread may use it yet."""
        self._lock = threading.RLock()  # a thread of the parent may hold the other one

    def _entry(self, key: KeyOrProxy) -> Metrics:
        """Return the entry of `key`, as the newest. The caller holds the lock."""
        entry_key = _entry_key(key)
        metrics = self._metrics.get(entry_key)
        if metrics is not None:
            self._metrics.move_to_end(entry_key)
            return metrics
        if len(self._metrics) >= self._max_entries:
            _, oldest = self._metrics.popitem(last=False)
            _merge(self._dropped_times, oldest.times)
        return self._metrics.setdefault(entry_key, Metrics())


def _merge(times: dict[str, TimeStats], more: dict[str, TimeStats]) -> None:
    """Add `more` to `times`."""
    for name in list(more):  # a finalizer may add a name meanwhile, see StoreMetrics._lock
        times[name] = times.get(name, TimeStats()) + more[name]


def _entry_key(key: KeyOrProxy) -> ConnectorKeyT:
    # Asked first: isinstance() with any other class may resolve a proxy.
    if isinstance(key, Proxy):
        return get_key(key)
    # Connectors name the fields of their keys, so this is one and not a batch.
    if isinstance(key, tuple) and type(key) is not tuple:
        return key
    # A plain tuple that holds no proxies maps to itself, be it a key or a batch.
    return tuple(get_key(x) if isinstance(x, Proxy) else x for x in key)
