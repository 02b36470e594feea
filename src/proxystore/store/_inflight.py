"""One fetch of a key at a time in a process: the first caller fetches, the others wait.

What keeps them from waiting for each other for ever: only a thread that is in the middle
of no fetch waits for another one's. One that is (its deserializer uses the store) fetches
itself what it needs, and one that fetches several keys waits for those of others only when
its own have landed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Final


class Flight:
    """A fetch under way.

    Lighter than a `concurrent.futures.Future`: every read of a store makes one, and
    hardly ever does anybody wait for it.

    Attributes:
        key: What is fetched.
        variant: As for `Flights.join`.
        thread: Who fetches.
        stale: The object was evicted or replaced meanwhile: do not cache it.
    """

    __slots__ = ("_error", "_landed", "_result", "key", "stale", "thread", "variant")

    def __init__(self, key: Any, variant: int, thread: int) -> None:
        self.key = key
        self.variant = variant
        self.thread = thread
        self.stale = False
        self._landed = threading.Lock()  # held until it has
        self._landed.acquire()
        self._result: Any = None
        self._error: BaseException | None = None

    def land(self, result: Any = None, error: BaseException | None = None) -> None:
        """Give whoever waits the result, or the error to raise."""
        self._result = result
        self._error = error
        self._landed.release()

    def wait(self) -> Any:
        """Return the result of the thread that fetches, or raise its error.

        Returns:
            `INTERRUPTED` if there is neither: KeyboardInterrupt and its like are meant
            for that thread and no other.
        """
        with self._landed:
            pass
        if self._error is None:
            return self._result
        if isinstance(self._error, Exception):
            raise self._error
        return INTERRUPTED


INTERRUPTED: Final[Any] = object()


class Flights:
    """The fetches under way in one store.

    Attributes:
        lock: Protects the table, and a decision that must not fall between a fetch's
            end and an eviction: hold it to cache what a flight has brought. Nobody
            does I/O under it.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        # Several of one key: of other variants, or by threads that must not wait.
        self._flights: dict[Any, list[Flight]] = {}
        # How many of them, and of those that `outdate` has taken off, each thread has.
        self._counts: dict[int, int] = {}

    def join(self, key: Any, variant: int) -> tuple[Flight, bool]:
        """Return the fetch to wait for, and whether the caller has to do it.

        Args:
            key: What to fetch.
            variant: Tells apart fetches whose results differ, for instance by decoder.
        """
        thread = threading.get_ident()
        with self.lock:
            return self._join(key, variant, thread, thread not in self._counts)

    def join_batch(self, keys: Iterable[Any], variant: int) -> tuple[list[Flight], list[Flight]]:
        """Return the fetches that the caller has to do, and those to wait for afterwards.

        Args:
            keys: What to fetch, each once.
            variant: As for `join`.
        """
        thread = threading.get_ident()
        mine: list[Flight] = []
        others: list[Flight] = []
        with self.lock:
            may_wait = thread not in self._counts
            for key in keys:
                flight, fetch_here = self._join(key, variant, thread, may_wait)
                (mine if fetch_here else others).append(flight)
        return mine, others

    def _join(self, key: Any, variant: int, thread: int, may_wait: bool) -> tuple[Flight, bool]:
        if may_wait:
            for flight in self._flights.get(key, ()):
                if flight.variant == variant:
                    return flight, False
        flight = Flight(key, variant, thread)
        self._flights.setdefault(key, []).append(flight)
        self._counts[thread] = self._counts.get(thread, 0) + 1
        return flight, True

    def remove(self, flight: Flight) -> None:
        """Take a fetch that has ended off the table; call with `lock` held."""
        left = self._counts.get(flight.thread, 0) - 1
        if left > 0:
            self._counts[flight.thread] = left
        else:
            self._counts.pop(flight.thread, None)
        flights = self._flights.get(flight.key)
        if flights is not None and flight in flights:
            flights.remove(flight)
            if not flights:
                del self._flights[flight.key]

    def is_under_way(self, key: Any) -> bool:
        """Say whether anybody fetches `key`; needs no lock."""
        return key in self._flights

    def outdate(self, key: Any) -> None:
        """Mark the fetches of `key` as stale; call with `lock` held."""
        for flight in self._flights.pop(key, ()):
            flight.stale = True
