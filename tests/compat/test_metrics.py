"""Contract 16: metrics of a store."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from proxystore.proxy import Proxy, is_resolved
from proxystore.store.config import ConnectorConfig, StoreConfig
from proxystore.store.exceptions import ProxyStoreFactoryError
from proxystore.store.factory import StoreFactory
from proxystore.store.metrics import Metrics, StoreMetrics, TimeStats


class Key(NamedTuple):
    """Like the keys of connectors."""

    name: str


A, B = Key("a"), Key("b")


def proxy_of(key: Key) -> Proxy[Any]:
    """Return a proxy that cannot be resolved: nothing can import its connector."""
    config = StoreConfig(name="test", connector=ConnectorConfig(kind="test"))
    return Proxy(StoreFactory(key, config))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the time of day."""

    def set_time(timestamp: float) -> None:
        monkeypatch.setattr("time.time", lambda: timestamp)

    return set_time


# --- TimeStats


def test_time_stats_of_nothing() -> None:
    assert dataclasses.asdict(TimeStats()) == {
        "count": 0,
        "avg_time_ms": 0,
        "min_time_ms": math.inf,
        "max_time_ms": 0,
        "last_time_ms": 0,
        "last_timestamp": 0,
    }


def test_add_time_updates_everything(now: Callable[[float], None]) -> None:
    stats = TimeStats()
    for timestamp, time_ms in enumerate((2.0, 6.0, 1.0)):
        now(100.0 + timestamp)
        stats.add_time(time_ms)
    assert stats == TimeStats(
        count=3,
        avg_time_ms=3.0,
        min_time_ms=1.0,
        max_time_ms=6.0,
        last_time_ms=1.0,
        last_timestamp=102.0,
    )


@pytest.mark.parametrize("swap", [False, True])
def test_adding_stats_merges_them(swap: bool) -> None:
    a = TimeStats(1, 8.0, 8.0, 8.0, 8.0, 20.0)
    b = TimeStats(3, 4.0, 1.0, 7.0, 2.0, 10.0)
    merged = b + a if swap else a + b
    assert merged == TimeStats(4, 5.0, 1.0, 8.0, 8.0, 20.0)


def test_adding_no_times_changes_nothing() -> None:
    stats = TimeStats()
    for _ in range(7):
        stats.add_time(0.1)
    assert stats + TimeStats() == stats == TimeStats() + stats
    assert TimeStats() + TimeStats() == TimeStats()


def test_the_sum_is_a_new_object() -> None:
    stats = TimeStats()
    total = stats + TimeStats()
    total.add_time(1)
    assert stats.count == 0


def test_time_stats_as_dict_and_back() -> None:
    stats = TimeStats()
    stats.add_time(1.5)
    assert TimeStats(**stats.as_dict()) == stats


# --- Metrics


def test_metrics_are_dataclasses_down_to_json() -> None:
    metrics = Metrics(attributes={"size": 1}, counters={"n": 2}, times={"t": TimeStats()})
    metrics.times["t"].add_time(1)
    as_dict = metrics.as_dict()
    assert as_dict == dataclasses.asdict(metrics)
    assert as_dict["times"]["t"] == metrics.times["t"].as_dict()
    assert json.loads(json.dumps(as_dict)) == as_dict
    assert pickle.loads(pickle.dumps(metrics)) == metrics


def test_metrics_of_nothing() -> None:
    assert Metrics() == Metrics(attributes={}, counters={}, times={})


# --- StoreMetrics


def test_an_attribute_is_overwritten() -> None:
    metrics = StoreMetrics()
    metrics.add_attribute("size", A, 1)
    metrics.add_attribute("size", A, 2)
    assert metrics.get_metrics(A) == Metrics(attributes={"size": 2})


def test_a_counter_is_added_to() -> None:
    metrics = StoreMetrics()
    metrics.add_counter("n", A, 1)
    metrics.add_counter("n", A, 2)
    assert metrics.get_metrics(A) == Metrics(counters={"n": 3})


def test_a_time_is_added_to() -> None:
    metrics = StoreMetrics()
    metrics.add_time("t", A, 1)
    metrics.add_time("t", A, 3)
    found = metrics.get_metrics(A)
    assert found is not None
    assert (found.times["t"].count, found.times["t"].avg_time_ms) == (2, 2)


def test_nothing_recorded_is_none() -> None:
    metrics = StoreMetrics()
    metrics.add_counter("n", A, 1)
    assert metrics.get_metrics(B) is None
    assert metrics.get_metrics([A]) is None
    assert len(metrics._metrics) == 1, "asking records nothing"


def test_get_metrics_returns_a_deep_copy() -> None:
    metrics = StoreMetrics()
    metrics.add_attribute("sizes", A, [1])
    metrics.add_time("t", A, 1)
    found = metrics.get_metrics(A)
    assert found is not None
    found.attributes["sizes"].append(2)
    found.times["t"].add_time(1)
    again = metrics.get_metrics(A)
    assert again is not None
    assert again.attributes["sizes"] == [1]
    assert again.times["t"].count == 1


@pytest.mark.parametrize(
    ("filed_under", "asked_for"),
    [
        (A, A),
        (A, proxy_of(A)),
        (proxy_of(A), A),
        ([A, B], (A, B)),
        ((A, B), [A, B]),
        ([proxy_of(A), B], (A, proxy_of(B))),
        (("plain", "tuple"), ("plain", "tuple")),
    ],
    ids=[  # asking a proxy for one would resolve it
        "key",
        "key, proxy",
        "proxy, key",
        "list, tuple",
        "tuple, list",
        "batch with proxies",
        "key without names",
    ],
)
def test_same_entry(filed_under: Any, asked_for: Any) -> None:
    metrics = StoreMetrics()
    metrics.add_counter("n", filed_under, 1)
    assert metrics.get_metrics(asked_for) == Metrics(counters={"n": 1})
    metrics.add_counter("n", asked_for, 1)
    assert len(metrics._metrics) == 1


