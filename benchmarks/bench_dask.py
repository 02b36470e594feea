"""Dask with two worker processes, warm: plain, scatter, with the other distribution, with us.

Each is measured in a process of its own, which holds the client and the scheduler: their memory is
that process's. The 2,000 small tasks run plain and with us by turns, since what is looked for there
is smaller than what a busy machine makes of two runs a minute apart.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = "/dev/shm"
MB = 1_000_000
SMALL_TASKS = 2_000
SMALL_ROUNDS = 9

# What is measured: bytes of the array, tasks that get it, how often.
ROWS = {
    "one 1 MB array to 1 task": (1 * MB, 1, 15),
    "one 50 MB array to 20 tasks": (50 * MB, 20, 7),
    "one 100 MB array to 1 task": (100 * MB, 1, 7),
    "one 100 MB array to 8 tasks": (100 * MB, 8, 7),
}

WAYS = ("plain", "scatter", "peer", "ours")


# -- the tasks; they live in __main__, so workers get them by value


def first(x: Any, i: int) -> float:
    return float(x[i])


def small(i: int) -> int:
    return i + 1


# -- measured in one process: one way, all rows


def memory_mb(field: str) -> float:
    """Return a line of /proc/self/status, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1e3


def cluster() -> Any:
    """Return two worker processes, and a scheduler in this one."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=":0",
        silence_logs=50,
    )


def client_for(way: str, on: Any) -> Any:
    """Return a client of the cluster that sends arguments in one of the ways."""
    if way == "ours":
        from proxystore_dask import Client

        return Client(on)
    if way == "peer":
        from proxystore_ex.plugins.distributed import Client as PeerClient

        from proxystore.connectors.file import FileConnector
        from proxystore.store import Store

        store = Store("bench", FileConnector(os.environ["BENCH_DIR"]), register=True)
        return PeerClient(on, ps_store=store, ps_threshold=MB)
    from distributed import Client as DaskClient

    return DaskClient(on)


def measure(way: str) -> dict[str, list[float]]:
    """Return seconds, and megabytes above the start, of each row."""
    import numpy as np

    rng = np.random.default_rng(0)
    found = {}
    with cluster() as workers, client_for(way, workers) as client:
        for name, (size, tasks, repeats) in ROWS.items():
            rounds = []
            for _ in range(repeats + 1):
                # New content each time: what is stored or cached already is another matter.
                array = rng.random(size // 8)
                settle(client)
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
                before = memory_mb("VmRSS")
                start = time.perf_counter()
                argument = client.scatter(array) if way == "scatter" else array
                futures = [client.submit(first, argument, i) for i in range(tasks)]
                assert client.gather(futures) == [array[i] for i in range(tasks)]
                rounds.append((time.perf_counter() - start, memory_mb("VmHWM") - before))
                del futures, argument
            found[name] = [statistics.median(column) for column in zip(*rounds[1:], strict=True)]
    return found


def settle(client: Any) -> None:
    """Wait until the scheduler has forgotten every task."""
    gc.collect()
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        time.sleep(0.02)
    time.sleep(0.3)  # freed memory goes back, evictions are done


def measure_small() -> dict[str, list[float]]:
    """Return seconds of each round of small tasks, plain and with us by turns."""
    found: dict[str, list[float]] = {"plain": [], "ours": []}
    # Each has a cluster: our part of a scheduler must not slow down plain clients, unseen.
    with cluster() as one, cluster() as other:
        clients = {"plain": client_for("plain", one), "ours": client_for("ours", other)}
        for turn in range(SMALL_ROUNDS + 1):
            for way in sorted(clients, reverse=turn % 2 == 0):
                client = clients[way]
                start = time.perf_counter()
                futures = [client.submit(small, i, pure=False) for i in range(SMALL_TASKS)]
                assert sum(client.gather(futures)) == sum(range(1, SMALL_TASKS + 1))
                if turn:
                    found[way].append(time.perf_counter() - start)
                del futures
                settle(client)
        for client in clients.values():
            client.close()
    return found


# -- the parent: one process for each way, and the table


def run(what: str, python: str) -> Any:
    """Return what this script measures as a child process; None if it fails."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        child = subprocess.run(
            [python, __file__, what],
            env={**os.environ, "BENCH_DIR": directory, "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if child.returncode:
        print(f"{what}: failed, see above", file=sys.stderr)
        return None
    return json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    peer_python = os.environ.get("PROXYSTORE_PEER_PYTHON", "")
    pythons = dict.fromkeys(WAYS, sys.executable)
    if peer_python and shutil.which(peer_python):
        pythons["peer"] = peer_python
    else:
        del pythons["peer"]
        print("PROXYSTORE_PEER_PYTHON is not set: without the column of the other distribution\n")
    found = {way: run(way, python) for way, python in pythons.items()}
    found = {way: rows for way, rows in found.items() if rows}
    print(f"{'':30}" + "".join(f"{way:>20}" for way in found))
    for name in ROWS:
        cells = [
            f"{rows[name][0] * 1e3:7.0f} ms {rows[name][1]:+6.0f} MB" for rows in found.values()
        ]
        print(f"{name:30}" + "".join(f"{cell:>20}" for cell in cells))
    print("(median; memory: peak of client and scheduler above the start)\n")
    for name in ROWS:
        ours = found["ours"][name][0]
        ratios = [
            f"{rows[name][0] / ours:.2f} x {way}" for way, rows in found.items() if way != "ours"
        ]
        print(f"{name}: ours is faster by {', '.join(ratios)}")
    rounds = run("small", sys.executable)
    if rounds:
        ratios = [ours / plain for plain, ours in zip(rounds["plain"], rounds["ours"], strict=True)]
        times = {way: statistics.median(seconds) for way, seconds in rounds.items()}
        print(
            f"\n{SMALL_TASKS:,} small tasks: "
            f"plain {times['plain']:.2f} s, ours {times['ours']:.2f} s, "
            f"ours / plain {times['ours'] / times['plain']:.3f} "
            f"(by turns: {min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measured: Callable[[], Any]
        measured = measure_small if sys.argv[1] == "small" else lambda: measure(sys.argv[1])
        print(json.dumps(measured()))
    else:
        main()
