"""A connector of our own: held to the contract, then used by another process through a proxy."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from compressed import CompressedConnector
from proxystore.store import Store
from proxystore.testing import check_connector


def counted(mask: np.ndarray) -> tuple[int, int]:
    """Return the number of true values, and the process that has counted them."""
    return int(mask.sum()), os.getpid()


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        with Store("masks", CompressedConnector(f"{directory}/objects")) as store:
            check_connector(store.connector)
            print("check_connector: every promise is kept")

            mask = np.zeros((4000, 4000), dtype=bool)
            mask[1000:2000, 1000:3000] = True
            proxy = store.proxy(mask)
            size = sum(file.stat().st_size for file in Path(directory).rglob("*"))
            print(f"{mask.nbytes / 1e6:.0f} MB take less than 1 MB: {size < 1_000_000}")

            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                count, pid = pool.submit(counted, proxy).result()
            print(f"another process counts {count:,}: {pid != os.getpid()}")
        print("files left:", len(list(Path(directory).iterdir())))


# The process of the pool imports this file too.
if __name__ == "__main__":
    main()
