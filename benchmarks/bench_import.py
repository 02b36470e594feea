"""What we add to the start of many workers at once: imports, the store, one object.

Starts 64 interpreters together that import what a worker of Dask, or of Parsl, imports; and by
turns 64 that also unpickle a reference and get an object from the store, as the first task makes
them do. Wall time on few cores is processor time, so that is printed too, which wanders less.
"""

from __future__ import annotations

import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.workflow import store_object

WORKERS = 64
ROUNDS = 5

STARTS = {
    "Dask worker": "import numpy, distributed.worker, distributed.nanny",
    "Parsl worker": "import numpy, parsl.executors.high_throughput.process_worker_pool",
}
# The modules that references in tasks name, and what the first of them does.
FIRST_TASK = {
    "Dask worker": "import proxystore_dask.graph",
    "Parsl worker": "import proxystore_parsl.packing",
}
RESOLVE = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')).resolve()"


def start(code: str, argument: Path) -> tuple[float, float]:
    """Return wall and processor seconds until all of them have ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(argument)], env=os.environ)
        for _ in range(WORKERS)
    ]
    assert all(child.wait() == 0 for child in children)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as directory,
        Store("bench-import", FileConnector(f"{directory}/objects")) as store,
    ):
        reference = Path(directory, "reference")
        reference.write_bytes(pickle.dumps(store_object(store, np.ones(1000))))
        print(f"{WORKERS} at once{'':12}{'without us':>12}{'with us':>12}{'ratio':>9}{'cpu':>8}")
        for name, bare in STARTS.items():
            both = f"{bare}; {FIRST_TASK[name]}; {RESOLVE}"
            found: dict[str, list[tuple[float, float]]] = {bare: [], both: []}
            for turn in range(ROUNDS + 1):
                for code in sorted(found, key=len, reverse=turn % 2 == 0):
                    measured = start(code, reference)
                    if turn:  # the first one warms up the page cache
                        found[code].append(measured)
            plain, ours = (
                [statistics.median(column) for column in zip(*found[code], strict=True)]
                for code in (bare, both)
            )
            print(
                f"{name:22}{plain[0]:10.2f} s{ours[0]:10.2f} s"
                f"{ours[0] / plain[0]:8.2f}x{ours[1] / plain[1]:7.2f}x"
            )


if __name__ == "__main__":
    main()
