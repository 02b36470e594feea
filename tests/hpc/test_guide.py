"""The batch script of the cluster guide, as it stands there, and with a server in the job."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from proxystore.testing.redis_server import find_server

pytestmark = [pytest.mark.slurm, pytest.mark.dask]

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "cluster.md"


def block(beginning: str) -> str:
    """Return the one block of code in the guide that begins so."""
    (found,) = [
        code
        for code in re.findall(r"```\w+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
        if code.startswith(beginning)
    ]
    return found


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def submitted(cluster, script: str, directory: Path) -> str:
    """Run a script of the guide in a job, with the guide's program; return what it printed."""
    pytest.importorskip("distributed")
    script = replaced(script, "interface=ib0", f"interface={cluster.interface}")
    (directory / "job.sh").write_text(script)
    (directory / "analysis.py").write_text(block("# analysis.py"))
    job = cluster.run(
        "sbatch", "--parsable", "--output=out", "job.sh", cwd=directory
    ).stdout.strip()
    cluster.wait_until_idle()  # not --wait, which looks every few seconds only
    output = (directory / "out").read_text()
    assert " ExitCode=0:0\n" in cluster.run("scontrol", "show", "job", job).stdout, output
    assert set(os.listdir(directory)) == {"analysis.py", "job.sh", "out"}, "no objects are left"
    return output


def test_one_job_that_has_everything(best_slurm, tmp_path):
    output = submitted(best_slurm, block("#!/bin/bash"), tmp_path)
    assert "sum: 2000000.0\n" in output
    assert re.search(r"stored: 1 object in FileConnector\(directory=.*/objects\)\n", output)


def with_store(paragraph: str) -> str:
    """Return the job with another paragraph in place of the one about the store."""
    paragraphs = block("#!/bin/bash").split("\n\n")
    assert sum(text.startswith("# The store.") for text in paragraphs) == 1
    return "\n\n".join(
        paragraph if text.startswith("# The store.") else text for text in paragraphs
    )


def test_without_a_store_objects_are_where_the_environment_says(best_slurm, tmp_path):
    output = submitted(best_slurm, with_store('export PROXYSTORE_DIR="$shared/ours"'), tmp_path)
    assert "sum: 2000000.0\n" in output
    assert re.search(r"stored: 1 object in FileConnector\(directory=.*/ours/embedded-", output)


@pytest.mark.redis
def test_a_server_in_the_job(best_slurm, tmp_path):
    pytest.importorskip("redis")
    server = replaced(block("# The store: a server"), "redis-server -", f"{find_server()} -")
    output = submitted(best_slurm, with_store(server), tmp_path)
    assert "sum: 2000000.0\n" in output
    assert "stored: 1 object in RedisConnector" in output
