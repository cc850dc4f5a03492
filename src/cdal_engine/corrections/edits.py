"""What a person does to labels, and what it has changed: arrays only."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from skimage.graph import MCP_Geometric

from ..errors import CdalError

__all__ = ["Touched", "bounding_box", "changes", "now", "renamed", "renumbered", "settled", "split"]

Labels = NDArray[np.uint32]
# By label, what a person did to an object: `action` and `when`; of a merged one also the object it
# went `into`, of the parts of a split one what they are `from`.
Touched = dict[int, dict[str, Any]]


def now() -> str:
    """The time, as provenance has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def bounding_box(labels: Labels, label: int) -> tuple[slice, slice] | None:
    """Rows and columns of an object; None if it is not there."""
    there = labels == label
    rows, columns = (np.flatnonzero(there.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def split(
    labels: Labels, label: int, first: tuple[int, int], second: tuple[int, int]
) -> NDArray[np.bool_]:
    """Pixels of the part of an object that belongs to the second of two points in it.

    Each pixel goes with the point that is nearer on the way through the object, where a step takes
    the longer the nearer it is to the edge: it is cut where it is narrow, wherever the points lie.

    Raises
    ------
    CdalError
        If the points are not two pixels of the object.
    """
    inside = [
        all(0 <= at < n for at, n in zip(p, labels.shape, strict=True)) and labels[p] == label
        for p in (first, second)
    ]
    box = bounding_box(labels, label)
    if first == second or not all(inside) or box is None:
        raise CdalError("the two points do not lie in the object", "point at two places inside it")
    mask = np.pad(labels[box] == label, 1)
    cost = np.where(mask, 1 / np.maximum(ndi.distance_transform_edt(mask), 1), -1)  # -1: no way
    to_first, to_second = (
        MCP_Geometric(cost).find_costs([(y - box[0].start + 1, x - box[1].start + 1)])[0]
        for y, x in (first, second)
    )
    part = np.zeros(labels.shape, bool)
    part[box] = (to_second < to_first)[1:-1, 1:-1]
    return part


def changes(before: Labels, after: Labels) -> dict[int, str]:
    """What became of the objects whose pixels are not those of `before`.

    Returns
    -------
    dict
        By label: `drawn`, new; `redrawn`, another shape; `erased`, gone from here.
    """
    changed = before != after
    were, are = set(np.unique(before).tolist()), set(np.unique(after).tolist())
    touched = np.union1d(before[changed], after[changed])
    return {
        int(label): "drawn" if label not in were else "redrawn" if label in are else "erased"
        for label in touched
        if label
    }


def renumbered(before: Labels, after: Labels, free: int) -> tuple[Labels, dict[int, int]]:
    """Give drawn objects numbers of their own where they took ones below `free`.

    Such a number may be that of an object elsewhere on the slide.

    Returns
    -------
    ndarray, dict
        Labels, and the new number by the old one.
    """
    new = np.setdiff1d(after, before)
    low = new[(new > 0) & (new < free)]
    start = max(free, int(after.max(initial=0)) + 1)
    numbers = {int(old): start + i for i, old in enumerate(low)}
    result = after.copy()
    for old, number in numbers.items():
        result[after == old] = number
    return result, numbers


def settled(touched: Touched, before: Labels, after: Labels) -> Touched:
    """What was done to objects that were there before or are now, in terms of these alone.

    One that was drawn or split off and is gone again leaves no trace: its number may be that of an
    object elsewhere.
    """
    known = set(np.union1d(before, after).tolist())
    result: Touched = {}
    for label, each in touched.items():
        if label not in known:
            continue
        into, passed = each.get("into"), {label}
        while into is not None and into not in known and into not in passed:
            passed.add(into)
            into = touched.get(into, {}).get("into")
        if each.get("into") is None:
            result[label] = {
                key: value for key, value in each.items() if key != "with" or value in known
            }
        elif into is None or into in passed:  # what it became a part of was deleted
            result[label] = {**each, "action": "deleted"}
            del result[label]["into"]
        else:
            result[label] = {**each, "into": into}
    return result


def renamed(touched: Touched, numbers: dict[int, int]) -> Touched:
    """The same with other numbers, also where one object is named in what was done to another."""
    return {
        numbers.get(label, label): {
            key: numbers.get(value, value) if key in ("into", "with", "from") else value
            for key, value in each.items()
        }
        for label, each in touched.items()
    }
