"""The table of the page "How it compares", measured in one go: four minutes on two cores.

    python benchmarks/compare.py            print it
    python benchmarks/compare.py --write    and put it into docs/compare.md

Each way is measured in a process of its own, one after the other. What is measured, and how, is
that of `dask_ways.py` and `bench_parsl.py`, with fewer repeats; files by hand are added here.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Tasks are of modules: workers have this directory on their path, as the children here have.
import bench_parsl
import dask_ways

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "compare.md"
BEGIN, END = "<!-- begin: benchmarks/compare.py --write -->", "<!-- end -->"

MB = 1_000_000
FAN = "one 100 MB array to 8 tasks"
RESULT = "100 MB result to the next task"
MIDDLE = "one 1 MB array to one task"
LITTLE = "one 10 kB array to one task"
NOTHING = "1,000 tasks without data"
MEMORY = "memory in the middle, for the first line"

NOTES = """\
- *Memory in the middle*: the peak, above the start, of client and scheduler (Dask), or of submit
  process and interchange (Parsl).
- *Files by hand*: `numpy.save`, the path as the argument, and `numpy.load(path, mmap_mode="r")` in
  the task. This is the least that can be done; the files are removed untimed.
- *ProxyStore 1.1*: with its client for Dask; with Parsl, proxies made and evicted by hand, or its
  serializer.
- The lines at the bottom are where a reference saves nothing: there it should cost nothing."""

# Ways, and the heads of their columns.
DASK = {
    "plain": "Dask",
    "scatter": "Dask, `scatter`",
    "file": "files by hand",
    "peer": "ProxyStore 1.1, its client",
    "ours": "**proxystore**",
}
PARSL = {
    "plain": "Parsl",
    "file": "files by hand",
    "peer": "ProxyStore 1.1, by hand",
    "plugin": "ProxyStore 1.1, serializer",
    "ours": "**proxystore**",
}

# -- files by hand: the best that one can do without a library; they are removed untimed


def first_of_file(path: str, i: int = 0) -> float:
    import numpy as np

    return float(np.load(path, mmap_mode="r")[i])


def to_file(path: str, n: int) -> str:
    import numpy as np

    np.save(path, np.ones(n))
    return path


def saved(array: Any) -> str:
    import numpy as np

    descriptor, path = tempfile.mkstemp(suffix=".npy", dir=os.environ["BENCH_DIR"])
    os.close(descriptor)
    np.save(path, array)
    return path


# -- measured in one process: one way, all rows


def measure_dask(way: str) -> dict[str, float]:
    """Return seconds of each row, and the peak memory in MB of client and scheduler."""
    import numpy as np

    rng = np.random.default_rng(0)
    found: dict[str, float] = {}
    process = {"peer": "peer-files", "ours": "ours"}.get(way, "dask")
    with dask_ways.cluster() as workers, dask_ways.client_for(process, workers) as client:

        def fan(array: Any, tasks: int) -> None:
            argument = array
            function: Callable[..., float] = dask_ways.first
            if way == "scatter":
                argument = client.scatter(array)
            elif way == "file":
                argument, function = saved(array), first_of_file
            futures = [client.submit(function, argument, i) for i in range(tasks)]
            assert client.gather(futures) == [array[i] for i in range(tasks)]

        def nothing(_: Any) -> None:
            futures = [client.submit(dask_ways.small, i, pure=False) for i in range(1000)]
            client.gather(futures)

        rows: dict[str, tuple[int, int, Callable[[Any], None]]] = {
            FAN: (100 * MB, 3, lambda array: fan(array, 8)),
            MIDDLE: (1 * MB, 25, lambda array: fan(array, 1)),
            NOTHING: (8, 5, nothing),
        }
        for name, (size, repeats, function) in rows.items():
            times, memory = [], []
            for _ in range(repeats + 1):  # the first one is for warmth
                array = rng.random(size // 8)
                dask_ways.settle(client)
                before = bench_parsl.reset_peak(os.getpid())
                start = time.perf_counter()
                function(array)
                times.append(time.perf_counter() - start)
                memory.append(bench_parsl.peak_mb(os.getpid()) - before)
                _remove_files(way)
            found[name] = statistics.median(times[1:])
            if name == FAN:
                found[MEMORY] = statistics.median(memory[1:])
    return found


def measure_parsl(way: str) -> dict[str, float]:
    """Return seconds of each row, and the peak memory in MB of submit process and interchange."""
    import parsl

    found: dict[str, float] = {}
    config = bench_parsl.two_workers(os.environ["BENCH_DIR"] + "-runs")
    executor = config.executors[0]
    with parsl.load(config):
        todo = _files_with_parsl() if way == "file" else getattr(bench_parsl, way)()
        # Who has no way to store an array before, stores it at the call.
        todo[FAN] = todo.get("one 100 MB array to 8 tasks") or todo["the same, stored before"]
        todo[MIDDLE], todo[LITTLE] = todo["1 MB argument"], todo["10 kB argument"]
        for _ in range(20):  # both workers have imported everything
            todo[LITTLE]()
        interchange = executor.interchange_proc
        assert interchange is not None, "it was started"
        watched = os.getpid(), interchange.pid
        for name, repeats in {FAN: 3, RESULT: 3, MIDDLE: 25, LITTLE: 25, NOTHING: 3}.items():
            if name not in todo:
                continue
            times, memory = [], []
            seconds_each = way == "plain" and name in (FAN, RESULT)
            for _ in range(1 if seconds_each else repeats + 1):
                gc.collect()
                before = sum(map(bench_parsl.reset_peak, watched))
                start = time.perf_counter()
                todo[name]()
                times.append(time.perf_counter() - start)
                memory.append(sum(map(bench_parsl.peak_mb, watched)) - before)
                _remove_files(way)
            found[name] = statistics.median(times[1:] or times)
            if name == FAN:
                found[MEMORY] = statistics.median(memory[1:] or memory)
    shutil.rmtree(config.run_dir, ignore_errors=True)
    return found


def _files_with_parsl() -> dict[str, Callable[[], Any]]:
    import numpy as np
    import parsl

    large = np.random.default_rng(0).random(100 * MB // 8)
    middle, little = large[:125_000].copy(), large[:1_250].copy()
    take, make = parsl.python_app(first_of_file), parsl.python_app(to_file)

    def fan(array: Any, tasks: int) -> None:
        path = saved(bench_parsl.changed(array))
        for future in [take(path) for _ in range(tasks)]:
            future.result()

    path = os.path.join(os.environ["BENCH_DIR"], "result.npy")
    return {
        FAN: lambda: fan(large, 8),
        RESULT: lambda: take(make(path, 100 * MB // 8)).result(),
        "1 MB argument": lambda: fan(middle, 1),
        "10 kB argument": lambda: fan(little, 1),
    }


def _remove_files(way: str) -> None:
    if way == "file":
        for path in Path(os.environ["BENCH_DIR"]).iterdir():
            path.unlink()


# -- the parent: one process for each way, and the page


def run(framework: str, way: str, python: str) -> dict[str, float]:
    """Measure in a process of its own."""
    directory = tempfile.mkdtemp(prefix="proxystore-bench-", dir=dask_ways.MEMORY)
    env = {
        **os.environ,
        "BENCH_DIR": directory,
        "PYTHONPATH": str(HERE),
        # Parsl starts its helper programs by name.
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
    }
    try:
        child = subprocess.run(
            [python, "-W", "ignore", __file__, "--measure", framework, way],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(directory + "-runs", ignore_errors=True)
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def table(ways: dict[str, str], found: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table: a line for each row, a column for each way."""
    shown = [way for way in ways if way in found]
    lines = [
        "| | " + " | ".join(ways[way] for way in shown) + " |",
        "|---" + "|--:" * len(shown) + "|",
    ]
    for row in (FAN, MEMORY, RESULT, MIDDLE, LITTLE, NOTHING):
        values = [found[way].get(row) for way in shown]
        if any(value is not None for value in values):
            cells = ["" if value is None else _cell(row, value) for value in values]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: str, value: float) -> str:
    if row == MEMORY:
        return f"{value:,.0f} MB"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:#.3g} ms".replace(". ms", " ms")


