"""Levels of a pyramid: how they lie on the first, and which one a model reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Level", "best_level", "downsample", "levels_of"]

_SAME = 0.02  # as `preparation.grid_scale`: closer than this is the model's own resolution
_OFF = 2.0  # pixels; a level this far from the first one's proportions is another picture


@dataclass(frozen=True)
class Level:
    """One resolution of an image.

    Attributes
    ----------
    shape : tuple of int
        (H, W); (I, J, K) of a volume.
    downsample : tuple of float
        Pixels of the first level to one of this, along rows and columns. Pixel i covers
        [i, i + 1) · downsample of the first level: all levels share the corner.
    mpp : float or None
        Micrometres per pixel.
    """

    shape: tuple[int, ...]
    downsample: tuple[float, ...] = (1.0, 1.0)
    mpp: float | None = None

    @property
    def step(self) -> float:
        """One factor for all axes."""
        return sum(self.downsample) / len(self.downsample)


def downsample(first: Sequence[int], shape: Sequence[int]) -> tuple[float, ...]:
    """Pixels of `first` to one of `shape`, along each axis.

    Scanners shrink by a whole number and round the size: 33014 / 8253 stands for 4, not 4.0002,
    which would be two pixels off at the far edge. Otherwise it is the ratio of the sizes.
    """
    ratios = tuple(a / b for a, b in zip(first, shape, strict=True))
    whole = round(sum(ratios) / len(ratios))
    if whole > 0 and all(abs(a / whole - b) < 1 for a, b in zip(first, shape, strict=True)):
        return (float(whole),) * len(ratios)
    return ratios


def levels_of(shapes: Iterable[tuple[int, int]], mpp: float | None) -> tuple[Level, ...]:
    """Levels of these shapes, the first at `mpp`."""
    shapes = list(shapes)
    steps = [downsample(shapes[0], shape) for shape in shapes]
    return tuple(
        Level(shape, step, None if mpp is None else mpp * sum(step) / 2)
        for shape, step in zip(shapes, steps, strict=True)
    )


def belongs(first: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether `shape` can be `first` made smaller: a label or macro image is shaped otherwise."""
    if any(not 0 < b <= a for a, b in zip(first, shape, strict=True)):
        return False
    (y, x) = (a / b for a, b in zip(first, shape, strict=True))
    return abs(first[1] / y - shape[1]) < _OFF or abs(first[0] / x - shape[0]) < _OFF


def best_level(levels: Sequence[Level], mpp: float | None, wanted: float | None) -> int:
    """Index of the coarsest level that still shows all that a model sees.

    Parameters
    ----------
    levels : sequence of Level
    mpp : float or None
        Micrometres per pixel of the first level.
    wanted : float or None
        The model's; a level up to 2 % coarser counts as being at it.

    Returns
    -------
    int
        0 where either is unknown, or where no other level is fine enough.
    """
    if mpp is None or wanted is None:
        return 0
    best = 0
    for index, level in enumerate(levels):
        fine = all(mpp * step < wanted * (1 + _SAME) for step in level.downsample)
        if fine and _is_even(level) and level.downsample > levels[best].downsample:
            best = index
    return best


def _is_even(level: Level) -> bool:
    """Whether one factor for both axes is right to half a pixel at the far corner."""
    low, high = min(level.downsample), max(level.downsample)
    return (high / low - 1) * max(level.shape) <= 0.5
