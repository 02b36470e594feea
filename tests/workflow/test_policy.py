"""Thresholds as people write them."""

from __future__ import annotations

import numpy as np
import pytest

from proxystore.workflow import ThresholdError, parse_size, size_at_least


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
