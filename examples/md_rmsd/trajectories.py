"""Coordinates to analyse: the three paths that come with MDAnalysisTests, or a user's own array.

MDAnalysis only reads the files; all computing is in `rmsd.py`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Adenylate kinase going from its closed to its open shape: twice by dynamic importance sampling
# (DIMS), once by targeted molecular dynamics (TMD). Topology and trajectory in MDAnalysisTests.
_PATHS = {
    "DIMS 1": ("PSF", "DCD"),
    "DIMS 2": ("PSF", "DCD2"),
    "TMD": ("PSF_NAMD_GBIS", "DCD_NAMD_GBIS"),
}


class DataError(ValueError):
    """A file given with --data is not an array of coordinates.

    Attributes:
        path: The file.
        problem: What is wrong with it, and what is needed.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass(frozen=True)
class Paths:
    """Frames of one or more trajectories of the same atoms, one after the other.

    Attributes:
        coordinates: Shape (frames, atoms, 3), in ångström where the unit is known.
        lengths: Name of each trajectory and how many of the frames are its own.
        unit: Unit of the coordinates; None: not known.
    """

    coordinates: NDArray[np.float64]
    lengths: dict[str, int]
    unit: str | None

    @property
    def in_unit(self) -> str:
        """What to write after a distance: " Å", or nothing."""
        return f" {self.unit}" if self.unit else ""

    def thinned(self, stride: int) -> Paths:
        """Return every `stride`-th frame of each trajectory."""
        ends = np.cumsum(list(self.lengths.values()))[:-1]
        parts = [part[::stride] for part in np.split(self.coordinates, ends)]
        lengths = {name: len(part) for name, part in zip(self.lengths, parts, strict=True)}
        return Paths(np.concatenate(parts), lengths, self.unit)


def adenylate_kinase() -> Paths:
    """Return three transition paths of adenylate kinase: 300 frames of 3,338 atoms.

    The files have 3,341 atoms each, but in TMD three histidines carry their proton on the other
    nitrogen, which also changes the order of their atoms: atoms are matched by residue and name,
    and what only one of the set-ups has is left out.
    """
    import MDAnalysis  # Here: a user with an array of their own needs neither of the two.
    from MDAnalysisTests import datafiles

    coordinates, atoms = {}, {}
    with warnings.catch_warnings():
        # MDAnalysis 2 announces how its DCD reader will behave in 3.0; nothing we use.
        warnings.simplefilter("ignore")
        for path, (topology, trajectory) in _PATHS.items():
            universe = MDAnalysis.Universe(
                getattr(datafiles, topology), getattr(datafiles, trajectory)
            )
            coordinates[path] = universe.trajectory.timeseries(order="fac")
            names = zip(universe.atoms.resids, universe.atoms.names, strict=True)
            atoms[path] = {atom: index for index, atom in enumerate(names)}

    first, *others = atoms.values()
    shared = [atom for atom in first if all(atom in other for other in others)]
    parts = {
        path: coordinates[path][:, [atoms[path][atom] for atom in shared]].astype(np.float64)
        for path in _PATHS
    }
    lengths = {path: len(part) for path, part in parts.items()}
    return Paths(np.concatenate(list(parts.values())), lengths, unit="Å")


def from_file(path: Path) -> Paths:
    """Return the frames in a .npy file.

    Args:
        path: Holds an array of real numbers of shape (frames, atoms, 3).

    Raises:
        DataError: The file cannot be read, or is not such an array.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(path, "no such file") from None
    except (OSError, ValueError, EOFError) as e:
        raise DataError(path, f"not a readable .npy file ({e})") from e
    if not isinstance(array, np.ndarray):
        raise DataError(path, "an archive of arrays (.npz); save one array with numpy.save")
    if array.dtype.kind not in "fiu":
        raise DataError(path, f"holds values of type {array.dtype}; real numbers are needed")
    if array.ndim != 3 or array.shape[2] != 3:
        raise DataError(path, f"has shape {array.shape}; (frames, atoms, 3) is needed")
    if array.shape[0] < 2 or array.shape[1] < 3:
        raise DataError(path, f"has shape {array.shape}; 2 frames of 3 atoms are the least")
    if not np.isfinite(array).all():
        frame = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise DataError(path, f"has a coordinate that is not finite (first in frame {frame})")
    return Paths(array.astype(np.float64), {path.stem: len(array)}, unit=None)
