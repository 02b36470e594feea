"""Stores in the memory of one host, with Dask workers on others."""

from __future__ import annotations

import re
import sys

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.dask]

# On the login node: a scheduler here, a worker on each of the two other hosts.
PROGRAM = """
import faulthandler, subprocess, sys
import numpy as np
from distributed import Client, LocalCluster
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore_dask import StoreUnreachableError, attach

# Where it is, should it hang: the test's own limit could not say.
faulthandler.dump_traceback_later(90, exit=True)
directory, interface = sys.argv[1:]
with (
    LocalCluster(n_workers=0, host="0.0.0.0", dashboard_address=None) as cluster,
    Client(cluster) as client,
):
    worker = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address, "--no-nanny"]
    with subprocess.Popen(["srun", "--nodes=2", "--ntasks=2", *worker, "--no-dashboard"]) as job:
        try:
            client.wait_for_workers(2, timeout=60)
            with Store("reach", FileConnector(directory, clear=True)) as store:
                try:
                    attach(client, ps_store=store)
                except StoreUnreachableError as error:
                    print("refused:", error)
                    print("workers:", *error.workers)
                else:
                    # Not through Dask: each of the workers has to get it.
                    found = client.map(np.sum, [np.ones(200_000)] * 8, pure=False)
                    print("taken:", *map(int, client.gather(found)), client.ps_stats().puts)
        finally:
            job.terminate()
"""


def test_memory_of_the_login_node_is_refused(slurm_hosts, tmp_path):
    pytest.importorskip("distributed")
    done = slurm_hosts.run(
        *(sys.executable, "-c", PROGRAM, "/dev/shm/objects", slurm_hosts.interface),
        cwd=tmp_path,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    refused, workers = done.stdout.splitlines()
    addresses = workers.split()[1:]
    assert len(addresses) == 2, done.stdout
    for address in addresses:
        assert re.search(rf"{re.escape(address)} \(on n[12]: \w+", refused), done.stdout
    assert "/dev/shm/objects is in the memory of" in refused
    assert "workers run on n1, n2, too: give ps_store a directory on a file system" in refused
    slurm_hosts.wait_until_idle()


def test_a_directory_that_all_of_them_see_is_taken(slurm_hosts, tmp_path):
    pytest.importorskip("distributed")
    done = slurm_hosts.run(
        *(sys.executable, "-c", PROGRAM, tmp_path / "objects", slurm_hosts.interface),
        cwd=tmp_path,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["taken:", *["200000"] * 8, "1"], done.stderr
    slurm_hosts.wait_until_idle()
