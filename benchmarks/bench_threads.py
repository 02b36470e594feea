"""Threads that share one store: how long they wait for each other, and the cost of a cache hit.

Each measurement runs under the interpreter of the other distribution too, if there is one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# A connector that is slow in the way of a network: the wait holds no lock of the interpreter.
DELAY = 0.05
READERS = 8
CROWD = 64
ENTRIES = 20_000

# What is measured, and the most that it may be; None: no target.
TARGETS: dict[str, float | None] = {
    "8 threads, 8 objects of 50 ms (ms)": 60,
    "64 threads, one object: fetches": 1,
    "64 threads, one object (ms)": None,
    "LRUCache hit, 16 entries (us)": None,
    "LRUCache hit, 20,000 entries (us)": 1,
}


def all_at_once(functions: list[Callable[[], Any]]) -> float:
    """Return the seconds from the moment that all threads start to the end of the last."""
    barrier = threading.Barrier(len(functions) + 1)

    def run(function: Callable[[], Any]) -> None:
        barrier.wait()
        function()

    with ThreadPoolExecutor(len(functions)) as pool:
        running = [pool.submit(run, function) for function in functions]
        barrier.wait()
        start = time.perf_counter()
        for future in running:
            future.result()
        return time.perf_counter() - start


def slow_connector() -> Any:
    """Return a LocalConnector whose `get` takes `DELAY` seconds, and counts."""
    from proxystore.connectors.local import LocalConnector

    class SlowConnector(LocalConnector):
        fetches = 0

        def get(self, key: Any) -> Any:
            type(self).fetches += 1
            time.sleep(DELAY)
            return super().get(key)

    return SlowConnector()


def measure() -> dict[str, float]:
    """Measure what `TARGETS` names, with the distribution that this interpreter has."""
    from proxystore.store import Store
    from proxystore.store.cache import LRUCache

    results: dict[str, float] = {}
    connector = slow_connector()
    store = Store("bench-threads", connector, cache_size=0)
    times = []
    for _ in range(5):
        keys = [store.put(i) for i in range(READERS)]
        times.append(all_at_once([lambda key=key: store.get(key) for key in keys]))
    results["8 threads, 8 objects of 50 ms (ms)"] = statistics.median(times) * 1e3

    store = Store("bench-crowd", connector, cache_size=16)
    times = []
    counts = []
    for _ in range(5):
        key = store.put("one")
        before = type(connector).fetches
        times.append(all_at_once([lambda key=key: store.get(key)] * CROWD))
        counts.append(type(connector).fetches - before)
    results["64 threads, one object: fetches"] = max(counts)
    results["64 threads, one object (ms)"] = statistics.median(times) * 1e3

    for name, entries in (("16", 16), ("20,000", ENTRIES)):
        cache: Any = LRUCache(entries)
        for i in range(entries):
            cache.set(i, i)
        wanted = [i * 7919 % entries for i in range(2000)]
        rounds = []
        for _ in range(10):
            start = time.perf_counter()
            for i in wanted:
                cache.get(i)
            rounds.append((time.perf_counter() - start) / len(wanted))
        results[f"LRUCache hit, {name} entries (us)"] = statistics.median(rounds) * 1e6
    return results


def run(python: str) -> dict[str, float]:
    """Return the measurements of an interpreter."""
    # -I for the peer: not our PYTHONPATH, not this folder.
    flags = [] if python == sys.executable else ["-I"]
    command = [python, *flags, __file__, "--measure"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the table."""
    peer = os.environ.get("PROXYSTORE_PEER_PYTHON")
    ours = run(sys.executable)
    theirs = run(peer) if peer else {}
    line = "{:<36}{:>9}  {:<12}{:>9}{:>13}".format
    print(line("", "ours", "target", "peer", "peer / ours"))
    for name, target in TARGETS.items():
        cells = [f"{ours[name]:.2f}", "", "", ""]
        if target is not None:
            cells[1] = f"{target:g}" + ("" if ours[name] <= target else ", MISSED")
        if theirs:
            cells[2:] = [f"{theirs[name]:.2f}", f"{theirs[name] / ours[name]:.1f}"]
        print(line(name, *cells).rstrip())
    if not theirs:
        print("\nNo peer column: PROXYSTORE_PEER_PYTHON is not set.")


if __name__ == "__main__":
    print(json.dumps(measure())) if "--measure" in sys.argv else main()
