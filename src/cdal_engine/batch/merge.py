"""From the objects of all blocks to one slide's files, one block in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..counts import SampleCounts, counted, counted_classes
from ..io.geojson import GeoJsonWriter
from ..io.ome_zarr import Pyramid, labels_pyramid, maps_pyramid
from ..io.overview import write_overview
from ..io.results import chosen_maps
from ..io.tables import TableWriter, object_table
from ..objects import measured
from ..preparation import rgb8
from ..tiling import seen_from
from .block import BlockTask
from .plan import Block
from .scratch import BlockFiles

__all__ = ["Merge"]

_OVERVIEW = 4096  # pixels of the labels that the overview is drawn from, at most
Labels = NDArray[np.uint32]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Merge:
    """Writes the results of a slide whose blocks are all finished.

    Objects are numbered block by block, and in a block by their markers' first pixels: whatever
    was finished first, the ids are the same, and so are the bytes.

    Attributes
    ----------
    task : BlockTask
    scratch : BlockFiles
    folder : Path
        Empty, for the files.
    mpp : float or None
        Micrometres per level-0 pixel.
    go_on : callable
        Called at each block; raises to stop.
    """

    task: BlockTask
    scratch: BlockFiles
    folder: Path
    mpp: float | None
    go_on: Callable[[], None]

    @cached_property
    def counts(self) -> dict[str, Any]:
        """See `counts.counted`; the area is that of what counts of the slide."""
        pixels = 0
        regions: list[tuple[str, int]] = []
        areas, agreement = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        samples = SampleCounts(np.zeros(1, np.int64), np.zeros(1, np.int64))
        several = self.task.inference.samples > 1
        for block in self.task.plan.blocks:
            found = self.scratch.read("objects", block, "class", "area_px", "agreement")
            areas.append(found["area_px"])
            agreement.append(found["agreement"])
            if self._classes:
                sizes = zip(found["class"].tolist(), found["area_px"].tolist(), strict=True)
                regions.extend(sizes)
            pixels += int(self.scratch.read("labels", block, "counted")["counted"])
            if several:
                samples += SampleCounts(**self.scratch.read("labels", block, "objects", "area"))
        mpp = None if self.mpp is None else self.task.area.pixel * self.mpp
        area = None if mpp is None else pixels * (mpp / 1000) ** 2
        every, known = np.concatenate(agreement), samples if several else None
        if self._classes:
            return counted_classes(regions, known, mpp, area)
        return counted(len(every), int(np.concatenate(areas).sum()), known, mpp, area, every)

    @property
    def _classes(self) -> bool:
        """Whether what is found are regions of classes, cut where blocks end."""
        return self.task.config.target == "classes"

    def write(self, save: tuple[str, ...], picture: NDArray[np.generic]) -> None:
        """Write what is asked for; `picture` is the slide's, for the overview."""
        if "table" in save:
            self._write_table()
        if "geojson" in save:
            self._write_geojson()
        if {"labels", "overview"} & set(save):
            pyramid = self._write_labels()
            if "overview" in save:
                self._write_overview(pyramid, picture)
            if "labels" not in save:
                shutil.rmtree(self.folder / "labels.ome.zarr")
        self._write_maps(save)

    def _blocks(self) -> Iterator[Block]:
        for block in self.task.plan.blocks:
            self.go_on()
            yield block

    @cached_property
    def _ids(self) -> dict[Block, int]:
        """What to add to the ids in each block; classes keep theirs."""
        ids, before = {}, 0
        for block in self.task.plan.blocks:
            ids[block] = before
            if not self._classes:
                before += len(self.scratch.read("objects", block, "label")["label"])
        return ids

    def _columns(self) -> Iterator[tuple[Block | None, Columns]]:
        """Each block's objects; of a slide without blocks, none."""
        for block in self._blocks():
            columns = self.scratch.read("objects", block)
            columns["label"] = (columns["label"] + self._ids[block]).astype(np.uint32)
            yield block, columns
        if not self.task.plan.blocks:
            nothing = np.zeros((1, 1, 1), bool)
            labels, inside = nothing[0].astype(np.uint32), nothing.astype(np.float32)
            image = self.task.config.image
            colours = rgb8(torch.zeros(image.channels, 1, 1), image)
            columns = measured(labels, inside, nothing, colours, self.task.config, None)[0]
            if "solidity" in self.task.save:
                columns["solidity"] = np.zeros(0, np.float32)
            yield None, columns

    def _write_table(self) -> None:
        shape, pixel = self.task.source.shape, self.task.area.pixel
        with TableWriter(self.folder) as table:
            for _, columns in self._columns():
                table.add(object_table(columns, pixel, self.mpp, shape))

    def _write_geojson(self) -> None:
        source, pixel = self.task.source, self.task.area.pixel
        path = self.folder / "objects.geojson"
        with GeoJsonWriter(path, source.path.name, self.mpp, source.shape, pixel) as outlines:
            for block, columns in self._columns():
                if block is not None:
                    labels, corner = self._whole_objects(block)
                    part = f"@{block.row}-{block.column}" if self._classes else ""
                    outlines.add(labels, columns, corner, part)

    def _whole_objects(self, block: Block) -> tuple[Labels, tuple[int, int]]:
        """Labels of the objects a block owns, and where they start in the grid."""
        found, core = self.scratch.read("labels", block), self.task.plan.box(block)
        beyond = found["beyond"]
        ends = [[s.start for s in core], [s.stop - 1 for s in core]]
        places = np.concatenate([ends, beyond[:, :2]])
        (y0, x0), (y1, x1) = places.min(axis=0).tolist(), (places.max(axis=0) + 1).tolist()
        patch = np.zeros((y1 - y0, x1 - x0), np.uint32)
        patch[seen_from((y0, x0), core)] = found["labels"]
        patch[beyond[:, 0] - y0, beyond[:, 1] - x0] = beyond[:, 2]
        patch[patch > 0] += np.uint32(self._ids[block])
        return patch, (y0, x0)

    def _labels(self, block: Block) -> Labels:
        """A block's pixels, of its own objects and of its neighbours'."""
        core = self.task.plan.box(block)
        labels = np.zeros([s.stop - s.start for s in core], np.uint32)
        for near in self.task.plan.around(block):
            first = np.uint32(self._ids[near])
            if near == block:
                own = self.scratch.read("labels", block, "labels")["labels"]
                labels[own > 0] = own[own > 0] + first
                continue
            y, x, ids = self.scratch.read("labels", near, "beyond")["beyond"].T
            y, x = y - core[0].start, x - core[1].start
            inside = (y >= 0) & (x >= 0) & (y < labels.shape[0]) & (x < labels.shape[1])
            labels[y[inside], x[inside]] = ids[inside].astype(np.uint32) + first
        return labels

    def _write_labels(self) -> Pyramid:
        pyramid = labels_pyramid(self.folder / "labels.ome.zarr", self.task.plan.size)
        for block in self._blocks():
            pyramid.write(self.task.plan.box(block), self._labels(block))
        pyramid.finish(self.task.mpp, self._offset)
        return pyramid

    @property
    def _offset(self) -> float:
        """From the centre of level 0's first pixel to that of the grid's, in micrometres."""
        return (self.mpp or 1.0) * (self.task.area.pixel - 1) / 2

    def _write_overview(self, pyramid: Pyramid, picture: NDArray[np.generic]) -> None:
        coarse = next(level for level in pyramid.levels if max(level.shape) <= _OVERVIEW)
        every = [columns for _, columns in self._columns()]
        objects = {
            name: np.concatenate([columns[name] for columns in every])
            for name in ("label", "agreement")
        }
        shrunk = self.task.source.shape[0] / picture.shape[0]
        mpp = None if self.mpp is None else self.mpp * shrunk
        write_overview(self.folder / "overview.png", picture, coarse[:], objects, mpp)

    def _write_maps(self, save: tuple[str, ...]) -> None:
        names = list(chosen_maps(self.task.no_maps(), save))
        if not names:
            return
        pyramid = maps_pyramid(self.folder / "maps.ome.zarr", names, self.task.plan.size)
        for block in self._blocks():
            maps = chosen_maps(self.scratch.maps(block), save)
            pyramid.write(self.task.plan.box(block), np.stack(list(maps.values())))
        pyramid.finish(self.task.mpp, self._offset)
