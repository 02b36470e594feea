"""Executors and services that few programs use: MPI, and Parsl's monitoring database."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import parsl_tasks
import pytest
from parsl.executors import MPIExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider
from parsl_tasks import double, ones, total

pytestmark = pytest.mark.parsl

# What workers import from: the tasks, and this file, whose functions dill sends with a look at it.
HERE = os.pathsep.join([str(Path(parsl_tasks.__file__).parent), str(Path(__file__).parents[2])])


def prefix_and_double(x, parsl_resource_specification=None):
    import os

    return os.environ["PARSL_MPI_PREFIX"], os.environ["PARSL_NUM_RANKS"], 2 * x


def launch(x, parsl_resource_specification=None, stdout=None):
    return f"echo $PARSL_MPI_PREFIX {int(x.sum())}"


def test_mpi(apps, objects, start, array, tmp_path):
    """Each task gets nodes of its own, and starts its ranks with the prefix it is told."""
    nodes = tmp_path / "nodes"
    nodes.write_text("node1\nnode2\nnode3\nnode4\n")
    executor = MPIExecutor(
        label="mpi",
        address="127.0.0.1",
        loopback_address="127.0.0.1",
        max_workers_per_block=2,
        mpi_launcher="mpiexec",
        encrypted=False,
        provider=LocalProvider(
            init_blocks=1,
            max_blocks=1,
            launcher=SimpleLauncher(),
            worker_init=f"export PBS_NODEFILE={nodes} PYTHONPATH={HERE}:$PYTHONPATH",
        ),
    )
    kernel = start(executor)
    try:
        options = {"data_flow_kernel": kernel}
        ranks = {"num_nodes": 2, "ranks_per_node": 3}
        app = apps.python_app(prefix_and_double, **options)
        command = apps.bash_app(launch, **options)
        futures = [app(array + i, parsl_resource_specification=ranks) for i in range(3)]
        again = app(futures[0][2], parsl_resource_specification=ranks)
        printed = tmp_path / "printed"
        done = command(again[2], parsl_resource_specification=ranks, stdout=str(printed))
        for i, future in enumerate(futures):
            prefix, count, doubled = future.result()
            assert prefix.startswith("mpiexec -n 6 ")
            assert count == "6"
            assert np.array_equal(doubled, 2 * (array + i))
        assert done.result() == 0
        *prefix, printed_total = printed.read_text().split()
        assert prefix[:3] == ["mpiexec", "-n", "6"]
        assert int(printed_total) == 4 * array.sum()
    finally:
        kernel.cleanup()


def test_monitoring(apps, objects, start, new_executor, array, tmp_path):
    """Its database has the tasks, their order and their inputs, and is small."""
    pytest.importorskip("sqlalchemy")
    from parsl.monitoring import MonitoringHub

    database = tmp_path / "monitoring.db"
    hub = MonitoringHub(
        logging_endpoint=f"sqlite:///{database}",
        resource_monitoring_enabled=False,
    )
    kernel = start(new_executor("watched"), monitoring=hub)
    try:
        options = {"data_flow_kernel": kernel}
        made = apps.python_app(ones, **options)(20_000)
        doubled = apps.python_app(double, **options)(made)
        assert apps.python_app(total, **options)(doubled).result() == 40_000
        assert apps.python_app(total, **options)(array).result() == array.sum()
    finally:
        kernel.cleanup()
    rows = sqlite3.connect(database).execute(
        "select task_func_name, task_depends, task_inputs from task order by task_id"
    )
    found = list(rows)
    assert [(name, depends) for name, depends, _ in found] == [
        ("ones", ""),
        ("double", "0"),
        ("total", "1"),
        ("total", ""),
    ]
    assert all(len(str(inputs)) < 500 for _, _, inputs in found)
    assert database.stat().st_size < 200_000
