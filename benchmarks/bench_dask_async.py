"""How long an asynchronous client's event loop stands still while it submits 3 arrays of 100 MB.

Plain Dask and ours take turns, on a cluster each of two worker processes. A gap is how much later
than asked for a callback of each millisecond runs, or how long one `submit` takes; what is shown is
the longest gap of a round, and the time from the first `submit` to the last result.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import time
import warnings
from typing import Any

from dask_ways import cluster

MB = 1_000_000
ROUNDS = 5
PERIOD = 0.001  # s


async def once(client: Any) -> tuple[float, float]:
    """Return the longest gap and the whole time, in seconds."""
    import numpy as np

    rng = np.random.default_rng()
    arrays = [rng.random(100 * MB // 8) for _ in range(3)]
    gaps = []

    async def tick() -> None:
        before = time.perf_counter()
        while True:
            await asyncio.sleep(PERIOD)
            now = time.perf_counter()
            gaps.append(now - before - PERIOD)
            before = now

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0.05)
    gaps.clear()
    start = time.perf_counter()
    futures = []
    for array in arrays:
        before = time.perf_counter()
        futures.append(client.submit(len, array))
        gaps.append(time.perf_counter() - before)
    found = await client.gather(futures)
    taken = time.perf_counter() - start
    ticking.cancel()
    assert found == [len(array) for array in arrays]
    return max(gaps), taken


async def measured(addresses: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    """Return the rounds of each way, after one that does not count."""
    from distributed import Client as DaskClient

    from proxystore_dask import Client

    async with contextlib.AsyncExitStack() as stack:
        clients = {
            way: await stack.enter_async_context(kind(addresses[way], asynchronous=True))
            for way, kind in {"plain": DaskClient, "ours": Client}.items()
        }
        rounds: dict[str, list[tuple[float, float]]] = {way: [] for way in clients}
        for _, (way, client) in itertools.product(range(ROUNDS + 1), clients.items()):
            rounds[way].append(await once(client))
    return {way: each[1:] for way, each in rounds.items()}


def main() -> int:
    """Print a table."""
    warnings.filterwarnings("ignore", "Sending large graph")  # plain Dask does
    with cluster() as plain, cluster() as ours:
        rounds = asyncio.run(
            measured({"plain": plain.scheduler_address, "ours": ours.scheduler_address})
        )
    print(f"3 x 100 MB, median of {ROUNDS} rounds   longest gap [ms]   (worst)   all done [ms]")
    for way, each in rounds.items():
        gaps, times = ([value * 1e3 for value in column] for column in zip(*each, strict=True))
        print(
            f"{way:34}{statistics.median(gaps):18.1f}{max(gaps):10.1f}{statistics.median(times):16.0f}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
