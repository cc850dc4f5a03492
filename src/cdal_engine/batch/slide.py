"""A slide block by block: maps, objects and merging; killed at any moment, it goes on from there.

A reader is one block ahead of the model and a keeper one behind. A block's objects are found once
its neighbours' maps are there, and maps that no block needs any more are removed: memory does not
grow with the slide, and disk with its width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CdalError
from ..io.records import writing
from ..io.results import ResultsFolder
from ..io.source import Source, sides
from ..io.tissue import find_tissue, write_tissue
from ..preparation import largest_intensity, limits_of, prepare
from ..segmenter import Progress, Segmenter, counter
from .area import Area
from .block import BlockTask
from .merge import Merge
from .plan import BLOCK, Block, Plan
from .provenance import MAPS, Earlier, Input, Parameters, Record, Resolution, identity, record_of
from .scratch import Scratch

__all__ = ["check_extent", "segment_slide"]

_PICTURE = 2000  # pixels: longer edge of the picture in which tissue is looked for
_MAX_GIGAPIXELS = 100
_TYPICAL = 0.25  # µm per pixel, to tell dust from tissue where no one says


@dataclass(eq=False)
class Blocks:
    """The blocks of one slide being worked on.

    Attributes
    ----------
    task : BlockTask
    scratch : Scratch
    seconds : dict
        Spent reading, in the model, decoding and writing; they overlap.
    """

    task: BlockTask
    scratch: Scratch
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "model", "decode", "write"), 0.0)
    )

    def run(self, progress: Progress | None) -> None:
        """Finish every block that is not finished."""
        for block in self.task.plan.blocks:  # what a killed run had not come to
            self._decode_if_ready(block)
        blocks = [block for block in self.task.plan.blocks if self._lacks_maps(block)]
        inference = self.task.inference
        tiles = sum(len(self.task.tiles(block)) for block in blocks)
        advance = counter(progress, tiles * inference.passes)
        task = replace(self.task, inference=replace(inference, advance=advance))
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as keeper:
            ahead = [reader.submit(self._timed, "read", task.read, block) for block in blocks[:1]]
            behind: list[Future[None]] = []
            for i, block in enumerate(blocks):
                pixels = ahead.pop().result()
                for following in blocks[i + 1 : i + 2]:
                    ahead.append(reader.submit(self._timed, "read", task.read, following))
                maps = self._timed("model", task.answer, block, pixels)
                if behind:
                    behind.pop().result()
                behind.append(keeper.submit(self._keep, block, maps))
            if behind:
                behind.pop().result()

    def _timed(self, what: str, function: Any, *arguments: Any) -> Any:
        with self.timing(what):
            return function(*arguments)

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Add what passes meanwhile to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start

    def _is_finished(self, block: Block) -> bool:
        return self.scratch.has("labels", block) and self.scratch.has("objects", block)

    def _lacks_maps(self, block: Block) -> bool:
        needed = bool(MAPS & set(self.task.save)) or not all(
            self._is_finished(near) for near in self.task.plan.around(block)
        )
        return needed and not self.scratch.has("maps", block)

    def _keep(self, block: Block, maps: dict[str, NDArray[Any]]) -> None:
        """Store a block's maps and find the objects of those that waited for them."""
        self._timed("write", self.scratch.put, "maps", block, maps)
        for near in self.task.plan.around(block):
            self._decode_if_ready(near)

    def _decode_if_ready(self, block: Block) -> None:
        around = self.task.plan.around(block)
        if self._is_finished(block) or not all(self.scratch.has("maps", b) for b in around):
            return
        labels, objects = self._timed("decode", self.task.objects, block, self.scratch)
        self._timed("write", self.scratch.put, "labels", block, labels)
        self._timed("write", self.scratch.put, "objects", block, objects)
        if not MAPS & set(self.task.save):
            for near in around:
                if all(self._is_finished(other) for other in self.task.plan.around(near)):
                    self.scratch.drop_maps(near)


