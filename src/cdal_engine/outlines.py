"""Outlines of all objects of a label map at once, exactly along the edges of their pixels.

Around an object the way keeps it to its right. Where it turns is a vertex; at a corner at most one
way leaves in each direction, so that along a line the k-th to set out is the k-th to arrive.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Outlines", "trace"]

Indices = NDArray[np.int64]

_EAST, _SOUTH, _WEST, _NORTH = range(4)  # directions, each a right turn from the one before
_ROWS = 64


@dataclass(frozen=True)
class Outlines:
    """Closed rings, those of an object together: each outer ring, then its holes.

    Attributes
    ----------
    points : ndarray
        (P, 2) x and y with the origin at the corner; the last point of a ring is its first.
    starts : ndarray
        (R + 1,) where in `points` each ring begins, and the end.
    labels : ndarray
        (R,) id of each ring's object, ascending.
    outer : ndarray
        (R,) whether it is an outer ring: of a piece whose pixels are 4-neighbours.
    """

    points: Indices
    starts: Indices
    labels: NDArray[np.uint32]
    outer: NDArray[np.bool_]


@dataclass(frozen=True)
class _Vertices:
    """Turns of the way: place, direction it leaves and came in, object, and touching corners."""

    x: Indices
    y: Indices
    out: Indices
    came: Indices
    label: NDArray[np.uint32]
    touching: NDArray[np.bool_]  # another corner of the object meets this one diagonally


def trace(labels: NDArray[np.uint32]) -> Outlines:
    """Trace every object of (H, W) ids, 0 being background.

    Rings are simple; two of one object may touch at a corner.
    """
    vertices = _vertices(labels)
    after = _linked(vertices, labels.shape)
    horizontal = int((vertices.out % 2 == 0).sum())
    order, starts = _follow(after, horizontal)
    ring = np.empty(len(order), np.int64)
    ring[order] = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    met = _met(vertices, ring)
    if len(met):
        other = np.arange(len(after))
        other[met] = met[:, ::-1]
        order, starts = _follow(other[after], horizontal)
    return _arranged(vertices, order, starts)


def _vertices(labels: NDArray[np.uint32]) -> _Vertices:
    y, x, around = _corners(labels)
    parts = []
    for out in (_EAST, _WEST, _SOUTH, _NORTH):
        left, right, behind, opposite = (around[(out + i) % 4] for i in range(4))
        goes_on = (behind == right) & (opposite != right)
        at = np.flatnonzero((right != 0) & (left != right) & ~goes_on)
        label = right[at]
        convex = behind[at] != label
        came = (out + np.where(convex, -1, 1)) % 4
        touching = convex & (opposite[at] == label)
        parts.append((x[at], y[at], np.full(len(at), out), came, label, touching))
    return _Vertices(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _corners(labels: NDArray[np.uint32]) -> tuple[Indices, Indices, NDArray[np.uint32]]:
    """Row and column of the corners at which a way may turn, and the ids (4, N) of their pixels.

    Pixels go clockwise, from the one to the left of who leaves east.
    """
    height, width = labels.shape
    parts = []
    for top in range(0, height + 1, _ROWS):  # a few rows at a time stay in the processor's cache
        rows = labels[max(top - 1, 0) : top + _ROWS]
        inside = np.zeros((min(_ROWS, height + 1 - top) + 1, width + 2), np.uint32)
        first = int(top == 0)
        inside[first : first + len(rows), 1:-1] = rows
        across, down = inside[:, 1:] == inside[:, :-1], inside[1:] == inside[:-1]
        plain = (across[:-1] & across[1:]) | (down[:, :-1] & down[:, 1:])
        y, x = np.divmod(np.flatnonzero(~plain), width + 1)
        around = inside[y, x + 1], inside[y + 1, x + 1], inside[y + 1, x], inside[y, x]
        parts.append((y + top, x, np.stack(around)))
    ys, xs, pixels = zip(*parts, strict=True)
    return np.concatenate(ys), np.concatenate(xs), np.concatenate(pixels, axis=1)


def _linked(vertices: _Vertices, shape: tuple[int, ...]) -> Indices:
    """The vertex that follows each."""
    after = np.empty(len(vertices.x), np.int64)
    along = (
        vertices.y * (shape[1] + 1) + vertices.x,
        vertices.x * (shape[0] + 1) + vertices.y,
    )
    for direction in range(4):
        place = along[direction % 2]
        leave = np.flatnonzero(vertices.out == direction)
        arrive = np.flatnonzero(vertices.came == direction)
        leave = leave[place[leave].argsort(kind="stable")]  # fast where much is in order already
        after[leave] = arrive[place[arrive].argsort(kind="stable")]
    return after


def _follow(after: Indices, horizontal: int) -> tuple[Indices, Indices]:
    """Vertices ring by ring, and where each ring begins: at its first that leaves east.

    Every other vertex of a ring is one of the first `horizontal`. All of them look for their ring's
    head at once, each round twice as far.
    """
    jump = after[after[:horizontal]]
    head = np.arange(horizontal)
    ahead = np.zeros(horizontal, np.int64)  # steps to the head
    step = 1
    while (nearer := (seen := head[jump]) < head).any():
        ahead = np.where(nearer, ahead[jump] + step, ahead)
        head, jump, step = np.minimum(head, seen), jump[jump], 2 * step
    length = np.bincount(head, minlength=horizontal)
    start = np.cumsum(length) - length
    order = np.empty(horizontal, np.int64)
    order[start[head] + (-ahead) % length[head]] = np.arange(horizontal)
    starts = np.append(start[length > 0], horizontal)
    return np.stack([order, after[order]], axis=1).ravel(), 2 * starts


def _met(vertices: _Vertices, ring: Indices) -> Indices:
    """Pairs (N, 2) of vertices at one corner and of one ring.

    So far the way goes round each pixel there by itself, as it should where two pieces touch. Where
    one piece meets itself, each vertex is to be left by who came to the other: that cuts the ring.
    """
    touching = np.flatnonzero(vertices.touching)
    place = np.stack([vertices.y, vertices.x, vertices.label], axis=1)[touching]
    touching = touching[np.lexsort((vertices.out[touching], *place.T))]
    pairs = touching.reshape(-1, 2)
    return np.asarray(pairs[ring[pairs[:, 0]] == ring[pairs[:, 1]]])


def _arranged(vertices: _Vertices, order: Indices, starts: Indices) -> Outlines:
    """Sort rings by object and polygon, and close them."""
    x, y, length = vertices.x[order], vertices.y[order], np.diff(starts)
    begins = starts[:-1]
    if not len(begins):
        return Outlines(
            np.zeros((0, 2), np.int64), starts, np.zeros(0, np.uint32), np.zeros(0, bool)
        )
    following = np.arange(1, len(order) + 1)
    following[starts[1:] - 1] = begins
    outer = np.add.reduceat((x - x[following]) * y, begins) > 0
    labels = vertices.label[order[begins]]
    polygon = _polygons(np.stack([x, y], axis=1), starts, labels, outer)
    ranked = np.lexsort((~outer, polygon, labels))
    length, begins = length[ranked], begins[ranked]
    closed = np.append(0, np.cumsum(length + 1))
    inside = np.arange(closed[-1]) - np.repeat(closed[:-1], length + 1)
    at = np.repeat(begins, length + 1) + inside % np.repeat(length, length + 1)
    return Outlines(np.stack([x[at], y[at]], axis=1), closed, labels[ranked], outer[ranked])


def _polygons(
    points: Indices, starts: Indices, labels: NDArray[np.uint32], outer: NDArray[np.bool_]
) -> Indices:
    """Number of the outer ring that each ring belongs to."""
    polygon = np.arange(len(labels))
    outers = np.flatnonzero(outer)
    outers = outers[labels[outers].argsort(kind="stable")]
    holes = np.flatnonzero(~outer)
    first, last = (np.searchsorted(labels[outers], labels[holes], s) for s in ("left", "right"))
    polygon[holes] = outers[first]
    for i in np.flatnonzero(last - first > 1):
        # A ring begins where it leaves east: the pixel below is the object's.
        pixel = (points[starts[holes[i]]] + 0.5).tolist()
        around = outers[first[i] : last[i]]
        rings = [points[starts[ring] : starts[ring + 1]].astype(np.float32) for ring in around]
        size = [
            cv2.contourArea(ring) if cv2.pointPolygonTest(ring, pixel, False) > 0 else np.inf
            for ring in rings
        ]
        polygon[holes[i]] = around[np.argmin(size)]
    return polygon
