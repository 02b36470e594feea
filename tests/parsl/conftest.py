"""A real executor with real workers, and a store whose every object is accounted for."""

from __future__ import annotations

import gc
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("parsl")

IMPORTABLE = Path(__file__).parent / "importable"
# What workers import from. dill sends functions that are local to a test by value, and has
# the module of the test imported for their globals.
WORKER_PATH = os.pathsep.join(map(str, [IMPORTABLE, Path(__file__).parents[2]]))
sys.path.insert(0, str(IMPORTABLE))

import dill
from parsl import DataFlowKernel
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.executors.base import ParslExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider
from waiting import wait_until

from proxystore.connectors.file import FileConnector
from proxystore.store import Store, unregister_store
from proxystore_parsl import StoreApps, lifetimes, with_store

# Arrays of 20,000 floats are large, and what Parsl sends for a task without them is not.
THRESHOLD = 50_000


class MeasuringExecutor(HighThroughputExecutor):
    """Remembers how many bytes each task and each result took.

    Attributes:
        sent: Of each task.
        received: Of each result, pickled as it was.
    """

    sent: list[int]
    received: list[int]

    def submit_payload(self, context: Any, buffer: bytes) -> Any:
        self.sent.append(len(buffer))
        future = super().submit_payload(context, buffer)
        future.add_done_callback(self._measure)
        return future

    def _measure(self, future: Any) -> None:
        if future.exception() is None:
            self.received.append(len(dill.dumps(future.result())))


def new_executor(label: str, workers: int = 2) -> MeasuringExecutor:
    executor = MeasuringExecutor(
        label=label,
        address="127.0.0.1",
        loopback_address="127.0.0.1",
        max_workers_per_node=workers,
        cores_per_worker=1e-6,
        # How soon a worker that was killed is noticed.
        heartbeat_period=1,
        heartbeat_threshold=10,
        encrypted=False,
        provider=LocalProvider(
            init_blocks=1,
            min_blocks=1,
            max_blocks=1,
            launcher=SimpleLauncher(),
            worker_init=f"export PYTHONPATH={WORKER_PATH}:$PYTHONPATH",
        ),
    )
    executor.sent, executor.received = [], []
    return executor


@pytest.fixture(scope="session", name="new_executor")
def _new_executor() -> Callable[..., MeasuringExecutor]:
    return new_executor


@pytest.fixture(scope="session", name="start")
def _start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., DataFlowKernel]]:
    """Return a function that starts a DataFlowKernel."""

    def start(*executors: ParslExecutor, **options: Any) -> DataFlowKernel:
        run_dir = str(tmp_path_factory.mktemp("run"))
        return DataFlowKernel(
            Config(
                executors=list(executors),
                run_dir=run_dir,
                strategy="none",
                initialize_logging=False,
                **options,
            )
        )

    with pytest.MonkeyPatch.context() as patch:
        # Parsl starts its helper programs by name.
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        yield start


@pytest.fixture(scope="session", autouse=True)
def _impatient() -> Iterator[None]:
    """Let objects go soon after the last task that needed them: most tests wait for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifetimes.Afterglow, "SECONDS", 0.01)
        yield


@pytest.fixture(scope="session")
def kernels(
    start: Callable[..., DataFlowKernel], wired_apps: StoreApps
) -> Iterator[tuple[DataFlowKernel, DataFlowKernel]]:
    """`kernel` and `wired`, whose workers take seconds to start, and start at the same time."""
    kernel = start(new_executor("far"), ThreadPoolExecutor(label="near", max_threads=2))
    wired = start(with_store(new_executor("wired"), wired_apps), new_executor("plain", workers=1))
    # Most tests have the garbage collected at their end: theirs, not all that was imported.
    gc.collect()
    gc.freeze()
    yield kernel, wired
    gc.unfreeze()
    kernel.cleanup()
    wired.cleanup()


@pytest.fixture(scope="session")
def kernel(kernels: tuple[DataFlowKernel, DataFlowKernel]) -> DataFlowKernel:
    """A DataFlowKernel with workers elsewhere and here, for tests that leave it as it was."""
    return kernels[0]


@pytest.fixture(scope="session")
def session_objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Objects]:
    """The store of `wired`; see `wired_objects`."""
    objects = Objects(tmp_path_factory.mktemp("session") / "objects")
    yield objects
    unregister_store(objects.store)


@pytest.fixture(scope="session")
def wired_apps(session_objects: Objects) -> StoreApps:
    """What the executor of `wired` works with."""
    return StoreApps(session_objects.store, threshold=THRESHOLD)


@pytest.fixture(scope="session")
def wired(kernels: tuple[DataFlowKernel, DataFlowKernel]) -> DataFlowKernel:
    """A DataFlowKernel with an executor that has a store of its own, and one that has none."""
    return kernels[1]


@pytest.fixture
def executor(kernel: DataFlowKernel) -> MeasuringExecutor:
    """The executor of `kernel`, with nothing sent so far."""
    executor: Any = kernel.executors["far"]
    executor.sent.clear()
    executor.received.clear()
    return executor  # type: ignore[no-any-return]


class Objects:
    """A store, and the objects in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = Store(
            f"tests-{uuid.uuid4().hex[:8]}", FileConnector(directory), cache_size=0, register=True
        )

    def __len__(self) -> int:
        return len(list(self.directory.iterdir()))

    def wait_until(self, count: int) -> None:
        """Return once the store has `count` objects; fail if that takes long."""
        wait_until(
            lambda: len(self) == count,
            what=lambda: f"{count} objects in the store, where {len(self)} are",
        )


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Objects]:
    """A store that must be empty when the test has dropped everything."""
    objects = Objects(tmp_path / "objects")
    yield objects
    gc.collect()
    objects.wait_until(0)
    unregister_store(objects.store)


@pytest.fixture
def apps(objects: Objects) -> StoreApps:
    """Decorators for `objects`. Not closed: what a test has dropped has to go by itself."""
    return StoreApps(objects.store, threshold=THRESHOLD)


@pytest.fixture
def app(apps: StoreApps, kernel: DataFlowKernel) -> Callable[..., Any]:
    """Make an app of a function, on `kernel`, elsewhere unless told otherwise."""

    def decorate(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return apps.python_app(
            function, **{"data_flow_kernel": kernel, "executors": ["far"], **options}
        )

    return decorate


@pytest.fixture
def array() -> np.ndarray:
    """An array above the threshold."""
    return np.arange(20_000, dtype=float)


@pytest.fixture
def small_messages(executor: MeasuringExecutor) -> Iterator[None]:
    """Nothing large goes through the submit process while a test with this runs."""
    yield
    assert executor.sent
    assert max(executor.sent) < 10_000
    assert max(executor.received, default=0) < 10_000
