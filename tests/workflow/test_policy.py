"""Thresholds as people write them."""

from __future__ import annotations

import numpy as np
import pytest

from proxystore.workflow import ThresholdError, parse_size


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
