"""The outline of the object under review, in a layer of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Shapes
from numpy.typing import NDArray

from cdal_engine.outlines import trace

if TYPE_CHECKING:
    import napari

__all__ = ["Outline"]

_NAME, _COLOUR = "under review", "yellow"


class Outline:
    """Draws one object's outline over the others.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    place : dict
        Layer arguments of the labels.
    """

    def __init__(self, viewer: napari.viewer.Viewer, place: dict[str, Any]) -> None:
        self._viewer = viewer
        self._layer = Shapes(name=_NAME, ndim=2, **place)
        viewer.add_layer(self._layer)

    def show(self, labels: NDArray[np.integer], label: int, box: tuple[slice, slice]) -> None:
        """Outline an object that lies in `box`."""
        self.hide()
        if self._layer not in self._viewer.layers:  # removed by hand
            return
        found = trace(np.where(labels[box] == label, np.uint32(1), np.uint32(0)))
        rings = np.split(found.points, found.starts[1:-1])
        corner = np.array([box[0].start, box[1].start]) - 0.5  # a pixel's centre is whole here
        drawn = [ring[:-1, ::-1] + corner for ring in rings]
        self._layer.add_polygons(drawn, edge_width=1, edge_color=_COLOUR, face_color="transparent")

    def hide(self) -> None:
        """Outline nothing."""
        if len(self._layer.data):
            self._layer.data = []

    def remove(self) -> None:
        """Take the layer away."""
        if self._layer in self._viewer.layers:
            self._viewer.layers.remove(self._layer)
