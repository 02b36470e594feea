"""A Slurm cluster of our own, made by `tools/slurm.py`; skipped where there can be none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import wait_until

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "slurm.py"
UNAVAILABLE = 69  # what the tool ends with where Slurm cannot be had


class Cluster:
    """A running cluster.

    Attributes:
        conf: Its slurm.conf, which names its addresses and its directory.
        interface: The network interface that nodes reach each other by.
    """

    def __init__(self, conf: str, enter: list[str]) -> None:
        self.conf = Path(conf)
        self.interface = "eth0" if enter else "lo"
        self._enter = enter

    def run(
        self, *command: str | Path, cwd: Path | str = "/", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as on the login node, with our Python first on its path."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        ours["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{ours['PATH']}"
        return subprocess.run(
            [*self._enter, *command],
            cwd=cwd,
            env={**ours, "SLURM_CONF": str(self.conf)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def wait_until_idle(self) -> None:
        """Return once no job is left; one that was cancelled may take seconds to end."""
        wait_until(lambda: self.run("squeue", "--noheader").stdout == "", timeout=90, pause=0.2)


@contextmanager
def running(*options: str) -> Iterator[Cluster]:
    with subprocess.Popen(
        [sys.executable, TOOL, "serve", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for pytest
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stderr is not None
        line = server.stdout.readline()
        if not line:
            complaint = server.stderr.read()
            if server.wait() == UNAVAILABLE:
                pytest.skip(complaint.strip())
            pytest.fail(complaint)
        try:
            yield Cluster(**json.loads(line))
        finally:
            server.stdin.close()
            server.wait(timeout=60)
    assert server.returncode == 0


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Return a cluster whose controller and nodes are this host."""
    with running() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slurm_hosts() -> Iterator[Cluster]:
    """Return a cluster whose controller and nodes are hosts of their own: root only."""
    with running("--hosts") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def best_slurm(request: pytest.FixtureRequest) -> Cluster:
    """Return `slurm_hosts` where it can be had, and else `slurm`."""
    try:
        cluster = request.getfixturevalue("slurm_hosts")
    except pytest.skip.Exception:
        cluster = request.getfixturevalue("slurm")
    assert isinstance(cluster, Cluster)
    return cluster
