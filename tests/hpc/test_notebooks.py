"""Every notebook, unchanged, on a cluster: only the environment says where it is to run.

It runs as on the login node; the workers are in jobs, on nodes that are hosts of their own where
that is allowed. Part of `make notebooks`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"

pytestmark = [
    *(pytest.mark.slurm, pytest.mark.notebook, pytest.mark.dask, pytest.mark.parsl),
    pytest.mark.timeout(240),
]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_runs_and_leaves_nothing(path, best_slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("PROXYSTORE_CLUSTER", str(NOTEBOOKS / "cluster.slurm.toml"))
    before = in_memory(best_slurm)
    done = best_slurm.run(
        sys.executable, ROOT / "tools" / "notebook.py", path, cwd=tmp_path, timeout=230
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    best_slurm.wait_until_idle()
    assert os.listdir(tmp_path) == [], "where all nodes look is nothing left"
    assert in_memory(best_slurm) <= before


def in_memory(cluster) -> set[str]:
    """Return our files in memory, with their sizes, on the login node and on both others."""
    look = ["find", "/dev/shm", "-path", "*proxystore*", "-type", "f", "-size", "+0", "-ls"]
    found = [cluster.run(*look), cluster.run("srun", "--nodes=2", *look)]
    assert all(each.returncode == 0 for each in found), found
    return {line for each in found for line in each.stdout.splitlines()}
