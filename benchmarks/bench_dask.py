"""One large array to Dask tasks: plain, scattered, with the other distribution, with us.

Two worker processes, warm. Memory is the peak of client and scheduler, which share a process,
above the start. `python benchmarks/bench_dask.py plain ours` runs some of the ways only.
"""

from __future__ import annotations

import sys

from dask_ways import MB, WAYS, Ways, table

# Bytes of the array, tasks that get it.
ROWS = {
    "one 100 MB array to 1 task": (100 * MB, 1),
    "one 100 MB array to 8 tasks": (100 * MB, 8),
    "one 50 MB array to 20 tasks": (50 * MB, 20),
}
TURNS = 7


def main(names: list[str]) -> None:
    with Ways(names or list(WAYS)) as ways:
        for title, (size, tasks) in ROWS.items():
            found = ways.measure("fan_out", TURNS, size=size, tasks=tasks)
            print(*table(title, found), "", sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
