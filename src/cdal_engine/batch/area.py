"""Where on a slide objects are counted, decided pixel by pixel whatever the blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..io.regions import Regions
from ..tiling import Box

__all__ = ["Area"]


@dataclass(frozen=True, eq=False)
class Area:
    """What of a slide counts: tissue, inside the regions, where it was scanned.

    A pixel counts if its centre lies there; an object, if its marker's first pixel does.

    Attributes
    ----------
    shape : tuple of int
        (H, W) of level 0.
    pixel : float
        Edge of the grid's pixels in level-0 pixels.
    tissue : ndarray or None
        (h, w) mask of the whole slide; None: all of it.
    regions : Regions or None
    bounds : tuple of slice or None
        Rows and columns of level 0.
    """

    shape: tuple[int, ...]
    pixel: float
    tissue: NDArray[np.bool_] | None = None
    regions: Regions | None = None
    bounds: Box | None = None

    def inside(self, box: Box) -> NDArray[np.bool_]:
        """Which pixels of a box of the grid count."""
        y, x = (np.arange(s.start + 0.5, s.stop) * self.pixel for s in box)
        mask = np.ones((len(y), len(x)), bool)
        if self.tissue is not None:
            rows, columns = (self._on_tissue(places, axis) for axis, places in enumerate((y, x)))
            mask = self.tissue[rows[:, None], columns]
        if self.bounds is not None:
            row, column = (
                (s.start <= places) & (places < s.stop)
                for s, places in zip(self.bounds, (y, x), strict=True)
            )
            mask &= row[:, None] & column
        if self.regions is not None and mask.any():
            mask &= self.regions.inside(y, x)
        return mask

    def touches(self, box: Box) -> bool:
        """Whether any pixel of a box of the grid counts."""
        if self.tissue is not None:
            ends = [np.array([s.start + 0.5, s.stop - 0.5]) * self.pixel for s in box]
            rows, columns = (self._on_tissue(places, axis) for axis, places in enumerate(ends))
            near = self.tissue[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]
            if not near.any():
                return False
            if self.regions is None and self.bounds is None and near.all():
                return True  # without looking at every pixel
        return bool(self.inside(box).any())

    def _on_tissue(self, places: NDArray[np.floating], axis: int) -> NDArray[np.int64]:
        """Rows or columns of the tissue mask at places along an axis of level 0."""
        assert self.tissue is not None
        small, large = self.tissue.shape[axis], self.shape[axis]
        return np.asarray(np.minimum(places * (small / large), small - 1).astype(np.int64))