def check_extent(source: Source) -> None:
    """Refuse a slide of a size that no scanner makes, before anything is read.

    Raises
    ------
    CdalError
        Naming the size.
    """
    gigapixels = float(np.prod(source.shape, dtype=object)) / 1e9
    if not 0 < gigapixels <= _MAX_GIGAPIXELS:
        raise CdalError(
            f"{sides(source.shape)} pixels are {gigapixels:.0f} gigapixels; up to "
            f"{_MAX_GIGAPIXELS} are read",
            "check the file",
            source.path,
        )


def segment_slide(
    item: Input,
    source: Source,
    resolution: Resolution,
    segmenter: Segmenter,
    parameters: Parameters,
    earlier: Earlier,
    progress: Progress | None = None,
    block: int = BLOCK,
) -> Record:
    """Segment a slide, write its results and return what run.json records.

    Parameters
    ----------
    item : Input
    source, resolution
        Of `check_source`.
    segmenter : Segmenter
    parameters : Parameters
    earlier : Earlier
        What an earlier run left.
    progress : callable, optional
    block : int
        About the edge of a block, in pixels; no object depends on it.

    Raises
    ------
    CdalError
        If the slide cannot be read or segmented, or the results cannot be written.
    """
    start = time.perf_counter()
    what = identity(item, segmenter, parameters) | {"block": block, "mpp": resolution.mpp}
    with Scratch(item.folder, what) as scratch:
        picture = source.thumbnail(_PICTURE)
        task = _task(source, resolution, segmenter, parameters, picture, block)
        blocks = Blocks(task, scratch)
        blocks.seconds["read"] += time.perf_counter() - start
        blocks.run(progress)
        with ResultsFolder(item.folder, scratch.aside()) as folder:
            merge = Merge(task, scratch, folder.aside, resolution.mpp)
            with blocks.timing("write"), writing(item.folder):
                merge.write(parameters.save, picture)
                if task.area.tissue is not None:
                    write_tissue(folder.aside / "tissue.png", task.area.tissue)
            record = record_of(
                item, source, resolution, segmenter, parameters, merge.counts, earlier
            )
            record["seconds"] = blocks.seconds
            done = folder.publish(record, keep=earlier.stays)
        scratch.remove()
        return done


def _task(
    source: Source,
    resolution: Resolution,
    segmenter: Segmenter,
    parameters: Parameters,
    picture: NDArray[np.generic],
    block: int,
) -> BlockTask:
    image, level = segmenter.model.config.image, source.levels[resolution.level]
    mpp = None if resolution.mpp is None else resolution.mpp * level.step
    grid = segmenter.grid(level.shape, mpp)
    schedule = segmenter.check_options(parameters.samples, parameters.steps)
    results = grid if grid.native else grid.itself()
    area = Area(
        shape=source.shape,
        pixel=results.pixel * level.step,
        tissue=_tissue(source, resolution, parameters, picture),
        regions=parameters.regions,
        bounds=source.bounds,
    )
    constant = image.normalisation == "constant"
    size = tuple(s.stop for s in results.region)
    return BlockTask(
        source=source,
        level=resolution.level,
        segmenter=segmenter,
        inference=segmenter.inference(
            schedule,
            parameters.samples,
            parameters.seed,
            attention="attention" in parameters.save,
            keep_samples="samples" in parameters.save,
        ),
        grid=grid,
        shown=results,
        mpp=(mpp or image.mpp) if grid.native else image.mpp,
        halo=segmenter.halo(schedule),
        plan=Plan.over(size, grid.size, segmenter.tile, area, block),
        area=area,
        # Of the whole slide, as far as a picture shows it: a block's own would differ.
        largest=largest_intensity(picture) if constant else 1.0,
        limits=None if constant else limits_of(prepare(picture, image)),
        save=parameters.save,
    )


def _tissue(
    source: Source,
    resolution: Resolution,
    parameters: Parameters,
    picture: NDArray[np.generic],
) -> NDArray[np.bool_] | None:
    """Where the tissue is; None where all counts: what is gray has no colour to tell it by."""
    if not parameters.tissue or source.channels != 3 or picture.dtype.kind != "u":
        return None
    shrunk = source.shape[0] / picture.shape[0]
    return find_tissue(picture, (resolution.mpp or _TYPICAL) * shrunk)
