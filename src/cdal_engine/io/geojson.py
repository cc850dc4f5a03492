"""Outlines for QuPath: GeoJSON detections in level-0 pixels, written one object at a time."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
from numpy.typing import NDArray
from scipy import ndimage as ndi

from ..errors import printable

if TYPE_CHECKING:
    from ..segmenter import Segmentation

__all__ = ["outline", "write_geojson"]

_COLOUR = (0, 160, 80)
_PER_WRITE = 2000
Ring = list[list[float]]


def outline(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """Trace a mask exactly along the edges of its pixels.

    Parameters
    ----------
    mask : ndarray
        (H, W).

    Returns
    -------
    list
        A polygon for each connected piece (4-neighbours): its outer ring, then its holes. A ring
        is a closed list of (x, y) with the origin at the mask's corner.
    """
    _, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return [
        _trace(pieces[box] == i, (box[1].start, box[0].start))
        for i, box in enumerate(ndi.find_objects(pieces), 1)
    ]


def _trace(piece: NDArray[np.bool_], corner: tuple[int, int]) -> list[Ring]:
    """Outer ring and holes of one connected piece whose first pixel's corner is (x, y)."""
    height, width = piece.shape
    # Corners of pixels lie at odd indices of this grid, with the edges' middles between them: a
    # contour through its points runs along the pixels' edges.
    fine = np.zeros((2 * height + 3, 2 * width + 3), np.uint8)
    for dy in range(3):
        for dx in range(3):
            fine[1 + dy : 1 + dy + 2 * height : 2, 1 + dx : 1 + dx + 2 * width : 2] |= piece
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_ring(np.asarray(contour[:, 0]), corner) for contour in contours]
    outer = int(np.flatnonzero(hierarchy[0, :, 3] < 0)[0])
    return [rings[outer], *rings[:outer], *rings[outer + 1 :]]


def _ring(points: NDArray[Any], corner: tuple[int, int]) -> Ring:
    """Closed ring through the corners only, from a contour on the fine grid."""
    # Where cv2 cuts an inner corner diagonally, put the corner back.
    ahead = np.roll(points, -1, axis=0)
    cut = np.flatnonzero((points != ahead).all(axis=1))
    turned = np.stack([points[cut, 0], ahead[cut, 1]], axis=1)
    other = np.stack([ahead[cut, 0], points[cut, 1]], axis=1)
    inner = np.where((turned % 2 == 1).all(axis=1, keepdims=True), turned, other)
    points = np.insert(points, cut + 1, inner, axis=0)
    direction = np.sign(np.roll(points, -1, axis=0) - points)
    points = points[(direction != np.roll(direction, 1, axis=0)).any(axis=1)]
    ring: Ring = ((np.vstack([points, points[:1]]) - 1) / 2 + corner).tolist()
    return ring


def _feature(
    rings: list[list[Ring]], name: str, kind: str, measured: dict[str, float]
) -> dict[str, Any]:
    single = len(rings) == 1
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, printable(name))),
        "geometry": {
            "type": "Polygon" if single else "MultiPolygon",
            "coordinates": rings[0] if single else rings,
        },
        "properties": {
            "objectType": "detection",
            "classification": {"name": kind, "color": _COLOUR},
            "measurements": measured,
        },
    }


def _features(
    result: Segmentation,
    name: str,
    mpp: float | None,
    shape: tuple[int, ...],
    corner: tuple[float, float],
) -> Iterator[dict[str, Any]]:
    objects, pixel = result.objects, result.pixel
    largest = (shape[1], shape[0])
    corners = zip(*(objects[key].tolist() for key in ("y0", "x0", "y1", "x1")), strict=True)
    for i, (y0, x0, y1, x1) in enumerate(corners):
        label = int(objects["label"][i])
        offset = np.array([x0, y0])
        rings = [
            [
                ((np.array(ring) + offset) * pixel + corner[::-1]).clip(0, largest).tolist()
                for ring in polygon
            ]
            for polygon in outline(result.labels[y0:y1, x0:x1] == label)
        ]
        area = float(objects["area_px"][i]) * pixel**2
        measured: dict[str, float] = {"label": label}
        measured["area px²"] = round(area, 2)
        if mpp is not None:
            measured["area µm²"] = round(area * mpp**2, 3)
        for key in ("score", "agreement"):
            if not np.isnan(objects[key][i]):
                measured[key] = round(float(objects[key][i]), 4)
        yield _feature(rings, f"{name}#{label}", str(objects["class"][i]), measured)


def write_geojson(
    path: Path,
    result: Segmentation,
    name: str,
    mpp: float | None,
    shape: tuple[int, ...],
    corner: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Write the outlines of all objects.

    Parameters
    ----------
    path : Path
    result : Segmentation
    name : str
        Of the input: the same name and label give the same id.
    mpp : float or None
        Micrometres per level-0 pixel.
    shape : tuple of int
        (H, W) of level 0: the last pixels of the model's grid may reach beyond it.
    corner : tuple of float
        (y, x) in level-0 pixels where the labels start: those of a region.
    """
    with path.open("wb") as file:
        file.write(b'{"type":"FeatureCollection","features":[\n')
        buffered: list[bytes] = []
        separator = b""
        for feature in _features(result, name, mpp, shape, corner):
            buffered.append(orjson.dumps(feature))
            if len(buffered) == _PER_WRITE:
                file.write(separator + b",\n".join(buffered))
                separator = b",\n"
                buffered.clear()
        if buffered:
            file.write(separator + b",\n".join(buffered))
        file.write(b"\n]}\n")