@pytest.mark.parametrize(
    ("filed_under", "asked_for"),
    [(A, B), ([A], A), (A, [A]), ([A, B], A), ([A, B], [B, A]), ([A, B], [A])],
)
def test_different_entries(filed_under: Any, asked_for: Any) -> None:
    metrics = StoreMetrics()
    metrics.add_counter("n", filed_under, 1)
    assert metrics.get_metrics(asked_for) is None


def test_keys_with_the_same_hash_are_different_entries() -> None:
    assert hash(Key(-1)) == hash(Key(-2))  # type: ignore[arg-type]
    metrics = StoreMetrics()
    metrics.add_counter("n", Key(-1), 1)  # type: ignore[arg-type]
    assert metrics.get_metrics(Key(-2)) is None  # type: ignore[arg-type]


def test_proxies_are_not_resolved() -> None:
    proxy = proxy_of(A)
    metrics = StoreMetrics()
    metrics.add_attribute("size", proxy, 1)
    metrics.add_counter("n", [proxy], 1)
    metrics.add_time("t", (proxy,), 1)
    assert metrics.get_metrics(proxy) is not None
    assert not is_resolved(proxy)


@pytest.mark.parametrize("batch", [False, True])
def test_a_proxy_of_no_store_has_no_metrics(batch: bool) -> None:
    proxy: Proxy[int] = Proxy(lambda: 1)
    with pytest.raises(ProxyStoreFactoryError):
        StoreMetrics().get_metrics([proxy] if batch else proxy)
    assert not is_resolved(proxy)


def test_times_are_merged_over_all_keys() -> None:
    metrics = StoreMetrics()
    metrics.add_time("put", A, 1)
    metrics.add_time("put", [A, B], 3)
    metrics.add_time("get", B, 5)
    found = metrics.aggregate_times()
    assert {name: (x.count, x.avg_time_ms) for name, x in found.items()} == {
        "put": (2, 2),
        "get": (1, 5),
    }
    found["get"].add_time(1)
    assert metrics.aggregate_times()["get"].count == 1, "a copy"


def test_all_entries_can_be_listed() -> None:
    """TaPS writes them to a file."""
    metrics = StoreMetrics()
    metrics.add_time("put", A, 1)
    metrics.add_counter("n", [A, B], 1)
    values = list(metrics._metrics.values())
    assert [type(x) for x in values] == [Metrics, Metrics]
    assert json.loads(json.dumps([dataclasses.asdict(x) for x in values]))[1]["counters"] == {
        "n": 1
    }


# --- ours: memory is bounded


def test_the_entry_recorded_to_longest_ago_is_dropped() -> None:
    metrics = StoreMetrics(max_entries=2)
    c = Key("c")
    metrics.add_time("put", A, 1)
    metrics.add_time("put", B, 2)
    metrics.add_time("get", A, 3)
    metrics.add_time("put", c, 4)
    assert [key for key in (A, B, c) if metrics.get_metrics(key)] == [A, c]


def test_dropped_entries_still_count_in_the_sum() -> None:
    bounded, unbounded = StoreMetrics(max_entries=3), StoreMetrics(max_entries=1000)
    for i in range(100):
        for metrics in (bounded, unbounded):
            metrics.add_time("put", Key(f"{i}"), i)
            metrics.add_time("get", Key(f"{i // 2}"), -i)
    assert len(bounded._metrics) == 3
    for name, expected in unbounded.aggregate_times().items():
        found = bounded.aggregate_times()[name]
        assert (found.count, found.min_time_ms, found.max_time_ms) == (
            expected.count,
            expected.min_time_ms,
            expected.max_time_ms,
        )
        assert found.avg_time_ms == pytest.approx(expected.avg_time_ms)
        assert found.last_time_ms == expected.last_time_ms


def test_memory_is_bounded_by_default() -> None:
    metrics = StoreMetrics()
    for i in range(10_001):
        metrics.add_counter("n", Key(f"{i}"), 1)
    assert len(metrics._metrics) == 10_000


def test_max_entries_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        StoreMetrics(max_entries=0)


# --- ours: threads


def test_no_record_is_lost_between_threads(at_once: Callable[..., list[Any]]) -> None:
    metrics = StoreMetrics(max_entries=4)
    rounds, threads = 500, 3

    def record() -> None:
        for i in range(rounds):
            metrics.add_time("put", Key(f"{i % 8}"), 1)
            metrics.add_time(f"op {i % 50}", A, 1)
            metrics.add_counter("n", B, 1)

    def read() -> None:
        for _ in range(rounds // 10):
            metrics.aggregate_times()
            metrics.get_metrics(A)

    at_once(*[record] * threads, read)
    times = metrics.aggregate_times()
    assert times["put"].count == rounds * threads
    assert sum(x.count for x in times.values()) == 2 * rounds * threads


def test_no_count_is_lost_between_threads(at_once: Callable[..., list[Any]]) -> None:
    metrics = StoreMetrics()

    def count() -> None:
        for _ in range(2_000):
            metrics.add_counter("n", A, 1)

    at_once(*[count] * 4)
    assert metrics.get_metrics(A) == Metrics(counters={"n": 8_000})
