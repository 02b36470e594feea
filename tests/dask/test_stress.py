"""Random work, colliding keys, dropped futures and killed workers: nothing wrong, nothing left.

Longer, or with another seed: ``PROXYSTORE_STRESS_SECONDS=600 PROXYSTORE_STRESS_SEED=7``.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask_tasks import add_one, total
from distributed import Future, LocalCluster

from proxystore_dask import Client

pytestmark = [pytest.mark.dask, pytest.mark.timeout(900)]

SECONDS = float(os.environ.get("PROXYSTORE_STRESS_SECONDS", 12))
SEED = int(os.environ.get("PROXYSTORE_STRESS_SEED", 20261123))
KILL_EVERY = 2  # seconds; a nanny needs one to bring its worker back


@pytest.fixture
def patient_cluster() -> Iterator[LocalCluster]:
    """One that never gives up on a task because its workers died."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1000}),
        LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=":0", host="127.0.0.1"
        ) as cluster,
    ):
        yield cluster


class Load:
    """Random calls on one client, and what their results have to be."""

    def __init__(self, client: Client, rng: random.Random, arrays: list[Any]) -> None:
        self._client = client
        self._rng = rng
        self._arrays = arrays
        self._sums = [float(np.sum(a)) for a in arrays]
        self._held: list[Any] = []
        self.tasks = 0

    def step(self) -> None:
        futures, allowed = self._rng.choice(self._calls)(self)
        self.tasks += len(futures)
        if self._rng.random() < 0.5:
            self._check(futures, allowed)
        if self._rng.random() < 0.3:
            self._held.append((futures, allowed))
        if len(self._held) > 5:
            futures, allowed = self._held.pop(self._rng.randrange(len(self._held)))
            if self._rng.random() < 0.3:
                self._check(futures, allowed)

    def _check(self, futures: list[Future], allowed: list[list[float]]) -> None:
        results = self._client.gather(futures)
        for result, good in zip(results, allowed, strict=True):
            assert result in good

    def drop(self) -> None:
        """Check all that is held, and drop it."""
        while self._held:
            self._check(*self._held.pop())

    def _pick(self) -> tuple[Any, float]:
        i = self._rng.randrange(len(self._arrays))
        # Half of the time equal content in another array.
        array = self._arrays[i]
        return (array if self._rng.random() < 0.5 else array.copy()), self._sums[i]

    def _pure(self) -> tuple[list[Future], list[list[float]]]:
        array, value = self._pick()
        times = self._rng.randrange(1, 4)
        return [self._client.submit(total, array, times=times)], [[value * times]]

    def _impure(self) -> tuple[list[Future], list[list[float]]]:
        array, value = self._pick()
        futures = [self._client.submit(total, array, i, pure=False) for i in range(3)]
        return futures, [[value + i] for i in range(3)]

    def _map(self) -> tuple[list[Future], list[list[float]]]:
        picked = [self._pick() for _ in range(4)]
        batch_size = self._rng.choice([None, 2])
        futures = self._client.map(total, [a for a, _ in picked], batch_size=batch_size)
        return futures, [[value] for _, value in picked]

    def _map_with_shared(self) -> tuple[list[Future], list[list[float]]]:
        array, value = self._pick()
        futures = self._client.map(total, [1, 2], [array] * 2)
        return futures, [[1 + value], [2 + value]]

    def _chain(self) -> tuple[list[Future], list[list[float]]]:
        array, value = self._pick()
        first = self._client.submit(add_one, array)
        return [self._client.submit(total, first)], [[value + len(array)]]

    def _colliding(self) -> tuple[list[Future], list[list[float]]]:
        """The key says nothing about the content: whoever was first decides."""
        array, _ = self._pick()
        key = f"colliding-{self._rng.randrange(3)}"
        return [self._client.submit(total, array, key=key)], [self._sums]

    def _graph(self) -> tuple[list[Future], list[list[float]]]:
        array, value = self._pick()
        twice = dask.delayed(add_one)(array)
        values = [dask.delayed(total)(twice), dask.delayed(total)(dask.delayed(array), 1)]
        return self._client.compute(values), [[value + len(array)], [value + 1]]

    def _collection(self) -> tuple[list[Future], list[list[float]]]:
        array, value = self._pick()
        kept = self._client.persist(da.from_array(array, chunks=len(array)))
        return [self._client.compute((kept + array).sum())], [[2 * value]]

    def _scattered(self) -> tuple[list[Future], list[list[float]]]:
        array, value = self._pick()
        scattered = self._client.scatter(array, hash=self._rng.random() < 0.5)
        return [self._client.submit(total, scattered, pure=False)], [[value]]

    _calls = (
        *(_pure, _pure, _impure, _map, _map_with_shared, _chain, _colliding),
        *(_graph, _collection, _scattered),
    )


def test_random_load_with_dying_workers(patient_cluster, objects, wait_until):
    rng = random.Random(SEED)
    arrays = [np.full(10_000, float(i)) for i in range(6)]
    kills = 0
    known: set[str] = set()
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                Client(patient_cluster, ps_store=objects.store, ps_threshold="50 kB")
            )
            for _ in range(2)
        ]
        loads = [Load(client, rng, arrays) for client in clients]
        end = time.monotonic() + SECONDS
        next_kill = time.monotonic() + KILL_EVERY
        while time.monotonic() < end:
            rng.choice(loads).step()
            if time.monotonic() > next_kill:
                next_kill += KILL_EVERY
                pids = clients[0].run(os.getpid, on_error="ignore")
                # A nanny does not survive the death of a worker that it is still starting
                # (distributed 2026.8, plain), so only those are killed that are known from before.
                old = sorted(known & pids.keys())
                known = set(pids)
                if old:
                    os.kill(pids[rng.choice(old)], signal.SIGKILL)
                    kills += 1
        for load in loads:
            load.drop()
        objects.wait_until_empty()
        wait_until(lambda: not clients[0].run_on_scheduler(_tasks))
    tasks = sum(load.tasks for load in loads)
    print(f"seed {SEED}: {tasks} tasks, {kills} workers killed")
    assert tasks > 100
    assert kills > 1


def _tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)
