"""From the objects of all blocks to one slide's files, a block in memory at a time."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..io.geojson import GeoJsonWriter
from ..io.ome_zarr import Pyramid, labels_pyramid, maps_pyramid
from ..io.overview import write_overview
from ..io.results import chosen_maps
from ..io.tables import TableWriter, object_table
from ..segmenter import entropy
from ..tiling import seen_from
from .block import BlockTask
from .plan import Block
from .scratch import Scratch

__all__ = ["Merge"]

_OVERVIEW = 4096  # pixels of the labels that the overview is drawn from, at most
Labels = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Merge:
    """Writes the results of a slide whose blocks are all finished.

    Objects are numbered block by block, and in a block by their markers' first pixels: whatever
    was finished first, the ids and so the bytes are the same.

    Attributes
    ----------
    task : BlockTask
    scratch : Scratch
    folder : Path
        Empty, for the files.
    mpp : float or None
        Micrometres per level-0 pixel.
    """

    task: BlockTask
    scratch: Scratch
    folder: Path
    mpp: float | None

    @cached_property
    def ranks(self) -> dict[Block, int]:
        """How many objects there are before each block's."""
        ranks, count = {}, 0
        for block in self.task.plan.blocks:
            ranks[block] = count
            count += len(self.scratch.objects(block, "object label"))
        return ranks

    @property
    def objects(self) -> int:
        """How many there are."""
        blocks = self.task.plan.blocks
        if not blocks:
            return 0
        return self.ranks[blocks[-1]] + len(self.scratch.objects(blocks[-1], "object label"))

    @property
    def area_mm2(self) -> float | None:
        """What of the slide counts."""
        if self.mpp is None:
            return None
        pixels = sum(int(self.scratch.objects(b, "counted")) for b in self.task.plan.blocks)
        return pixels * (self.task.area.pixel * self.mpp / 1000) ** 2

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

    def _id(self, block: Block) -> int:
        """What to add to the ids in a block; classes keep theirs."""
        return 0 if self.task.config.target == "classes" else self.ranks[block]

    def _columns(self, block: Block) -> dict[str, NDArray[Any]]:
        columns = self.scratch.all_objects(block)
        columns = {
            name.removeprefix("object "): column
            for name, column in columns.items()
            if name.startswith("object ")
        }
        columns["label"] = (columns["label"] + self._id(block)).astype(np.uint32)
        return columns

    def _write_table(self) -> None:
        with TableWriter(self.folder) as table:
            for block in self.task.plan.blocks:
                columns = self._columns(block)
                source, pixel = self.task.source, self.task.area.pixel
                table.add(object_table(columns, pixel, self.mpp, source.shape))

    def _write_geojson(self) -> None:
        source, pixel = self.task.source, self.task.area.pixel
        path = self.folder / "objects.geojson"
        with GeoJsonWriter(path, source.path.name, self.mpp, source.shape, pixel) as outlines:
            for block in self.task.plan.blocks:
                labels, corner = self._whole_objects(block)
                outlines.add(labels, self._columns(block), corner)

    def _whole_objects(self, block: Block) -> tuple[Labels, tuple[int, int]]:
        """Labels of a block's own objects, and where they start in the grid."""
        labels = self.scratch.objects(block, "labels")
        beyond = self.scratch.objects(block, "beyond")
        core = self.task.plan.box(block)
        places = np.concatenate([[[s.start for s in core], [s.stop - 1 for s in core]], beyond[:, :2]])
        (y0, x0), (y1, x1) = places.min(axis=0), places.max(axis=0) + 1
        patch = np.zeros((y1 - y0, x1 - x0), np.uint32)
        patch[seen_from((y0, x0), core)] = labels
        patch[beyond[:, 0] - y0, beyond[:, 1] - x0] = beyond[:, 2]
        patch[patch > 0] += np.uint32(self._id(block))
        return patch, (int(y0), int(x0))

    def _labels(self, block: Block) -> Labels:
        """A block's pixels of its own objects and its neighbours'."""
        core = self.task.plan.box(block)
        labels = np.zeros([s.stop - s.start for s in core], np.uint32)
        for near in self.task.plan.around(block):
            first = np.uint32(self._id(near))
            if near == block:
                own = self.scratch.objects(block, "labels")
                labels[own > 0] = own[own > 0] + first
            else:
                y, x, ids = self.scratch.objects(near, "beyond").T
                y, x = y - core[0].start, x - core[1].start
                inside = (y >= 0) & (x >= 0) & (y < labels.shape[0]) & (x < labels.shape[1])
                labels[y[inside], x[inside]] = ids[inside].astype(np.uint32) + first
        return labels

    def _write_labels(self) -> Pyramid:
        pyramid = labels_pyramid(self.folder / "labels.ome.zarr", self.task.plan.size)
        for block in self.task.plan.blocks:
            pyramid.write(self.task.plan.box(block), self._labels(block))
        pyramid.finish(self.task.mpp, self._offset)
        return pyramid

    @property
    def _offset(self) -> float:
        return (self.mpp or 1.0) * (self.task.area.pixel - 1) / 2

    def _write_overview(self, pyramid: Pyramid, picture: NDArray[np.generic]) -> None:
        coarse = next(level for level in pyramid.levels if max(level.shape) <= _OVERVIEW)
        columns = [self._columns(block) for block in self.task.plan.blocks]
        objects = {
            name: np.concatenate([np.zeros(0, np.uint32), *(c[name] for c in columns)])
            for name in ("label", "agreement")
        }
        shrunk = self.task.source.shape[0] / picture.shape[0]
        mpp = None if self.mpp is None else self.mpp * shrunk
        write_overview(self.folder / "overview.png", picture, coarse[:], objects, mpp)

    def _write_maps(self, save: tuple[str, ...]) -> None:
        pyramid = None
        for block in self.task.plan.blocks:
            maps = chosen_maps(_BlockMaps(self.scratch, block), save)
            if not maps:
                return
            if pyramid is None:
                path = self.folder / "maps.ome.zarr"
                pyramid = maps_pyramid(path, list(maps), self.task.plan.size)
            pyramid.write(self.task.plan.box(block), np.stack(list(maps.values())))
        if pyramid is not None:
            pyramid.finish(self.task.mpp, self._offset)


@dataclass(frozen=True)
class _BlockMaps:
    """A block's maps from disk, as those of a whole image."""

    scratch: Scratch
    block: Block

    def _read(self, key: str) -> NDArray[Any] | None:
        try:
            return np.array(self.scratch.maps(self.block, key))
        except FileNotFoundError:
            return None
