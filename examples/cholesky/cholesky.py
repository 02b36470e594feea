"""Cholesky factorization by tiles, as tasks of a Dask client: of any, plain or not.

A matrix A that is symmetric and positive definite is L @ L.T, with L lower triangular. Column by
column of tiles: the tile on the diagonal is factored, those below are solved with it, and what
they contribute is taken off all that remain to their right. So a task needs at most three tiles,
and a column's tasks can run at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Of the lower triangle; row by row, each up to its diagonal.
Tiles = list[list[Any]]


def positive_definite(n: int, seed: int = 0) -> np.ndarray:
    """Return a random matrix that has a Cholesky factor, shape (n, n)."""
    random = np.random.default_rng(seed).normal(size=(n, n))
    return random @ random.T + n * np.eye(n)


def factor(client: Any, matrix: np.ndarray, block: int) -> Tiles:
    """Return futures of the tiles of L, the Cholesky factor of `matrix`.

    With t rows of tiles, t(t + 1)/2 tiles are arguments, and there are t(t + 1)(t + 2)/6 tasks.

    Args:
        client: Has `submit`, as `distributed.Client`.
        matrix: Symmetric and positive definite; only its lower triangle is read.
        block: Rows and columns of a tile; those at the edge may be smaller.
    """
    starts = range(0, len(matrix), block)
    tiles: Tiles = [
        [matrix[i : i + block, j : j + block] for j in starts if j <= i] for i in starts
    ]
    for k in range(len(tiles)):
        tiles[k][k] = client.submit(factored, tiles[k][k])
        for i in range(k + 1, len(tiles)):
            tiles[i][k] = client.submit(solved, tiles[k][k], tiles[i][k])
        for i in range(k + 1, len(tiles)):
            for j in range(k + 1, i + 1):
                tiles[i][j] = client.submit(reduced, tiles[i][j], tiles[i][k], tiles[j][k])
    return tiles


def assembled(client: Any, tiles: Tiles) -> np.ndarray:
    """Return L, for the futures that `factor` has returned."""
    rows = client.gather(tiles)
    edges = np.cumsum([0] + [len(row[0]) for row in rows])
    lower = np.zeros((edges[-1], edges[-1]))
    for i, row in enumerate(rows):
        lower[edges[i] : edges[i + 1], : edges[i + 1]] = np.hstack(row)
    return lower


# -- the tasks


def factored(tile: np.ndarray) -> np.ndarray:
    return np.linalg.cholesky(tile)


def solved(diagonal: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """Return x such that x @ diagonal.T is the tile."""
    return np.linalg.solve(diagonal, tile.T).T


def reduced(tile: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return tile - left @ right.T