def machine(peer: bool) -> str:
    """Return what was measured where, and when."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    packages = {name: importlib.metadata.version(name) for name in ("dask", "parsl", "numpy")}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    required = (HERE / "peer-requirements.txt").read_text()
    extension = re.search(r"proxystore-ex==(\S+)", required)
    other = re.search(r"proxystore==(\S+)", required)
    assert extension is not None
    assert other is not None
    others = f", ProxyStore {other[1]} with its extensions {extension[1]}" if peer else ""
    return (
        f"Measured on {datetime.datetime.now(datetime.timezone.utc):%d %B %Y} with two workers on "
        f"{len(os.sched_getaffinity(0))} cores ({cpu[1] if cpu else platform.machine()}), Python "
        f"{platform.python_version()}, {versions}{others}. Medians; all that is stored, in "
        f"`/dev/shm`."
    )


def main() -> int:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}, too")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        framework, way = options.measure
        print(json.dumps({"dask": measure_dask, "parsl": measure_parsl}[framework](way)))
        return 0
    peer = os.environ.get("PROXYSTORE_PEER_PYTHON", "")
    if not peer:
        print("PROXYSTORE_PEER_PYTHON is not set: without the other distribution\n")
    parts = [machine(bool(peer))]
    for framework, ways in {"dask": DASK, "parsl": PARSL}.items():
        found = {}
        for way in ways:
            python = peer if way in ("peer", "plugin") else sys.executable
            if python:
                found[way] = run(framework, way, python)
                print(f"{framework}, {way}: {found[way]}", file=sys.stderr)
        parts.append(table(ways, found))
    text = "\n\n".join([*parts, NOTES])
    print(text)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        before, found_begin, rest = page.partition(BEGIN)
        _, found_end, after = rest.partition(END)
        if not (found_begin and found_end):
            print(f"{PAGE} has no lines {BEGIN} and {END}", file=sys.stderr)
            return 1
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
