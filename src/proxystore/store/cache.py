"""Objects a store fetched lately."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Generic, TypeVar, cast

__all__ = ["LRUCache"]

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class LRUCache(Generic[KeyT, ValueT]):
    """The `maxsize` values used last, each found in constant time.

    Threads may share it: each method is one step under the lock. Values are dropped after the
    lock is released, because their finalizers may run any code.

    Attributes:
        maxsize: Most values held; 0: none ever.
        maxbytes: Most bytes that the values held may have together. None: no such limit.
        nbytes: How many bytes they have: the sum of what `set` was told.
        hits: Number of `get` calls that found a value.
        misses: Number of `get` calls that did not.

    Args:
        maxsize: As the attribute.
        maxbytes: As the attribute; 0 or more.

    Raises:
        ValueError: `maxsize` or `maxbytes` is negative.
    """

    def __init__(self, maxsize: int = 16, *, maxbytes: int | None = None) -> None:
        if maxsize < 0:
            raise ValueError(f"maxsize must be 0 (no caching) or more, got {maxsize}")
        if maxbytes is not None and maxbytes < 0:
            raise ValueError(f"maxbytes must be a number of bytes of 0 or more, got {maxbytes}")
        self.maxsize = maxsize
        self.maxbytes = maxbytes
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        # Protects the order and the counts. Re-entrant: the garbage collector may run a
        # finalizer that evicts from this cache in a thread that is inside a method.
        self._lock = threading.RLock()
        # With the bytes of each; least recently used first.
        self._values: OrderedDict[KeyT, tuple[ValueT, int]] = OrderedDict()

    def evict(self, key: KeyT) -> None:
        """Drop the value of `key`, if there is one."""
        with self._lock:
            dropped = self._pop(key)
        del dropped

    def exists(self, key: KeyT) -> bool:
        """Return whether there is a value for `key`, without counting as a use of it."""
        with self._lock:
            return key in self._values

    def get(self, key: KeyT, default: Any = None) -> Any:
        """Return the value of `key` and mark it as used last, or return `default`."""
        with self._lock:
            held = self._values.get(key)
            if held is None:
                self.misses += 1
                return default
            self._values.move_to_end(key)
            self.hits += 1
            return held[0]

    def peek(self, key: KeyT) -> ValueT | None:
        """Return the value of `key`, without counting as a use of it, or None."""
        with self._lock:
            held = self._values.get(key)
            return None if held is None else held[0]

    def set(self, key: KeyT, value: ValueT, nbytes: int = 0) -> None:
        """Hold `value` as the one used last, dropping those used longest ago to make room.

        A value larger than `maxbytes` is not held, and no other dropped for it; what `key` had
        before is.

        Args:
            key: Under which to find it.
            value: Anything.
            nbytes: How much of `maxbytes` it takes, 0 or more.
        """
        if self.maxsize == 0:
            return
        limit = self.maxbytes
        with self._lock:
            dropped = [self._pop(key)]
            if limit is None or nbytes <= limit:
                while self._values and (
                    len(self._values) >= self.maxsize
                    or (limit is not None and self.nbytes + nbytes > limit)
                ):
                    dropped.append(self._pop_oldest())
                self._values[key] = value, nbytes
                self.nbytes += nbytes
        del dropped

    def _pop(self, key: KeyT) -> Any:
        held = self._values.pop(key, None)
        if held is not None:
            self.nbytes -= held[1]
        return held

    def _pop_oldest(self) -> Any:
        # With a default: a finalizer may have evicted it a moment ago, see _lock.
        return self._pop(next(iter(self._values), cast(KeyT, None)))

    def after_fork(self) -> None:
        """Make this usable in a forked child; no other thread may use it yet.

        A thread of the parent that was inside a method has left its lock and its sum behind.
        """
        self._lock = threading.RLock()
        self.nbytes = sum(nbytes for _, nbytes in self._values.values())
