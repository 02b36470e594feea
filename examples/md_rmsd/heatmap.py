"""The all-to-all RMSD matrix as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")  # No display is needed, and none is looked for.
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from trajectories import Paths


def draw(matrix: NDArray[np.float64], paths: Paths, file: Path) -> None:
    """Write the matrix as an image, its paths delimited and named.

    Args:
        matrix: Shape (frames, frames).
        paths: What it was computed from.
        file: Where to; the suffix chooses the format.
    """
    edges = np.cumsum([0, *paths.lengths.values()])
    with plt.rc_context({"font.size": 9, "axes.linewidth": 0.8, "savefig.dpi": 300}):
        figure, axes = plt.subplots(figsize=(5.6, 4.7), layout="constrained")
        image = axes.imshow(matrix, cmap="viridis", extent=(0, edges[-1], edges[-1], 0))
        for edge in edges[1:-1]:
            axes.axhline(edge, color="white", linewidth=1.2)
            axes.axvline(edge, color="white", linewidth=1.2)

        # Major ticks count the frames of each path; minor ones, further out, carry its name.
        counts = [_round_numbers(length) for length in paths.lengths.values()]
        places = [edge + n for edge, count in zip(edges, counts, strict=False) for n in count]
        labels = [n for count in counts for n in count]
        centres = (edges[:-1] + edges[1:]) / 2
        for axis in (axes.xaxis, axes.yaxis):
            axis.remove_overlapping_locs = False  # A name may well stand below a number.
        axes.set_xticks(places, labels)
        axes.set_yticks(places, labels)
        names = [f"{name}, frame" for name in paths.lengths]
        axes.set_xticks(centres, names, minor=True)
        axes.set_yticks(centres, names, minor=True, rotation=90, va="center")
        axes.tick_params(which="minor", length=0, pad=18, labelsize="medium")
        axes.tick_params(which="minor", axis="y", pad=24)

        bar = figure.colorbar(image, ax=axes, pad=0.03)
        bar.set_label("RMSD after superposition" + (f" ({paths.unit})" if paths.unit else ""))
        bar.outline.set_linewidth(0.8)
        figure.savefig(file)
        plt.close(figure)


def _round_numbers(length: int) -> list[int]:
    """Return two or three frame numbers to mark on a path; none near its end."""
    numbers = MaxNLocator(nbins=3, steps=[1, 2, 5, 10], integer=True).tick_values(0, length)
    return [int(n) for n in numbers if 0 <= n <= 0.9 * length]
