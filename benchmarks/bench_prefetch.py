"""Dask tasks that wait for a thread, with and without `proxystore.prefetch`, warm.

One worker process with two threads, and twelve tasks, each with an array of its own that it sums
before it works: "busy" keeps a core busy (NumPy, without the GIL), "idle" waits, as for a GPU or
another service. The store is a Redis server, or files on disk that the kernel has been told to
forget (`posix_fadvise`), as if another node had written them. By turns; medians.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MB = 1_000_000
TASKS = 12
SIZES = (1, 10, 100)  # MB
ROUNDS = 5
BUDGET = "1 GB"
# How long a task works, in seconds for each MB; and at the least.
SECONDS_PER_MB, LEAST_SECONDS = 0.002, 0.01


def work(x: Any, kind: str, seconds: float, gate: int) -> float:
    total = float(x.sum())
    end = time.perf_counter() + seconds
    if kind == "idle":
        time.sleep(seconds)
    while time.perf_counter() < end:
        x[:200_000].sum()
    return total


def opened(marker: str) -> int:
    while not os.path.exists(marker):
        time.sleep(0.002)
    return 0


@contextlib.contextmanager
def redis(directory: str) -> Iterator[Any]:
    """Return a connector to a server of our own."""
    import subprocess

    from proxystore.connectors.redis import RedisConnector

    server = os.environ.get("PROXYSTORE_REDIS_SERVER", "redis-server")
    path = f"{directory}/socket"
    options = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
    with subprocess.Popen([server, *options], stdout=subprocess.DEVNULL) as process:
        while not os.path.exists(path):
            time.sleep(0.01)
        try:
            yield RedisConnector(url=f"unix://{path}")
        finally:
            process.terminate()


@contextlib.contextmanager
def disk(directory: str) -> Iterator[Any]:
    """Return a connector to files on disk."""
    from proxystore.connectors.file import FileConnector

    yield FileConnector(f"{directory}/objects", mmap=True)


def forget(connector: Any) -> None:
    """Have files read from the disk again."""
    directory = getattr(connector, "store_dir", None)
    for path in Path(directory).iterdir() if directory else ():
        # One of the round before may go only now.
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def once(client: Any, connector: Any, size: int, kind: str, directory: str) -> float:
    """Return the seconds from the moment that tasks can be assigned to the last result."""
    import numpy as np

    rng = np.random.default_rng()
    marker = Path(directory, uuid.uuid4().hex)
    gate = client.submit(opened, str(marker), pure=False)
    seconds = max(LEAST_SECONDS, SECONDS_PER_MB * size)
    arrays = [rng.random(size * MB // 8) for _ in range(TASKS)]
    futures = [client.submit(work, array, kind, seconds, gate, pure=False) for array in arrays]
    forget(connector)
    start = time.perf_counter()
    marker.touch()
    found = client.gather(futures)
    taken = time.perf_counter() - start
    assert found == [float(array.sum()) for array in arrays]
    return taken


def main() -> int:
    """Print a table."""
    import dask
    from distributed import LocalCluster

    from proxystore.store import Store
    from proxystore_dask import Client

    sizes = [int(size) for size in sys.argv[1:]] or SIZES
    print(f"{TASKS} tasks on 2 threads      off [ms]     on [ms]    on/off", flush=True)
    for make in (redis, disk):
        # Not below /tmp where that is in memory.
        place = Path(os.environ.get("BENCH_DISK", "/var/tmp"))
        with tempfile.TemporaryDirectory(dir=place) as directory, make(directory) as connector:
            clusters, clients = {}, {}
            with (
                contextlib.ExitStack() as stack,
                Store(f"prefetch-{make.__name__}", connector, cache_size=0) as store,
            ):
                for budget in ("0 B", BUDGET):
                    clusters[budget] = stack.enter_context(
                        LocalCluster(
                            n_workers=1,
                            threads_per_worker=2,
                            dashboard_address=":0",
                            memory_limit=0,
                        )
                    )
                    with dask.config.set({"proxystore.prefetch": budget}):
                        clients[budget] = stack.enter_context(
                            Client(clusters[budget], ps_store=store, ps_threshold=MB // 2)
                        )
                for size in sizes:
                    for kind in ("busy", "idle"):
                        times: dict[str, list[float]] = {budget: [] for budget in clients}
                        for _ in range(ROUNDS + 1):
                            for budget, client in clients.items():
                                times[budget].append(once(client, connector, size, kind, directory))
                        off, on = (statistics.median(each[1:]) * 1e3 for each in times.values())
                        print(
                            f"{make.__name__:5} {size:4} MB {kind}{off:17.0f}{on:12.0f}"
                            f"{on / off:10.2f}",
                            flush=True,
                        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
