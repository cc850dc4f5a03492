"""NIfTI volumes, by nibabel, in their own order of axes."""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CdalError
from .source import Box, Source, check_size, decoding
from .volumes import needed, volume_source

__all__ = ["open_nifti"]

_DENSEST = 1040  # gzip packs 1032 bytes into one at most
_MOST_BYTES = 2**30  # of voxels as they are stored; reading takes twice as many
_MOST_HEADER = 2**24  # bytes before the voxels; nibabel reads them all
_OFFSET = {348: (108, "f"), 540: (168, "q")}  # by the header's size, NIfTI 1 and 2


def open_nifti(path: Path) -> Source:
    """Open a volume in a .nii or .nii.gz file.

    Raises
    ------
    CdalError
        If it is damaged, truncated or too large, or is no single grayscale volume.
    """
    nib = needed("nibabel")
    with decoding(path):
        _check_header(path)
        image = _loaded(nib, path)
        stored = image.shape
        shape = stored[:3] + (1,) * (3 - len(stored))
        if math.prod(stored[3:]) != 1:
            raise CdalError(
                f"holds {math.prod(stored[3:])} volumes ({' x '.join(map(str, stored))})",
                "save each as a file of its own",
            )
        if image.get_data_dtype().kind not in "buif":
            raise CdalError(
                f"voxels of type {image.get_data_dtype()}, no grayscale", "save one channel"
            )
        check_size(shape, path)
        _check_bytes(image, path)
        dtype = np.asanyarray(image.dataobj[(slice(0, 1),) * len(stored)]).dtype
        affine = np.asarray(image.affine, np.float64)
    sound = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) >= 1e-12
    axes: Any = nib.aff2axcodes(affine) if sound else (None,)
    if None in axes:  # also where two voxel axes run as good as the same way
        raise CdalError("its affine matrix is not invertible", "correct its header", path)
    reader = f"nibabel, {type(image).__name__}, axes {''.join(axes)}"
    return volume_source(path, reader, shape, _NiftiPixels(path, shape, dtype), affine)


def _loaded(nib: Any, path: Path) -> Any:
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image | nib.Nifti1Pair):
        raise CdalError(f"is {type(image).__name__}, not NIfTI", "convert it to .nii.gz")
    return image


def _check_header(path: Path) -> None:
    """Refuse texts between header and voxels that take memory by themselves."""
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        header = file.read(352)
    for order in "<>":
        at, kind = _OFFSET.get(struct.unpack_from(f"{order}i", header)[0], (0, ""))
        if kind and not struct.unpack_from(order + kind, header, at)[0] <= _MOST_HEADER:
            raise CdalError("its header is larger than 16 MB", "save the voxels alone")


def _check_bytes(image: Any, path: Path) -> None:
    """Refuse a header that promises more than the file can hold."""
    offset = int(image.dataobj.offset)
    promised = offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    size = path.stat().st_size
    if promised > _MOST_BYTES:
        raise CdalError(
            f"its voxels take {promised >> 20} MB; up to {_MOST_BYTES >> 20} are read",
            "crop it, or save it as int16",
            path,
        )
    if promised > (size * _DENSEST if path.name.endswith(".gz") else size):
        raise CdalError(
            f"the file is truncated: its header promises {promised} bytes, it has {size}",
            "copy or export it again",
            path,
        )


@dataclass(frozen=True)
class _NiftiPixels:
    """Slabs of an uncompressed file; a compressed one is unpacked up to what is asked for."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    def tile(self, level: int) -> tuple[int, ...]:
        return self.shape if self.path.name.endswith(".gz") else (*self.shape[:2], 1)

    def read(self, level: int, box: Box) -> NDArray[np.generic]:
        import nibabel as nib

        image: Any = nib.load(self.path)
        index = box[: len(image.shape)] + (slice(None),) * (len(image.shape) - len(box))
        sizes = [s.stop - s.start for s in box]
        voxels: NDArray[np.generic] = np.asanyarray(image.dataobj[index]).reshape(sizes)
        return voxels.astype(self.dtype, copy=False)
