"""DICOM whole-slide images, by wsidicom; by OpenSlide where that is not installed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CdalError
from .handles import Handle
from .levels import levels_of
from .source import Box, Source, believed, decoding

__all__ = ["open_dicom_slide"]


def open_dicom_slide(path: Path, files: list[Path]) -> Source:
    """Open the slide that `path`, a folder or one of its files, stands for.

    Of all that the files say only sizes, spacing and the objective are kept.

    Parameters
    ----------
    path : Path
    files : list of Path
        Whole-slide files in the folder; or `path` alone.

    Raises
    ------
    CdalError
        If there are several slides, or they are damaged.
    """
    try:
        import pydicom
        import wsidicom  # noqa: F401 - is it there?
    except ImportError:
        from .slides import open_slide

        return _renamed(open_slide(files[0]), path)
    with decoding(path):
        files = _scan_of(path, files, pydicom)
        try:
            return _open(path, files)
        except NotImplementedError:
            # Levels that are no powers of two apart. What is damaged is not given to OpenSlide,
            # which can crash on it.
            from .slides import open_slide

            with suppress(CdalError):
                return _renamed(open_slide(files[0]), path)
            raise


def _renamed(source: Source, path: Path) -> Source:
    return replace(source, path=path)


def _scan_of(path: Path, files: list[Path], pydicom: Any) -> list[Path]:
    """Files of the scan itself: thumbnail, label and overview are left closed."""
    tags = ["SeriesInstanceUID", "ImageType"]

    def header(file: Path) -> tuple[str, list[str]]:
        dataset = pydicom.dcmread(file, specific_tags=tags, stop_before_pixels=True)
        return str(dataset.get("SeriesInstanceUID", "")), list(dataset.get("ImageType", []))

    if not path.is_dir():
        from .dicom import dicom_files

        wanted = header(path)[0]
        found = [(file, *header(file)) for file in dicom_files(path.parent)]
        found = [item for item in found if item[1] == wanted]
    else:
        found = [(file, *header(file)) for file in files]
    scans = [(file, series) for file, series, kind in found if kind[2:3] == ["VOLUME"]]
    count = len({series for _, series in scans})
    if not scans:
        raise CdalError("holds no scan, only a label or overview", "give all files of the slide")
    if count > 1:
        raise CdalError(
            f"the folder holds {count} slides", "give one file of the slide meant, by its name"
        )
    return [file for file, _ in scans]


def _open(path: Path, files: list[Path]) -> Source:
    from wsidicom import WsiDicom

    with WsiDicom.open(files) as slide:
        groups = list(slide.levels)
        shapes = [(g.size.height, g.size.width) for g in groups]
        tiles = [(g.tile_size.height, g.tile_size.width) for g in groups]
        image = groups[0].default_instance.image_data
        mpp = believed((groups[0].mpp.width * groups[0].mpp.height) ** 0.5)
        channels = int(image.samples_per_pixel)
        sample = np.asarray(slide.read_region((0, 0), groups[0].level, (1, 1)))
        indices = [int(g.level) for g in groups]
        count = len(groups[0].optical_paths), len(groups[0].focal_planes)
    if count[0] > 1:
        raise CdalError(
            f"holds {count[0]} optical paths, as of fluorescence", "export one as an image"
        )
    return Source(
        path=path,
        kind="slide",
        reader=f"wsidicom, DICOM whole-slide image{_planes(count[1])}",
        levels=levels_of(shapes, mpp),
        channels=channels,
        pixels=_DicomPixels(files, indices, tiles, sample.dtype),
        mpp=mpp,
        mpp_source="DICOM PixelSpacing" if mpp else "not in the file",
        magnification=_objective(files[0]),
    )


def _planes(count: int) -> str:
    return f", middle one of {count} focal planes" if count > 1 else ""


def _objective(file: Path) -> float | None:
    import pydicom

    dataset = pydicom.dcmread(file, specific_tags=["OpticalPathSequence"], stop_before_pixels=True)
    for path in dataset.get("OpticalPathSequence", []):
        power = path.get("ObjectiveLensPower")
        if power:
            return float(power)
    return None


def _opened(files: tuple[Path, ...]) -> Any:
    from wsidicom import WsiDicom

    return WsiDicom.open(files)


class _DicomPixels:
    """Regions by wsidicom, whose levels are counted in powers of two."""

    def __init__(
        self,
        files: list[Path],
        indices: list[int],
        tiles: list[tuple[int, int]],
        dtype: np.dtype[np.generic],
    ) -> None:
        self.dtype = dtype
        self._indices, self._tiles = indices, tiles
        self._slide = Handle(partial(_opened, tuple(files)))

    def tile(self, level: int) -> tuple[int, ...]:
        return self._tiles[level]

    def read(self, level: int, box: Box) -> NDArray[np.generic]:
        rows, columns = box
        corner = (columns.start, rows.start)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        return np.asarray(self._slide().read_region(corner, self._indices[level], size))
