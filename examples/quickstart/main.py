"""One table, twenty tasks: the workers map it from memory, and the scheduler never sees it."""

from __future__ import annotations

import numpy as np

from proxystore_dask import Client  # was: from distributed import Client


def spread(table: np.ndarray, column: int) -> float:
    """Return the range of values in a column; `table` is an array, not a stand-in for one."""
    assert type(table) is np.ndarray
    return float(table[:, column].max() - table[:, column].min())


def main() -> None:
    table = np.arange(5_000_000.0).reshape(-1, 20)
    with Client(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        futures = [client.submit(spread, table, column) for column in range(20)]
        print(f"mean spread: {np.mean(client.gather(futures)):,.0f}")
        stats = client.ps_stats()
        print(f"stored: {stats.puts} object of {stats.put_bytes / 1e6:.0f} MB, for 20 tasks")


# Dask's workers import this file too.
if __name__ == "__main__":
    main()
