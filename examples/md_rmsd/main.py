"""All-to-all RMSD of protein trajectories under Dask and Parsl, plain and with proxystore.

Every task compares a few frames with all frames, so every task needs the whole array. The analysis
runs four times; the table `RUNS` holds all that differs between plain and proxystore.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import parsl
import psutil
from rich.console import Console

import proxystore_dask
import proxystore_parsl
from clusters import local_dask, local_parsl, warm_up
from measure import Cost, measured
from report import RunProgress, cost_table
from rmsd import Floats, centred, rmsd_rows, strips
from trajectories import DataError, Paths, adenylate_kinase, from_file

Rows = list[tuple[int, int]]


def with_dask(
    client_class: type[distributed.Client],
    structures: Floats,
    rows: Rows,
    workers: int,
    progress: RunProgress,
) -> tuple[Floats, Cost]:
    """Return the RMSD matrix, computed with Dask, and what computing it cost."""
    with local_dask(workers) as cluster, client_class(cluster) as client:
        worker_ids = warm_up(client.submit, workers)
        with measured(worker_ids, memory=_most_memory(structures, rows)) as cost:
            futures = [client.submit(rmsd_rows, structures, *strip) for strip in rows]
            for _ in progress.track(distributed.as_completed(futures)):
                pass
            matrix = np.concatenate(client.gather(futures))
    return matrix, cost


def with_parsl(
    python_app: Callable[..., Any],
    structures: Floats,
    rows: Rows,
    workers: int,
    progress: RunProgress,
) -> tuple[Floats, Cost]:
    """Return the RMSD matrix, computed with Parsl, and what computing it cost."""
    with local_parsl(workers):
        worker_ids = warm_up(lambda function, *args: python_app(function)(*args), workers)
        rmsd_app = python_app(rmsd_rows)
        with measured(worker_ids, memory=_most_memory(structures, rows)) as cost:
            futures = [rmsd_app(structures, *strip) for strip in rows]
            for _ in progress.track(concurrent.futures.as_completed(futures)):
                pass
            matrix = np.concatenate([future.result() for future in futures])
    return matrix, cost


RUNS: dict[str, tuple[Callable[..., tuple[Floats, Cost]], Any]] = {
    "Dask": (with_dask, distributed.Client),
    "Dask + proxystore": (with_dask, proxystore_dask.Client),
    "Parsl": (with_parsl, parsl.python_app),
    "Parsl + proxystore": (with_parsl, proxystore_parsl.python_app),
}


def main() -> None:
    """Run the analysis four times, check that the results agree, and show what each run cost."""
    options = _options()
    console = Console(highlight=False)
    try:
        paths = from_file(options.data) if options.data else adenylate_kinase()
    except DataError as e:
        sys.exit(f"--data: {e}")
    if options.quick:
        paths = paths.thinned(3)
    structures = centred(paths.coordinates)
    rows = strips(len(structures), options.blocks)
    _check_size(structures, rows)
    console.print(
        f"All-to-all RMSD: {len(structures)} frames x {structures.shape[2]:,} atoms, "
        f"{structures.nbytes / 1e6:.1f} MB, to each of {len(rows)} tasks"
    )

    matrices: dict[str, Floats] = {}
    costs: dict[str, Cost] = {}
    for name, (run, api) in RUNS.items():
        with RunProgress(name, len(rows), console) as progress:
            matrices[name], costs[name] = run(api, structures, rows, options.workers, progress)

    console.print(cost_table(costs))
    console.print(_agreement(matrices, paths))

    import heatmap  # Not above: Dask's workers import this file too, and they draw nothing.

    heatmap.draw(matrices["Dask"], paths, options.output)
    console.print(f"Heat map: {options.output}", soft_wrap=True)


def _most_memory(structures: Floats, rows: Rows) -> int:
    """Return the bytes that the hungriest run takes: Dask sends each task a copy, and keeps one."""
    return 2 * len(rows) * structures.nbytes


def _agreement(matrices: dict[str, Floats], paths: Paths) -> str:
    """Return a sentence on how well the matrices agree; raises AssertionError when they do not."""
    first, *others = matrices.values()
    for name, matrix in matrices.items():
        np.testing.assert_allclose(matrix, first, atol=1e-5, err_msg=f"{name} differs")
    if all(np.array_equal(first, other) for other in others):
        return f"All {len(matrices)} matrices are equal, bit for bit."
    furthest = max(np.abs(first - other).max() for other in others)
    return f"All {len(matrices)} matrices agree to {furthest:.0e}{paths.in_unit}."


def _check_size(structures: Floats, rows: Rows) -> None:
    """Exit with a message when there is too little to share out, or too little memory to do so."""
    if len(rows) > len(structures):
        sys.exit(
            f"--blocks: {len(rows)} tasks for {len(structures)} frames; use one a frame at most"
        )
    needed, free = _most_memory(structures, rows), psutil.virtual_memory().available
    if needed > free:
        sys.exit(
            f"plain Dask needs about {needed / 1e9:.1f} GB, two copies of the array for each of "
            f"{len(rows)} tasks, and {free / 1e9:.1f} GB are free; use fewer --blocks or frames"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="All-to-all RMSD under Dask and Parsl, plain and with proxystore.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npy",
        help="your own coordinates, shape (frames, atoms, 3); default: three transition paths of "
        "adenylate kinase",
    )
    parser.add_argument("--quick", action="store_true", help="every third frame, fewer tasks")
    parser.add_argument("--blocks", type=_at_least_1, metavar="N", help="tasks; default 20")
    parser.add_argument("--workers", type=_at_least_1, metavar="N", default=2, help="default 2")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PNG",
        default=Path(__file__).with_name("rmsd.png"),
        help="the heat map; default: rmsd.png beside this program",
    )
    options = parser.parse_args()
    if options.blocks is None:
        options.blocks = 8 if options.quick else 20
    if not options.output.absolute().parent.is_dir():
        parser.error(f"--output: {options.output.parent} is not a directory")
    if sys.platform != "linux":
        parser.error("memory and traffic are read from the Linux kernel; this is another system")
    return options


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


# Dask's worker processes import this file as well; only the first process runs it.
if __name__ == "__main__":
    main()
