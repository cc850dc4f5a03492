"""Tiles with halo: on multiples of the network's stride, halos ending at the image's edge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, product

__all__ = ["Tile", "batches", "plan"]


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

    core: tuple[slice, ...]
    box: tuple[slice, ...]

    @property
    def origin(self) -> tuple[int, ...]:
        """First pixel of the box."""
        return tuple(s.start for s in self.box)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of the box."""
        return tuple(s.stop - s.start for s in self.box)

    @property
    def inside(self) -> tuple[slice, ...]:
        """The core, as seen from the box."""
        return tuple(
            slice(c.start - b.start, c.stop - b.start)
            for c, b in zip(self.core, self.box, strict=True)
        )


def plan(size: tuple[int, ...], tile: int, halo: int) -> list[Tile]:
    """Cut `size` into tiles of edge `tile`, row by row.

    At the image's edge there is no halo: the network pads with zeros there in every tiling alike,
    so `size` must be a multiple of the network's stride, as must `tile` and `halo`.
    """
    spans = [
        [
            (
                slice(a, min(a + tile, length)),
                slice(max(a - halo, 0), min(a + tile + halo, length)),
            )
            for a in range(0, length, tile)
        ]
        for length in size
    ]
    return [
        Tile(tuple(core for core, _ in axes), tuple(box for _, box in axes))
        for axes in product(*spans)
    ]


def batches(tiles: list[Tile], most: int) -> Iterator[list[Tile]]:
    """Runs of up to `most` consecutive tiles of one shape."""
    for _, run in groupby(tiles, key=lambda tile: tile.shape):
        same = list(run)
        yield from (same[i : i + most] for i in range(0, len(same), most))
