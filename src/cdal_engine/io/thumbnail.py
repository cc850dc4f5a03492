"""A small picture of an input, averaged from its levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import CdalError

if TYPE_CHECKING:
    from .source import Source

__all__ = ["thumbnail"]

_AT_ONCE = 16e6  # pixels read at a time


def thumbnail(source: Source, max_edge: int) -> NDArray[np.generic]:
    """Return (H, W) or (H, W, 3), of the input's type, its longer edge at most `max_edge`.

    Parameters
    ----------
    source : Source
    max_edge : int
        In pixels; an image that is smaller stays as it is.

    Raises
    ------
    CdalError
        If the pixels cannot be decoded.
    """
    if max_edge < 1:
        raise CdalError(f"max_edge must be at least 1 pixel, got {max_edge}")
    if source.kind == "volume":
        middle = source.shape[2] // 2
        rows, columns = source.shape[:2]
        box = (slice(0, rows), slice(0, columns), slice(middle, middle + 1))
        return _resized(source.read(0, box)[..., 0], max_edge)
    large = [i for i, level in enumerate(source.levels) if max(level.shape) >= max_edge]
    level = max(large, key=lambda i: source.levels[i].downsample, default=0)
    return _resized(_shrunk(source, level, max_edge), max_edge)


def _shrunk(source: Source, level: int, max_edge: int) -> NDArray[np.generic]:
    """Read a level in bands and average whole blocks, so that a slide never lies in memory."""
    height, width = source.levels[level].shape
    factor = max(max(height, width) // max_edge, 1)
    rows = max(int(_AT_ONCE / width) // factor, 1) * factor
    columns = max(int(_AT_ONCE / min(rows, height)) // factor, 1) * factor
    bands = []
    for y in range(0, height, rows):
        across = range(0, width, columns)
        boxes = [
            (slice(y, min(y + rows, height)), slice(x, min(x + columns, width))) for x in across
        ]
        bands.append(np.concatenate([_averaged(source.read(level, b), factor) for b in boxes], 1))
    return np.concatenate(bands)


def _averaged(pixels: NDArray[np.generic], factor: int) -> NDArray[np.generic]:
    """Average blocks of factor x factor; blocks cut off by the edge are averaged as they are."""
    if factor == 1:
        return pixels
    sums = pixels.astype(np.float64)
    for axis in (0, 1):
        starts = np.arange(0, sums.shape[axis], factor)
        sizes = np.diff([*starts, sums.shape[axis]])
        sums = np.add.reduceat(sums, starts, axis)
        sums /= sizes.reshape([-1 if i == axis else 1 for i in range(sums.ndim)])
    return _as_type(sums, pixels.dtype)


def _resized(pixels: NDArray[np.generic], max_edge: int) -> NDArray[np.generic]:
    height, width = pixels.shape[:2]
    zoom = max_edge / max(height, width)
    if zoom >= 1:
        return pixels
    size = (max(round(width * zoom), 1), max(round(height * zoom), 1))
    smaller = cv2.resize(pixels.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return _as_type(np.asarray(smaller), pixels.dtype)


def _as_type(values: NDArray[np.floating], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    return (np.rint(values) if dtype.kind in "bui" else values).astype(dtype)
