"""Counts with an interval: what every sample alone would find, beside what their mean shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import instances

__all__ = ["SampleCounts", "count_samples", "counted", "counted_classes"]


@dataclass(frozen=True)
class SampleCounts:
    """What each sample alone would find; those of a grid's blocks add up to the grid's.

    Attributes
    ----------
    objects : ndarray
        (S,) int64: objects of the mean that it contains, and pieces of its own that share no
        pixel with any of them.
    area : ndarray
        (S,) int64 pixels of foreground.
    """

    objects: NDArray[np.int64]
    area: NDArray[np.int64]

    def __add__(self, other: SampleCounts) -> SampleCounts:
        """Counts of two blocks together."""
        return SampleCounts(self.objects + other.objects, self.area + other.area)


def count_samples(
    labels: NDArray[np.uint32],
    votes: NDArray[np.bool_],
    masks: NDArray[np.bool_],
    min_area: float,
    where: NDArray[np.bool_] | None = None,
) -> SampleCounts:
    """Count each sample's objects and foreground.

    Parameters
    ----------
    labels : ndarray
        (h, w) ids of all objects of the mean, a block's own and others'.
    votes : ndarray
        (S, N) of `instances.contained`, for the block's own objects.
    masks : ndarray
        (S, h, w) thresholded samples.
    min_area : float
        Pixels of the smallest piece (4-neighbours) that counts.
    where : ndarray, optional
        (h, w) pixels that count: a piece does if its first pixel, row by row, does. By default all.
    """
    where = np.ones(labels.shape, bool) if where is None else where
    objects = votes.sum(axis=1)
    for i, mask in enumerate(masks):
        pieces = instances.components(mask)
        own = np.bincount(pieces.ravel()) >= max(min_area, 1)
        own[0] = False
        own[pieces[labels > 0]] = False
        if own.any():
            firsts = instances.first_pixels(np.where(own[pieces], pieces, np.uint32(0)))
            objects[i] += sum(bool(where[first]) for first in firsts.values())
    return SampleCounts(objects, (masks & where).sum(axis=(1, 2)))


def counted(
    objects: int | None,
    foreground: int,
    samples: SampleCounts | None,
    mpp: float | None,
    area_mm2: float | None,
    agreement: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """What run.json says of counts, area and density; an interval is the least and most of samples.

    Parameters
    ----------
    objects : int or None
        Of the mean; None where there are none to be counted.
    foreground : int
        Pixels of the mean's objects.
    samples : SampleCounts or None
        None with one sample: there are no intervals then.
    mpp : float or None
        Micrometres per pixel of the labels.
    area_mm2 : float or None
        Of all that was looked at.
    agreement : ndarray, optional
        (N,) of the objects; NaN with one sample.

    Returns
    -------
    dict
        `objects`, `area_um2` (of the foreground) and `objects_per_mm2`, each with its interval
        [least, most] (`objects_interval`, `area_interval`, `objects_per_mm2_interval`),
        `area_mm2`, and `agreement`, the objects' mean. None for what is not known.
    """
    each = None if samples is None or objects is None else _interval(samples.objects)
    areas = None if samples is None else _interval(samples.area)

    def scaled(values: Any, factor: float | None) -> Any:
        if values is None or factor is None:
            return None
        return [n * factor for n in values] if isinstance(values, list) else values * factor

    mean = float("nan") if agreement is None or not len(agreement) else float(agreement.mean())
    um2, per_mm2 = None if mpp is None else mpp**2, 1 / area_mm2 if area_mm2 else None
    return {
        "objects": objects,
        "objects_interval": each,
        "area_um2": scaled(foreground, um2),
        "area_interval": scaled(areas, um2),
        "area_mm2": area_mm2,
        "objects_per_mm2": scaled(objects, per_mm2),
        "objects_per_mm2_interval": scaled(each, per_mm2),
        "agreement": None if np.isnan(mean) else mean,
    }


def counted_classes(
    classes: Iterable[tuple[str, int]],
    samples: SampleCounts | None,
    mpp: float | None,
    area_mm2: float | None,
) -> dict[str, Any]:
    """`counted` of regions of classes, which are no objects to count; one class may have several.

    Parameters
    ----------
    classes : iterable of tuple
        Class and pixels of each region.
    samples, mpp, area_mm2
        As of `counted`.

    Returns
    -------
    dict
        With `class_area_um2`, of each class, where `mpp` is known.
    """
    pixels: dict[str, int] = {}
    for name, area in classes:
        pixels[name] = pixels.get(name, 0) + area
    counts = counted(None, sum(pixels.values()), samples, mpp, area_mm2)
    if mpp is None:
        return counts
    return counts | {"class_area_um2": {name: area * mpp**2 for name, area in pixels.items()}}


def _interval(values: NDArray[np.int64]) -> list[int]:
    return [int(values.min()), int(values.max())]
