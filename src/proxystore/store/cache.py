"""Objects a store fetched lately."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Final, Generic, TypeVar

__all__ = ["LRUCache"]

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

_MISSING: Final[Any] = object()  # None is a value like any other


class LRUCache(Generic[KeyT, ValueT]):
    """The `maxsize` values used last, each found in constant time.

    Threads may share it: each method is one step under the lock. Values are dropped after the
    lock is released, because their finalizers may run any code.

    Attributes:
        maxsize: Most values held; 0: none ever.
        hits: Number of `get` calls that found a value.
        misses: Number of `get` calls that did not.

    Args:
        maxsize: As the attribute.

    Raises:
        ValueError: `maxsize` is negative.
    """

    def __init__(self, maxsize: int = 16) -> None:
        if maxsize < 0:
            raise ValueError(f"maxsize must be 0 (no caching) or more, got {maxsize}")
        self.maxsize = maxsize
        self.hits = 0
        self.misses = 0
        # Protects the order and the counts. Re-entrant: the garbage collector may run a
        # finalizer that evicts from this cache in a thread that is inside a method.
        self._lock = threading.RLock()
        self._values: OrderedDict[KeyT, ValueT] = OrderedDict()  # least recently used first

    def evict(self, key: KeyT) -> None:
        """Drop the value of `key`, if there is one."""
        with self._lock:
            dropped = self._values.pop(key, None)
        del dropped

    def exists(self, key: KeyT) -> bool:
        """Return whether there is a value for `key`, without counting as a use of it."""
        with self._lock:
            return key in self._values

    def get(self, key: KeyT, default: Any = None) -> Any:
        """Return the value of `key` and mark it as used last, or return `default`."""
        with self._lock:
            value = self._values.get(key, _MISSING)
            if value is _MISSING:
                self.misses += 1
                return default
            self._values.move_to_end(key)
            self.hits += 1
            return value

    def set(self, key: KeyT, value: ValueT) -> None:
        """Hold `value` as the one used last; at capacity the one used longest ago is dropped."""
        if self.maxsize == 0:
            return
        dropped: Any = None
        with self._lock:
            replaced = self._values.pop(key, None)
            if len(self._values) >= self.maxsize:
                dropped = self._values.popitem(last=False)
            self._values[key] = value
        del replaced, dropped
