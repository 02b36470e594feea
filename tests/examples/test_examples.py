"""Every example prints, on this machine, what its README says, and leaves nothing behind.

Those that are for clusters run there in `tests/hpc`, and `md_rmsd` has a file of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# Where the embedded store is, and where examples make directories of their own.
MEMORY = Path("/dev/shm")


def run(name, *arguments, python=sys.executable, cwd):
    """Run an example that must succeed and leave no embedded store; return what it printed."""
    with subprocess.Popen(
        [python, EXAMPLES / name / "main.py", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors  # Dask may well complain of a machine that is slow
    assert process.pid not in owners()
    return output


def owners():
    """Yield the processes that have an embedded store in memory; others may come and go."""
    for record in (MEMORY / f"proxystore-{os.geteuid()}").glob("*.owner"):
        with contextlib.suppress(FileNotFoundError):
            yield json.loads(record.read_text())["pid"]


def expected(name):
    readme = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```text\n(.*?)```", readme, re.DOTALL)
    return block


@pytest.mark.parametrize(
    ("name", "requires"),
    [
        pytest.param("quickstart", "distributed", marks=pytest.mark.dask),
        ("concurrent_futures", "numpy"),
        ("custom_connector", "numpy"),
        ("migrating", "numpy"),
    ],
)
def test_prints_what_its_readme_says_and_leaves_nothing(name, requires, tmp_path):
    pytest.importorskip(requires)
    assert run(name, cwd=tmp_path) == expected(name)
    assert list(tmp_path.iterdir()) == []
    assert list(MEMORY.glob("spectra-*")) == []


@pytest.mark.parametrize(
    ("name", "requires"),
    [
        pytest.param("dask_jobqueue_slurm", "dask_jobqueue", marks=pytest.mark.dask),
        pytest.param("parsl_slurm", "parsl", marks=pytest.mark.parsl),
    ],
)
def test_a_program_for_a_cluster_runs_locally_too(name, requires, tmp_path):
    pytest.importorskip(requires)
    on_one_node = expected(name).replace("nodes with workers: 2", "nodes with workers: 1")
    assert run(name, "--local", cwd=tmp_path) == on_one_node
    assert set(os.listdir(tmp_path)) <= {"logs", "runinfo"}, "no objects are left"


def test_the_migrating_program_does_the_same_under_the_other_distribution(tmp_path):
    peer = os.environ.get("PROXYSTORE_PEER_PYTHON")
    if not peer:
        pytest.skip("PROXYSTORE_PEER_PYTHON names no Python that has proxystore 1.1")
    assert run("migrating", python=peer, cwd=tmp_path) == expected("migrating")
