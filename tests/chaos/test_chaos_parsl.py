"""Two rounds of `chaos_parsl.py`, of which there are more by hand (CONTRIBUTING.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("parsl")

pytestmark = pytest.mark.parsl

SCRIPT = Path(__file__).with_name("chaos_parsl.py")


def test_nothing_is_wrong_left_or_hangs():
    """Of a worker, and of the program; at the same time, since most of it is waiting."""
    rounds = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "--rounds", "1", "--kinds", kind, "--small"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for kind in ("worker", "submit")
    ]
    for each in rounds:
        printed, _ = each.communicate(timeout=110)
        assert each.returncode == 0, printed
        assert "1 rounds: 0 wrong results, 0 with objects left, 0 hangs" in printed
