"""Cholesky factorization by tiles: with plain Dask, and with tiles that travel by reference."""

from __future__ import annotations

import argparse

import distributed
import numpy as np

import cholesky
from proxystore_dask import attach

LOCAL = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}


def main() -> None:
    options = parse_options()
    cluster = {"scheduler_file": options.scheduler} if options.scheduler else LOCAL
    matrix = cholesky.positive_definite(options.n)

    with distributed.Client(**cluster) as client:
        plain = cholesky.assembled(client, cholesky.factor(client, matrix, options.block))
        report("plain Dask", matrix, plain)

        # Results go to the store as well: what one worker has made, another one reads.
        attach(client, ps_threshold="100 kB", ps_results="large")
        ours = cholesky.assembled(client, cholesky.factor(client, matrix, options.block))
        report("proxystore", matrix, ours)
        stats = client.ps_stats()
    print(f"stored by this process: {stats.puts} tiles, {stats.put_bytes / 1e6:.1f} MB")


def report(name: str, matrix: np.ndarray, lower: np.ndarray) -> None:
    residual = np.linalg.norm(matrix - lower @ lower.T) / np.linalg.norm(matrix)
    print(f"{name}: |A - LL^T| / |A| is below 1e-14: {residual < 1e-14}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "scheduler", nargs="?", help="scheduler file of a Dask cluster; without, two local workers"
    )
    parser.add_argument("--n", type=int, default=1200, help="rows of the matrix; 1200")
    parser.add_argument("--block", type=int, default=300, help="rows of a tile; 300")
    return parser.parse_args()


# Dask's workers import this file too.
if __name__ == "__main__":
    main()
