"""Areas annotated in QuPath as a Shapes layer: regions to segment or to review."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari
from napari.utils.notifications import show_warning

from cdal_engine.errors import CdalError
from cdal_engine.io.regions import read_regions

from .planes import placement
from .regions import EDGE, FILL
from .results import images

if TYPE_CHECKING:
    from napari.layers import Image

    from .results import LayerData

__all__ = ["areas"]

_MOST = 5000  # shapes, which napari draws in some seconds


def areas(path: Path) -> list[LayerData]:
    """Return the areas of a GeoJSON file as polygons on the image in the viewer.

    The file has them in the image's pixels and does not say which image: it is the selected one, or
    the only one. Holes are left out.

    Raises
    ------
    CdalError
        If it holds anything but polygons, or more than can be drawn.
    """
    polygons = read_regions(path).polygons
    if len(polygons) > _MOST:
        raise CdalError(
            f"{len(polygons)} outlines are more than can be drawn and edited",
            "open the labels that they are of: a results folder, or OME-Zarr, TIFF or NIfTI",
            path,
        )
    image = _image()
    notes = []
    if any(len(rings) > 1 for rings in polygons):
        notes.append("holes are left out")
    if image is None:
        notes.append("no image is selected: they are placed as if its pixels had no size")
    if notes:
        show_warning(f"{path.name}: {'; '.join(notes)}")
    place: dict[str, Any] = {} if image is None else placement(image, (0.0, 0.0))
    # A pixel's centre, where QuPath has its corner, is at a whole number in napari.
    corners = [rings[0][:-1, ::-1] - 0.5 for rings in polygons]
    shown = {"shape_type": "polygon", "face_color": FILL, "edge_color": EDGE, "edge_width": 2}
    return [(corners, {"name": path.stem, **shown, **place}, "shapes")]


def _image() -> Image | None:
    """The image that is selected, else the only one; neither maps of ours nor stacks."""
    viewer = napari.current_viewer()
    if viewer is None:
        return None
    planes = [layer for layer in images(viewer) if layer.ndim == 2]
    active = [layer for layer in planes if layer == viewer.layers.selection.active]
    return (active or planes)[0] if active or len(planes) == 1 else None
