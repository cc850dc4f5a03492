"""Regions of interest on a slide: polygons in level-0 pixels, as QuPath exports annotations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import CdalError

__all__ = ["Regions", "read_regions"]

Ring = NDArray[np.float64]
_FORMAT = "export annotations from QuPath as GeoJSON, with areas only"
_LARGEST = 256e6  # bytes of a file


@dataclass(frozen=True, eq=False)
class Regions:
    """Polygons, each an outer ring and its holes, and together their union.

    Attributes
    ----------
    polygons : tuple of tuple of ndarray
        Closed rings (N, 2) of x and y in level-0 pixels, with the origin at the corner.
    digest : str
        Of the file they are from.
    """

    polygons: tuple[tuple[Ring, ...], ...]
    digest: str

    def inside(self, y: NDArray[np.floating], x: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which points of a lattice lie in a region.

        Parameters
        ----------
        y, x : ndarray
            Places of its rows and columns, ascending.

        Returns
        -------
        ndarray
            (len(y), len(x)); the answer at a point does not depend on the others.
        """
        mask = np.zeros((len(y), len(x)), bool)
        for rings in self.polygons:
            (left, top), (right, bottom) = rings[0].min(axis=0), rings[0].max(axis=0)
            rows = slice(*np.searchsorted(y, (top, bottom)))
            columns = slice(*np.searchsorted(x, (left, right)))
            if rows.start < rows.stop and columns.start < columns.stop:
                mask[rows, columns] |= _even_odd(rings, y[rows], x[columns])
        return mask


def _even_odd(
    rings: tuple[Ring, ...], y: NDArray[np.floating], x: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Points with an odd number of edges to their left."""
    crossings = np.zeros((len(y), len(x) + 1), np.int32)
    for ring in rings:
        (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
        first = np.searchsorted(y, np.minimum(y0, y1))
        count = np.searchsorted(y, np.maximum(y0, y1)) - first
        edge = np.repeat(np.arange(len(count)), count)
        row = np.arange(len(edge)) + np.repeat(first - np.cumsum(count) + count, count)
        share = (y[row] - y0[edge]) / (y1[edge] - y0[edge])
        column = np.searchsorted(x, x0[edge] + share * (x1[edge] - x0[edge]))
        np.add.at(crossings, (row, column), 1)
    return np.asarray(crossings.cumsum(axis=1)[:, :-1] % 2 == 1)


def read_regions(path: Path) -> Regions:
    """Read a FeatureCollection, a Feature, a list of them, or a bare geometry.

    Raises
    ------
    CdalError
        If the file is no GeoJSON, or holds anything but polygons, or none.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise CdalError(f"has more than {_LARGEST / 1e6:.0f} MB", _FORMAT, path)
        content = path.read_bytes()
        polygons = tuple(
            tuple(_ring(ring) for ring in polygon) for polygon in _polygons(orjson.loads(content))
        )
    except OSError as error:
        raise CdalError(f"cannot be read: {error.strerror}", "check the path", path) from None
    except orjson.JSONDecodeError as error:
        raise CdalError(f"is no GeoJSON: {error}", _FORMAT, path) from None
    except (KeyError, TypeError, ValueError, IndexError):
        raise CdalError("is no GeoJSON of polygons", _FORMAT, path) from None
    except CdalError as error:
        raise error.at(path) from None
    if not polygons or not all(polygons):
        raise CdalError("holds no polygon", _FORMAT, path)
    return Regions(polygons, hashlib.sha256(content).hexdigest())


def _polygons(node: Any) -> Iterator[list[Any]]:
    """Coordinates of every polygon in a GeoJSON document."""
    if isinstance(node, list):
        for each in node:
            yield from _polygons(each)
        return
    match node["type"]:
        case "FeatureCollection":
            yield from _polygons(list(node["features"]))
        case "Feature":
            yield from _polygons(node["geometry"])
        case "GeometryCollection":
            yield from _polygons(list(node["geometries"]))
        case "MultiPolygon":
            yield from node["coordinates"]
        case "Polygon":
            yield node["coordinates"]
        case other:
            raise CdalError(f"holds a {other}; regions are polygons", _FORMAT)


def _ring(points: Any) -> Ring:
    ring = np.array([point[:2] for point in points], np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise CdalError("a ring is not a list of at least three points", _FORMAT)
    return ring if (ring[0] == ring[-1]).all() else np.vstack([ring, ring[:1]])
