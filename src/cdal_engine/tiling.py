"""Tiles with halo, clipped at the image's edge or, of a fixed size, moved inside it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product, takewhile

__all__ = [
    "Box",
    "Tile",
    "cut",
    "first_batch",
    "hull",
    "plan",
    "plan_fixed",
    "seen_from",
    "surround",
    "within",
]

Box = tuple[slice, ...]
"""A part of a grid, a slice an axis."""


@dataclass(frozen=True)
class Tile:
    """A tile on the model's grid.

    Attributes
    ----------
    core : tuple of slice
        What is kept, per axis.
    box : tuple of slice
        What is computed: core and halo, clipped to the image.
    """

    core: Box
    box: Box

    @property
    def origin(self) -> tuple[int, ...]:
        """First pixel of the box."""
        return tuple(s.start for s in self.box)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of the box."""
        return tuple(s.stop - s.start for s in self.box)

    @property
    def inside(self) -> Box:
        """The core, as seen from the box."""
        return seen_from(self.origin, self.core)


def seen_from(origin: tuple[int, ...], box: Box) -> Box:
    """`box`, counted from `origin`."""
    return tuple(slice(b.start - o, b.stop - o) for o, b in zip(origin, box, strict=True))


def surround(box: Box, halo: int, size: tuple[int, ...]) -> Box:
    """`box` and a halo, clipped to a grid of `size`."""
    return tuple(
        slice(max(b.start - halo, 0), min(b.stop + halo, n)) for b, n in zip(box, size, strict=True)
    )


def within(box: Box, other: Box) -> Box:
    """What two boxes share; slices without a pixel where they do not touch."""
    both = ((max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, other, strict=True))
    return tuple(slice(start, max(start, stop)) for start, stop in both)


def cut(along: slice, edge: int) -> list[slice]:
    """Pieces of length `edge`; a last one of up to a quarter of it goes with the one before.

    By itself it would cost two halos more.
    """
    starts = list(range(along.start, along.stop, edge))
    if len(starts) > 1 and 4 * (along.stop - starts[-1]) <= edge:
        starts.pop()
    return [slice(*ends) for ends in pairwise([*starts, along.stop])]


def plan(size: tuple[int, ...], tile: int, halo: int, part: Box | None = None) -> list[Tile]:
    """Cut a grid of `size`, or a `part` of it, into tiles of about `tile` an edge, row by row.

    At the grid's edge there is no halo: the network pads with zeros there in every tiling alike,
    so `size` must be a multiple of the network's stride, as must `tile`, `halo` and `part`.
    """
    part = part or tuple(slice(0, n) for n in size)
    cores = product(*(cut(along, tile) for along in part))
    return [Tile(core, surround(core, halo, size)) for core in cores]


def plan_fixed(size: tuple[int, ...], tile: int, halo: int, part: Box | None = None) -> list[Tile]:
    """Cover a grid, or a `part` of it, with boxes of exactly `tile` pixels an edge.

    For networks whose answer depends on the whole box. Boxes overlap by two halos; the last of a
    row is moved inside the grid, whose `size` must be `tile` at least. Which boxes there are does
    not depend on `part`: it only leaves out those that it does not touch.
    """
    part = part or tuple(slice(0, n) for n in size)
    spans = [_spans(n, tile, halo, p) for n, p in zip(size, part, strict=True)]
    return [
        Tile(tuple(core for core, _ in axes), tuple(box for _, box in axes))
        for axes in product(*spans)
    ]


def _spans(size: int, tile: int, halo: int, part: slice) -> list[tuple[slice, slice]]:
    """Core and box along one axis; a core begins where the one before it ends."""
    step = tile - 2 * halo
    starts = [min(start, size - tile) for start in range(0, size - 2 * halo, step)]
    edges = [0, *(start + tile - halo for start in starts[:-1]), size]
    cores = [slice(max(a, part.start), min(b, part.stop)) for a, b in pairwise(edges)]
    return [
        (core, slice(start, start + tile))
        for core, start in zip(cores, starts, strict=True)
        if core.start < core.stop
    ]


def hull(tiles: list[Tile]) -> Box:
    """The smallest box that holds the boxes of all tiles."""
    axes = zip(*(tile.box for tile in tiles), strict=True)
    return tuple(slice(min(s.start for s in a), max(s.stop for s in a)) for a in map(tuple, axes))


def first_batch(tiles: list[Tile], most: int) -> list[Tile]:
    """The first tiles, up to `most`, that are of one shape."""
    return list(takewhile(lambda tile: tile.shape == tiles[0].shape, tiles[:most]))
