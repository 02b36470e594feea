"""How tests wait: for what has to become true, and never without an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object],
    timeout: float = 20,
    pause: float = 0.01,
    what: str | Callable[[], str] = "this",
) -> None:
    """Return once `condition` is true.

    Args:
        condition: Is asked again and again.
        timeout: Seconds after which to fail.
        pause: Seconds between two times.
        what: It waits for, for the message.
    """
    deadline = time.monotonic() + timeout
    between = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            what = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {timeout} s for {what}")
        between.wait(pause)
