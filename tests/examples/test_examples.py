"""Every example prints, on this machine, what its README says, and leaves nothing behind.

Those that are for clusters run there in `tests/hpc`, and `md_rmsd` has a file of its own.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# Where the embedded store is, and where examples make directories of their own.
MEMORY = Path("/dev/shm")


def run(name, *arguments, python=(sys.executable,), cwd):
    """Run an example that must succeed and leave no embedded store; return what it printed."""
    with subprocess.Popen(
        [*python, EXAMPLES / name / "main.py", *arguments],
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
        pytest.param("cholesky", "distributed", marks=pytest.mark.dask),
        pytest.param("map_reduce", "distributed", marks=pytest.mark.dask),
        pytest.param("sklearn_joblib", "sklearn", marks=pytest.mark.dask),
        pytest.param("xarray_dask", "xarray", marks=pytest.mark.dask),
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
        pytest.param("federated_learning", "parsl", marks=pytest.mark.parsl),
    ],
)
def test_a_program_for_a_cluster_runs_locally_too(name, requires, tmp_path):
    pytest.importorskip(requires)
    on_one_node = expected(name).replace("nodes with workers: 2", "nodes with workers: 1")
    assert run(name, "--local", cwd=tmp_path) == on_one_node
    assert set(os.listdir(tmp_path)) <= {"logs", "runinfo"}, "no objects are left"


def test_the_pool_of_mpi_processes_prints_what_its_readme_says_and_leaves_nothing(tmp_path):
    pytest.importorskip("mpi4py")
    # Beside this Python with MPICH from PyPI, elsewhere with a system's MPI.
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    mpiexec = shutil.which("mpiexec", path=beside)
    if mpiexec is None:
        pytest.skip("mpi4py is installed, but there is no mpiexec")
    python = [mpiexec, "-n", "3", sys.executable, "-m", "mpi4py.futures"]
    output = run("mpi4py_futures", "--shared", tmp_path, python=python, cwd=tmp_path)
    assert output == expected("mpi4py_futures")
    assert list(tmp_path.iterdir()) == []


class Here:
    """A client as far as graphs of examples need one; its futures are results."""

    def submit(self, function, *arguments):
        return function(*arguments)

    def gather(self, results):
        return results


@pytest.mark.parametrize("block", [7, 16, 50, 60])
def test_cholesky_is_right_for_tiles_of_any_size(block, monkeypatch):
    np = pytest.importorskip("numpy")
    monkeypatch.syspath_prepend(EXAMPLES / "cholesky")
    cholesky = importlib.import_module("cholesky")
    matrix = cholesky.positive_definite(50)
    lower = cholesky.assembled(Here(), cholesky.factor(Here(), matrix, block))
    np.testing.assert_allclose(lower, np.linalg.cholesky(matrix), atol=1e-12)


@pytest.mark.parametrize("fan_in", [2, 3, 5, 8])
def test_map_reduce_counts_every_word_of_every_text(fan_in, monkeypatch):
    pytest.importorskip("numpy")
    monkeypatch.syspath_prepend(EXAMPLES / "map_reduce")
    map_reduce = importlib.import_module("map_reduce")
    texts = [map_reduce.random_text(100, seed) for seed in range(5)]
    counts = map_reduce.word_counts(Here(), texts, fan_in)
    assert counts == collections.Counter(" ".join(texts).split())
    assert counts.total() == 500


def test_map_reduce_says_what_it_cannot_do(monkeypatch):
    pytest.importorskip("numpy")
    monkeypatch.syspath_prepend(EXAMPLES / "map_reduce")
    map_reduce = importlib.import_module("map_reduce")
    with pytest.raises(ValueError, match="fan_in must be 2 or more, got 1"):
        map_reduce.word_counts(Here(), ["a"], fan_in=1)
    with pytest.raises(ValueError, match="got none"):
        map_reduce.word_counts(Here(), [])


def test_the_migrating_program_does_the_same_under_the_other_distribution(tmp_path):
    peer = os.environ.get("PROXYSTORE_PEER_PYTHON")
    if not peer:
        pytest.skip("PROXYSTORE_PEER_PYTHON names no Python that has proxystore 1.1")
    assert run("migrating", python=[peer], cwd=tmp_path) == expected("migrating")
