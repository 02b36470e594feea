"""A counter that threads may share."""

from __future__ import annotations

import threading

__all__ = ["AtomicCounter"]


class AtomicCounter:
    """Count 0, 1, 2, …; no two calls get the same number, in whichever thread.

    Args:
        size: How many numbers there are. None: no end.
    """

    def __init__(self, size: int | None = None) -> None:
        self._size = size
        self._next = 0
        self._lock = threading.Lock()  # makes read-and-add one step

    def increment(self) -> int:
        """Return the count before this call.

        Raises:
            ValueError: All `size` numbers have been given out.
        """
        with self._lock:
            if self._size is not None and self._next >= self._size:
                raise ValueError(f"the counter has given out all of its {self._size} numbers")
            value = self._next
            self._next += 1
            return value
