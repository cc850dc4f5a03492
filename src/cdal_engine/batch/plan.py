"""Which blocks of a slide's grid there are, and which of its tiles are worth running."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..blocks import HALO
from ..tiling import Box, surround
from .area import Area

__all__ = ["BLOCK", "Block", "Plan"]

BLOCK = 2048  # pixels: about the edge of a block, which is made of whole tiles


@dataclass(frozen=True, order=True)
class Block:
    """A block by its place among the blocks, from the grid's corner."""

    row: int
    column: int


@dataclass(frozen=True, eq=False)
class Plan:
    """Blocks of a slide's grid that have something to segment.

    Blocks and tiles both start at the grid's corner, so that neither depends on the other, nor on
    what is left out.

    Attributes
    ----------
    size : tuple of int
        (H, W) of the results' grid.
    padded : tuple of int
        The same up to a multiple of the network's stride: what tiles cut.
    tile, edge : int
        Of tiles and of blocks; `edge` is a multiple of `tile`.
    wanted : ndarray
        Which cells of edge `tile` are near what counts.
    """

    size: tuple[int, ...]
    padded: tuple[int, ...]
    tile: int
    edge: int
    wanted: NDArray[np.bool_]

    @classmethod
    def over(
        cls, size: tuple[int, ...], padded: tuple[int, ...], tile: int, area: Area, block: int
    ) -> Plan:
        """Plan blocks of about `block` pixels over an area, and what objects reach beyond it."""
        wanted = np.zeros([-(-n // tile) for n in padded], bool)
        for cell in np.ndindex(*(-(-n // tile) for n in size)):
            box = tuple(
                slice(i * tile, min((i + 1) * tile, n)) for i, n in zip(cell, size, strict=True)
            )
            wanted[cell] = area.touches(surround(box, HALO, size))
        return cls(size, padded, tile, max(block // tile, 1) * tile, wanted)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Those with a wanted tile, row by row."""
        cells = self.edge // self.tile
        rows, columns = (-(-n // cells) for n in self.wanted.shape)
        return tuple(
            Block(row, column)
            for row, column in product(range(rows), range(columns))
            if self.wanted[
                row * cells : (row + 1) * cells, column * cells : (column + 1) * cells
            ].any()
        )

    def box(self, block: Block, padded: bool = False) -> Box:
        """Where a block lies in the results' grid, or in the padded one."""
        size = self.padded if padded else self.size
        return tuple(
            slice(min(i * self.edge, n), min((i + 1) * self.edge, n))
            for i, n in zip((block.row, block.column), size, strict=True)
        )

    def around(self, block: Block) -> list[Block]:
        """A block and those of its neighbours that there are, row by row."""
        near = product(
            range(block.row - 1, block.row + 2), range(block.column - 1, block.column + 2)
        )
        return [Block(*place) for place in near if Block(*place) in self._places]

    @cached_property
    def _places(self) -> frozenset[Block]:
        return frozenset(self.blocks)

    def reach(self, block: Block) -> Box:
        """The box of a block and its neighbours in the results' grid."""
        return surround(self.box(block), self.edge, self.size)

    def wants(self, box: Box) -> bool:
        """Whether a box of the grid touches a wanted cell."""
        rows, columns = (slice(s.start // self.tile, -(-s.stop // self.tile)) for s in box)
        return bool(self.wanted[rows, columns].any())
