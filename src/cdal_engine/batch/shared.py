"""One slide shared between workers: what of it can be done next, and how a worker does it.

Whoever gives out the work holds the slide's folder and its journal; workers only write files. What
a worker was doing when it died is done again, and nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import CdalError
from ..segmenter import Progress, counter
from .lock import alone
from .plan import Block, Plan
from .provenance import Input, Record
from .scratch import BlockFiles, Scratch, Stage
from .slide import Seconds, SlideJob
from .stages import Stages

__all__ = ["Shared", "SharedSlide", "Step", "StepDone", "do_step", "share"]


@dataclass(frozen=True)
class Shared:
    """What must be known of a slide to share it: see `SlideJob`."""

    plan: Plan
    identity: Record
    maps_stay: bool


@dataclass(frozen=True)
class Step:
    """A worker's task: the maps or the objects of a block or, last, the merging of all."""

    what: Literal["maps", "objects", "merge"]
    block: Block | None = None
    elapsed: float = 0.0  # seconds since the run began
    seconds: Seconds = field(default_factory=Seconds)  # spent so far; both for the record


@dataclass(frozen=True)
class StepDone:
    """What a worker did: checksums of the files it wrote, and the record at the end."""

    stored: dict[Stage, int]
    seconds: Seconds
    record: Record | None = None


def do_step(
    job: SlideJob, identity: Record, step: Step, progress: Progress | None = None
) -> StepDone:
    """Do what a worker is asked for.

    Raises
    ------
    CdalError
        If it cannot be done, or this worker would not do it bit by bit as the others.
    """
    if job.identity != identity:
        raise CdalError(
            "the slide was changed, or a worker's device, precision or number of threads differs",
            "use workers that are alike, and run the same command to go on",
        )
    files, seconds, task = BlockFiles(job.opened.item.folder), Seconds(), job.task
    stored: dict[Stage, int] = {}
    if step.block is None:
        return StepDone({}, seconds, job.merge(files, step.seconds, step.elapsed, progress))
    if step.what == "maps":
        passes = len(task.tiles(step.block)) * task.inference.passes
        advance = counter(progress, passes)
        task = replace(task, inference=replace(task.inference, advance=advance))
        with seconds.of("read"):
            pixels = task.read(step.block)
        with seconds.of("model"):
            maps = task.answer(step.block, pixels)
        with seconds.of("write"):
            stored["maps"] = files.store("maps", step.block, maps)
    else:
        with seconds.of("decode"):
            labels, objects = task.objects(step.block, files)
        with seconds.of("write"):
            stored["labels"] = files.store("labels", step.block, labels)
            stored["objects"] = files.store("objects", step.block, objects)
    return StepDone(stored, seconds)


class SharedSlide:
    """Gives out the steps of one slide, none twice, as soon as they can be done.

    Parameters
    ----------
    shared : Shared
    scratch : Scratch
        What is finished.
    """

    def __init__(self, shared: Shared, scratch: Scratch) -> None:
        self.identity = shared.identity
        self._plan, self._scratch = shared.plan, scratch
        self._stages = Stages(shared.plan, scratch, shared.maps_stay)
        self._objects = deque(filter(self._stages.ready, shared.plan.blocks))
        self._maps = deque(filter(self._stages.lacks_maps, shared.plan.blocks))
        self._given = set(self._objects)  # of the objects
        self._under_way = 0
        self._start, self._seconds = time.perf_counter(), Seconds()
        self._merging = False

    def next_step(self) -> Step | None:
        """What can be done now; None while it waits for what is under way."""
        if self._objects:
            step = Step("objects", self._objects.popleft())
        elif self._maps:
            step = Step("maps", self._maps.popleft())
        elif self._under_way or self._merging:
            return None
        else:
            self._merging = True
            elapsed = time.perf_counter() - self._start
            return Step("merge", None, elapsed, self._seconds)
        self._under_way += 1
        return step

    def ended(self, step: Step, done: StepDone) -> Record | None:
        """Record what a worker did; returns the slide's record once that is all."""
        if step.block is None:
            self._scratch.remove()
            return done.record
        self._under_way -= 1
        for stage, checksum in done.stored.items():
            self._scratch.record(stage, step.block, checksum)
        for what, spent in done.seconds.items():
            self._seconds[what] += spent
        if step.what == "objects":
            self._stages.drop_spent(step.block)
            return None
        ready = [b for b in self._plan.around(step.block) if self._stages.ready(b)]
        fresh = [b for b in ready if b not in self._given]
        self._objects.extend(fresh)
        self._given.update(fresh)
        return None

    @property
    def finished(self) -> tuple[int, int]:
        """How many blocks are, and how many there are."""
        return sum(map(self._stages.finished, self._plan.blocks)), len(self._plan.blocks)


@contextmanager
def share(item: Input, shared: Shared) -> Iterator[SharedSlide | None]:
    """Hold a slide's folder and give out its steps; yields None where another run holds it."""
    with alone(item.folder) as ours:
        if not ours:
            yield None
            return
        with Scratch(item.folder, shared.identity) as scratch:
            yield SharedSlide(shared, scratch)
