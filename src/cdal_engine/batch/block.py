"""The work on one block of a slide: its pixels, its maps, and then the objects it owns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import targets
from ..blocks import BlockObjects, decode_block
from ..config import ModelConfig
from ..device import memory_reported
from ..inference import Inference, Maps
from ..io.source import Source
from ..memory import fitting
from ..preparation import Grid, Limits, normalise, prepare, resample, seen_by
from ..segmenter import Segmenter, entropy, measured
from ..tiling import Box, Tile, hull, seen_from, within
from .area import Area
from .plan import Block, Plan
from .scratch import Scratch

__all__ = ["BlockTask", "Pixels"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Pixels:
    """What the networks look at for one block: its tiles, and (C, H, W) pixels of all of them."""

    tiles: list[Tile]
    image: Tensor


@dataclass(frozen=True, eq=False)
class BlockTask:
    """What stays the same over all blocks of one slide.

    Attributes
    ----------
    source : Source
    level : int
        Which of its levels is read.
    segmenter : Segmenter
    inference : Inference
    grid : Grid
        The model's grid over that level.
    mpp : float or None
        Micrometres per pixel of the grid.
    halo : int
        Pixels that a tile sees beyond what it keeps.
    plan : Plan
    area : Area
    largest : float
        See `preparation.prepare`.
    limits : ndarray or None
        See `preparation.normalise`.
    save : tuple of str
        What is asked for.
    """

    source: Source
    level: int
    segmenter: Segmenter
    inference: Inference
    grid: Grid
    mpp: float | None
    halo: int
    plan: Plan
    area: Area
    largest: float
    limits: Limits | None
    save: tuple[str, ...]

    @property
    def config(self) -> ModelConfig:
        """Of the model, as it answers."""
        return self.inference.config

    def tiles(self, block: Block) -> list[Tile]:
        """Tiles of a block that are worth running."""
        box = self.plan.box(block, padded=True)
        tiles = self.segmenter.tiles(self.plan.padded, box, self.halo)
        return [tile for tile in tiles if self.plan.wants(tile.core)]

    def read(self, block: Block) -> Pixels:
        """Read a block and what its tiles see around it, on the model's grid.

        Raises
        ------
        CdalError
            If it cannot be decoded.
        """
        tiles, image = self.tiles(block), self.config.image
        window = hull(tiles)
        box = seen_by(window, self.grid.scale, self.source.levels[self.level].shape)
        origin = tuple(s.start for s in box)
        with torch.inference_mode(), memory_reported():
            x = prepare(self.source.read(self.level, box), image, self.largest)
            x = normalise(x, image, self.limits)
            return Pixels(tiles, resample(x, self.grid.scale, window, origin))

    def answer(self, block: Block, pixels: Pixels) -> Arrays:
        """Run the model; return the block's maps, see `stored`."""
        inference = replace(self.inference, at_once=fitting(self.inference, pixels.tiles))
        box = self.plan.box(block, padded=True)
        origin = tuple(s.start for s in hull(pixels.tiles))
        with torch.inference_mode(), memory_reported():
            maps = inference.run(pixels.image, origin, box, pixels.tiles)
        return self.stored(maps, seen_from(tuple(s.start for s in box), self.plan.box(block)))

    def stored(self, maps: Maps, inside: Box) -> Arrays:
        """Maps as they are kept: the background's left out, a bit for each sample.

        Keys as `results.chosen_maps`, and `masks`.
        """
        probability = maps.probability[:, *inside]
        probability = probability if len(probability) == 1 else probability[1:]
        arrays: Arrays = {"probability": probability}
        if self.inference.samples > 1:
            arrays["masks"] = np.packbits(maps.masks[:, *inside], axis=0)
        if "uncertainty" in self.save:
            arrays["uncertainty"] = entropy(probability)[None]
            arrays["deviation"] = maps.deviation[inside][None]
        if maps.attention is not None:
            arrays["attention"] = maps.attention[inside][None]
        if maps.samples is not None:
            arrays["samples"] = maps.samples[:, *inside]
        return arrays

    def no_maps(self) -> Arrays:
        """The maps of no pixel at all, to tell which there are."""
        inference = self.inference
        kinds = (inference.attention, inference.keep_samples)
        empty = Maps.empty(self.config.label_channels, inference.samples, (0, 0), *kinds)
        return self.stored(empty, (slice(0, 0), slice(0, 0)))

    def objects(self, block: Block, scratch: Scratch) -> tuple[Arrays, Arrays]:
        """Find and measure the objects that a block owns, from its maps and its neighbours'.

        Returns
        -------
        dict of ndarray
            `labels`, the block's own pixels with ids from 1; `beyond`, (N, 3) row and column in
            the grid and id of pixels outside of the block; `counted`, how many pixels of the block
            count.
        dict of ndarray
            The objects' columns, in pixels of the grid.
        """
        core = self.plan.box(block)
        counts = self.area.inside(core)
        found = self._found(block, scratch, core, counts)
        box = found.box
        everything = found.labels + found.others * np.uint32(len(found.markers) + 1)
        inside = self._patch(scratch, block, "probability", box)
        masks = self._masks(scratch, block, box)
        columns = measured(everything, inside, masks, self.config)
        owned = columns["label"] <= len(found.markers)
        columns = {name: column[owned] for name, column in columns.items()}
        for axis, name in enumerate("yx"):
            for key in (name, f"{name}0", f"{name}1"):
                columns[key] = columns[key] + box[axis].start
        own = seen_from(tuple(s.start for s in box), core)
        outside = found.labels.copy()
        outside[own] = 0
        y, x = np.nonzero(outside)
        place = np.stack([y + box[0].start, x + box[1].start, outside[y, x]], axis=1)
        labels: Arrays = {
            "labels": found.labels[own],
            "beyond": place.astype(np.int64),
            "counted": np.array(counts.sum()),
        }
        return labels, columns

    def _found(
        self, block: Block, scratch: Scratch, core: Box, counts: NDArray[np.bool_]
    ) -> BlockObjects:
        """The objects that a block owns and that count; of target `classes`, its regions."""

        def read(box: Box) -> NDArray[np.float32]:
            inside = self._patch(scratch, block, "probability", box)
            if self.config.label_channels == 1:
                return inside
            return np.concatenate([1 - inside.sum(axis=0, keepdims=True), inside])

        if self.config.target == "classes":
            labels = targets.decode(read(core), self.config, self.mpp)
            labels[~counts] = 0
            classes = np.zeros((len(self.config.classes), 2), np.int64)
            return BlockObjects(core, labels, classes, np.zeros(labels.shape, bool))
        mpp = None if self.config.image.mpp is None else self.mpp
        reach = self.plan.reach(block)
        found = decode_block(read, self.plan.size, core, self.config, mpp, limit=reach)
        y, x = (found.markers - [s.start for s in core]).T
        kept = counts[y, x]
        number = np.zeros(len(kept) + 1, np.uint32)
        number[1:][kept] = np.arange(1, kept.sum() + 1)
        return replace(found, labels=number[found.labels], markers=found.markers[kept])

    def _masks(self, scratch: Scratch, block: Block, box: Box) -> NDArray[np.bool_]:
        if self.inference.samples == 1:
            return np.zeros((0, *(s.stop - s.start for s in box)), bool)
        packed = self._patch(scratch, block, "masks", box)
        return np.unpackbits(packed, axis=0, count=self.inference.samples).view(bool)

    def _patch(self, scratch: Scratch, block: Block, key: str, box: Box) -> NDArray[Any]:
        """A box of a map, from a block's and its neighbours' files; 0 where there are none."""
        own = scratch.maps(block)[key]
        patch = np.zeros((len(own), *(s.stop - s.start for s in box)), own.dtype)
        for near in self.plan.around(block):
            there = self.plan.box(near)
            both = within(box, there)
            if all(s.start < s.stop for s in both):
                source, target = (
                    seen_from(tuple(s.start for s in whole), both) for whole in (there, box)
                )
                patch[:, *target] = scratch.maps(near)[key][:, *source]
        return patch
