"""Dask and Parsl on this machine: worker processes, loopback only, nothing left behind."""

from __future__ import annotations

import os
import shlex
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import parsl
from distributed import LocalCluster
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from rmsd import rehearse

_LOOPBACK = "127.0.0.1"
# Parsl starts its own programs by name; they are beside the Python that runs this.
_SCRIPTS = sysconfig.get_path("scripts")


@contextmanager
def local_dask(workers: int) -> Iterator[LocalCluster]:
    """Run a scheduler in this process and `workers` worker processes of one thread each."""
    # Dask warns when a call carries more than 10 MB, which is what the plain run is there to show.
    warnings.filterwarnings("ignore", message="Sending large graph")
    with (
        tempfile.TemporaryDirectory(prefix="md-rmsd-dask-") as directory,
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host=_LOOPBACK,
            dashboard_address=":0",
            worker_dashboard_address=f"{_LOOPBACK}:0",
            local_directory=directory,
        ) as cluster,
    ):
        yield cluster


@contextmanager
def local_parsl(workers: int) -> Iterator[None]:
    """Run a DataFlowKernel in this process and `workers` worker processes."""
    if _SCRIPTS not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = _SCRIPTS + os.pathsep + os.environ["PATH"]
    worker_environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parent),  # For `import rmsd`.
        "OMP_NUM_THREADS": "1",  # As Dask does: each worker has one core.
    }
    with tempfile.TemporaryDirectory(prefix="md-rmsd-parsl-") as directory:
        executor = HighThroughputExecutor(
            label="workers",
            address=_LOOPBACK,
            max_workers_per_node=workers,
            provider=LocalProvider(
                init_blocks=1,
                max_blocks=1,
                worker_init="\n".join(
                    f"export {name}={shlex.quote(value)}"
                    for name, value in worker_environment.items()
                ),
            ),
        )
        config = parsl.Config(
            executors=[executor],
            run_dir=directory,
            initialize_logging=False,
            strategy_period=0.5,  # How soon the workers are asked for.
        )
        try:
            with parsl.load(config):
                yield
        finally:
            parsl.clear()


def warm_up(submit: Callable[..., Any], workers: int) -> set[int]:
    """Make every worker do a small task like the real ones; return their process ids.

    What comes with the first task, imports and connections, is then done.

    Args:
        submit: Called with a function and its arguments; returns a future.
        workers: How many workers there are.
    """
    # 2 MiB: large enough to go by reference where the real coordinates do.
    sample = np.random.default_rng(0).random((8, 3, 10_923))
    ready: set[int] = set()
    turn = 0
    while len(ready) < workers:
        futures = [submit(rehearse, sample, turn + i) for i in range(workers)]
        ready |= {future.result() for future in futures}
        turn += workers
    return ready
