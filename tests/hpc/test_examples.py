"""The examples for clusters, on one; its nodes are hosts of their own where that is allowed."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

EXAMPLES = Path(__file__).parents[2] / "examples"


both = pytest.mark.parametrize(
    ("name", "requires"),
    [
        pytest.param("dask_jobqueue_slurm", "dask_jobqueue", marks=pytest.mark.dask),
        pytest.param("parsl_slurm", "parsl", marks=pytest.mark.parsl),
    ],
)


@both
def test_prints_what_its_readme_says_and_leaves_nothing(name, requires, best_slurm, tmp_path):
    pytest.importorskip(requires)
    done = best_slurm.run(sys.executable, EXAMPLES / name / "main.py", cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stderr
    readme = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    (expected,) = re.findall(r"```text\n(.*?)```", readme, re.DOTALL)
    assert done.stdout == expected
    assert set(os.listdir(tmp_path)) <= {"logs", "runinfo"}, "no objects are left"
    best_slurm.wait_until_idle()


@both
def test_a_directory_that_nodes_have_each_for_themselves_is_given_as_the_reason(
    name, requires, slurm_hosts, tmp_path
):
    pytest.importorskip(requires)
    main = EXAMPLES / name / "main.py"
    done = slurm_hosts.run(
        sys.executable, main, "--shared", "/dev/shm/objects", cwd=tmp_path, timeout=100
    )
    assert done.returncode == 1
    reason = done.stderr.strip().splitlines()[-1]
    assert reason.startswith(("proxystore.store.exceptions.ProxyResolve", "proxystore_parsl."))
    assert "this process cannot see where the store keeps its objects" in reason
    slurm_hosts.wait_until_idle()
