"""The examples for clusters, on one; its nodes are hosts of their own where that is allowed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def block(page: Path, language: str, beginning: str = "") -> str:
    """Return the one block of a page in this language that begins so."""
    blocks = re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [code for code in blocks if code.startswith(beginning)]
    return found


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def in_a_job(cluster, script: str, directory: Path) -> str:
    """Run a batch script that must succeed; return what it printed."""
    (directory / "job.sh").write_text(script)
    job = cluster.run(
        "sbatch", "--parsable", "--output=out", "job.sh", cwd=directory
    ).stdout.strip()
    cluster.wait_until_idle()  # not --wait, which looks every few seconds only
    output = (directory / "out").read_text()
    assert " ExitCode=0:0\n" in cluster.run("scontrol", "show", "job", job).stdout, output
    return output


# Not for the module: other tests wait until no job is left.
@pytest.fixture(scope="class")
def dask_in_a_job(best_slurm, wait_until, tmp_path_factory) -> Iterator[Path]:
    """Start the job of the guide with no program in it; return its directory."""
    pytest.importorskip("distributed")
    directory = tmp_path_factory.mktemp("dask")
    script = replaced(
        block(ROOT / "docs" / "guides" / "cluster.md", "bash", "#!/bin/bash"),
        ("interface=ib0", f"interface={best_slurm.interface}"),
        (
            "\n# Dask.",
            f"\nexport PYTHONPATH={EXAMPLES / 'cholesky'}:{EXAMPLES / 'map_reduce'}\n# Dask.",
        ),
        (
            'python analysis.py "$shared/scheduler.json"',
            "until [ -e stop ]; do sleep 0.1; done",
        ),
    )
    (directory / "job.sh").write_text(script)
    best_slurm.run("sbatch", "--output=out", "job.sh", cwd=directory)
    try:
        wait_until(lambda: list(directory.glob("job-*/scheduler.json")), timeout=60)
        (scheduler,) = directory.glob("job-*/scheduler.json")
        (directory / "wait.py").write_text(WAIT)
        done = best_slurm.run(sys.executable, "wait.py", scheduler, cwd=directory, timeout=90)
        assert done.stdout == "2 nodes\n", (directory / "out").read_text()
        yield scheduler.parent
    finally:
        (directory / "stop").touch()
        best_slurm.wait_until_idle()


WAIT = """
import os, sys
from distributed import Client
with Client(scheduler_file=sys.argv[1]) as client:
    client.wait_for_workers(2, timeout=60)
    print(len(set(client.run(os.getenv, "SLURMD_NODENAME").values())), "nodes")
"""


@pytest.mark.dask
class TestDaskInAJob:
    @pytest.mark.parametrize(
        ("name", "requires"),
        [
            ("cholesky", "numpy"),
            ("map_reduce", "numpy"),
            ("sklearn_joblib", "sklearn"),
            ("xarray_dask", "xarray"),
        ],
    )
    def test_prints_what_its_readme_says_and_leaves_nothing(
        self, name, requires, dask_in_a_job, best_slurm, wait_until, tmp_path
    ):
        pytest.importorskip(requires)
        done = best_slurm.run(
            "env",
            f"DASK_PROXYSTORE__STORE={dask_in_a_job / 'store.toml'}",
            sys.executable,
            EXAMPLES / name / "main.py",
            dask_in_a_job / "scheduler.json",
            cwd=tmp_path,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == block(EXAMPLES / name / "README.md", "text")
        assert os.listdir(tmp_path) == []
        objects = dask_in_a_job / "objects"
        wait_until(lambda: not [path for path in objects.rglob("*") if path.is_file()])


def test_mpi_processes_on_two_nodes_print_what_the_readme_says_and_leave_nothing(
    best_slurm, tmp_path
):
    pytest.importorskip("mpi4py")
    if best_slurm.run("sh", "-c", "mpiexec -info").returncode:
        pytest.skip("its batch script needs the mpiexec of MPICH")
    readme = EXAMPLES / "mpi4py_futures" / "README.md"
    # Where such processes are, too. Slurm complains if the nodes are not free again at once.
    where = 'mpiexec -iface "$interface" -n 3 printenv SLURMD_NODENAME 2>/dev/null | sort -u\n'
    script = replaced(
        block(readme, "bash", "#!/bin/bash"),
        ("interface=ib0", f"interface={best_slurm.interface}"),
        ("examples/mpi4py", f"{EXAMPLES}/mpi4py"),
    )
    output = in_a_job(best_slurm, script + where, tmp_path)
    assert output == block(readme, "text") + "n1\nn2\n"
    assert set(os.listdir(tmp_path)) == {"job.sh", "out"}, "no objects are left"


FOR_CLUSTERS = [
    pytest.param("dask_jobqueue_slurm", "dask_jobqueue", marks=pytest.mark.dask),
    pytest.param("parsl_slurm", "parsl", marks=pytest.mark.parsl),
]


@pytest.mark.parametrize(
    ("name", "requires"),
    [*FOR_CLUSTERS, pytest.param("federated_learning", "parsl", marks=pytest.mark.parsl)],
)
def test_prints_what_its_readme_says_and_leaves_nothing(name, requires, best_slurm, tmp_path):
    pytest.importorskip(requires)
    done = best_slurm.run(sys.executable, EXAMPLES / name / "main.py", cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == block(EXAMPLES / name / "README.md", "text")
    assert set(os.listdir(tmp_path)) <= {"logs", "runinfo"}, "no objects are left"
    best_slurm.wait_until_idle()


# Not the program with Parsl: where each walk happens to be analysed on the node that made it, and
# that is about every second run, nothing is wrong.
@pytest.mark.dask
def test_a_directory_that_nodes_have_each_for_themselves_is_given_as_the_reason(
    slurm_hosts, tmp_path
):
    pytest.importorskip("dask_jobqueue")
    main = EXAMPLES / "dask_jobqueue_slurm" / "main.py"
    done = slurm_hosts.run(
        sys.executable, main, "--shared", "/dev/shm/objects", cwd=tmp_path, timeout=100
    )
    assert done.returncode == 1
    reason = done.stderr.strip().splitlines()[-1]
    assert reason.startswith(("proxystore.store.exceptions.ProxyResolve", "proxystore_parsl."))
    assert "this process cannot see where the store keeps its objects" in reason
    slurm_hosts.wait_until_idle()
