"""In what order objects and regions are looked at: first where the samples disagree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..tiling import Box

__all__ = ["by_disagreement", "regions_by_disagreement"]


def by_disagreement(
    agreement: NDArray[np.floating], score: NDArray[np.floating]
) -> NDArray[np.intp]:
    """Order of objects: lowest agreement first, among equals lowest score.

    What is not known (NaN) comes last: one sample has no agreement, a drawn object no score.

    Parameters
    ----------
    agreement, score : ndarray
        (N,) columns of the objects' table.
    """
    return np.lexsort((np.nan_to_num(score, nan=2.0), np.nan_to_num(agreement, nan=2.0)))


def regions_by_disagreement(
    y: NDArray[np.floating],
    x: NDArray[np.floating],
    doubt: NDArray[np.floating],
    shape: tuple[int, int],
    edge: int,
) -> list[Box]:
    """Squares of a grid that hold objects, the most doubt in sum first.

    Parameters
    ----------
    y, x : ndarray
        (N,) centres in pixels.
    doubt : ndarray
        (N,) of each object, 0 for a certain one; NaN counts as 0.
    shape : tuple of int
        (H, W) of the grid. The last squares are moved inwards, so that all are of one size.
    edge : int
        Pixels of a square.
    """
    columns = -(-shape[1] // edge)
    rows = np.clip(y, 0, shape[0] - 1).astype(int) // edge
    cells = rows * columns + np.clip(x, 0, shape[1] - 1).astype(int) // edge
    sums = np.bincount(cells, np.nan_to_num(doubt), minlength=columns * -(-shape[0] // edge))
    held = np.unique(cells)
    first = held[np.argsort(-sums[held], kind="stable")]
    return [_square(*divmod(int(cell), columns), edge, shape) for cell in first]


def _square(row: int, column: int, edge: int, shape: tuple[int, int]) -> Box:
    starts = [max(min(i * edge, n - edge), 0) for i, n in zip((row, column), shape, strict=True)]
    return tuple(slice(s, min(s + edge, n)) for s, n in zip(starts, shape, strict=True))
