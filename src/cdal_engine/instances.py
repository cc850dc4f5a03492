"""From probabilities to objects, and what is measured of each object.

Coordinates are in pixels with the origin at the corner: a pixel's centre is at +0.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from skimage.measure import regionprops
from skimage.segmentation import watershed

__all__ = [
    "agreement",
    "components",
    "contained",
    "first_pixels",
    "flood",
    "interior",
    "markers",
    "measure",
    "remove_small",
    "solidity",
]

Labels = NDArray[np.uint32]

_STAINS = np.array(  # optical density of haematoxylin, eosin and DAB in red, green and blue
    [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]
)


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


def measure(
    labels: Labels,
    probability: NDArray[np.float32],
    image: NDArray[np.uint8] | None = None,
) -> dict[str, NDArray[Any]]:
    """Measure every object.

    Parameters
    ----------
    labels : ndarray
        (H, W) ids; not every number needs to be present.
    probability : ndarray
        (H, W) of the object's class.
    image : ndarray, optional
        (H, W, 3) red, green and blue, for the columns of colour.

    Returns
    -------
    dict of ndarray
        One row an object: `label`, `area_px`, centroid `y`, `x`, half-open bounding box `y0`,
        `x0`, `y1`, `x1`; `score`, the mean probability; `major_axis`, `minor_axis` in pixels and
        `eccentricity` of the ellipse with the same second moments. With an image also its mean
        colour `red`, `green`, `blue`, 0 … 255, and mean optical density of `haematoxylin`.
    """
    y, x = np.nonzero(labels)
    ids = labels[y, x].astype(np.int64)
    first, last = int(ids.min(initial=2**32)), int(ids.max(initial=0))
    if last - first < labels.size:  # the ids of a block are a few in a row
        names, ids = np.arange(first, last + 1), ids - first
    else:  # a person may number as he likes
        names, ids = np.unique(ids, return_inverse=True)
    area = np.bincount(ids)
    present = np.flatnonzero(area)
    corners: dict[str, NDArray[np.int64]] = {}
    for name, place in (("y", y), ("x", x)):
        low, high = np.full(len(area), labels.size), np.zeros(len(area), np.int64)
        np.minimum.at(low, ids, place)
        np.maximum.at(high, ids, place)
        corners |= {f"{name}0": low, f"{name}1": high + 1}

    def mean(values: NDArray[np.generic]) -> NDArray[np.float64]:
        return (np.bincount(ids, values, len(area)) / np.maximum(area, 1))[present]

    dy, dx = y - corners["y0"][ids], x - corners["x0"][ids]  # small, so that squares are exact
    middle_y, middle_x = mean(dy), mean(dx)
    corners = {name: corner[present] for name, corner in corners.items()}
    objects: dict[str, NDArray[Any]] = {
        "label": names[present].astype(np.uint32),
        "area_px": area[present],
        "y": corners["y0"] + middle_y + 0.5,
        "x": corners["x0"] + middle_x + 0.5,
        **{name: corners[name] for name in ("y0", "x0", "y1", "x1")},
        "score": mean(probability[y, x]).astype(np.float32),
        **_axes(
            mean(dy * dy) - middle_y**2,
            mean(dx * dx) - middle_x**2,
            mean(dy * dx) - middle_y * middle_x,
        ),
    }
    if image is not None:
        colour = image[y, x]
        for i, name in enumerate(("red", "green", "blue")):
            objects[name] = mean(colour[:, i]).astype(np.float32)
        objects["haematoxylin"] = mean(_haematoxylin(colour)).astype(np.float32)
    return objects


def solidity(labels: Labels, ids: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Pixels (N,) of each object to those of its convex hull, as scikit-image counts them.

    Some hundred times slower than all of `measure`.
    """
    wanted = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    wanted[ids] = ids
    of = {region.label: region.solidity for region in regionprops(wanted[labels])}
    return np.array([of[i] for i in ids.tolist()], np.float32)


def _axes(
    yy: NDArray[np.float64], xx: NDArray[np.float64], yx: NDArray[np.float64]
) -> dict[str, NDArray[np.float32]]:
    """Axes of the ellipses with these variances and covariance of their pixels' centres."""
    half, apart = (yy + xx) / 2, np.hypot((yy - xx) / 2, yx)
    large, small = half + apart, (half - apart).clip(min=0)
    ratio = np.divide(small, large, out=np.ones_like(large), where=large > 0)
    axes = {
        "major_axis": 4 * np.sqrt(large),
        "minor_axis": 4 * np.sqrt(small),
        "eccentricity": np.sqrt(1 - ratio),
    }
    return {name: values.astype(np.float32) for name, values in axes.items()}


def _haematoxylin(colour: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density (N,) of haematoxylin in (N, 3) colours, beside eosin and DAB.

    Colour deconvolution by Ruifrok and Johnston (2001), Anal. Quant. Cytol. Histol. 23, 291.
    """
    share = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True))[:, 0]
    density = -np.log10(np.arange(256).clip(min=1) / 255)  # black would be infinitely dense
    parts = (density[:, None] * share).astype(np.float32)
    total = parts[colour[:, 0], 0] + parts[colour[:, 1], 1] + parts[colour[:, 2], 2]
    return np.asarray(total.clip(min=0))


def contained(
    labels: Labels, objects: dict[str, NDArray[Any]], masks: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which samples contain which objects, at IoU >= 0.5 inside their bounding boxes.

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
        (S, N).
    """
    ids = objects["label"].astype(np.int64)
    y0, x0, y1, x1 = (objects[name].astype(np.int64) for name in ("y0", "x0", "y1", "x1"))
    area = objects["area_px"].astype(np.int64)
    count = int(labels.max(initial=0)) + 1
    votes = np.zeros((len(masks), len(ids)), bool)
    for vote, mask in zip(votes, masks, strict=True):
        inside = np.bincount(labels[mask], minlength=count)[ids]
        spilled = np.pad((mask & (labels == 0)).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        beside = spilled[y1, x1] - spilled[y0, x1] - spilled[y1, x0] + spilled[y0, x0]
        vote[:] = inside / (area + beside) >= 0.5
    return votes


def agreement(votes: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fraction (N,) of samples that contain each object, of `contained`; NaN with fewer than 2."""
    if len(votes) < 2:
        return np.full(votes.shape[1], np.nan, np.float32)
    return np.asarray(votes.mean(axis=0), np.float32)
