"""Thresholds as people write them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from proxystore.workflow import ThresholdError, parse_size, size_at_least
from proxystore.workflow.policy import surely_below


@pytest.mark.parametrize(
    ("value", "size"),
    [
        *((0, 0), (4096, 4096), (np.int64(4096), 4096), ("4096", 4096), ("0", 0)),
        *(("1 MiB", 1 << 20), ("128KiB", 1 << 17), ("1.5 kB", 1500)),
    ],
)
def test_sizes(value, size):
    assert parse_size(value) == size


@pytest.mark.parametrize(
    "value", ["", "much", "1 XB", "-1", "-5 MB", "1 2 3", -1, 1.5, True, None, [], "nan", "inf"]
)
def test_what_is_no_size(value):
    with pytest.raises(ThresholdError, match="ps_threshold must be") as caught:
        parse_size(value, name="ps_threshold")
    assert caught.value.value == value
    assert isinstance(caught.value, ValueError)


class NotLoaded:
    def __init__(self, data):
        self.data = data

    @property
    def nbytes(self):
        raise RuntimeError("not loaded")


def test_an_object_that_cannot_tell_its_size_is_measured():
    assert not size_at_least(NotLoaded(b"x"), 100)
    assert size_at_least(NotLoaded(bytes(100)), 100)


@pytest.mark.parametrize("large", [bytes, bytearray])
def test_what_is_large_is_not_copied_to_see_that(large):
    obj = [large(50_000_000), 1]
    tracemalloc.start()
    try:
        assert not surely_below(obj, 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
