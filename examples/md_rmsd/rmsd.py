"""RMSD between protein structures after optimal superposition, in plain NumPy.

The tasks of this example run on workers, so this file imports only what a worker has.

The RMSD of two centred structures a and b of n atoms, minimised over all rotations, needs only
the 3 x 3 matrix C = a b^T (Kabsch 1976, 1978):

    RMSD^2 = (|a|^2 + |b|^2 - 2 (s1 + s2 + sign(det C) s3)) / n

where s1 >= s2 >= s3 are the singular values of C; the sign forbids a reflection. A strip of the
all-to-all matrix is then one matrix product, and one SVD of many 3 x 3 matrices.
"""

from __future__ import annotations

import os
import time
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def centred(coordinates: NDArray[np.floating]) -> Floats:
    """Return structures with their centroids at the origin, laid out for `rmsd_rows`.

    Args:
        coordinates: Shape (frames, atoms, 3).

    Returns:
        Shape (frames, 3, atoms), C-contiguous: reshaping it to (3 frames, atoms) copies nothing, so
        that the C of every pair in a strip come from one matrix product.
    """
    structures = np.swapaxes(np.asarray(coordinates, dtype=np.float64), 1, 2)
    return np.ascontiguousarray(structures - structures.mean(axis=2, keepdims=True))


def rmsd_rows(structures: Floats, start: int, stop: int) -> Floats:
    """Return rows `start` to `stop` of the all-to-all RMSD matrix.

    Args:
        structures: All frames, as `centred` returns them.
        start: First row.
        stop: One past the last row.

    Returns:
        Shape (stop - start, frames), in the unit of the coordinates.
    """
    frames, _, atoms = structures.shape
    flat = structures.reshape(3 * frames, atoms)
    products = flat[3 * start : 3 * stop] @ flat.T
    c = products.reshape(stop - start, 3, frames, 3).swapaxes(1, 2)

    overlap = np.linalg.svd(c, compute_uv=False)
    overlap[..., 2] *= np.sign(np.linalg.det(c))
    vectors = structures.reshape(frames, 1, 3 * atoms)
    square = (vectors @ vectors.swapaxes(1, 2))[:, 0, 0]
    total = square[start:stop, np.newaxis] + square - 2 * overlap.sum(axis=-1)
    # Rounding leaves identical structures a hair below zero.
    rows: Floats = np.sqrt(np.maximum(total, 0) / atoms)
    return rows


def strips(frames: int, count: int) -> list[tuple[int, int]]:
    """Return `count` row ranges (start, stop) of nearly equal length that cover all frames."""
    edges = np.linspace(0, frames, count + 1).round().astype(int).tolist()
    return list(pairwise(edges))


def rehearse(structures: Floats, turn: int) -> int:
    """Do one row, for the imports and connections that come with it; return the process id.

    Args:
        structures: As for `rmsd_rows`.
        turn: Makes calls differ, so that no framework answers one from another's result.
    """
    rmsd_rows(structures, 0, 1)
    time.sleep(0.1)  # Long enough that one idle worker cannot take every call.
    return os.getpid()
