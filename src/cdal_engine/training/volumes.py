"""NIfTI volumes and their labels, in their own order of axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CdalError
from ..io.discovery import open_source

__all__ = ["VOLUME_SUFFIXES", "read_volume_pair"]

VOLUME_SUFFIXES = (".nii", ".nii.gz")
_CLOSE = 1e-3  # mm that affines may differ by, as float32 headers do


def read_volume_pair(image: Path, label: Path) -> tuple[NDArray[np.generic], NDArray[np.integer]]:
    """Read a volume and its label map, (I, J, K) each, that lie in the same place.

    Raises
    ------
    CdalError
        If either cannot be read, or the affines differ.
    """
    voxels, affine = _read(image)
    labels, labels_affine = _read(label)
    if voxels.shape == labels.shape and not np.allclose(affine, labels_affine, atol=_CLOSE):
        most = np.abs(affine - labels_affine).max()
        raise CdalError(
            f"the affines of image and label differ by up to {most:.3g}",
            "resample the label onto the image's grid",
            image,
        )
    return voxels, _whole_numbers(labels, label)


def _read(path: Path) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    source = open_source(path)
    assert source.affine is not None  # a volume's, as the suffix says
    return source.read(), source.affine


def _whole_numbers(labels: NDArray[np.generic], path: Path) -> NDArray[np.integer]:
    """Class ids as integers; some programs save them as floats."""
    if labels.dtype.kind not in "buif" or not np.array_equal(labels, np.round(labels)):
        raise CdalError(
            f"labels must be one whole number a voxel, got {labels.dtype}",
            "save class ids as integers",
            path,
        )
    if labels.min(initial=0) < 0:
        raise CdalError(f"label {labels.min()} below 0", "use 0 for the background", path)
    return labels.astype(np.int32)
