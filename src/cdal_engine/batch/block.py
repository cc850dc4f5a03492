"""The work on one block of a slide: its pixels, its maps, and then the objects it owns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
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
from ..instances import solidity
from ..io.source import Source
from ..memory import fitting
from ..objects import entropy, measured
from ..preparation import Grid, Limits, normalise, prepare, resample, rgb8, seen_by
from ..segmenter import Segmenter
from ..tiling import Box, Tile, hull, seen_from, within
from .area import Area
from .plan import Block, Plan
from .scratch import BlockFiles

__all__ = ["BlockTask", "Pixels"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Pixels:
    """What the networks look at for one block.

    Attributes
    ----------
    tiles : list of Tile
    image : Tensor
        (C, H, W) of what the tiles see, on the model's grid.
    colours : ndarray or None
        (H, W, 3) of the block, for the objects' columns of colour.
    """

    tiles: list[Tile]
    image: Tensor
    colours: NDArray[np.uint8] | None


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
    shown : Grid
        The same, counted in its own pixels: the grid of the results.
    mpp : float or None
        Micrometres per pixel of the results.
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
    shown: Grid
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
            own = resample(x, 1 / self.shown.pixel, self.plan.box(block), origin)
            x = resample(normalise(x, image, self.limits), self.grid.scale, window, origin)
            return Pixels(tiles, x, rgb8(own, image))

    def answer(self, block: Block, pixels: Pixels) -> Arrays:
        """Run the model; return the block's maps, see `stored`."""
        inference = replace(self.inference, at_once=fitting(self.inference, pixels.tiles))
        box = self.plan.box(block, padded=True)
        origin = tuple(s.start for s in hull(pixels.tiles))
        with torch.inference_mode(), memory_reported():
            maps = inference.run(pixels.image, origin, box, pixels.tiles)
        first = tuple(s.start for s in box)
        arrays = self.stored(maps, seen_from(first, self.plan.box(block)))
        if pixels.colours is not None:
            arrays["colours"] = np.moveaxis(pixels.colours, -1, 0)
        return arrays

    def stored(self, maps: Maps, inside: Box) -> Arrays:
        """Maps as they are kept, each (C, h, w).

        `parts` are all the label channels but the background's, `masks` hold a bit for each sample,
        and those to be saved have the keys of `results.chosen_maps`.
        """
        mean = maps.probability[:, *inside]
        foreground = targets.foreground(mean, self.config)
        arrays: Arrays = {"parts": mean if len(mean) == 1 else mean[1:]}
        if "probability" in self.save:
            arrays["probability"] = foreground
        if self.inference.samples > 1:
            arrays["masks"] = np.packbits(maps.masks[:, *inside], axis=0)
        if "uncertainty" in self.save:
            arrays["uncertainty"] = entropy(foreground)[None]
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

    def objects(self, block: Block, scratch: BlockFiles) -> tuple[Arrays, Arrays]:
        """Find and measure the objects that a block owns, from its maps and its neighbours'.

        Returns
        -------
        dict of ndarray
            `labels`, the block's own pixels with ids from 1; `beyond`, (N, 3) row and column in
            the grid and id of pixels outside of the block; `counted`, how many pixels of the block
            count; and `SampleCounts` by their names, where there are samples.
        dict of ndarray
            The objects' columns, in pixels of the grid.
        """
        core = self.plan.box(block)
        counts = self.area.inside(core)
        found = self._found(block, scratch, core, counts)
        box = found.box
        count = len(found.markers)
        own = seen_from(tuple(s.start for s in box), core)
        where = np.zeros(found.labels.shape, bool)
        where[own] = counts
        columns, samples = measured(
            found.labels + found.others * np.uint32(count + 1),
            targets.foreground(self._mean(scratch, block, box), self.config),
            self._masks(scratch, block, box),
            self._colours(scratch, block, box),
            self.config,
            self._known_mpp,
            own=count,
            where=where,
        )
        if "solidity" in self.save:
            columns["solidity"] = solidity(found.labels, columns["label"])
        for axis, name in enumerate("yx"):
            for key in (name, f"{name}0", f"{name}1"):
                columns[key] = columns[key] + box[axis].start
        outside = found.labels.copy()
        outside[own] = 0
        y, x = np.nonzero(outside)
        place = np.stack([y + box[0].start, x + box[1].start, outside[y, x]], axis=1)
        labels: Arrays = {
            "labels": found.labels[own],
            "beyond": place.astype(np.int64),
            "counted": np.array(counts.sum()),
            **({} if samples is None else vars(samples)),
        }
        return labels, columns

    def _found(
        self, block: Block, scratch: BlockFiles, core: Box, counts: NDArray[np.bool_]
    ) -> BlockObjects:
        """The objects that a block owns and that count; of target `classes`, its regions."""
        if self.config.target == "classes":
            labels = targets.decode(self._mean(scratch, block, core), self.config, None)
            labels[~counts] = 0
            classes = np.zeros((len(self.config.classes), 2), np.int64)
            return BlockObjects(core, labels, classes, np.zeros(labels.shape, bool))
        found = decode_block(
            partial(self._mean, scratch, block),
            self.plan.size,
            core,
            self.config,
            self._known_mpp,
            limit=self.plan.reach(block),
        )
        y, x = (found.markers - [s.start for s in core]).T
        kept = counts[y, x]
        number = np.zeros(len(kept) + 1, np.uint32)
        number[1:][kept] = np.arange(1, kept.sum() + 1)
        return replace(found, labels=number[found.labels], markers=found.markers[kept])

    @property
    def _known_mpp(self) -> float | None:
        """As `targets.decode` takes it."""
        return None if self.config.image.mpp is None else self.mpp

    def _mean(self, scratch: BlockFiles, block: Block, box: Box) -> NDArray[np.float32]:
        """Mean probabilities (K, h, w) of all label channels."""
        parts = self._patch(scratch, block, "parts", box)
        if self.config.label_channels == 1:
            return parts
        return np.concatenate([1 - parts.sum(axis=0, keepdims=True), parts])

    def _colours(self, scratch: BlockFiles, block: Block, box: Box) -> NDArray[np.uint8] | None:
        if "colours" not in scratch.maps(block):
            return None
        return np.moveaxis(self._patch(scratch, block, "colours", box), 0, -1)

    def _masks(self, scratch: BlockFiles, block: Block, box: Box) -> NDArray[np.bool_]:
        if self.inference.samples == 1:
            return np.zeros((0, *(s.stop - s.start for s in box)), bool)
        packed = self._patch(scratch, block, "masks", box)
        return np.unpackbits(packed, axis=0, count=self.inference.samples).view(bool)

    def _patch(self, scratch: BlockFiles, block: Block, key: str, box: Box) -> NDArray[Any]:
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
