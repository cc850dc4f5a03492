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
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Cancelled
from ..io.records import writing
from ..io.results import ResultsFolder
from ..io.tissue import find_tissue, write_tissue
from ..preparation import largest_intensity, limits_of, prepare
from ..segmenter import Progress, counter
from .area import Area
from .block import BlockTask
from .merge import Merge
from .opened import Opened
from .plan import BLOCK, Block, Plan
from .provenance import MAPS, Record, identity
from .scratch import BlockFiles, Scratch
from .stages import Stages

__all__ = ["Seconds", "SlideJob", "segment_slide"]

_PICTURE = 2000  # pixels: longer edge of the picture in which tissue is looked for
_TYPICAL = 0.25  # µm per pixel, to tell dust from tissue where no one says


class Seconds(dict[str, float]):
    """Spent reading, in the model, decoding and writing; they may overlap."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(("read", "model", "decode", "write"), 0.0))

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Add what passes meanwhile."""
        start = time.perf_counter()
        yield
        self[what] += time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class SlideJob:
    """A slide to segment.

    Attributes
    ----------
    opened : Opened
    block : int
        About the edge of a block, in pixels; no object depends on it.
    """

    opened: Opened
    block: int = BLOCK

    @cached_property
    def identity(self) -> Record:
        """All that decides the blocks' bits."""
        o = self.opened
        what = identity(o.item, o.segmenter, o.parameters)
        return what | {"block": self.block, "mpp": o.resolution.mpp}

    @cached_property
    def picture(self) -> NDArray[np.generic]:
        """The slide, small."""
        return self.opened.source.thumbnail(_PICTURE)

    @cached_property
    def task(self) -> BlockTask:
        """What a block's work is."""
        return _task(self.opened, self.picture, self.block)

    @property
    def maps_stay(self) -> bool:
        """See `Stages`."""
        return bool(MAPS & set(self.opened.parameters.save))

    def merge(
        self, files: BlockFiles, seconds: Seconds, elapsed: float, progress: Progress | None
    ) -> Record:
        """Make results of the blocks, all finished, and return what run.json records.

        Parameters
        ----------
        files : BlockFiles
        seconds : Seconds
            Spent so far.
        elapsed : float
            Seconds since the run began.
        progress : callable, optional
            May stop it; all passes are done.
        """

        def go_on() -> None:
            if progress is not None and not progress(1, 1):
                raise Cancelled

        start = time.perf_counter() - elapsed
        opened, item = self.opened, self.opened.item
        with ResultsFolder(item.folder, files.aside()) as folder:
            merge = Merge(self.task, files, folder.aside, opened.resolution.mpp, go_on)
            with seconds.of("write"), writing(item.folder):
                merge.write(opened.parameters.save, self.picture)
                if self.task.area.tissue is not None:
                    write_tissue(folder.aside / "tissue.png", self.task.area.tissue)
            record = opened.record(merge.counts, seconds | {"total": time.perf_counter() - start})
            return folder.publish(record, keep=opened.earlier.stays)


@dataclass(eq=False)
class Blocks:
    """The blocks of one slide being worked on in this process.

    Attributes
    ----------
    task : BlockTask
    scratch : Scratch
    stages : Stages
    seconds : Seconds
    """

    task: BlockTask
    scratch: Scratch
    stages: Stages
    seconds: Seconds

    def run(self, progress: Progress | None) -> None:
        """Finish every block that is not finished."""
        for block in self.task.plan.blocks:  # what a killed run had not come to
            self._decode_if_ready(block)
        blocks = [block for block in self.task.plan.blocks if self.stages.lacks_maps(block)]
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
        with self.seconds.of(what):
            return function(*arguments)

    def _keep(self, block: Block, maps: dict[str, NDArray[Any]]) -> None:
        """Store a block's maps and find the objects of those that waited for them."""
        self._timed("write", self.scratch.put, "maps", block, maps)
        for near in self.task.plan.around(block):
            self._decode_if_ready(near)

    def _decode_if_ready(self, block: Block) -> None:
        if not self.stages.ready(block):
            return
        labels, objects = self._timed("decode", self.task.objects, block, self.scratch)
        self._timed("write", self.scratch.put, "labels", block, labels)
        self._timed("write", self.scratch.put, "objects", block, objects)
        self.stages.drop_spent(block)


def segment_slide(job: SlideJob, progress: Progress | None = None) -> Record:
    """Segment a slide, write its results and return what run.json records.

    Raises
    ------
    CdalError
        If the slide cannot be read or segmented, or the results cannot be written.
    """
    start, seconds = time.perf_counter(), Seconds()
    with Scratch(job.opened.item.folder, job.identity) as scratch:
        with seconds.of("read"):
            task = job.task
        stages = Stages(task.plan, scratch, job.maps_stay)
        Blocks(task, scratch, stages, seconds).run(progress)
        record = job.merge(scratch, seconds, time.perf_counter() - start, progress)
        scratch.remove()
        return record


def _task(opened: Opened, picture: NDArray[np.generic], block: int) -> BlockTask:
    source, segmenter, parameters = opened.source, opened.segmenter, opened.parameters
    resolution = opened.resolution
    image, level = segmenter.model.config.image, source.levels[resolution.level]
    mpp = None if resolution.mpp is None else resolution.mpp * level.step
    grid = segmenter.grid(level.shape, mpp)
    schedule = segmenter.check_options(parameters.samples, parameters.steps)
    results = grid if grid.native else grid.itself()
    area = Area(
        shape=source.shape,
        pixel=results.pixel * level.step,
        tissue=_tissue(opened, picture),
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


def _tissue(opened: Opened, picture: NDArray[np.generic]) -> NDArray[np.bool_] | None:
    """Where the tissue is; None where all counts: what is gray has no colour to tell it by."""
    source = opened.source
    if not opened.parameters.tissue or source.channels != 3 or picture.dtype.kind != "u":
        return None
    shrunk = source.shape[0] / picture.shape[0]
    return find_tissue(picture, (opened.resolution.mpp or _TYPICAL) * shrunk)
