"""Slide formats that OpenSlide reads better than tifffile, or alone."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from ..errors import CdalError
from .colour import over_white
from .handles import Handle
from .levels import levels_of
from .source import Box, Source, believed, undecodable

__all__ = ["open_slide", "vendor"]

_NAMED = re.compile(r"^\s*(?:FILE_\d+|INDEXFILE)\s*=(.*)$", re.MULTILINE)  # in Slidedat.ini
_PIECE = 2048  # pixels; OpenSlide composes a region four times as large as the result


def vendor(path: Path) -> str | None:
    """OpenSlide's name of a file's format; None if it knows none."""
    try:
        name: str | None = openslide.OpenSlide.detect_format(path)
    except (openslide.OpenSlideError, OSError):
        return None
    return name


def open_slide(path: Path) -> Source:
    """Open a slide; the label and macro images that it holds beside the levels are left alone.

    Raises
    ------
    CdalError
        If OpenSlide cannot, or would read outside of the slide's folder.
    """
    if path.suffix.lower() == ".mrxs":
        _check_files(path)
    try:
        with openslide.OpenSlide(path) as slide:
            properties = dict(slide.properties)
            shapes = [(height, width) for width, height in slide.level_dimensions]
            steps = [float(step) for step in slide.level_downsamples]
    except openslide.OpenSlideUnsupportedFormatError:
        remedy = "check that the files beside it are complete, or export it as OME-TIFF"
        raise CdalError("OpenSlide does not know this format", remedy, path) from None
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        raise undecodable(error, path) from error
    x, y = (_number(properties, f"openslide.mpp-{axis}") for axis in "xy")
    mpp = believed((x * y) ** 0.5) if x and y else None
    levels = levels_of(shapes, mpp)
    tiles = [
        tuple(int(_number(properties, f"openslide.level[{i}].tile-{n}") or 256) for n in names)
        for i, names in enumerate([("height", "width")] * len(levels))
    ]
    return Source(
        path=path,
        kind="slide",
        reader=f"OpenSlide, {properties.get('openslide.vendor', 'unknown vendor')}",
        levels=levels,
        channels=3,
        pixels=_SlidePixels(path, shapes, steps, tiles),
        mpp=mpp,
        mpp_source="slide properties" if mpp else "not in the file",
        magnification=_number(properties, "openslide.objective-power"),
        bounds=_bounds(properties),
    )


def _check_files(path: Path) -> None:
    """Refuse a MRXS slide whose folder beside it leads elsewhere, by links or by names."""
    root, beside = path.parent.resolve(), path.with_suffix("")
    for file in (beside, *beside.rglob("*")):
        if not file.resolve().is_relative_to(root):
            raise CdalError("is a link that leads out of the slide", "copy what it leads to", file)
    index = beside / "Slidedat.ini"
    if index.is_file():
        names = _NAMED.findall(index.read_text("utf-8", "replace"))
        if any("/" in name or "\\" in name for name in names):
            raise CdalError("names files outside of its folder", "correct or export it", index)


def _number(properties: dict[str, str], key: str) -> float | None:
    try:
        return float(properties[key])
    except (KeyError, ValueError):
        return None


def _bounds(properties: dict[str, str]) -> Box | None:
    """What was scanned of a canvas that is larger."""
    x, y, width, height = (
        _number(properties, f"openslide.bounds-{key}") for key in ("x", "y", "width", "height")
    )
    if x is None or y is None or not width or not height:
        return None
    return slice(int(y), int(y + height)), slice(int(x), int(x + width))


class _SlidePixels:
    """Reads in pieces that always start at the same places.

    Where a level is not smaller by a whole number, OpenSlide interpolates between pixels,
    depending on where a region starts. `steps` are its own, which places regions by them.
    """

    dtype: np.dtype[np.generic] = np.dtype(np.uint8)

    def __init__(
        self,
        path: Path,
        shapes: list[tuple[int, int]],
        steps: list[float],
        tiles: list[tuple[int, ...]],
    ) -> None:
        self._shapes, self._steps, self._tiles = shapes, steps, tiles
        self._slide = Handle(partial(openslide.OpenSlide, path))

    def tile(self, level: int) -> tuple[int, ...]:
        if self._is_whole(level):
            return self._tiles[level]
        return (_PIECE, _PIECE)

    def _is_whole(self, level: int) -> bool:
        return self._steps[level].is_integer()

    def read(self, level: int, box: Box) -> NDArray[np.generic]:
        rows, columns = box
        height, width = self._shapes[level]
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
        for y in range(rows.start // _PIECE * _PIECE, rows.stop, _PIECE):
            for x in range(columns.start // _PIECE * _PIECE, columns.stop, _PIECE):
                piece = (slice(y, min(y + _PIECE, height)), slice(x, min(x + _PIECE, width)))
                both = [
                    slice(max(a.start, b.start), min(a.stop, b.stop))
                    for a, b in zip(box, piece, strict=True)
                ]
                part = both if self._is_whole(level) else piece
                pixels = self._region(level, part[0], part[1])
                kept, place = (
                    tuple(
                        slice(a.start - o.start, a.stop - o.start)
                        for a, o in zip(both, origin, strict=True)
                    )
                    for origin in (part, box)
                )
                out[place] = pixels[kept]
        return out

    def _region(self, level: int, rows: slice, columns: slice) -> NDArray[np.generic]:
        step = self._steps[level]
        corner = (round(columns.start * step), round(rows.start * step))
        size = (columns.stop - columns.start, rows.stop - rows.start)
        try:
            pixels = np.asarray(self._slide().read_region(corner, level, size))
        except openslide.OpenSlideError:
            self._slide.forget()
            raise
        if (pixels[..., 3] == 255).all():
            return pixels[..., :3]
        return over_white(pixels)  # where the scanner saw nothing, alpha is 0
