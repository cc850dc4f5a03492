"""Objects of a grid too large to decode at once, block by block, exactly as if it had been.

A block owns the objects whose marker's first pixel, row by row, lies in it, and gives them whole.
It looks a halo further, and further still only where a connected piece of foreground that is partly
its own goes on beyond the halo: so no block needs to know what another one found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import instances, targets
from .config import ModelConfig
from .tiling import Box, seen_from, surround, within

__all__ = ["HALO", "BlockObjects", "assemble", "decode_block"]

HALO = 64  # pixels: at 40x the least is read with it, see benchmarks/RESULTS.md

Labels = NDArray[np.uint32]


@dataclass(frozen=True)
class BlockObjects:
    """The objects one block owns.

    Attributes
    ----------
    box : tuple of slice
        Where `labels` lies in the grid.
    labels : ndarray
        (h, w) uint32 ids from 1 in order of the markers.
    markers : ndarray
        (N, 2) row and column in the grid of each object's marker's first pixel.
    others : ndarray
        (h, w) pixels of objects that other blocks own.
    """

    box: Box
    labels: Labels
    markers: NDArray[np.int64]
    others: NDArray[np.bool_]


def decode_block(
    read: Callable[[Box], NDArray[np.float32]],
    size: tuple[int, ...],
    core: Box,
    config: ModelConfig,
    mpp: float | None,
    halo: int = HALO,
    limit: Box | None = None,
) -> BlockObjects:
    """Find the objects that the block `core` owns.

    Parameters
    ----------
    read : callable
        From a box of the grid to its mean probabilities (K, h, w).
    size : tuple of int
        (H, W) of the grid.
    core : tuple of slice
        The block; blocks cut the grid without overlap.
    config, mpp
        As `targets.decode`; for `nuclei` and `binary`.
    halo : int
        Pixels looked at beyond the block at first. What is read then grows with the connected
        foreground, up to `limit` where that reaches all over it.
    limit : tuple of slice, optional
        What there is to be read, such as the block and its neighbours; by default the whole grid.
        Connected foreground that goes on beyond it is cut there. Objects near the cut may then
        differ from those of the whole grid, and where two blocks cut it differently, overlap.
    """
    limit = limit or tuple(slice(0, n) for n in size)
    while True:
        box = within(limit, surround(core, halo, size))
        probability = read(box)
        if not _cut(probability, limit, core, box, config):
            break
        halo = 2 * max(halo, 1)
    labels, seeds = targets.find_objects(probability, config)
    area = np.bincount(labels.ravel())
    kept = area >= max(targets.min_area(config, mpp), 1)
    owned = np.zeros(len(area), np.uint32)
    found = []
    for i, (y, x) in instances.first_pixels(seeds).items():
        at = y + box[0].start, x + box[1].start
        inside = all(c.start <= p < c.stop for c, p in zip(core, at, strict=True))
        if inside and kept[i]:
            found.append(at)
            owned[i] = len(found)
    others = (labels > 0) & (kept & (owned == 0))[labels]
    return BlockObjects(box, owned[labels], np.array(found, np.int64).reshape(-1, 2), others)


def _cut(
    probability: NDArray[np.float32],
    limit: Box,
    core: Box,
    box: Box,
    config: ModelConfig,
) -> bool:
    """Whether foreground connected with the core's goes on beyond the box."""
    mask = targets.foreground(probability, config)[0] > config.decode.threshold
    pieces = instances.components(mask)
    own = np.unique(pieces[seen_from(tuple(b.start for b in box), core)])
    edges = []
    for axis, (b, most) in enumerate(zip(box, limit, strict=True)):
        edges += [pieces.take(0, axis)] if b.start > most.start else []
        edges += [pieces.take(-1, axis)] if b.stop < most.stop else []
    return bool(np.isin(np.concatenate([*edges, [0]]), own[own > 0]).any())


def assemble(blocks: Iterable[BlockObjects], size: tuple[int, ...]) -> Labels:
    """Lay blocks' objects together, numbered by their markers' first pixels, row by row."""
    blocks = list(blocks)
    labels = np.zeros(size, np.uint32)
    every = np.concatenate([np.zeros((0, 2), np.int64), *(block.markers for block in blocks)])
    order = np.lexsort((every[:, 1], every[:, 0]))
    number = np.empty(len(every), np.uint32)
    number[order] = np.arange(1, len(every) + 1)
    done = 0
    for block in blocks:
        ids = np.append(np.uint32(0), number[done : done + len(block.markers)])
        inside = block.labels > 0
        labels[block.box][inside] = ids[block.labels[inside]]
        done += len(block.markers)
    return labels
