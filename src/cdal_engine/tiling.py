"""Tiles with halo: on multiples of the network's stride, halos ending at the image's edge."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product, takewhile

__all__ = ["Box", "Tile", "first_batch", "plan", "seen_from", "surround"]

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


def plan(size: tuple[int, ...], tile: int, halo: int, part: Box | None = None) -> list[Tile]:
    """Cut a grid of `size`, or a `part` of it, into tiles of edge `tile`, row by row.

    At the grid's edge there is no halo: the network pads with zeros there in every tiling alike,
    so `size` must be a multiple of the network's stride, as must `tile`, `halo` and `part`.
    """
    part = part or tuple(slice(0, n) for n in size)
    spans = [[slice(a, min(a + tile, p.stop)) for a in range(p.start, p.stop, tile)] for p in part]
    return [Tile(core, surround(core, halo, size)) for core in product(*spans)]


def first_batch(tiles: list[Tile], most: int) -> list[Tile]:
    """The first tiles, up to `most`, that are of one shape."""
    return list(takewhile(lambda tile: tile.shape == tiles[0].shape, tiles[:most]))
