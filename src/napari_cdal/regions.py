"""Which parts of a plane are segmented: all of it, what the window shows, or shapes drawn on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from cdal_engine.errors import CdalError

if TYPE_CHECKING:
    import napari
    from napari.layers import Image, Shapes

    from .planes import Plane

__all__ = ["EDGE", "FILL", "Region", "in_view", "measure_as", "of_shapes", "see_through", "whole"]

_PLAIN = "white", "#777777ff"  # fill and edge of shapes in a new layer of napari's
FILL, EDGE = "#ffffff26", "black"
_ROUNDED = 0.01  # pixels by which a shape's coordinates, of single precision, may be off
_CORNERS = 64  # of the polygon that stands for an ellipse
_AREAS = {"rectangle", "polygon", "ellipse"}
_WAYS = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])  # from a window's middle to its corners


@dataclass(frozen=True)
class Region:
    """A part of a plane.

    Attributes
    ----------
    box : tuple of slice
        Rows and columns, at full resolution.
    outline : ndarray or None
        (N, 2) corners of a polygon in pixels at full resolution; None: the whole box.
    name : str
        To tell the results of several apart.
    """

    box: tuple[slice, slice]
    outline: NDArray[np.float64] | None = None
    name: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels at full resolution."""
        rows, columns = self.box
        return rows.stop - rows.start, columns.stop - columns.start

    def mask(
        self, shape: tuple[int, int], corner: tuple[float, float], step: float
    ) -> NDArray[np.bool_] | None:
        """Pixels inside the outline, of an array that starts at `corner`, `step` to a pixel."""
        if self.outline is None:
            return None
        # A pixel's centre is at a whole number in napari, and in polygon2mask.
        inside = polygon2mask(shape, (self.outline - corner + 0.5) / step - 0.5)
        return np.asarray(inside, np.bool_)


def whole(plane: Plane) -> tuple[Region, ...]:
    """The plane as one region."""
    height, width = plane.size
    return (Region((slice(0, height), slice(0, width))),)


def in_view(plane: Plane, viewer: napari.viewer.Viewer) -> tuple[Region, ...]:
    """What the window shows of the plane.

    Not the layer's `corner_pixels`: of a pyramid they are those of the part that is loaded, which
    stays the same while the window goes nearer.

    Raises
    ------
    CdalError
        If it shows nothing of it.
    """
    camera = viewer.scene.camera
    half = np.asarray(viewer.canvas.viewbox_size(viewer.layers), float) / camera.zoom / 2
    corners = np.tile(np.asarray(viewer.dims.point, float), (len(_WAYS), 1))
    corners[:, -2:] = camera.center[-2:] + half * _WAYS
    points = np.array([plane.layer.world_to_data(corner)[-2:] for corner in corners])
    region = _within(plane, points.min(axis=0), np.ceil(points.max(axis=0)) + 1)
    if region is None:
        raise CdalError("the window shows nothing of the layer", "move it into sight")
    return (region,)


def of_shapes(plane: Plane, shapes: Shapes) -> tuple[Region, ...]:
    """Rectangles, polygons and ellipses of a Shapes layer, each a region; lines have no inside.

    Raises
    ------
    CdalError
        If none lies on the plane.
    """
    regions = []
    for number, outline in _outlines(plane, shapes):
        # A polygon's corners lie anywhere; the pixels that they touch are in the box.
        region = _within(plane, outline.min(axis=0) + 0.5, outline.max(axis=0) + 0.5)
        if region is not None:
            regions.append(Region(region.box, outline, f"region {number}"))
    if not regions:
        raise CdalError(
            f"no region of {shapes.name!r} lies on the image",
            "draw a rectangle, polygon or ellipse on it",
        )
    return tuple(regions)


def see_through(shapes: Shapes) -> None:
    """Have regions in napari's own colours, which hide what they are drawn on, show it.

    Colours that the user has chosen stay.
    """
    now = str(shapes.current_face_color), str(shapes.current_edge_color)
    if now == _PLAIN and (shapes.face_color == 1).all():
        shapes.face_color, shapes.edge_color = FILL, EDGE
        shapes.current_face_color, shapes.current_edge_color = FILL, EDGE


def measure_as(shapes: Shapes, layer: Image | None) -> None:
    """Give shapes without units those of the layer that they are drawn on.

    napari counts them as the same length, and warns of every layer that comes otherwise.
    """
    plain = all(str(unit) == "pixel" for unit in shapes.units)
    if layer is not None and plain and shapes.ndim <= layer.ndim:
        shapes.units = layer.units[-shapes.ndim :]


def _outlines(plane: Plane, shapes: Shapes) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Number and corners, in the plane's pixels, of each shape drawn on the plane shown."""
    for number, (corners, kind) in enumerate(zip(shapes.data, shapes.shape_type, strict=True), 1):
        if kind not in _AREAS:
            continue
        world = [shapes.data_to_world(corner) for corner in corners]
        points = np.array([plane.layer.world_to_data(_fitted(p, plane)) for p in world])
        drawn_on = points[:, :-2].round()
        if shapes.ndim < plane.layer.ndim or (drawn_on == plane.index).all():
            yield number, _ellipse(points[:, -2:]) if kind == "ellipse" else points[:, -2:]


def _fitted(point: Any, plane: Plane) -> NDArray[np.float64]:
    """A world point with as many coordinates as the plane's layer has."""
    missing = plane.layer.ndim - len(point)
    return np.concatenate([np.zeros(max(missing, 0)), np.asarray(point, float)[max(-missing, 0) :]])


def _ellipse(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Polygon of the ellipse inside a rectangle, which may be turned."""
    centre = corners.mean(axis=0)
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)[:, None]
    first, second = (corners[1] - corners[0]) / 2, (corners[2] - corners[1]) / 2
    return np.asarray(centre + np.cos(angle) * first + np.sin(angle) * second)


def _within(plane: Plane, start: Any, end: Any) -> Region | None:
    """The box between two points, cut to the plane; None if nothing is left."""
    limits = np.asarray(plane.size)
    low = np.clip(np.floor(start + _ROUNDED), 0, limits).astype(int)
    high = np.clip(np.ceil(end - _ROUNDED), 0, limits).astype(int)
    if (high <= low).any():
        return None
    return Region((slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))))
