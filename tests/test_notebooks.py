"""Every notebook runs from top to bottom, leaves nothing, and is committed without what it printed.

`make notebooks` runs them all, here and in `tests/hpc` on a cluster; `make test` only the first.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MEMORY = Path("/dev/shm")

# Most of them start both.
NOT_THE_FIRST = (pytest.mark.notebook, pytest.mark.dask, pytest.mark.parsl)

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@every_notebook
def test_begins_with_what_it_is_about(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert re.search(r"\b(second|minute)s?\b", first.source), "how long it takes"


@every_notebook
def test_is_committed_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "path",
    [NOTEBOOKS[0], *(pytest.param(path, marks=NOT_THE_FIRST) for path in NOTEBOOKS[1:])],
    ids=lambda path: path.name,
)
def test_runs_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tools" / "notebook.py", path]
    # Whoever runs the tests may have a cluster; here the notebooks run on this machine.
    environment = {k: v for k, v in os.environ.items() if k != "PROXYSTORE_CLUSTER"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    (process,) = re.findall(r" s in process (\d+)$", done.stdout, re.MULTILINE)
    assert os.listdir(tmp_path) == []
    for place in (MEMORY, Path(tempfile.gettempdir())):
        assert list(place.glob(f"proxystore-*{process}-*")) == []
    assert int(process) not in owners_of_embedded_stores()


def owners_of_embedded_stores() -> set[int]:
    """Return the processes that have one in memory; others may come and go."""
    owners = set()
    for record in (MEMORY / f"proxystore-{os.geteuid()}").glob("*.owner"):
        with contextlib.suppress(FileNotFoundError):
            owners.add(json.loads(record.read_text())["pid"])
    return owners


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """Return `notebooks/cluster.py`, in a directory where it may write."""
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROXYSTORE_CLUSTER", raising=False)
    yield importlib.import_module("cluster")
    sys.modules.pop("cluster")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_program_has_left_is_removed_by_the_next(cluster: ModuleType) -> None:
    code = """if True:
        import os, signal
        import cluster
        place = cluster.load()
        place.store().put(bytes(1_000_000))
        print(place.directory, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "notebooks")}
    killed = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=False
    )
    directory = Path(killed.stdout.decode().strip())
    assert directory.exists()
    mine = cluster.load()
    assert not directory.exists()
    cluster.load().close()
    assert mine.directory.exists(), "of a program that runs"
    mine.close()


# There is no PBS to run these on: here is what would be submitted. Slurm runs in `tests/hpc`.
@pytest.mark.dask
@pytest.mark.parametrize(
    ("system", "directives"),
    [
        ("slurm", ["#SBATCH --cpus-per-task=1", "#SBATCH -t 00:10:00"]),
        ("pbs", ["#PBS -l select=1:ncpus=1:mem=763MB", "#PBS -l walltime=00:10:00"]),
    ],
)
def test_a_file_makes_jobs_for_its_batch_system(
    system: str, directives: list[str], cluster: ModuleType
) -> None:
    place = cluster.load(ROOT / "notebooks" / f"cluster.{system}.toml")
    with place.dask_cluster(0) as dask_cluster:
        lines = dask_cluster.job_script().splitlines()
        assert [line for line in directives if line not in lines] == []
    (executor,) = place.parsl_config(3).executors
    assert type(executor.provider).__name__.lower().startswith(system)
    assert executor.provider.nodes_per_block == 3
    place.close()


def test_the_environment_says_where(
    cluster: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = cluster.load()
    assert place.system == "local"
    place.close()
    file = tmp_path / "cluster.toml"
    file.write_text('system = "cray"\ndirectory = "."\n')
    monkeypatch.setenv("PROXYSTORE_CLUSTER", str(file))
    with pytest.raises(ValueError, match="must be 'local', 'slurm' or 'pbs', got 'cray'"):
        cluster.load()
    file.unlink()
