"""Images, slides and volumes as napari layers: scale, units and orientation as the file says."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from cdal_engine.errors import CdalError
from cdal_engine.io.discovery import open_source

if TYPE_CHECKING:
    from cdal_engine.io.source import Source

    from .results import LayerData

__all__ = ["SOURCE_KEY", "mpp_in_file", "ras_affine", "source_layers", "volume_placement"]

SOURCE_KEY = "cdal_source"  # in a layer's metadata: the file, the order of its axes and its affine
_SHOWN = 0.5, 99.8  # percentiles of a volume's intensities
_TRIED = 256  # pixels decoded at once to see whether the file can be
_TO_WORLD = np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]])  # right, anterior, superior to the below
_AXES = ("superior", "posterior", "left")  # slices, rows down, columns: as radiologists look


def source_layers(source: Source, as_labels: bool = False) -> list[LayerData]:
    """Return the layer of one input: a lazy pyramid for slides, voxels in millimetres for volumes.

    Parameters
    ----------
    source : Source
    as_labels : bool
        Whether a volume's voxels are labels.

    Raises
    ------
    CdalError
        If its pixels cannot be decoded; of a slide a part is tried.
    """
    arguments: dict[str, Any] = {"name": source.path.name}
    facts: dict[str, Any] = {
        "path": str(source.path),
        "reader": source.reader,
        "mpp_source": source.mpp_source,
    }
    if source.affine is not None:
        placement, axes = volume_placement(source.affine)
        facts |= {"axes": axes, "affine": source.affine}
        arguments |= {**placement, "metadata": {SOURCE_KEY: facts}}
        voxels = source.read().transpose(axes)
        if as_labels:
            return [(voxels, arguments, "labels")]
        low, high = np.percentile(voxels[np.isfinite(voxels)], _SHOWN) if voxels.size else (0, 0)
        if low < high:  # a few bright voxels would leave the rest black
            arguments["contrast_limits"] = (float(low), float(high))
        return [(voxels, arguments, "image")]
    last = len(source.levels) - 1
    source.read(last, tuple(slice(n // 2, n // 2 + _TRIED) for n in source.levels[last].shape))
    levels = [source.level_array(level) for level in range(len(source.levels))]
    known = source.mpp is not None
    arguments |= {
        "rgb": source.channels == 3,
        "multiscale": len(levels) > 1,
        "scale": (source.mpp or 1.0,) * 2,
        "units": ("micrometer" if known else "pixel",) * 2,
        "metadata": {SOURCE_KEY: facts},
    }
    return [(levels if len(levels) > 1 else levels[0], arguments, "image")]


def mpp_in_file(path: Path, size: tuple[int, int]) -> float | None:
    """Micrometres per pixel as the file of a plane says; napari reads a TIFF or PNG without.

    None if it is a folder, which may take long and whose readers say how large pixels are, is no
    image any more, or one of another size (H, W).
    """
    if path.is_file():
        with suppress(CdalError):
            source = open_source(path)
            return source.mpp if tuple(source.shape) == size else None
    return None


def volume_placement(affine: np.ndarray[Any, Any]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Where a volume lies in the viewer, and which of the file's axes each layer axis is.

    Each layer axis is the file's that comes nearest to superior, posterior, left; the rest of the
    turn, flips included, is in the layer's `affine`, so that no voxel is moved in memory.

    Parameters
    ----------
    affine : ndarray
        (4, 4), from voxel indices to millimetres right, anterior, superior.
    """
    directions = _TO_WORLD @ affine[:3, :3]
    spacing = np.linalg.norm(directions, axis=0)
    _, axes = linear_sum_assignment(-np.abs(directions / spacing))
    world = np.eye(4)
    world[:3, :3] = (directions / spacing)[:, axes]
    world[:3, 3] = _TO_WORLD @ affine[:3, 3]
    placement = {
        "scale": tuple(spacing[axes].tolist()),
        "affine": world,
        "units": ("millimeter",) * 3,
        "axis_labels": _AXES,
    }
    return placement, tuple(int(axis) for axis in axes)


def ras_affine(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Turn a (4, 4) matrix from voxels to the viewer's millimetres into one to R, A, S."""
    result = np.eye(4)
    result[:3] = _TO_WORLD.T @ matrix[:3]
    return result
