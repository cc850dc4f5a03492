"""Outlines for QuPath: GeoJSON detections in level-0 pixels, written as they are found."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from hashlib import sha1
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import printable
from ..outlines import Outlines, trace
from .tables import level_0

__all__ = ["GeoJsonWriter"]

_COLOUR = (0, 160, 80)
_BUFFER = 2**20  # bytes
_DECIMALS = 3  # of coordinates, in pixels
_MEASUREMENTS = {
    "score": "score",
    "agreement": "agreement",
    "area px²": "area_px",
    "area µm²": "area_um2",
    "major axis px": "major_axis_px",
    "minor axis px": "minor_axis_px",
    "major axis µm": "major_axis_um",
    "minor axis µm": "minor_axis_um",
    "eccentricity": "eccentricity",
    "red": "red",
    "green": "green",
    "blue": "blue",
    "haematoxylin OD": "haematoxylin",
}
Ring = list[list[float]]


class GeoJsonWriter:
    """Writes a feature collection to which objects are added patch by patch.

    Parameters
    ----------
    path : Path
    name : str
        Of the input: the same name and label give the same id.
    mpp : float or None
        Micrometres per level-0 pixel.
    shape : tuple of int
        (H, W) of level 0: the last pixels of the model's grid may reach beyond it.
    pixel : float
        Level-0 pixels to a pixel of the grid that labels lie on.
    origin : tuple of float
        (y, x) in level-0 pixels where that grid starts: that of a region.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        mpp: float | None,
        shape: tuple[int, ...],
        pixel: float,
        origin: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self._path = path
        self._named = sha1(uuid.NAMESPACE_URL.bytes, usedforsecurity=False)
        self._named.update(f"{printable(name)}#".encode())
        self._mpp, self._pixel, self._shape = mpp, pixel, shape
        self._largest, self._origin = (shape[1], shape[0]), origin[::-1]
        self._separator = b""

    def __enter__(self) -> GeoJsonWriter:
        self._file = self._path.open("wb", _BUFFER)
        self._file.write(b'{"type":"FeatureCollection","features":[\n')
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            if error[0] is None:
                self._file.write(b"\n]}\n")

    def add(
        self,
        labels: NDArray[np.uint32],
        objects: dict[str, NDArray[Any]],
        corner: tuple[int, int] = (0, 0),
        part: str = "",
    ) -> None:
        """Write the outlines of some objects.

        Parameters
        ----------
        labels : ndarray
            (h, w) ids of a patch that holds the objects whole; others in it are left out.
        objects : dict of ndarray
            Columns of `instances.measure`, with `class` and `agreement`.
        corner : tuple of int
            Row and column of the patch's first pixel on the grid.
        part : str
            Tells pieces of one label that are written patch by patch apart: their ids differ.

        Raises
        ------
        ValueError
            If an object is not in the patch.
        """
        outlines = trace(labels)
        columns = level_0(objects, self._pixel, self._mpp, self._shape)
        rows = zip(columns["class"].tolist(), _measurements(columns), strict=True)
        every = dict(zip(columns["label"].tolist(), rows, strict=True))
        for label, polygons in _polygons(outlines, self._placed(outlines.points, corner)):
            if label in every:
                kind, measured = every.pop(label)
                self._write(self._id(label, part), polygons, kind, measured)
        if every:
            raise ValueError(f"{len(every)} objects are not in the patch, the first {min(every)}")

    def _placed(
        self, points: NDArray[np.int64], corner: tuple[int, int]
    ) -> NDArray[np.int64] | NDArray[np.float64]:
        """Level-0 coordinates: whole numbers, which are written faster, where they are ones."""
        whole = all(float(n).is_integer() for n in (self._pixel, *self._origin))
        pixel, origin = (np.array(n, int if whole else float) for n in (self._pixel, self._origin))
        placed = (points + np.array(corner[::-1])) * pixel + origin
        return np.asarray(placed.clip(0, self._largest).round(_DECIMALS))

    def _write(
        self, name: str, polygons: list[list[Ring]], kind: str, measured: dict[str, float]
    ) -> None:
        single = len(polygons) == 1
        feature = {
            "type": "Feature",
            "id": name,
            "geometry": {
                "type": "Polygon" if single else "MultiPolygon",
                "coordinates": polygons[0] if single else polygons,
            },
            "properties": {
                "objectType": "detection",
                "classification": {"name": kind, "color": _COLOUR},
                "measurements": measured,
            },
        }
        self._file.write(self._separator + orjson.dumps(feature))
        self._separator = b",\n"

    def _id(self, label: int, part: str) -> str:
        """`uuid.uuid5` of name, label and part; `uuid.UUID` would take three times as long."""
        named = self._named.copy()
        named.update(b"%d%b" % (label, part.encode()))
        digits = named.hexdigest()
        variant = "89ab"[int(digits[16], 16) % 4]
        return (
            f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"
        )


def _measurements(columns: dict[str, NDArray[Any]]) -> list[dict[str, float]]:
    """What is measured of each object, by the names that QuPath shows."""
    shown = {
        name: columns[key].astype(np.float64).round(4)
        for name, key in _MEASUREMENTS.items()
        if key in columns
    }
    every = {name: column for name, column in shown.items() if not np.isnan(column).any()}
    known = {"label": columns["label"].tolist()} | {n: c.tolist() for n, c in every.items()}
    rows = [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
    for name in shown.keys() - every.keys():  # such as the score of an object that a person drew
        for i in np.flatnonzero(~np.isnan(shown[name])):
            rows[i][name] = float(shown[name][i])
    return rows


def _polygons(
    outlines: Outlines, points: NDArray[np.int64] | NDArray[np.float64]
) -> Iterator[tuple[int, list[list[Ring]]]]:
    """The polygons of each object, their rings through `points`."""
    ends = pairwise(outlines.starts.tolist())
    rings = zip(outlines.labels.tolist(), outlines.outer.tolist(), ends, strict=True)
    for label, group in groupby(rings, itemgetter(0)):
        polygons: list[list[Ring]] = []
        for _, outer, (start, end) in group:
            ring = points[start:end].tolist()
            if outer:
                polygons.append([ring])
            else:
                polygons[-1].append(ring)
        yield label, polygons
