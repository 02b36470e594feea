"""Waits between looks: how long each is, and when they end."""

from __future__ import annotations

import doctest
import itertools
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore.store import _backoff
from proxystore.store._backoff import backoff

seconds = st.floats(1e-6, 1e6)
factors = st.floats(1, 100)
limits = st.none() | seconds


class Clock:
    """Stands still unless it is told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_the_example():
    assert doctest.testmod(_backoff).failed == 0


def test_waits_grow_up_to_the_limit_and_the_last_one_is_cut():
    assert list(backoff(0.5, factor=3, limit=4, timeout=12)) == [0.5, 1.5, 4, 4, 2]


def test_without_a_factor_they_stay_and_without_a_time_out_they_go_on():
    assert list(itertools.islice(backoff(3), 1000)) == [3] * 1000


def test_the_first_wait_keeps_to_the_limit():
    assert next(backoff(3, limit=2)) == 2


def test_no_time_no_wait():
    assert list(backoff(1, timeout=0)) == []


def test_time_that_passes_between_the_waits_counts():
    clock = Clock()
    waits = backoff(1, timeout=10, clock=clock)
    clock.now += 7.5  # the first look took long
    assert next(waits) == 1
    clock.now += 1
    assert next(waits) == 1
    clock.now += 1
    assert next(waits) == 0.5, "cut to what is left, not to what was not handed out"
    clock.now += 0.5
    assert list(waits) == []


def test_the_clock_runs_from_the_call_and_not_from_the_first_wait():
    clock = Clock()
    waits = backoff(1, timeout=10, clock=clock)
    clock.now += 10
    assert list(waits) == []


def test_waits_never_get_longer_than_the_system_can_wait():
    assert max(itertools.islice(backoff(1, factor=1e300), 10)) == threading.TIMEOUT_MAX
    assert next(backoff(1e300)) == threading.TIMEOUT_MAX
    assert threading.Event().wait(0) is False  # what TIMEOUT_MAX is the limit of


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"interval": 0}, "interval"),
        ({"interval": -1}, "interval"),
        ({"interval": math.nan}, "interval"),
        ({"interval": math.inf}, "interval"),
        ({"factor": 0.5}, "factor"),
        ({"factor": math.nan}, "factor"),
        ({"factor": math.inf}, "factor"),
        ({"limit": 0}, "limit"),
        ({"limit": math.nan}, "limit"),
        ({"timeout": -0.1}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused_at_once(wrong, named):
    with pytest.raises(ValueError, match=f"^{named} must be .*got"):
        backoff(**{"interval": 1, **wrong})


@given(seconds, factors, limits, st.floats(0, 1e3))
def test_waits_use_up_the_time_out_and_no_more(interval, factor, limit, times):
    timeout = interval * times
    waits = list(
        backoff(
            interval,
            factor=factor,
            limit=limit and max(limit, interval),
            timeout=timeout,
            clock=Clock(),
        )
    )
    assert math.fsum(waits) == pytest.approx(timeout, rel=1e-9)
    assert all(wait > 0 for wait in waits)
    assert len(waits) <= times + 2, "none is shorter than the interval, but the last"


@given(seconds, factors, limits)
def test_waits_never_shrink_and_keep_to_the_limit(interval, factor, limit):
    waits = list(itertools.islice(backoff(interval, factor=factor, limit=limit), 50))
    assert waits == sorted(waits)
    assert max(waits) <= (math.inf if limit is None else limit)
    assert waits[0] == min(interval, waits[-1])


@given(st.lists(st.floats(0, 3), max_size=50), st.floats(0, 20))
def test_they_end_in_time_whatever_happens_in_between(delays, timeout):
    clock = Clock()
    start = clock.now
    waits = backoff(0.5, factor=1.5, timeout=timeout, clock=clock)
    for delay in itertools.chain(delays, itertools.repeat(0.0)):
        begun = clock.now
        clock.now += delay  # the connector
        wait = next(waits, None)
        if wait is None:
            break
        assert wait <= timeout - (clock.now - start) + 1e-9
        clock.now += wait
    late = clock.now - start - timeout
    assert late >= -1e-9, "not given up early"
    assert late <= max(0.0, clock.now - begun) + 1e-9, "late by no more than the last look"
