"""Volumes between a layer's order of axes and the one that models of volumes know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdal_engine.errors import CdalError
from cdal_engine.io.volumes import directions

from .planes import Plane

if TYPE_CHECKING:
    from cdal_engine.config import ModelConfig
    from cdal_engine.segmentation import Segmentation
    from cdal_engine.tiling import Box

__all__ = ["Turn", "axes_of", "check_slice", "for_layer", "turn_of"]


def axes_of(plane: Plane, config: ModelConfig) -> tuple[int, ...]:
    """Which of a file's axes each axis of the layer is.

    Where it was not read from one, they are the model's, and the slices lie along the first.
    """
    if plane.axes is not None:
        return plane.axes
    across = config.image.slice_axis % 3
    return (across, *(axis for axis in range(3) if axis != across))


@dataclass(frozen=True)
class Turn:
    """How a layer's planes lie to the slices that models of volumes know.

    Attributes
    ----------
    across : int
        Which of the model's axes the planes follow each other along.
    backwards : bool
        Against it.
    flipped : tuple of bool
        Whether the planes' rows and columns run against the model's axes.
    swapped : bool
        Whether the planes' rows are the model's columns.
    """

    across: int
    backwards: bool
    flipped: tuple[bool, bool]
    swapped: bool

    def onto_model(self, image: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turn a plane, (H, W) or with its neighbours (H, W, C)."""
        image = np.flip(image, tuple(axis for axis in (0, 1) if self.flipped[axis]))
        image = np.flip(image, -1) if self.backwards and image.ndim > 2 else image
        return np.ascontiguousarray(image.swapaxes(0, 1) if self.swapped else image)

    def box_onto_model(self, box: Box, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Turn rows and columns of a plane of `shape`."""
        rows, columns = (
            slice(n - s.stop, n - s.start) if flip else s
            for s, n, flip in zip(box, shape, self.flipped, strict=True)
        )
        return (columns, rows) if self.swapped else (rows, columns)

    def onto_layer(self, result: Segmentation) -> Segmentation:
        """Turn a slice's answer back, its table too."""
        objects = dict(result.objects)
        if self.swapped:
            names = ("y", "x"), ("y0", "x0"), ("y1", "x1")
            objects |= {a: result.objects[b] for a, b in names if a in objects}
            objects |= {b: result.objects[a] for a, b in names if a in objects}
            result = _each_map(result, lambda array: array.swapaxes(-1, -2))
        for name, flip, n in zip("yx", self.flipped, result.labels.shape, strict=True):
            if flip and name in objects:
                start, stop = objects[f"{name}0"], objects[f"{name}1"]
                objects |= {name: n - objects[name], f"{name}0": n - stop, f"{name}1": n - start}
        flipped = tuple(axis for axis in (-2, -1) if self.flipped[axis])
        return replace(_each_map(result, lambda array: np.flip(array, flipped)), objects=objects)


def turn_of(plane: Plane, config: ModelConfig) -> Turn:
    """How the planes that the viewer shows of a volume lie to the model's slices."""
    axes = axes_of(plane, config)
    ways = ((0, 1), (1, 1), (2, 1)) if plane.affine is None else directions(plane.affine)
    (across, forth), *both = (ways[axis] for axis in axes)
    (rows, down), (columns, along) = both
    return Turn(across, forth < 0, (down < 0, along < 0), rows > columns)


def check_slice(plane: Plane, config: ModelConfig) -> None:
    """Refuse a slice that lies across the model's.

    Raises
    ------
    CdalError
        If the viewer's slices are not those that the model was trained on.
    """
    if turn_of(plane, config).across != config.image.slice_axis % 3:
        raise CdalError(
            "the model was trained on slices along another axis than the ones shown",
            "segment the whole volume",
        )


def for_layer(result: Segmentation, axes: tuple[int, ...]) -> Segmentation:
    """Bring a volume's answer from the file's order of axes to the layer's."""

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        before = array.ndim - 3
        return array.transpose(*range(before), *(before + axis for axis in axes))

    return _each_map(result, turned)


def _each_map(result: Segmentation, turned: Callable[[NDArray[Any]], NDArray[Any]]) -> Segmentation:
    maps = ("labels", "probability", "uncertainty", "deviation", "attention")
    kept = ("samples", "mean", "steps")
    given: dict[str, Any] = {name: getattr(result, name) for name in (*maps, *kept)}
    for name, array in given.items():
        given[name] = None if array is None else turned(array)
    return replace(result, **given)
