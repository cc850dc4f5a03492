"""Run a model over many inputs in process, resuming by input; one failure never stops the rest."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..device import is_out_of_memory, out_of_memory
from ..errors import Cancelled, CdalError, DiskFull
from ..io.records import forget_failure, read_run, write_failure
from ..io.results import ResultsFolder, discard_unfinished
from ..segmenter import Progress, Segmentation, Segmenter
from ..volume import segment_volume
from .lock import LEASE, alone
from .opened import Opened, open_input
from .plan import BLOCK
from .provenance import Input, Parameters, Record, is_finished, result_counts
from .scratch import forget_blocks
from .shared import Shared
from .slide import SlideJob, segment_slide

__all__ = [
    "Input",
    "Outcome",
    "Parameters",
    "Sharing",
    "attempt",
    "check_options",
    "failed",
    "in_rounds",
    "input_folders",
    "run",
    "run_one",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How one input ended: exactly one of what follows `input` is set."""

    input: Input
    run: Record | None = None
    error: CdalError | None = None
    already: bool = False
    held: bool = False  # another run is working on it
    shared: Shared | None = None  # it has not: workers are to share it


@dataclass(frozen=True)
class Sharing:
    """Which slides workers share.

    Attributes
    ----------
    least : int
        Blocks of the smallest.
    block : int
        About the edge of a block, in pixels; no object depends on it.
    """

    least: int = 100
    block: int = BLOCK


def input_folders(paths: Iterable[Path], out: Path, root: Path | None = None) -> list[Input]:
    """Give each input a folder below `out`, named by its path relative to `root`.

    Without `root` the file's name is enough, unless two inputs share it: then the path relative
    to their common folder.
    """
    paths = list(dict.fromkeys(Path(os.path.abspath(p)) for p in paths))
    if root is None and len({p.name for p in paths}) < len(paths):
        root = Path(os.path.commonpath([p.parent for p in paths]))
    base = None if root is None else Path(os.path.abspath(root))
    return [Input(p, out / (p.name if base is None else p.relative_to(base))) for p in paths]


def check_options(segmenter: Segmenter, parameters: Parameters) -> None:
    """Refuse what no input could be run with.

    Raises
    ------
    CdalError
        If the model cannot run with these parameters.
    """
    schedule = segmenter.check_options(parameters.samples, parameters.steps, parameters.tile_mode)
    if "attention" in parameters.save and not segmenter.model.config.network.has_discriminator:
        raise CdalError(
            "this model was imported without a discriminator and has no attention map",
            "leave attention out of --save, or import it anew with --discriminator",
        )
    if schedule is None and "attention" in parameters.save:
        raise CdalError(
            "the deterministic answer (--steps 0) has no attention map",
            "leave attention out of --save, or use more steps",
        )


def run(
    inputs: Iterable[Input],
    segmenter: Segmenter,
    parameters: Parameters,
    *,
    restart: bool = False,
    progress: Progress | None = None,
    on_start: Callable[[Input], None] | None = None,
) -> Iterator[Outcome]:
    """Segment each input and yield how it ended; what another run holds comes last.

    Parameters
    ----------
    inputs : iterable of Input
    segmenter : Segmenter
    parameters : Parameters
    restart : bool
        Do finished inputs again; by default those finished with the same model and parameters are
        skipped.
    progress : callable, optional
        Of the input being worked on.
    on_start : callable, optional
        Called before each input.
    """

    def one_round(items: Iterable[Input], wait: float) -> Iterator[Outcome]:
        for item in items:
            if on_start is not None:
                on_start(item)
            yield attempt(item, segmenter, parameters, restart, wait, progress)

    yield from in_rounds(inputs, one_round)


def in_rounds(
    inputs: Iterable[Input], one_round: Callable[[Iterable[Input], float], Iterator[Outcome]]
) -> Iterator[Outcome]:
    """Yield how each input ended; those that another run holds are tried again after the others.

    `one_round` takes inputs and the seconds to wait for another run to end with each.
    """
    wait = 0.0
    while True:
        held = []
        for outcome in one_round(inputs, wait):
            if outcome.held:
                held.append(outcome.input)
            else:
                yield outcome
        if not held:
            return
        inputs, wait = held, 1.5 * LEASE  # long enough to see that a holder elsewhere is dead


def attempt(
    item: Input,
    segmenter: Segmenter,
    parameters: Parameters,
    restart: bool = False,
    wait: float = 0.0,
    progress: Progress | None = None,
    sharing: Sharing | None = None,
) -> Outcome:
    """Segment one input, whatever may happen; `wait` is of `lock.alone`, the rest of `run`.

    With `sharing` a slide may be left to `shared.SharedSlide` instead.

    Raises
    ------
    Cancelled
        If `progress` returned False.
    DiskFull
        As the others would only fail, too.
    """
    try:
        with alone(item.folder, wait) as ours:
            if not ours:
                return Outcome(item, held=True)
            # What another run has just finished is not done again.
            again = restart and not wait
            return _turn(item, segmenter, parameters, again, progress, sharing)
    except DiskFull:
        raise
    except CdalError as error:
        return Outcome(item, error=error.at(item.path))


