"""What is in the stores, and what has happened there: the scheduler's figures.

Kept by `StoreLifetimes` as it goes, in the scheduler's event loop, so that looking at them costs
next to nothing however many tasks there are. What workers do is not counted here: they add it to
the metrics of Dask's heartbeats (`proxystore_dask.measures`), where `loads` finds it.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxystore.workflow import Ref, RefId
from proxystore_dask.measures import FAILURE, HIT, LOAD

# A point for each second in which something has changed: a quarter of an hour at the least.
_HISTORY = 900


@dataclass
class Prefix:
    """What the tasks of one graph key prefix need.

    Attributes:
        tasks: Tasks that mention a stored object.
        nbytes: Size of these objects, each counted once.
        uses: How many of the tasks mention an object, and its size, by the object.
    """

    tasks: int = 0
    nbytes: int = 0
    uses: dict[RefId, tuple[int, int]] = field(default_factory=dict)


@dataclass
class Loads:
    """What workers have got from stores, as far as they have reported it (about once a second).

    Attributes:
        misses: Objects got.
        load_bytes: Their size.
        load_seconds: The time it took, in all threads together.
        hits: How often a task had the object already.
        load_failures: Objects that could not be got.
    """

    misses: int = 0
    load_bytes: int = 0
    load_seconds: float = 0.0
    hits: int = 0
    load_failures: int = 0


class Figures:
    """Counts of one scheduler.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.objects = 0
        self.nbytes = 0
        self.peak_nbytes = 0
        self.puts = 0
        self.put_bytes = 0
        self.evicted = 0
        self.evicted_bytes = 0
        self.failed = 0
        self.prefixes: dict[str, Prefix] = {}
        # (seconds since the epoch, most bytes in that second, bytes at its end)
        self.history: deque[tuple[int, int, int]] = deque(maxlen=_HISTORY)

    def put(self, ref: Ref) -> None:
        """A new object is in its store."""
        self.puts += 1
        self.put_bytes += ref.nbytes
        self._changed(1, ref.nbytes)

    def unneeded(self, ref: Ref) -> None:
        """An object is to be evicted."""
        self._changed(-1, -ref.nbytes)

    def evict(self, refs: Collection[Ref], failed: Collection[Ref]) -> None:
        """Objects have been evicted, but for those that could not be."""
        self.failed += len(failed)
        self.evicted += len(refs) - len(failed)
        self.evicted_bytes += sum(ref.nbytes for ref in refs) - sum(ref.nbytes for ref in failed)

    def mention(self, name: str, refs: Mapping[RefId, Ref]) -> None:
        """A task of this prefix needs objects."""
        prefix = self.prefixes.setdefault(name, Prefix())
        prefix.tasks += 1
        for ident, ref in refs.items():
            count, nbytes = prefix.uses.get(ident, (0, ref.nbytes))
            prefix.uses[ident] = (count + 1, nbytes)
            if not count:
                prefix.nbytes += nbytes

    def forget(self, name: str, idents: tuple[RefId, ...]) -> None:
        """A task of this prefix, that needed these objects, is forgotten."""
        prefix = self.prefixes[name]
        prefix.tasks -= 1
        for ident in idents:
            count, nbytes = prefix.uses.pop(ident)
            if count > 1:
                prefix.uses[ident] = (count - 1, nbytes)
            else:
                prefix.nbytes -= nbytes
        if not prefix.tasks:
            del self.prefixes[name]

    def _changed(self, objects: int, nbytes: int) -> None:
        before = self.nbytes
        self.objects += objects
        self.nbytes += nbytes
        self.peak_nbytes = max(self.peak_nbytes, self.nbytes)
        second = int(self._clock())
        if self.history and self.history[-1][0] == second:
            most = max(self.history[-1][1], self.nbytes)
            self.history[-1] = (second, most, self.nbytes)
        else:
            self.history.append((second, max(before, self.nbytes), self.nbytes))


# Where it goes in `Loads`, by the label and the unit under which workers report it.
_REPORTED = {
    (LOAD, "count"): "misses",
    (LOAD, "bytes"): "load_bytes",
    (LOAD, "seconds"): "load_seconds",
    (HIT, "count"): "hits",
    (FAILURE, "count"): "load_failures",
}


def loads(metrics: Mapping[Any, float]) -> dict[str, Loads]:
    """What workers have got from stores, by graph key prefix.

    Args:
        metrics: ``scheduler.cumulative_worker_metrics``.
    """
    found: defaultdict[str, Loads] = defaultdict(Loads)
    for name, value in metrics.items():
        if isinstance(name, tuple) and len(name) == 4:
            _, prefix, label, unit = name
            what = _REPORTED.get((label, unit))
            if what is not None:
                of = found[str(prefix)]
                setattr(of, what, getattr(of, what) + value)
    return found
