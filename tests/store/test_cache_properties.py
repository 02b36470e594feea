"""Whatever is done to a cache, it holds what a plain list of uses says it holds."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxystore.store.cache import LRUCache

KEYS = st.integers(0, 7)  # more than fit, few enough to meet again
VALUES = st.none() | st.integers()


class CacheMachine(RuleBasedStateMachine):
    """Compares LRUCache with a model that finds the oldest by looking."""

    @initialize(maxsize=st.integers(0, 5))
    def make(self, maxsize: int) -> None:
        self.cache: LRUCache[int, int | None] = LRUCache(maxsize)
        self.model: OrderedDict[int, int | None] = OrderedDict()
        self.hits = self.misses = 0

    @rule(key=KEYS, value=VALUES)
    def set(self, key: int, value: int | None) -> None:
        self.cache.set(key, value)
        self.model[key] = value
        self.model.move_to_end(key)
        while len(self.model) > self.cache.maxsize:
            self.model.popitem(last=False)

    @rule(key=KEYS)
    def get(self, key: int) -> None:
        assert self.cache.get(key, "absent") == self.model.get(key, "absent")
        if key in self.model:
            self.model.move_to_end(key)
            self.hits += 1
        else:
            self.misses += 1

    @rule(key=KEYS)
    def evict(self, key: int) -> None:
        self.cache.evict(key)
        self.model.pop(key, None)

    @invariant()
    def holds_the_same(self) -> None:
        held = {key for key in range(8) if self.cache.exists(key)}
        assert held == set(self.model)
        assert (self.cache.hits, self.cache.misses) == (self.hits, self.misses)


TestCache = CacheMachine.TestCase
