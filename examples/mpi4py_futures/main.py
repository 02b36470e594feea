"""How much a rising sea floods: tasks in MPI processes, arrays as proxies, never in a message."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from mpi4py.futures import MPIPoolExecutor

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.store.executor import ProxyType, StoreExecutor

SIZE = 1000  # points to a side of the map


def terrain() -> np.ndarray:
    """Return heights above today's sea, in metres: hills on a slope, 8 MB."""
    x, y = np.mgrid[0 : 1 : SIZE * 1j, 0 : 1 : SIZE * 1j]
    height = 30 * x - 6
    for a, b, c in np.random.default_rng(0).normal(scale=10, size=(20, 3)):
        height += np.sin(a * x + b * y + c)
    return height


def flooded(height: np.ndarray, rise: float) -> np.ndarray:
    """Return where the land would be under water, a mask of 1 MB."""
    return (height > 0) & (height <= rise)


def share(mask: np.ndarray) -> float:
    return float(mask.mean())


def main() -> None:
    options = parse_options()
    rises = [1, 2, 5, 10]  # metres
    with tempfile.TemporaryDirectory(prefix="floods-", dir=options.shared) as directory:
        store = Store("floods", FileConnector(f"{directory}/objects"), register=True)
        pool = MPIPoolExecutor()
        with StoreExecutor(pool, store, should_proxy=ProxyType(np.ndarray)) as executor:
            # Stored once for all calls, since it is a proxy already; it is ours to keep.
            heights = store.proxy(terrain())
            masks = list(executor.map(flooded, [heights] * len(rises), rises))
            shares = executor.map(share, masks)
            for rise, part in zip(rises, shares, strict=True):
                print(f"{rise:2} m: {part:6.2%} of the map")
            print(f"MPI processes with tasks: {pool.num_workers}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path("/dev/shm"),
        metavar="DIR",
        help="where objects go; seen by all processes. Default: /dev/shm, for those of one node",
    )
    return parser.parse_args()


# The other MPI processes import this file too.
if __name__ == "__main__":
    main()
