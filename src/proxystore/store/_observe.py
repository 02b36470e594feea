"""Timing, counting and logging of a store's operations, in one place.

    with self._observe("store.put") as op:
        with op.step("serialize"):
            ...
        op.on(key, object_size=n)

Nobody pays for what nobody listens to: without metrics and with the log level above
DEBUG, `Observer` hands out one shared object that does nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from proxystore.store.metrics import StoreMetrics


# Keys of a batch: more would make a line that nobody reads.
_MOST_NAMED = 20


class Silent:
    """An operation that nobody observes."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, exc_type: type[BaseException] | None = None, *_: object) -> None:
        return None

    def step(self, name: str) -> AbstractContextManager[None]:
        return self._nothing

    def on(self, key: Any, **attributes: Any) -> None:
        return None

    def count(self, name: str, times: int = 1) -> None:
        return None

    def detail(self, text: str) -> None:
        return None


class Operation(Silent):
    """One call of a store's method, timed from enter to exit."""

    def __init__(self, name: str, store: str, log: logging.Logger, metrics: StoreMetrics | None):
        self._name = name
        self._store = store
        self._log = log
        self._metrics = metrics
        self._key: Any = None
        self._detail = ""
        self._attributes: dict[str, Any] = {}
        self._counts: list[tuple[str, int]] = []
        self._steps: list[tuple[str, float]] = []

    def __enter__(self) -> Operation:
        self._start = perf_counter_ns()
        return self

    def __exit__(self, exc_type: type[BaseException] | None = None, *_: object) -> None:
        elapsed_ms = (perf_counter_ns() - self._start) / 1e6
        verb = self._name.rpartition(".")[2].upper()
        if exc_type is not None:
            self._log.debug(
                "Store(name=%r): %s of %s failed after %.3f ms: %s",
                *(self._store, verb, self._shown(), elapsed_ms, exc_type.__name__),
            )
            return
        if self._metrics is not None and self._key is not None:
            for name, value in self._attributes.items():
                self._metrics.add_attribute(f"{self._name}.{name}", self._key, value)
            for name, times in self._counts:
                self._metrics.add_counter(f"{self._name}.{name}", self._key, times)
            for name, step_ms in self._steps:
                self._metrics.add_time(f"{self._name}.{name}", self._key, step_ms)
            self._metrics.add_time(self._name, self._key, elapsed_ms)
        if self._log.isEnabledFor(logging.DEBUG):
            self._log.debug(
                "Store(name=%r): %s %s%s in %.3f ms",
                *(self._store, verb, self._shown(), self._detail, elapsed_ms),
            )

    def _shown(self) -> str:
        if not isinstance(self._key, list):
            return repr(self._key)
        named = f" {self._key!r}" if len(self._key) <= _MOST_NAMED else ""
        return f"{len(self._key)} items{named}"

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = perf_counter_ns()
        yield
        self._steps.append((name, (perf_counter_ns() - start) / 1e6))

    def step(self, name: str) -> AbstractContextManager[None]:
        """Time a part of the operation."""
        return self._timed(name)

    def on(self, key: Any, **attributes: Any) -> None:
        """Say which key (or list of keys) this is about; without one nothing is filed."""
        self._key = key
        self._attributes.update(attributes)

    def count(self, name: str, times: int = 1) -> None:
        """Count an event of the operation; 0 times is not counted."""
        if times:
            self._counts.append((name, times))

    def detail(self, text: str) -> None:
        """Add to the line in the log."""
        self._detail = f" {text}"


_SILENT = Silent()


class Observer:
    """What a store calls at the beginning of each operation.

    Args:
        store: Its name.
        metrics: Where to file samples; None: nowhere.
        log: Where to write a line at DEBUG.
    """

    def __init__(self, store: str, metrics: StoreMetrics | None, log: logging.Logger) -> None:
        self.store = store
        self.metrics = metrics
        self.log = log

    def listens(self) -> bool:
        """Say whether anybody would learn of an operation."""
        return self.metrics is not None or self.log.isEnabledFor(logging.DEBUG)

    def __call__(self, name: str) -> Silent:
        """Return a context manager for one operation."""
        if not self.listens():
            return _SILENT
        return Operation(name, self.store, self.log, self.metrics)
