"""Slide formats that are no TIFF, by OpenSlide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from .colour import over_white
from .source import Source, believed, check_size, undecodable

__all__ = ["open_slide"]


def open_slide(path: Path) -> Source:
    """Open a slide at its full resolution.

    Raises
    ------
    CdalError
        If OpenSlide cannot, or the slide is too large.
    """
    try:
        with openslide.OpenSlide(path) as slide:
            properties, (width, height) = dict(slide.properties), slide.dimensions
            levels = slide.level_count
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        raise undecodable(error, path) from error
    check_size((height, width), path)
    x, y = (_number(properties, f"openslide.mpp-{axis}") for axis in "xy")
    mpp = believed((x * y) ** 0.5) if x and y else None
    return Source(
        path=path,
        kind="slide",
        reader=f"OpenSlide, {properties.get('openslide.vendor', 'unknown vendor')}",
        shape=(height, width),
        channels=3,
        mpp=mpp,
        mpp_source="slide properties" if mpp else "not in the file",
        magnification=_number(properties, "openslide.objective-power"),
        levels=levels,
        read=lambda: _read(path),
    )


def _number(properties: dict[str, str], key: str) -> float | None:
    try:
        return float(properties[key])
    except (KeyError, ValueError):
        return None


def _read(path: Path) -> NDArray[np.generic]:
    try:
        with openslide.OpenSlide(path) as slide:
            # Where the scanner saw nothing, alpha is 0.
            return over_white(np.asarray(slide.read_region((0, 0), 0, slide.dimensions)))
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        raise undecodable(error, path) from error
