"""From probabilities to objects, and what is measured of each object.

Coordinates are in pixels with the origin at the corner: a pixel's centre is at +0.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from skimage.segmentation import watershed

__all__ = [
    "agreement",
    "components",
    "first_pixels",
    "flood",
    "interior",
    "markers",
    "measure",
    "remove_small",
]

Labels = NDArray[np.uint32]


def interior(labels: NDArray[np.integer], boundary: float) -> NDArray[np.bool_]:
    """Pixels of each object deeper than `boundary` pixels from its edge.

    Objects too thin for that keep the inner half of their depth, so that each has an interior.

    Parameters
    ----------
    labels : ndarray
        (H, W) instance ids, 0 for background.
    boundary : float
        Width of the boundary, in pixels.
    """
    padded = np.pad(labels, 1, mode="edge")  # objects cut by the image's edge go on beyond it
    edge = np.zeros(padded.shape, bool)
    for axis in range(labels.ndim):
        step = np.diff(padded, axis=axis) != 0
        ahead = [(0, 0)] * labels.ndim
        behind = list(ahead)
        ahead[axis], behind[axis] = (0, 1), (1, 0)
        edge |= np.pad(step, ahead) | np.pad(step, behind)
    if not edge.any():
        return labels > 0
    depth = ndi.distance_transform_edt(~(edge & (padded > 0)))[(slice(1, -1),) * labels.ndim]
    depth = np.where(labels > 0, depth + 1, 0)
    ids = np.unique(labels)
    deepest = np.zeros(int(ids.max()) + 1)
    deepest[ids] = ndi.maximum(depth, labels, ids)
    return np.asarray((labels > 0) & (depth > np.minimum(boundary, deepest[labels] / 2)))


def components(mask: NDArray[np.bool_]) -> Labels:
    """Number connected components (4-neighbours) from 1, ordered by their first pixel."""
    return np.asarray(ndi.label(mask)[0], np.uint32)


def markers(mask: NDArray[np.bool_], inner: NDArray[np.bool_]) -> Labels:
    """Number the seeds of objects, ordered by their first pixel.

    Each connected interior is one; an object too small or faint to show an interior is its own.

    Parameters
    ----------
    mask, inner : ndarray
        (H, W) pixels of objects, and of their interiors.
    """
    seeds = mask & inner
    whole = components(mask)
    seeded = np.zeros(int(whole.max()) + 1, bool)
    seeded[whole[seeds]] = True
    return components(seeds | (mask & ~seeded[whole]))


def flood(seeds: Labels, inner: NDArray[np.float32], mask: NDArray[np.bool_]) -> Labels:
    """Grow seeds over the mask by watershed, from where `inner` is high to where it is low.

    Among equals the first in the queue comes first. The seeds enter it row by row, by levels of
    their own: else the heap would order them by what lies elsewhere in the image.
    """
    level = -inner.astype(np.float64)
    seeded = seeds > 0
    level[seeded] = np.linspace(-3, -2, int(seeded.sum()))  # below every probability
    return np.asarray(watershed(level, seeds.astype(np.int32), mask=mask), np.uint32)


def first_pixels(labels: Labels) -> dict[int, tuple[int, int]]:
    """Row and column of every id's first pixel, row by row."""
    ids, index = np.unique(labels, return_index=True)
    y, x = np.divmod(index, labels.shape[1])
    return {int(i): (int(r), int(c)) for i, r, c in zip(ids, y, x, strict=True) if i}


def remove_small(labels: Labels, min_area: float) -> Labels:
    """Drop objects of fewer than `min_area` pixels and renumber the rest from 1 in order."""
    area = np.bincount(labels.ravel())
    keep = area >= max(min_area, 1)
    keep[0] = False
    renumber = np.zeros(len(area), np.uint32)
    renumber[keep] = np.arange(1, keep.sum() + 1)
    return renumber[labels]


def measure(labels: Labels, probability: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Measure every object.

    Parameters
    ----------
    labels : ndarray
        (H, W) ids; not every number needs to be present.
    probability : ndarray
        (H, W) of the object's class.

    Returns
    -------
    dict of ndarray
        One row an object: `label`, `area_px`, centroid `y`, `x`, half-open bounding box `y0`,
        `x0`, `y1`, `x1`, and `score`, the mean probability.
    """
    flat = np.flatnonzero(labels)
    ids = labels.ravel()[flat]
    area = np.bincount(ids)
    present = np.flatnonzero(area)
    y, x = np.divmod(flat, labels.shape[1])
    boxes = ndi.find_objects(labels.astype(np.int64))
    corners = np.array(
        [
            (
                boxes[i - 1][0].start,
                boxes[i - 1][1].start,
                boxes[i - 1][0].stop,
                boxes[i - 1][1].stop,
            )
            for i in present
        ],
        np.int64,
    ).reshape(-1, 4)

    def mean(values: NDArray[np.generic]) -> NDArray[np.float64]:
        return (np.bincount(ids, values, len(area)) / np.maximum(area, 1))[present]

    return {
        "label": present.astype(np.uint32),
        "area_px": area[present],
        "y": mean(y) + 0.5,
        "x": mean(x) + 0.5,
        **{name: corners[:, i] for i, name in enumerate(("y0", "x0", "y1", "x1"))},
        "score": mean(probability.ravel()[flat]).astype(np.float32),
    }


def agreement(
    labels: Labels, objects: dict[str, NDArray[Any]], masks: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Fraction of samples that contain each object at IoU >= 0.5, inside its bounding box.

    Pixels of the box that belong to another object are left out of the comparison.

    Parameters
    ----------
    labels : ndarray
        (H, W) ids.
    objects : dict of ndarray
        Of `measure(labels, ...)`.
    masks : ndarray
        (S, H, W) thresholded samples.

    Returns
    -------
    ndarray
        (N,) in 0 … 1; NaN where there are fewer than two samples.
    """
    ids = objects["label"].astype(np.int64)
    if len(masks) < 2:
        return np.full(len(ids), np.nan, np.float32)
    y0, x0, y1, x1 = (objects[name].astype(np.int64) for name in ("y0", "x0", "y1", "x1"))
    area = objects["area_px"].astype(np.int64)
    count = int(labels.max()) + 1
    contained = np.zeros(len(ids))
    for mask in masks:
        inside = np.bincount(labels[mask], minlength=count)[ids]
        spilled = np.pad((mask & (labels == 0)).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        beside = spilled[y1, x1] - spilled[y0, x1] - spilled[y1, x0] + spilled[y0, x0]
        contained += inside / (area + beside) >= 0.5
    return (contained / len(masks)).astype(np.float32)
