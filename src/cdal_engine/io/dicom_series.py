"""DICOM series as volumes, by SimpleITK, ordered by where the slices lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CdalError
from .dicom import dicom_files, is_uncompressed
from .source import Box, Source, check_size, decoding
from .volumes import needed, volume_source

__all__ = ["open_dicom_series"]

_UNEVEN = 0.02  # of the distance between slices; positions are written with few digits
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts to the left and posterior


@dataclass(frozen=True)
class _Slice:
    file: str
    size: tuple[int, ...]
    origin: NDArray[np.float64]
    axes: NDArray[np.float64]  # (3, 3): a column for each step along x, y and z


def open_dicom_series(path: Path) -> Source:
    """Open a series by its folder or one of its files.

    Raises
    ------
    CdalError
        If there are several series, slices are missing, or files are damaged.
    """
    sitk: Any = needed("SimpleITK")
    with decoding(path):
        slices = [_header(sitk, file) for file in _files(sitk, path)]
        ordered, affine = _stacked(slices, path)
        first = ordered[0]
        shape = (*first.size[:2], first.size[2] * len(ordered))
        check_size(shape, path)
        pixels = _SeriesPixels(tuple(s.file for s in ordered), shape, _dtype(sitk, first.file))
    reader = f"SimpleITK, DICOM series of {len(ordered)} file(s)"
    return volume_source(path, reader, shape, pixels, affine)


def _files(sitk: Any, path: Path) -> list[str]:
    """Files of the one series in a folder, or of that which `path` belongs to."""
    folder = path if path.is_dir() else path.parent
    reader = sitk.ImageSeriesReader
    series: list[list[str]] = [
        list(reader.GetGDCMSeriesFileNames(str(folder), uid))
        for uid in reader.GetGDCMSeriesIDs(str(folder))
    ]
    known = {Path(file).name for files in series for file in files}
    lost = [file for file in dicom_files(folder) if file.name not in known]
    if lost:  # left out in silence by GDCM, where it cannot read them
        raise CdalError("cannot be decoded, it is damaged or truncated", "copy it again", lost[0])
    if path.is_dir():
        if len(series) != 1:
            raise CdalError(
                f"the folder holds {len(series)} DICOM series",
                "give one file of the series meant, by its name",
            )
        return series[0]
    for files in series:
        if path.name in {Path(file).name for file in files}:
            return files
    raise CdalError("is no image of a DICOM series", "check the file", path)


def _reader(sitk: Any, file: str) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(file)
    return reader


def _header(sitk: Any, file: str) -> _Slice:
    """Where a slice lies; nothing else of its header is kept."""
    reader = _reader(sitk, file)
    reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise CdalError("holds colour frames, no grayscale volume", "save them as images")
    size, spacing = reader.GetSize(), np.array(reader.GetSpacing())
    _check_bytes(reader, size, Path(file))
    origin = np.array(reader.GetOrigin(), np.float64)
    axes = np.array(reader.GetDirection(), np.float64).reshape(len(size), -1) * spacing
    return _Slice(file, (*size, 1)[:3], origin, axes)


def _check_bytes(reader: Any, size: tuple[int, ...], path: Path) -> None:
    """Refuse a slice with fewer bytes than its size asks for: GDCM fills the rest with zeros."""
    bits = int(reader.GetMetaData("0028|0100")) if reader.HasMetaDataKey("0028|0100") else 8
    promised, found = math.prod(size) * bits // 8, path.stat().st_size
    if is_uncompressed(path) and promised > found:
        raise CdalError(
            f"is truncated: its header promises {promised} bytes, it has {found}",
            "copy it again",
            path,
        )


def _dtype(sitk: Any, file: str) -> np.dtype[np.generic]:
    return np.asarray(sitk.GetArrayFromImage(_reader(sitk, file).Execute())).dtype


def _stacked(slices: list[_Slice], path: Path) -> tuple[list[_Slice], NDArray[np.float64]]:
    """Order the slices by position; (4, 4) from (x, y, z) indices to millimetres RAS."""
    first = slices[0]
    alike = all(s.size == first.size and np.allclose(s.axes, first.axes, 0, 1e-3) for s in slices)
    if not alike or (first.size[2] > 1 and len(slices) > 1):
        raise CdalError(
            "its slices differ in size or orientation", "keep one stack in the folder", path
        )
    affine = np.eye(4)
    affine[:3, :3] = first.axes
    normal = np.cross(first.axes[:, 0], first.axes[:, 1])
    normal /= np.linalg.norm(normal)
    ordered = sorted(slices, key=lambda s: float(s.origin @ normal))
    if len(ordered) > 1:
        steps = np.diff([s.origin for s in ordered], axis=0)
        along = steps @ normal
        typical = float(np.median(along))
        if along.min() < 1e-3:
            raise CdalError(
                "holds several slices at one position", "keep one time or echo in the folder", path
            )
        if np.abs(along / typical - 1).max() > _UNEVEN:
            raise CdalError(
                f"slices are missing: steps from {along.min():.4g} to {along.max():.4g} mm",
                "copy the series again, or resample it to even steps",
                path,
            )
        affine[:3, 2] = steps.mean(axis=0)
    affine[:3, 3] = ordered[0].origin
    return ordered, _TO_RAS @ affine


@dataclass(frozen=True)
class _SeriesPixels:
    """Slices are decoded one by one."""

    files: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    def tile(self, level: int) -> tuple[int, ...]:
        return (*self.shape[:2], 1 if len(self.files) > 1 else self.shape[2])

    def read(self, level: int, box: Box) -> NDArray[np.generic]:
        import SimpleITK as sitk  # noqa: N813 - its own habit

        x, y, z = box
        if len(self.files) == 1:
            return self._decoded(sitk, 0)[box]
        # Slices with a rescale slope of their own may be of another type than the first.
        out = np.empty([s.stop - s.start for s in box], self.dtype)
        for index in range(z.start, z.stop):
            out[..., index - z.start] = self._decoded(sitk, index)[x, y, 0]
        return out

    def _decoded(self, sitk: Any, index: int) -> NDArray[np.generic]:
        pixels = sitk.GetArrayFromImage(_reader(sitk, self.files[index]).Execute())
        return np.asarray(pixels).T.reshape(*self.shape[:2], -1)
