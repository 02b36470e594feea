"""Contract 17: the cache of a store."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from proxystore.store.cache import LRUCache


def test_sixteen_values_by_default() -> None:
    assert LRUCache().maxsize == 16


def test_maxsize_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="0 \\(no caching\\) or more, got -1"):
        LRUCache(-1)


def test_drops_the_value_used_longest_ago() -> None:
    cache: LRUCache[int, int] = LRUCache(4)
    for key in (1, 2, 3, 4):
        cache.set(key, -key)
    for key in (4, 3, 2, 1):
        assert cache.get(key) == -key
    cache.set(5, -5)
    assert [key for key in (1, 2, 3, 4, 5) if cache.exists(key)] == [1, 2, 3, 5]


def test_exists_is_no_use() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    cache.set("a", 1)
    cache.set("b", 2)
    assert cache.exists("a")
    cache.set("c", 3)
    assert not cache.exists("a")


def test_counts_hits_and_misses() -> None:
    cache: LRUCache[str, int | None] = LRUCache()
    assert (cache.hits, cache.misses) == (0, 0)
    assert cache.get("a") is None
    assert cache.get("a", default=0) == 0
    cache.set("a", None)
    assert cache.get("a", default=0) is None, "None is a value"
    assert (cache.hits, cache.misses) == (1, 2)


def test_evicting_what_is_absent_is_silent() -> None:
    cache: LRUCache[str, int] = LRUCache()
    cache.set("a", 1)
    cache.evict("a")
    cache.evict("a")
    assert not cache.exists("a")


def test_size_zero_caches_nothing() -> None:
    cache: LRUCache[str, int] = LRUCache(0)
    cache.set("a", 1)
    assert not cache.exists("a")
    assert cache.get("a") is None


def test_overwriting_replaces_and_refreshes_and_drops_no_other() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    cache.set("a", 1)
    cache.set("b", 2)
    cache.set("a", 3)
    assert (cache.get("b"), cache.get("a")) == (2, 3)
    cache.set("b", 4)
    cache.set("c", 5)
    assert [key for key in "abc" if cache.exists(key)] == ["b", "c"]


def test_threads_share_a_cache(at_once: Callable[..., list[Any]]) -> None:
    cache: LRUCache[int, int] = LRUCache(2)
    rounds, threads = 1_000, 4

    def work() -> None:
        for i in range(rounds):
            cache.set(i % 3, i % 3)
            assert cache.get(i % 3) in {i % 3, None}
            cache.evict(i % 2)

    at_once(*[work] * threads)
    assert cache.hits + cache.misses == rounds * threads
    assert sum(cache.exists(key) for key in range(3)) <= 2


@pytest.mark.parametrize(
    "method",
    [
        lambda cache, key: cache.set(key, 1),
        lambda cache, key: cache.get(key),
        lambda cache, key: cache.evict(key),
    ],
    ids=["set", "get", "evict"],
)
def test_a_thread_is_alone_in_the_cache(
    method: Callable[[LRUCache[Any, int], Any], object], at_once: Callable[..., list[Any]]
) -> None:
    cache: LRUCache[Any, int] = LRUCache()
    both_inside = threading.Barrier(2)
    met = []

    class Key:
        """Waits for company whenever the cache looks at it."""

        def __hash__(self) -> int:
            with contextlib.suppress(threading.BrokenBarrierError):
                met.append(both_inside.wait(timeout=0.1))
            return 0

    at_once(lambda: method(cache, Key()), lambda: cache.get(Key()))
    assert both_inside.broken
    assert not met


class Finalized:
    """Calls a function when it is dropped."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function

    def __del__(self) -> None:
        self.function()


@pytest.mark.parametrize(
    "drop",
    [
        lambda cache: cache.evict("a"),
        lambda cache: cache.set("a", None),
        lambda cache: cache.set("b", None),
    ],
    ids=["evicted", "replaced", "pushed out"],
)
def test_no_thread_waits_for_the_finalizer_of_a_value(
    drop: Callable[[LRUCache[str, Any]], None],
) -> None:
    cache: LRUCache[str, Any] = LRUCache(1)
    answers = []

    def ask_from_another_thread() -> None:
        thread = threading.Thread(target=lambda: answers.append(cache.exists("x")), daemon=True)
        thread.start()
        thread.join(timeout=10)

    cache.set("a", Finalized(ask_from_another_thread))
    drop(cache)
    assert answers == [False]


def test_a_finalizer_may_evict_while_its_thread_is_inside_the_cache() -> None:
    """The garbage collector runs finalizers anywhere; here a key's comparison stands for it."""
    cache: LRUCache[Any, int] = LRUCache(4)
    cache.set("other", 1)

    class Key:
        def __hash__(self) -> int:
            cache.evict("other")
            return 0

    cache.set(Key(), 2)
    assert not cache.exists("other")
