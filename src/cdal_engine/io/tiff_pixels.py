"""Regions of TIFF pages: only the tiles or strips that they touch are decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..errors import CdalError
from .colour import from_cmyk, from_palette, inverted, over_white
from .handles import Handle
from .source import Box

__all__ = ["TiffPixels", "alpha_of", "candidates", "plain_axes"]

_JPEG = {6, 7, 33007, 34892}  # compressions whose tables may stand apart from the tiles
_MANY = 8  # tiles; fewer are not worth threads


def plain_axes(series: Any) -> str:
    """Axes longer than one; refuses all but one grayscale or colour plane."""
    sizes = list(zip(series.axes, series.shape, strict=True))
    axes = "".join(axis for axis, length in sizes if length > 1 or axis in "YX")
    if axes in ("YX", "YXS", "SYX", "CYX") and axes.count("Y") == 1:
        return axes
    text = " x ".join(f"{n} {a}" for a, n in sizes)
    raise CdalError(
        f"holds a stack ({text}); one 2-D image is read so far", "save one plane as a file"
    )


def alpha_of(page: Any) -> tifffile.EXTRASAMPLE | None:
    """The kind of alpha in the last channel, if it is alpha."""
    kinds = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
    return next((e for e in page.extrasamples if e in kinds), None)


def candidates(tiff: tifffile.TiffFile) -> list[Any]:
    """Pages that may be levels of the first image, from the finest on."""
    pages: list[Any] = [level.pages[0] for level in tiff.series[0].levels]
    if tiff.is_svs or tiff.is_ome:  # of these tifffile knows the pyramid for certain
        return pages
    others: list[Any] = [series.pages[0] for series in tiff.series[1:]]
    # Levels that are not a power of two apart are images of their own to tifffile.
    return pages + [p for p in others if p and p.keyframe.is_reduced and p.keyframe.is_tiled]


class TiffPixels:
    """Pixels of the levels of a TIFF file's first image.

    Parameters
    ----------
    path : Path
    page : tifffile.TiffPage
        Of the first level.
    shapes : list of tuple of int
        (H, W) of the levels in use.
    """

    def __init__(self, path: Path, page: Any, shapes: list[tuple[int, int]]) -> None:
        self._shapes = shapes
        self._file = Handle(partial(_Opened, path, tuple(shapes)))
        palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
        self.dtype: np.dtype[np.generic] = np.dtype(np.uint8) if palette else page.dtype
        # What stands for white in floats is only known from all of them.
        self._at_once = page.dtype.kind == "f" and _is_converted(page)

    def tile(self, level: int) -> tuple[int, ...]:
        """See `Pixels`."""
        if self._at_once:
            return self._shapes[level]
        return _tile(self._file().pages[level].keyframe)

    def read(self, level: int, box: Box) -> NDArray[np.generic]:
        """See `Pixels`."""
        if self._at_once:
            whole: Box = tuple(slice(0, n) for n in self._shapes[level])
            return self._file().read(level, whole)[box]
        return self._file().read(level, box)


class _Opened:
    """The file, open, and the pages of its levels."""

    def __init__(self, path: Path, shapes: tuple[tuple[int, int], ...]) -> None:
        self._tiff = tifffile.TiffFile(path)
        self._lock = threading.RLock()
        levels = {tuple(page.shaped[2:4]): page for page in reversed(candidates(self._tiff))}
        self.pages = [levels[shape] for shape in shapes]

    def close(self) -> None:
        self._tiff.close()

    def read(self, level: int, box: Box) -> NDArray[np.generic]:
        page = self.pages[level]
        keyframe = page.keyframe
        planes, _, height, width, samples = keyframe.shaped
        rows, columns = box
        shape = (planes, rows.stop - rows.start, columns.stop - columns.start, samples)
        if page.nodata:
            out = np.full(shape, page.nodata, keyframe.dtype)
        else:
            out = np.zeros(shape, keyframe.dtype)
        high, wide = _tile(keyframe)
        for decoded, (plane, _, y, x, _), _ in self._decoded(page, rows, columns):
            if decoded is None:  # a tile left out because it is empty
                continue
            tile = decoded[0, : min(high, height - y), : min(wide, width - x)]
            top, left = max(rows.start - y, 0), max(columns.start - x, 0)
            part = tile[top : rows.stop - y, left : columns.stop - x]
            y, x = y + top - rows.start, x + left - columns.start
            out[plane, y : y + part.shape[0], x : x + part.shape[1]] = part
        pixels = np.moveaxis(out[..., 0], 0, -1) if planes > 1 else out[0]
        return _to_rgb(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, keyframe)

    def _decoded(self, page: Any, rows: slice, columns: slice) -> Iterator[Any]:
        """Decode the tiles that touch a region; the file is read by one thread at a time."""
        keyframe, file = page.keyframe, page.parent.filehandle
        high, wide = _tile(keyframe)
        planes, _, height, width, _ = keyframe.shaped
        down, across = -(-height // high), -(-width // wide)
        indices = [
            (plane * down + y) * across + x
            for plane in range(planes)
            for y in range(rows.start // high, -(-rows.stop // high))
            for x in range(columns.start // wide, -(-columns.stop // wide))
        ]
        options: dict[str, Any] = {"_fullsize": keyframe.is_tiled}
        if keyframe.compression in _JPEG:
            options |= {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        with self._lock:
            if file.closed:  # OME-TIFF may span several files
                file.open()
        segments = file.read_segments(
            [page.dataoffsets[i] for i in indices],
            [page.databytecounts[i] for i in indices],
            indices,
            lock=self._lock,
        )

        def decode(segment: tuple[bytes | None, int]) -> Any:
            return keyframe.decode(*segment, **options)

        if len(indices) < _MANY or keyframe.maxworkers < 2:
            yield from map(decode, segments)
            return
        with ThreadPoolExecutor(keyframe.maxworkers) as pool:
            batch: list[Any] = []
            for segment in segments:
                batch.append(segment)
                if len(batch) == 16 * keyframe.maxworkers:
                    yield from pool.map(decode, batch)
                    batch = []
            yield from pool.map(decode, batch)


def _tile(page: Any) -> tuple[int, int]:
    """Rows and columns of what is decoded at once: a tile, or a strip."""
    _, _, height, width, _ = page.shaped
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, height), width


def _is_converted(page: Any) -> bool:
    kinds = (tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.SEPARATED)
    return page.photometric in kinds or alpha_of(page) is not None


def _to_rgb(pixels: NDArray[np.generic], page: Any) -> NDArray[np.generic]:
    """Resolve palette, ink, inverted and transparent pixels."""
    photometric = page.photometric
    if photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        return from_palette(pixels, page.colormap)
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        return inverted(pixels)
    if photometric == tifffile.PHOTOMETRIC.SEPARATED:
        return from_cmyk(pixels)
    alpha = alpha_of(page)
    if alpha is None:
        return pixels
    return over_white(pixels, premultiplied=alpha == tifffile.EXTRASAMPLE.ASSOCALPHA)
