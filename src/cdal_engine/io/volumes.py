"""Volumes: what NIfTI and DICOM series share, and labels back in a volume's own space."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CdalError
from .levels import Level
from .source import Pixels, Source

__all__ = [
    "directions",
    "needed",
    "says_labels",
    "volume_source",
    "write_placed_labels",
    "write_volume_labels",
]

_SCANNER = 1  # NIfTI's code for coordinates of the scanner


def needed(name: str) -> ModuleType:
    """Import a library of the extra `volumes`.

    Raises
    ------
    CdalError
        If it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise CdalError(
            f"volumes are read with {name}, which is not installed",
            "pip install 'napari-cdal[volumes]'",
        ) from None


def directions(affine: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """Which way each axis of a volume runs.

    Parameters
    ----------
    affine : ndarray
        (4, 4), from voxel indices to millimetres right, anterior, superior.

    Returns
    -------
    tuple of tuple of int
        Of each axis which of right, anterior, superior (0, 1, 2) it comes nearest to, and whether
        along it (1) or against it (-1).
    """
    orientations: Any = needed("nibabel.orientations")
    return tuple((int(axis), int(way)) for axis, way in orientations.io_orientation(affine))


def volume_source(
    path: Path, reader: str, shape: tuple[int, ...], pixels: Pixels, affine: NDArray[np.float64]
) -> Source:
    """Describe a grayscale volume of one level; see `Source`."""
    source = Source(
        path=path,
        kind="volume",
        reader=reader,
        levels=(Level(shape, (1.0, 1.0, 1.0)),),
        channels=1,
        pixels=pixels,
        affine=affine,
    )
    spacing = " x ".join(f"{each:.4g}" for each in source.spacing or ())
    return replace(source, mpp_source=f"voxels of {spacing} mm")


def write_volume_labels(path: Path, labels: NDArray[np.integer], source: Source) -> None:
    """Write labels as NIfTI so that they overlay exactly on the volume they are of.

    Of a NIfTI file its own qform, sform and their codes are kept; texts of its header are not,
    as they may name a patient.

    Parameters
    ----------
    path : Path
        Ends with .nii or .nii.gz.
    labels : ndarray
        In the order of axes of `source.read()`, not negative.
    source : Source
        The volume.

    Raises
    ------
    CdalError
        If the labels have another shape than the volume.
    """
    if labels.shape != source.shape or source.affine is None:
        raise CdalError(
            f"labels of shape {labels.shape} do not fit the volume's {source.shape}",
            "give labels of every voxel, in the volume's own order of axes",
            source.path,
        )
    nib: Any = needed("nibabel")
    dtype = np.min_scalar_type(int(labels.max(initial=0)))
    if not source.path.is_file() or not isinstance(
        volume := _load(nib, source.path), nib.Nifti1Image
    ):
        write_placed_labels(path, labels, source.affine)
        return
    header = volume.header.copy()
    for text in {"descrip", "aux_file", "db_name", "intent_name"} & set(header.keys()):
        header[text] = b""
    header.extensions.clear()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    nib.save(type(volume)(labels.astype(dtype), None, header), path)


def write_placed_labels(
    path: Path, labels: NDArray[np.integer], affine: NDArray[np.float64]
) -> None:
    """Write labels as NIfTI at a place of their own.

    Parameters
    ----------
    path : Path
        Ends with .nii or .nii.gz.
    labels : ndarray
        (I, J, K), not negative.
    affine : ndarray
        (4, 4), from voxel indices to millimetres right, anterior, superior.
    """
    nib: Any = needed("nibabel")
    dtype = np.min_scalar_type(int(labels.max(initial=0)))
    image = nib.Nifti1Image(labels.astype(dtype), affine, dtype=dtype)
    image.set_qform(affine, _SCANNER)
    image.set_sform(affine, _SCANNER)
    image.header.set_xyzt_units("mm")
    image.header.set_intent("label")
    nib.save(image, path)


def says_labels(path: Path) -> bool:
    """Whether a NIfTI file says of itself that it holds labels; many that do, do not."""
    nib: Any = needed("nibabel")
    return bool(_load(nib, path).header.get_intent()[0] == "label")


def _load(nib: Any, path: Path) -> Any:
    try:
        return nib.load(path)
    except nib.filebasedimages.ImageFileError:  # one file of a DICOM series
        return None
