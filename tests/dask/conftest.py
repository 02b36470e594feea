"""Real clusters of real processes, and a store whose every object is accounted for."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

pytest.importorskip("distributed")

# Workers get the search path of the process that starts them.
IMPORTABLE = Path(__file__).parent / "importable"
sys.path.insert(0, str(IMPORTABLE))

from dask_tasks import TracingConnector
from distributed import LocalCluster, Status
from waiting import wait_until

from proxystore.store import Store, unregister_store
from proxystore_dask import Client

# Everything above is large: arrays of 20,000 floats are, and the graph of a task is not.
THRESHOLD = "50 kB"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Look over sockets that a scheduler has accepted while it ended: distributed leaves them."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


class Objects:
    """A store, and the objects in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        connector = TracingConnector(directory)
        self.store = Store(f"tests-{uuid.uuid4().hex[:8]}", connector, register=True, cache_size=0)

    def __len__(self) -> int:
        return len(list(self.directory.iterdir()))

    def log(self, what: str) -> list[int]:
        """The processes that have done `what`, once for each time."""
        path = Path(f"{self.directory}.log")
        if not path.exists():
            return []
        lines = [line.split() for line in path.read_text().splitlines()]
        return [int(pid) for did, pid in lines if did == what]

    def wait_until_empty(self) -> None:
        gc.collect()  # what a test has dropped may hang in a cycle
        wait_until(lambda: len(self) == 0)


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Objects]:
    """A store that must be empty when the test, its client included, has ended."""
    objects = Objects(tmp_path / "objects")
    yield objects
    objects.wait_until_empty()
    unregister_store(objects.store)


@pytest.fixture(scope="session", autouse=True)
def _lost_workers_come_back() -> Iterator[None]:
    """Have LocalCluster leave it to nannies to start killed workers again.

    It looks for a worker 15 s after that was lost, and closes the nanny for good if the worker is
    not there: for one that has just been killed again, too (distributed 2026.8, plain).
    """
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}):
        yield


@pytest.fixture(scope="module")
def module_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        processes=True,
        dashboard_address=":0",
        host="127.0.0.1",
    ) as cluster:
        yield cluster


@pytest.fixture
def cluster(module_cluster: LocalCluster) -> LocalCluster:
    """One of two workers, wherever they were killed before."""
    wait_for_nannies(module_cluster)
    return module_cluster


def wait_for_nannies(cluster: LocalCluster) -> None:
    """Return once each worker of a cluster is there, and may be killed.

    A nanny does not survive the death of a worker that it is still starting (distributed 2026.8,
    plain): the worker never comes back.
    """
    nannies = cluster.workers.values()
    wait_until(lambda: all(_has_started(nanny) for nanny in nannies), timeout=30)
    cluster.wait_for_workers(len(nannies), timeout=30)


def _has_started(nanny: Any) -> bool:
    return nanny.process is not None and nanny.process.status == Status.running


@pytest.fixture
def client(cluster: LocalCluster, objects: Objects) -> Iterator[Client]:
    with Client(cluster, ps_store=objects.store, ps_threshold=THRESHOLD) as client:
        yield client


@pytest.fixture
def in_event_loop(cluster: LocalCluster, objects: Objects) -> Callable[..., None]:
    """Run a coroutine function of a client in an event loop, and see that nothing is left."""

    def run(program: Callable[[Client], Any], **settings: Any) -> None:
        async def main() -> None:
            async with Client(
                cluster.scheduler_address,
                asynchronous=True,
                ps_store=objects.store,
                ps_threshold=THRESHOLD,
                **settings,
            ) as client:
                await program(client)

        asyncio.run(main())
        objects.wait_until_empty()

    return run


@pytest.fixture
def array() -> np.ndarray:
    """An array above the threshold."""
    return np.arange(20_000, dtype=float)


def kill_worker(client: Client, address: str) -> None:
    """SIGKILL a worker; its nanny starts another one. Returns once the scheduler has noticed."""
    if isinstance(client.cluster, LocalCluster):
        wait_for_nannies(client.cluster)
    pid = client.run(os.getpid, workers=[address])[address]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: address not in client.scheduler_info()["workers"])


@pytest.fixture(scope="session", name="kill_worker")
def _kill_worker() -> Callable[[Client, str], None]:
    return kill_worker
