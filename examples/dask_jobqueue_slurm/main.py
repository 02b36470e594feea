"""Bootstrap of a correlation: Dask workers in two Slurm jobs, the table in a shared directory."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

import numpy as np
from dask_jobqueue import SLURMCluster
from distributed import Client, LocalCluster

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore_dask import attach

JOBS = 2
SAMPLES = 100
DASHBOARD = "127.0.0.1:0"  # seen from its own host only, on any free port


def slurm(interface: str | None) -> SLURMCluster:
    """Return a cluster whose workers are Slurm jobs; here is what differs from site to site."""
    cluster = SLURMCluster(
        # queue="partition", account="project", job_script_prologue=["module load ..."],
        cores=1,
        memory="512 MiB",
        walltime="00:10:00",
        interface=interface,
        local_directory="/tmp",  # of the node: only what does not fit into memory goes there
        log_directory="logs",
        scheduler_options={"dashboard_address": DASHBOARD},
        worker_extra_args=["--dashboard-address", DASHBOARD],
    )
    cluster.scale(jobs=JOBS)
    return cluster


def local() -> LocalCluster:
    return LocalCluster(n_workers=JOBS, threads_per_worker=1, dashboard_address=DASHBOARD)


def resampled(table: np.ndarray, seed: int) -> float:
    """Return the correlation of two columns, of rows drawn with replacement."""
    rows = np.random.default_rng(seed).integers(len(table), size=len(table))
    return float(np.corrcoef(table[rows].T)[0, 1])


def node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def main() -> None:
    options = parse_options()
    random = np.random.default_rng(0)
    x = random.normal(size=500_000)
    table = np.column_stack([x, 0.75 * x + random.normal(size=len(x))])

    with (
        Store("bootstrap", FileConnector(options.shared)) as store,
        local() if options.local else slurm(options.interface) as cluster,
        Client(cluster) as client,
    ):
        attach(client, ps_store=store)  # the one line that proxystore needs
        client.wait_for_workers(JOBS, timeout=options.patience)
        print(f"nodes with workers: {len(set(client.run(node).values()))}")

        futures = [client.submit(resampled, table, seed) for seed in range(SAMPLES)]
        low, high = np.percentile(client.gather(futures), [2.5, 97.5])
        print(f"correlation: 95 % interval {low:.3f} to {high:.3f}, of {SAMPLES} samples")

        stats = client.ps_stats()
        print(f"stored: {stats.puts} object of {stats.put_bytes / 1e6:.0f} MB")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local", action="store_true", help="on this machine, without Slurm")
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path("objects"),
        metavar="DIR",
        help="where objects go; seen by all nodes. Default: objects, in this directory",
    )
    parser.add_argument(
        "--interface",
        metavar="NAME",
        help="network between the nodes, such as ib0 (see `ip -br addr`). Default: up to Dask",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=600,
        metavar="S",
        help="how long jobs may wait in the queue, in seconds; 600",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
