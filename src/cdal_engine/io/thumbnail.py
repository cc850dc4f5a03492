"""A small picture of an input, averaged from its levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import CdalError

if TYPE_CHECKING:
    from .source import Source

__all__ = ["thumbnail"]

_AT_ONCE = 8e6  # pixels read at a time
_AS_FLOAT = 1e6  # pixels summed at a time, in 64 bits


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
    large = [i for i, level in enumerate(source.levels) if max(level.shape[:2]) >= max_edge]
    level = max(large, key=lambda i: source.levels[i].step, default=0)
    height, width = source.levels[level].shape[:2]
    zoom = min(max_edge / max(height, width), 1.0)
    rows, columns = (max(round(n * zoom), 1) for n in (height, width))
    down, across = np.linspace(0, height, rows + 1), np.linspace(0, width, columns + 1)
    # In bands, so that a slide never lies in memory.
    band = max(int(_AT_ONCE / width * rows / height), 1)
    parts = []
    for start in range(0, rows, band):
        edges = down[start : start + band + 1]
        first, last = int(edges[0]), int(np.ceil(edges[-1]))
        pixels = _plane(source, level, slice(first, last), slice(0, width))
        if zoom < 1:
            few = max(int(_AS_FLOAT / width), 1)
            lines = [pixels[i : i + few] for i in range(0, len(pixels), few)]
            narrow = np.concatenate([_means(part, across, 1) for part in lines])
            pixels = _means(narrow, edges - first, 0)
        parts.append(_as_type(pixels, source.pixels.dtype))
    return np.concatenate(parts)


def _plane(source: Source, level: int, rows: slice, columns: slice) -> NDArray[np.generic]:
    if source.kind != "volume":
        return source.read(level, (rows, columns))
    middle = source.shape[2] // 2
    return source.read(level, (rows, columns, slice(middle, middle + 1)))[..., 0]


def _means(
    pixels: NDArray[np.generic], edges: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    """Mean between each two neighbouring edges along an axis, parts of pixels counted as parts."""
    values = np.moveaxis(pixels, axis, 0).astype(np.float64)
    sums = np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)])
    whole = np.floor(edges).astype(np.int64)
    shape = (-1,) + (1,) * (values.ndim - 1)
    rest = (edges - whole).reshape(shape) * values[np.minimum(whole, len(values) - 1)]
    means = np.diff(sums[whole] + rest, axis=0) / np.diff(edges).reshape(shape)
    return np.moveaxis(means, 0, axis)


def _as_type(values: NDArray[np.generic], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    return (np.rint(values) if dtype.kind in "bui" else values).astype(dtype)
