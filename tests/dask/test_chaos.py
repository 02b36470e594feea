"""A few rounds of `tests/chaos/chaos_dask.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.dask, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).parents[1] / "chaos" / "chaos_dask.py"


def test_short_chaos():
    pytest.importorskip("psutil")
    command = [sys.executable, str(SCRIPT), "--rounds", "2", "--steps", "12"]
    run = subprocess.run(
        [*command, "--kinds", "worker,client", "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # Without any, all is well that ends well.
    assert "'harms': " in run.stdout.splitlines()[-2], run.stdout
    assert "'harms': 0" not in run.stdout.splitlines()[-2], run.stdout