def _turn(
    item: Input,
    segmenter: Segmenter,
    parameters: Parameters,
    restart: bool,
    progress: Progress | None,
    sharing: Sharing | None,
) -> Outcome:
    """Segment one input, its folder held."""
    try:
        if not restart:
            if is_finished(item, segmenter, parameters):
                forget_failure(item.folder)
                forget_blocks(item.folder)
                discard_unfinished(item.folder)
                return Outcome(item, already=True)
            _refuse_anothers(item)
        else:
            forget_blocks(item.folder)
        opened = open_input(item, segmenter, parameters)
        if sharing is not None and opened.source.kind == "slide":
            job = SlideJob(opened, sharing.block)
            if len(job.task.plan.blocks) >= sharing.least:
                return Outcome(item, shared=Shared(job.task.plan, job.identity, job.maps_stay))
            return Outcome(item, run=segment_slide(job, progress))
        return Outcome(item, run=_segment(opened, progress)[1])
    except (Cancelled, DiskFull):
        raise
    except CdalError as error:
        return failed(item, error)
    except Exception as error:  # whatever it is must not cost the other inputs
        _log.debug("%s", item.path, exc_info=True)
        return failed(item, _as_failure(error))


def failed(item: Input, error: CdalError) -> Outcome:
    """Record that an input failed, its folder held."""
    failure = error.at(item.path)
    with suppress(CdalError):  # nothing can be written there, which most likely is what failed
        write_failure(item.folder, item.path, failure)
    return Outcome(item, error=failure)


def _as_failure(error: Exception) -> CdalError:
    if is_out_of_memory(error):
        return out_of_memory()
    if isinstance(error, OSError):
        return CdalError(str(error.strerror or error), "check the disk and its rights")
    return CdalError(f"{type(error).__name__}: {error}", "unexpected; --debug shows where")


def _refuse_anothers(item: Input) -> None:
    """Do not replace the results of another file of the same name that still exists."""
    record = read_run(item.folder, finished=False) or {}
    before = record.get("input")
    other = Path(str(before.get("path"))) if isinstance(before, dict) else item.path
    if other != item.path and other.exists() and not other.samefile(item.path):
        raise CdalError(
            f"the results of {other} lie in {item.folder}",
            "choose another folder with -o, or replace them with --restart",
        )


def run_one(
    item: Input, segmenter: Segmenter, parameters: Parameters, progress: Progress | None = None
) -> tuple[Segmentation | None, Record]:
    """Segment one input, write its results and return them with what run.json records.

    The results of a slide are in its folder only: they may not fit in memory.

    Raises
    ------
    CdalError
        Naming the input, if it cannot be read, segmented or written.
    """
    try:
        with alone(item.folder) as ours:
            if not ours:
                raise CdalError("another run is writing its results", "wait until it has ended")
            return _segment(open_input(item, segmenter, parameters), progress)
    except CdalError as error:
        raise error.at(item.path) from None


def _segment(opened: Opened, progress: Progress | None) -> tuple[Segmentation | None, Record]:
    if opened.source.kind == "slide":
        return None, segment_slide(SlideJob(opened), progress)
    start = time.perf_counter()
    source, mpp, save = opened.source, opened.resolution.mpp, opened.parameters.save
    with ResultsFolder(opened.item.folder) as folder:
        image = source.read()
        read = time.perf_counter()
        result = _answer(opened, image, progress)
        segmented = time.perf_counter()
        folder.write(source, image, result, mpp, save)
        end = time.perf_counter()
        seconds = {"read": read - start, "model": segmented - read, "write": end - segmented}
        target = opened.segmenter.model.config.target
        counts = result_counts(source, opened.resolution, result, target)
        record = opened.record(counts, seconds | {"total": end - start})
        return result, folder.publish(record, keep=opened.earlier.stays)


def _answer(opened: Opened, image: NDArray[np.generic], progress: Progress | None) -> Segmentation:
    """Segment the pixels of an input, or its voxels slice by slice."""
    source, segmenter, parameters = opened.source, opened.segmenter, opened.parameters
    if source.kind == "volume":
        return segment_volume(
            segmenter,
            image,
            samples=parameters.samples,
            steps=parameters.steps,
            seed=parameters.seed,
            tile_mode=parameters.tile_mode,
            affine=source.affine,
            progress=progress,
        )
    return segmenter.segment(
        image,
        mpp=opened.resolution.mpp,
        samples=parameters.samples,
        steps=parameters.steps,
        seed=parameters.seed,
        tile_mode=parameters.tile_mode,
        keep_samples="samples" in parameters.save,
        attention="attention" in parameters.save,
        progress=progress,
    )
