"""What must not get slower with us: small arguments, many small tasks; and the scheduler's memory.

Two clusters of two worker processes, warm, one for plain Dask and one for us, by turns. What is
looked for is smaller than what a busy machine makes of a single turn: the ratio is that of the
medians, beside the median of the ratios of neighbouring turns; and that of the processor time of
client and scheduler, which suffers least from what else runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import sys
import time
from typing import Any

import dask_ways
import numpy as np
from dask_ways import MB, Turns, Ways, client_for, memory_mb, settle, use, wait_for

TASKS = 10_000
# The row, its arguments, how often, and how many calls a turn has.
ROWS: dict[str, tuple[str, dict[str, int], int, int]] = {
    "10 kB argument, a call": ("round_trips", {"size": 10_000, "tasks": 20}, 15, 20),
    "100 kB argument, a call": ("round_trips", {"size": 100_000, "tasks": 20}, 15, 20),
    "1 MB argument, a call": ("round_trips", {"size": MB, "tasks": 20}, 15, 20),
    "2,000 small tasks, submit": ("submits", {"tasks": 2_000}, 5, 1),
    "2,000 small tasks, map": ("mapped", {"tasks": 2_000}, 5, 1),
    "10,000 small tasks, submit": ("submits", {"tasks": TASKS}, 1, 1),
}


def line(title: str, found: dict[str, Turns], calls: int) -> str:
    """Return what plain Dask and we needed for a call, and the ratios."""
    plain, ours = found["plain"], found["ours"]
    ratios = [o / p for o, p in zip(ours.seconds[1:], plain.seconds[1:], strict=True)]
    return f"{title:32}" + "".join(
        f"{value:10.{digits}f}"
        for value, digits in [
            (plain.median * 1e3 / calls, 2),
            (ours.median * 1e3 / calls, 2),
            (plain.mean * 1e3 / calls, 2),
            (ours.mean * 1e3 / calls, 2),
            (ours.median / plain.median, 3),
            (statistics.median(ratios), 3),
            (statistics.median(ours.cpu[1:]) / statistics.median(plain.cpu[1:]), 3),
        ]
    )


# -- the memory of a scheduler, which has a process of its own here


def scheduler_memory(process: str, argument: Any) -> float:
    """Return what a scheduler needs for tasks that share an argument while they wait, in MB."""
    from distributed import Event

    with (
        subprocess.Popen(
            [sys.executable, dask_ways.__file__, "cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child,
        contextlib.ExitStack() as stack,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        stack.callback(child.stdin.close)  # it ends
        client = stack.enter_context(client_for(process, json.loads(child.stdout.readline())))
        client.gather(client.map(use, range(100), x=0.0, gate=0))  # it has imported everything
        settle(client)
        gate = client.submit(wait_for, "gate")
        before = memory_mb("VmRSS", child.pid)
        futures = client.map(use, range(TASKS), x=argument, gate=gate)
        while client.run_on_scheduler(known) < TASKS:
            time.sleep(0.02)
        found = memory_mb("VmRSS", child.pid) - before
        client.cancel(futures)  # running them would show nothing more
        Event("gate", client).set()
    return found


def known(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def main() -> None:
    header = ("plain", "ours", "plain", "ours", "ours", "by turns", "CPU")
    with Ways(["plain", "ours"]) as ways:
        print(f"{'':32}{'median [ms]':>20}{'mean [ms]':>20}{'ours / plain':>30}")
        print(f"{'':32}" + "".join(f"{name:>10}" for name in header))
        for title, (row, what, turns, calls) in ROWS.items():
            found = ways.measure(row, turns, seconds=math.inf, **what)  # in pairs
            print(line(title, found, calls), flush=True)
    array = np.random.default_rng().random(100 * MB // 8)
    print(f"\nmemory of the scheduler for {TASKS:,} tasks that wait, MB more")
    print(f"{'plain, they share a number':32}{scheduler_memory('dask', 1.0):10.1f}")
    print(f"{'ours, they share a number':32}{scheduler_memory('ours', 1.0):10.1f}")
    print(f"{'ours, they share 100 MB':32}{scheduler_memory('ours', array):10.1f}")


if __name__ == "__main__":
    main()
