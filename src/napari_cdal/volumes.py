"""Volumes between a layer's order of axes and the one that models of volumes know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdal_engine.errors import CdalError

from .planes import Plane

if TYPE_CHECKING:
    from cdal_engine.config import ModelConfig
    from cdal_engine.segmenter import Segmentation

__all__ = ["axes_of", "check_slice", "for_layer", "is_turned", "slice_for_layer"]


def axes_of(plane: Plane, config: ModelConfig) -> tuple[int, ...]:
    """Which of the model's axes each axis of the layer is.

    A file's own order where the layer was read from one; else the slices lie along the first.
    """
    if plane.axes is not None:
        return plane.axes
    across = config.image.slice_axis % 3
    return (across, *(axis for axis in range(3) if axis != across))


def check_slice(plane: Plane, config: ModelConfig) -> None:
    """Refuse a slice that lies across the model's.

    Raises
    ------
    CdalError
        If the viewer's slices are not those that the model was trained on.
    """
    if axes_of(plane, config)[0] != config.image.slice_axis % 3:
        raise CdalError(
            "the model was trained on slices along another axis than the ones shown",
            "segment the whole volume",
        )


def is_turned(plane: Plane, config: ModelConfig) -> bool:
    """Whether a slice's rows are the model's columns."""
    _, rows, columns = axes_of(plane, config)
    return rows > columns


def for_layer(result: Segmentation, axes: tuple[int, ...]) -> Segmentation:
    """Bring a volume's answer from the model's order of axes to the layer's."""

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        before = array.ndim - 3
        return array.transpose(*range(before), *(before + axis for axis in axes))

    return _each_map(result, turned)


def slice_for_layer(result: Segmentation) -> Segmentation:
    """Exchange rows and columns of a slice's answer, its table's too."""
    flipped = _each_map(result, lambda array: np.swapaxes(array, -1, -2))
    pairs = {"y": "x", "y0": "x0", "y1": "x1"}
    names = pairs | {x: y for y, x in pairs.items()}
    objects = {name: result.objects[names.get(name, name)] for name in result.objects}
    return replace(flipped, objects=objects)


def _each_map(result: Segmentation, turned: Callable[[NDArray[Any]], NDArray[Any]]) -> Segmentation:
    maps = ("labels", "probability", "uncertainty", "deviation", "attention")
    kept = ("samples", "mean", "steps")
    given: dict[str, Any] = {name: getattr(result, name) for name in (*maps, *kept)}
    for name, array in given.items():
        given[name] = None if array is None else turned(array)
    return replace(result, **given)
