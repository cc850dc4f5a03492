"""Run a model over many inputs in process, resuming by input; one failure never stops the rest."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..device import is_out_of_memory, out_of_memory
from ..errors import Cancelled, CdalError, DiskFull
from ..io.discovery import open_source
from ..io.levels import best_level
from ..io.records import forget_failure, read_run, write_failure
from ..io.results import ResultsFolder, discard_unfinished
from ..io.source import Source, check_size
from ..segmenter import Progress, Segmentation, Segmenter
from ..volume import check_takes_volumes, segment_volume
from .lock import LEASE, alone
from .provenance import (
    MAPS,
    Input,
    Parameters,
    Record,
    Resolution,
    earlier_run,
    is_finished,
    record_of,
    result_counts,
)
from .scratch import forget_blocks
from .slide import check_extent, segment_slide

__all__ = [
    "Input",
    "Outcome",
    "Parameters",
    "attempt",
    "check_options",
    "check_source",
    "in_rounds",
    "input_folders",
    "run",
    "run_one",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How one input ended: exactly one of `run`, `error`, `already` and `held` is set."""

    input: Input
    run: Record | None = None
    error: CdalError | None = None
    already: bool = False
    held: bool = False  # another run is working on it


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
) -> Outcome:
    """Segment one input, whatever may happen; `wait` is of `lock.alone`, the rest of `run`.

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
            return _turn(item, segmenter, parameters, restart and not wait, progress)
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
        return Outcome(item, run=_segment(item, segmenter, parameters, progress)[1])
    except (Cancelled, DiskFull):
        raise
    except CdalError as error:
        failure = error.at(item.path)
    except Exception as error:  # whatever it is must not cost the other inputs
        _log.debug("%s", item.path, exc_info=True)
        failure = _as_failure(error).at(item.path)
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
            return _segment(item, segmenter, parameters, progress)
    except CdalError as error:
        raise error.at(item.path) from None


def check_source(
    path: Path, segmenter: Segmenter, parameters: Parameters
) -> tuple[Source, Resolution]:
    """Open an input and find what would make it fail before its pixels are read.

    Raises
    ------
    CdalError
        If it cannot be opened, is of another kind than the model's, lacks its resolution, or is
        too large.
    """
    source = open_source(path)
    if parameters.regions is not None and source.kind != "slide":
        raise CdalError(
            f"regions are of slides, this is a {source.kind}", "leave --regions out", path
        )
    if source.kind == "volume":
        return _check_volume(source, segmenter, parameters)
    wanted, kind = segmenter.model.config.image.channels, {1: "grayscale", 3: "RGB"}
    if source.channels != wanted:
        raise CdalError(
            f"the model takes {kind[wanted]} images, this one is {kind[source.channels]}",
            "choose a model for this kind of image, see `cdal models list`",
            path,
        )
    resized = segmenter.resized(parameters.tile_mode)
    if resized is not None and source.kind == "slide":
        raise CdalError(
            f"a slide would be brought to {resized[0]} x {resized[1]} pixels as a whole",
            "use --tile-mode overlap",
            path,
        )
    own = None if resized else segmenter.model.config.image.mpp
    resolution = _resolution(source, parameters.mpp, own)
    # Level 0 unless a coarser one shows all that the model sees; both lie on the same corner, so
    # that only the size of the result's pixels tells which was read.
    level = best_level(source.levels, resolution.mpp, own)
    if source.kind == "slide":
        check_extent(source)
    else:
        check_size(source.levels[level].shape, path)
    return source, replace(resolution, level=level)


def _check_volume(
    source: Source, segmenter: Segmenter, parameters: Parameters
) -> tuple[Source, Resolution]:
    check_takes_volumes(segmenter.model.config)
    maps = sorted(MAPS & set(parameters.save))
    if maps or "labels" not in parameters.save:
        raise CdalError(
            f"of a volume only labels are written so far, not {', '.join(maps or parameters.save)}",
            "use --save labels",
            source.path,
        )
    return source, Resolution(None, source.mpp_source)


def _segment(
    item: Input, segmenter: Segmenter, parameters: Parameters, progress: Progress | None
) -> tuple[Segmentation | None, Record]:
    start = time.perf_counter()
    source, resolution = check_source(item.path, segmenter, parameters)
    earlier, save = earlier_run(item, segmenter, parameters)
    parameters = replace(parameters, save=tuple(sorted(save)))
    if source.kind == "slide":
        what = (item, source, resolution, segmenter, parameters, earlier)
        return None, segment_slide(*what, progress=progress)
    with ResultsFolder(item.folder) as folder:
        image = source.read()
        read = time.perf_counter()
        result = _answer(source, image, resolution.mpp, segmenter, parameters, progress)
        segmented = time.perf_counter()
        folder.write(source, image, result, resolution.mpp, parameters.save)
        counts = result_counts(source, resolution, result)
        record = record_of(item, source, resolution, segmenter, parameters, counts, earlier)
        record["seconds"] = {
            "read": read - start,
            "model": segmented - read,
            "write": time.perf_counter() - segmented,
        }
        return result, folder.publish(record, keep=earlier.stays)


def _answer(
    source: Source,
    image: NDArray[np.generic],
    mpp: float | None,
    segmenter: Segmenter,
    parameters: Parameters,
    progress: Progress | None,
) -> Segmentation:
    """Segment the pixels of an input, or its voxels slice by slice."""
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
        mpp=mpp,
        samples=parameters.samples,
        steps=parameters.steps,
        seed=parameters.seed,
        tile_mode=parameters.tile_mode,
        keep_samples="samples" in parameters.save,
        attention="attention" in parameters.save,
        progress=progress,
    )


def _resolution(source: Source, override: float | None, own: float | None) -> Resolution:
    """Micrometres per pixel: from the option, the file, or the model's own."""
    if override is not None:
        return Resolution(override, "--mpp")
    if source.mpp is not None or own is None:
        return Resolution(source.mpp, source.mpp_source)
    if source.kind == "slide":
        hint = f"; its magnification says {source.magnification:g}x" if source.magnification else ""
        raise CdalError(
            f"the slide does not say its micrometres per pixel{hint}",
            f"give --mpp, e.g. --mpp {10 / (source.magnification or 40):g}",
            source.path,
        )
    return Resolution(own, f"assumed: the model's own {own:g} µm")
