"""One fetch of a key at a time in a process: the first caller fetches, the others wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from typing import Any


class Flight:
    """A fetch under way.

    Lighter than a `concurrent.futures.Future`: every read of a store makes one, and
    hardly ever does anybody wait for it.

    Attributes:
        key: What is fetched.
        variant: As for `Flights.join`.
        stale: The object was evicted or replaced meanwhile: do not cache it.
    """

    __slots__ = ("_error", "_landed", "_result", "_thread", "key", "stale", "variant")

    def __init__(self, key: Hashable, variant: int) -> None:
        self.key = key
        self.variant = variant
        self.stale = False
        self._thread = threading.get_ident()
        self._landed = threading.Lock()  # held until it has
        self._landed.acquire()
        self._result: Any = None
        self._error: BaseException | None = None

    def is_mine(self) -> bool:
        """Say whether this thread is the one that fetches."""
        return self._thread == threading.get_ident()

    def land(self, result: Any = None, error: BaseException | None = None) -> None:
        """Give whoever waits the result, or the error to raise."""
        self._result = result
        self._error = error
        self._landed.release()

    def wait(self) -> Any:
        """Return the result of the thread that fetches, or raise its error."""
        with self._landed:
            pass
        if self._error is not None:
            raise self._error
        return self._result


class Flights:
    """The fetches under way in one store.

    Attributes:
        lock: Protects the table, and a decision that must not fall between a fetch's
            end and an eviction: hold it to cache what a flight has brought. Nobody
            does I/O under it.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._flights: dict[tuple[Hashable, int], Flight] = {}
        self._pid = os.getpid()

    def join(self, key: Hashable, variant: int) -> tuple[Flight, bool]:
        """Return the fetch to wait for, and whether the caller has to do it.

        A thread that meets its own fetch (an object whose deserialization asks for
        itself) gets one of its own instead of waiting for ever.

        Args:
            key: What to fetch.
            variant: Tells apart fetches whose results differ, for instance by decoder.
        """
        with self.lock:
            if self._pid != os.getpid():  # forked: those who fetch are in the parent
                self._pid = os.getpid()
                self._flights.clear()
            flight = self._flights.get((key, variant))
            if flight is not None and not flight.is_mine():
                return flight, False
            flight = Flight(key, variant)
            self._flights[key, variant] = flight
            return flight, True

    def remove(self, flight: Flight) -> None:
        """Take a fetch that has ended off the table; call with `lock` held."""
        if self._flights.get((flight.key, flight.variant)) is flight:
            del self._flights[flight.key, flight.variant]

    def outdate(self, key: Hashable) -> None:
        """Mark the fetches of `key` as stale; call with `lock` held."""
        for place in [place for place in self._flights if place[0] == key]:
            self._flights.pop(place).stale = True
