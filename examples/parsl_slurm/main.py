"""Random walks: one Parsl app makes them, another analyses them, on two nodes of a Slurm job."""

from __future__ import annotations

import argparse
import os
import sysconfig
from pathlib import Path

import numpy as np
import parsl
from parsl.addresses import address_by_hostname
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import LocalProvider, SlurmProvider

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore_parsl import StoreApps

NODES = 2
# Parsl starts its own programs by name; they are beside the Python that runs this.
PATH = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]


def slurm() -> SlurmProvider:
    """Return where workers come from; here is what differs from site to site."""
    return SlurmProvider(
        # partition="...", account="...",
        nodes_per_block=NODES,
        init_blocks=1,
        max_blocks=1,
        exclusive=False,  # nodes may be shared with others' jobs
        cores_per_node=1,
        mem_per_node=1,  # GB
        walltime="00:10:00",
        launcher=SrunLauncher(),  # starts a pool of workers on each node of the job
        worker_init=f"export PATH={PATH}",  # and: module load ...
    )


def local() -> LocalProvider:
    return LocalProvider(init_blocks=1, max_blocks=1, worker_init=f"export PATH={PATH}")


def walk(seed: int) -> np.ndarray:
    """Return the positions of 1,000 walkers after each of 500 steps, shape (501, 1000, 3)."""
    import numpy as np  # Parsl sends a function without what is around it.

    steps = np.random.default_rng(seed).normal(size=(500, 1000, 3))
    return np.concatenate([np.zeros((1, 1000, 3)), steps.cumsum(axis=0)])


def displacement(positions: np.ndarray) -> np.ndarray:
    """Return the mean squared distance from the start at each step, shape (501,)."""
    return (positions**2).sum(axis=2).mean(axis=1)


def node() -> str:
    import os
    import socket
    import time

    time.sleep(0.1)  # long enough for the other node to take one, too
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def main() -> None:
    options = parse_options()
    os.environ["PATH"] = PATH
    executor = HighThroughputExecutor(
        label="workers",
        address="127.0.0.1" if options.local else options.address or address_by_hostname(),
        max_workers_per_node=2 if options.local else 1,
        provider=local() if options.local else slurm(),
    )
    config = parsl.Config(executors=[executor], run_dir="runinfo", strategy_period=1)
    with (
        Store("walks", FileConnector(options.shared)) as store,
        StoreApps(store) as apps,
        parsl.load(config),
    ):
        where = parsl.python_app(node)
        nodes: set[str] = set()
        while len(nodes) < (1 if options.local else NODES):
            nodes |= {future.result() for future in [where() for _ in range(2 * NODES)]}
        print(f"nodes with workers: {len(nodes)}")

        make, analyse = apps.python_app(walk), apps.python_app(displacement)
        curves = [analyse(make(seed)) for seed in range(8)]
        mean = np.mean([curve.result() for curve in curves], axis=0)
        exponent = np.polyfit(np.log(np.arange(1, 501)), np.log(mean[1:]), 1)[0]
        print(f"8 walks of 12 MB: displacement grows like time to the power of {exponent:.2f}")

        stats = apps.stats()
        print(f"objects left: {stats.live}")


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
        "--address",
        help="of this host, as the nodes see it. Default: what the host's name leads to",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
