"""NIfTI volumes, DICOM series and their labels, their axes right, anterior, superior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CdalError
from ..io.dicom import dicom_files
from ..io.discovery import open_source
from ..io.volumes import needed

__all__ = ["VOLUME_SUFFIXES", "is_volume", "read_volume_pair"]

VOLUME_SUFFIXES = (".nii", ".nii.gz")
_CLOSE = 1e-3  # mm that affines may differ by, as float32 headers do


def is_volume(path: Path) -> bool:
    """Whether a file's name is that of a volume, or a folder holds a DICOM series."""
    if path.is_dir():
        return bool(dicom_files(path))
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def read_volume_pair(image: Path, label: Path) -> tuple[NDArray[np.generic], NDArray[np.integer]]:
    """Read a volume and its label map, (I, J, K) each, that lie in the same place.

    Both are turned so that their axes run right, anterior, superior, which changes no value.

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
    if source.affine is None:
        raise CdalError(f"is a {source.kind}, no volume", "use a folder for each series", path)
    voxels = source.read()
    orientations: Any = needed("nibabel.orientations")
    turn = orientations.io_orientation(source.affine)  # towards right, anterior, superior
    placed = source.affine @ orientations.inv_ornt_aff(turn, voxels.shape)
    return orientations.apply_orientation(voxels, turn), placed


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
