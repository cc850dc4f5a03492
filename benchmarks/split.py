"""How well objects that were merged are split by two clicks, on true nuclei.

    python benchmarks/split.py DATA

DATA holds labels/ of nuclei. Each pair of nuclei that touch becomes one object, and is split by
clicks at random places, at least half as deep in each nucleus as its deepest. Printed is how much
of the two then lies on the wrong side, beside that of two other rules.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage as ndi
from skimage.segmentation import watershed

from cdal_engine.corrections.edits import split

Mask = NDArray[np.bool_]
Point = tuple[int, int]
_TOUCHING = 3  # pixels, side by side
_SMALLEST = 30  # pixels


def nearest(mask: Mask, first: Point, second: Point) -> Mask:
    """What is nearer to the second point."""
    grid = np.indices(mask.shape).transpose(1, 2, 0)
    to_first, to_second = (np.linalg.norm(grid - p, axis=-1) for p in (first, second))
    return mask & (to_second < to_first)


def by_watershed(mask: Mask, first: Point, second: Point) -> Mask:
    """Watershed of the distance from the edge, with the points as seeds."""
    seeds = np.zeros(mask.shape, np.int32)
    seeds[first], seeds[second] = 1, 2
    return np.asarray(watershed(-ndi.distance_transform_edt(mask), seeds, mask=mask) == 2)


def ours(mask: Mask, first: Point, second: Point) -> Mask:
    """As Review does it."""
    return split(mask.astype(np.uint32), 1, first, second)


def pairs(labels: NDArray[np.integer]) -> Iterator[tuple[Mask, Mask]]:
    """Masks of each two nuclei that touch, on one grid."""
    found = []
    for a, b in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        beside = (a != b) & (a > 0) & (b > 0)
        found.append(np.sort(np.stack([a[beside], b[beside]], 1), axis=1))
    both, counts = np.unique(np.concatenate(found), axis=0, return_counts=True)
    boxes = ndi.find_objects(labels)
    for one, other in both[counts >= _TOUCHING].tolist():
        box = tuple(
            slice(min(p.start, q.start), max(p.stop, q.stop))
            for p, q in zip(boxes[one - 1], boxes[other - 1], strict=True)
        )
        masks = tuple(np.pad(labels[box] == label, 1) for label in (one, other))
        if min(mask.sum() for mask in masks) >= _SMALLEST:
            yield masks


def click(mask: Mask, rng: np.random.Generator) -> Point:
    """A place that a person may point at."""
    depth = ndi.distance_transform_edt(mask)
    return tuple(rng.choice(np.argwhere(depth >= depth.max() / 2)).tolist())


def main() -> None:
    """Print one line a rule."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rules: dict[str, Callable[[Mask, Point, Point], Mask]] = {
        "ours": ours, "watershed": by_watershed, "nearest point": nearest
    }  # fmt: skip
    wrong: dict[str, list[float]] = {name: [] for name in rules}
    for path in sorted((options.data / "labels").glob("*.tif")):
        for one, other in pairs(tifffile.imread(path).astype(np.int32)):
            points = click(one, rng), click(other, rng)
            for name, rule in rules.items():
                wrong[name].append(float((rule(one | other, *points) != other)[one | other].mean()))
    print(f"{len(wrong['ours'])} pairs; part on the wrong side: median, 90th percentile, > 20 %")
    for name, parts in wrong.items():
        share = np.mean(np.array(parts) > 0.2)
        print(f"{name:>14} {np.median(parts):6.1%} {np.percentile(parts, 90):6.1%} {share:6.1%}")


if __name__ == "__main__":
    main()
