"""Federated learning with Parsl: sites train, their models are averaged, their data stay."""

from __future__ import annotations

import argparse
import os
import sysconfig
from pathlib import Path

import parsl
from parsl.addresses import address_by_hostname
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import LocalProvider, SlurmProvider

import learning
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore_parsl import StoreApps

SITES = 4
ROUNDS = 6
NODES = 2
# Parsl starts its own programs by name; they are beside the Python that runs this.
PATH = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
# So that workers find `learning`.
WORKER_INIT = f"export PATH={PATH} PYTHONPATH={Path(__file__).parent} OMP_NUM_THREADS=1"


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
        worker_init=WORKER_INIT,  # and: module load ...
    )


def local() -> LocalProvider:
    return LocalProvider(init_blocks=1, max_blocks=1, worker_init=WORKER_INIT)


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
        Store("models", FileConnector(options.shared)) as store,
        StoreApps(store) as apps,
        parsl.load(config),
    ):
        train, average, accuracy = map(
            apps.python_app, (learning.train, learning.average, learning.accuracy)
        )
        model = learning.new_model()
        alone = accuracy(train(model, 0, steps=10 * ROUNDS))
        rounds = []
        for _ in range(ROUNDS):
            # Futures: a model goes from task to task, by way of the store, and never comes here.
            model = average(*[train(model, site) for site in range(SITES)])
            rounds.append(accuracy(model))
        for number, future in enumerate(rounds, start=1):
            print(f"round {number}: {future.result():4.0%} right")
        print(f"one site alone, as many steps: {alone.result():.0%}")

        del model
        print(f"objects left: {apps.stats().live}")


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
