"""A stopwatch."""

from __future__ import annotations

import time
from types import TracebackType

from typing_extensions import Self

__all__ = ["Timer"]


class Timer:
    """Time between `start` and `stop`, or spent in a `with` block.

    May be started again, which forgets the earlier measurement. Not for use by several
    threads at once.

    >>> with Timer() as timer:
    ...     pass
    >>> timer.elapsed_ms < 1000
    True
    """

    __slots__ = ("_elapsed_ns", "_started_ns")

    def __init__(self) -> None:
        self._started_ns: int | None = None  # None: not running
        self._elapsed_ns = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def elapsed_ns(self) -> int:
        """Nanoseconds measured; 0 before the first start.

        Raises:
            RuntimeError: The timer is running; so for the other units.
        """
        if self._started_ns is not None:
            raise RuntimeError("Timer is still running! Call stop() before reading it")
        return self._elapsed_ns

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds measured."""
        return self.elapsed_ns / 1e6

    @property
    def elapsed_s(self) -> float:
        """Seconds measured."""
        return self.elapsed_ns / 1e9

    def start(self) -> Self:
        """Measure from now on."""
        self._started_ns = time.perf_counter_ns()
        return self

    def stop(self) -> Self:
        """Measure until now; keep the measurement when not running."""
        if self._started_ns is not None:
            self._elapsed_ns = time.perf_counter_ns() - self._started_ns
            self._started_ns = None
        return self
