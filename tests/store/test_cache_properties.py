"""Whatever is done to a cache, it holds what a plain list of uses says it holds."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxystore.store.cache import LRUCache

KEYS = st.integers(0, 7)  # more than fit, few enough to meet again
VALUES = st.none() | st.integers()
SIZES = st.integers(0, 12)  # one may be more than fits


class CacheMachine(RuleBasedStateMachine):
    """Compares LRUCache with a model that finds the oldest by looking."""

    @initialize(maxsize=st.integers(0, 5), maxbytes=st.none() | st.integers(0, 20))
    def make(self, maxsize: int, maxbytes: int | None) -> None:
        self.cache: LRUCache[int, int | None] = LRUCache(maxsize, maxbytes=maxbytes)
        self.model: OrderedDict[int, tuple[int | None, int]] = OrderedDict()
        self.hits = self.misses = 0

    @rule(key=KEYS, value=VALUES, nbytes=SIZES)
    def set(self, key: int, value: int | None, nbytes: int) -> None:
        self.cache.set(key, value, nbytes)
        self.model.pop(key, None)
        if self.fits(1, nbytes):
            while not self.fits(len(self.model) + 1, self.nbytes + nbytes):
                self.model.popitem(last=False)
            self.model[key] = value, nbytes

    @rule(key=KEYS, value=VALUES)
    def set_without_a_size(self, key: int, value: int | None) -> None:
        self.cache.set(key, value)
        self.model.pop(key, None)
        if self.fits(1, 0):
            while not self.fits(len(self.model) + 1, self.nbytes):
                self.model.popitem(last=False)
            self.model[key] = value, 0

    @rule(key=KEYS)
    def get(self, key: int) -> None:
        assert self.cache.get(key, "absent") == self.model.get(key, ("absent", 0))[0]
        if key in self.model:
            self.model.move_to_end(key)
            self.hits += 1
        else:
            self.misses += 1

    @rule(key=KEYS)
    def peek(self, key: int) -> None:
        assert self.cache.peek(key) == self.model.get(key, (None, 0))[0]

    @rule(key=KEYS)
    def evict(self, key: int) -> None:
        self.cache.evict(key)
        self.model.pop(key, None)

    @rule()
    def after_fork(self) -> None:
        self.cache.after_fork()

    def fits(self, count: int, nbytes: int) -> bool:
        limit = self.cache.maxbytes
        return count <= self.cache.maxsize and (limit is None or nbytes <= limit)

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.model.values())

    @invariant()
    def holds_the_same(self) -> None:
        held = {key for key in range(8) if self.cache.exists(key)}
        assert held == set(self.model)
        assert (self.cache.hits, self.cache.misses) == (self.hits, self.misses)
        assert self.cache.nbytes == self.nbytes


TestCache = CacheMachine.TestCase
