"""How long to wait before looking again for what is not there yet."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from time import monotonic

# The longest wait that the operating system takes; about 292 years.
_LONGEST = threading.TIMEOUT_MAX


def backoff(
    interval: float,
    *,
    factor: float = 1.0,
    limit: float | None = None,
    timeout: float | None = None,
    clock: Callable[[], float] = monotonic,
) -> Iterator[float]:
    """Yield the wait before each further look at a key not yet set.

    Waits grow geometrically up to `limit`; the iterator ends once the waits handed out,
    or the time since this call if that is more, have used up `timeout`. The last wait is
    cut to fit.

    Args:
        interval: First wait, in seconds; greater than 0.
        factor: Growth from one wait to the next; at least 1.
        limit: Longest single wait, in seconds; greater than 0. None: no cap.
        timeout: Sum of all waits, in seconds; 0: none. None: for ever.
        clock: What tells the time, in seconds; never goes back.

    Raises:
        ValueError: An argument is out of range.

    >>> list(backoff(1, factor=2, limit=3, timeout=8))
    [1, 2, 3, 2]
    """
    check(interval, factor, limit, timeout)
    return _waits(interval, factor, limit, timeout, clock, clock())


def check(
    interval: float,
    factor: float = 1.0,
    limit: float | None = None,
    timeout: float | None = None,
    *,
    names: tuple[str, str, str, str] = ("interval", "factor", "limit", "timeout"),
) -> None:
    """Raise `ValueError` if `backoff` would not take these arguments.

    Args:
        interval: As for `backoff`.
        factor: As for `backoff`.
        limit: As for `backoff`.
        timeout: As for `backoff`.
        names: What the caller calls these four.
    """
    # Written so that NaN, which compares with nothing, is refused.
    if not 0 < interval < math.inf:
        raise ValueError(f"{names[0]} must be greater than 0 seconds, got {interval}")
    if not 1 <= factor < math.inf:
        raise ValueError(f"{names[1]} must be at least 1 (1: waits do not grow), got {factor}")
    if limit is not None and not limit > 0:
        raise ValueError(
            f"{names[2]} must be greater than 0 seconds, or None for no limit, got {limit}"
        )
    if timeout is not None and not timeout >= 0:
        raise ValueError(
            f"{names[3]} must be 0 seconds or more, or None to wait for ever, got {timeout}"
        )


def _waits(
    interval: float,
    factor: float,
    limit: float | None,
    timeout: float | None,
    clock: Callable[[], float],
    start: float,
) -> Iterator[float]:
    longest = _LONGEST if limit is None else min(limit, _LONGEST)
    wait = interval
    used: float = 0
    while True:
        wait = min(wait, longest)
        if timeout is not None:
            left = timeout - max(used, clock() - start)
            if left <= wait:
                if left > 0:
                    yield left
                return
        yield wait
        used += wait
        wait *= factor
