"""One run of the engine in napari's thread pool."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdal_engine.errors import Cancelled, CdalError

from .planes import Plane
from .regions import Region
from .volumes import axes_of, for_layer

if TYPE_CHECKING:
    from cdal_engine.config import ModelConfig
    from cdal_engine.segmenter import Segmentation, Segmenter

__all__ = ["Answer", "Job", "Run", "start"]


@dataclass(frozen=True)
class Job:
    """What to segment and how; the options are those of `Segmenter.segment`."""

    plane: Plane
    regions: tuple[Region, ...]  # of the plane; none: the whole volume that it is of
    model: Path
    device: str
    mpp: float | None
    samples: int
    steps: int
    seed: int
    wanted: frozenset[str]  # maps to add, see `results.layer_data`
    kept: Mapping[int, Answer] = field(default_factory=dict)  # by region, to add the samples to


@dataclass(frozen=True)
class Answer:
    """What is known of one region, or of a volume, so far.

    Attributes
    ----------
    job : Job
    region : Region or None
        None: the whole volume.
    segmentation : Segmentation
    config : ModelConfig
        Its `decode` is what the labels were made with.
    so_far : str
        What this is, where it is not the whole answer.
    offset : tuple of float
        Where the first pixel's centre is, in the layer's pixels, one a layer axis.
    step : float
        Edge of the answer's pixels in the layer's.
    mask : ndarray or None
        Pixels inside the region's outline.
    facts : dict
        Kept in the layers' metadata.
    colours : ndarray or None
        (H, W, 3) uint8 of the image, where the model takes colours.
    """

    job: Job
    region: Region | None
    segmentation: Segmentation
    config: ModelConfig
    so_far: str
    offset: tuple[float, ...]
    step: float
    mask: NDArray[np.bool_] | None
    facts: dict[str, Any]
    colours: NDArray[np.uint8] | None = None

    @property
    def can_grow(self) -> bool:
        """Whether samples can be added: the answer is whole, and what it was made of is kept."""
        found = self.segmentation
        return found.samples is not None and found.mean is not None and not self.so_far


class Run:
    """A job on its way: called in a worker thread, looked at from the GUI's.

    Progress and answers are read by polling rather than sent by signals, so the number of tiles
    never floods the event loop.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.answers: dict[int, Answer] = {}  # by region, the newest of each
        self.part = 0  # region being worked on
        self.so_far = ""
        self.fraction = 0.0  # of the work
        self.stopped: Callable[[], bool] = lambda: False
        self._began = self._reported = 0.0  # when the first pass began, and the last one ended

    def __repr__(self) -> str:  # napari shows it when asked to close meanwhile
        return f"segmentation of {self.job.plane.name!r}"

    def __call__(self) -> str:
        """Segment; a line to show if the user can act on what failed.

        Not the error itself: napari raises one that a worker returns, and shows its traceback.
        """
        try:
            self._segment()
        except Cancelled:
            pass
        except CdalError as error:
            return str(error)
        except MemoryError:  # reading the layer; the engine reports its own
            return "Not enough memory to read this image (crop it)"
        return ""

    def _segment(self) -> None:
        segmenter = self._segmenter()
        facts = self._facts(segmenter)
        self._began = time.monotonic()
        if not self.job.regions:
            self._volume(segmenter, facts)
        for part, region in enumerate(self.job.regions):
            self.part = part
            if not self.job.kept:
                self._region(segmenter, region, facts)
            elif part in self.job.kept:
                self._more(segmenter, region, self.job.kept[part])

    def _segmenter(self) -> Segmenter:
        try:  # loads torch, which takes seconds
            import torch
            from dask.system import CPU_COUNT

            from cdal_engine.model import Model
            from cdal_engine.segmenter import Segmenter
        except (ImportError, OSError) as error:
            raise CdalError(
                f"PyTorch cannot be loaded: {error}", "install torch anew for this computer"
            ) from error
        self._check()
        # Of a container's processors torch does not know, and more threads wait for each other.
        torch.set_num_threads(min(torch.get_num_threads(), CPU_COUNT))
        segmenter = Segmenter(Model.load(self.job.model), self.job.device)
        self._check()
        return segmenter

    def _facts(self, segmenter: Segmenter) -> dict[str, Any]:
        job = self.job
        return {
            "source": job.plane.name,
            "index": job.plane.index,
            "model": segmenter.model.name,
            "digest": segmenter.model.digest,
            "device": str(segmenter.device),
            "samples": job.samples if job.steps else 1,
            "steps": job.steps,
            "seed": job.seed,
        }

    def _region(self, segmenter: Segmenter, region: Region, facts: dict[str, Any]) -> None:
        """Keep the answers for a region as they come."""
        from .decode import inside
        from .live import live
        from .reading import read

        job, config = self.job, segmenter.model.config
        seen = read(job, region, segmenter)
        found = live(segmenter, seen.image, seen.box, seen.options, self._report, seen.colours)
        for each, so_far in found:
            result = seen.turn.onto_layer(each) if seen.turn else each
            head = so_far == "preview" or not job.steps
            used = config.of_supervised_head() if head else config
            corner, step = seen.corner, seen.step
            mask = region.mask(result.labels.shape, corner, step)
            if mask is not None:
                result = inside(result, used, mask, seen.colours)
            centre = tuple(at + (step - 1) / 2 for at in corner)
            self._keep(
                Answer(
                    job=job,
                    region=region,
                    segmentation=result,
                    config=used,
                    so_far=so_far,
                    offset=(*map(float, job.plane.index), *centre),
                    step=step,
                    mask=mask,
                    facts={**facts, "mpp": result.mpp, "pixel": step, "corner": corner},
                    colours=seen.colours,
                )
            )

    def _more(self, segmenter: Segmenter, region: Region, kept: Answer) -> None:
        """Draw the samples that follow those of an answer, and keep what all give together."""
        from .decode import inside, with_more
        from .live import answer
        from .reading import read

        assert kept.segmentation.samples is not None
        drawn = len(kept.segmentation.samples)
        seen = read(self.job, region, segmenter, first_sample=drawn)
        more = answer(segmenter, seen.image, seen.box, seen.options, self._report)
        more = seen.turn.onto_layer(more) if seen.turn else more
        if kept.mask is not None:
            more = inside(more, kept.config, kept.mask, None)
        result = with_more(kept.segmentation, more, kept.config, kept.colours)
        facts = {**kept.facts, "samples": drawn + self.job.samples}
        self._keep(replace(kept, segmentation=result, facts=facts))

    def _volume(self, segmenter: Segmenter, facts: dict[str, Any]) -> None:
        """Segment all slices: a preview, then the samples."""
        from cdal_engine.volume import segment_volume

        job, config = self.job, segmenter.model.config
        axes = axes_of(job.plane, config)
        voxels = job.plane.read_volume().transpose(np.argsort(axes))
        runs = [0, job.steps] if job.steps and config.network.has_head else [job.steps]
        for number, steps in enumerate(runs):
            found = segment_volume(
                segmenter,
                voxels,
                samples=job.samples,
                steps=steps,
                seed=job.seed,
                keep_samples=steps > 0,
                affine=job.plane.affine,
                progress=partial(self._report_slices, number, len(runs)),
            )
            self._keep(
                Answer(
                    job=job,
                    region=None,
                    segmentation=for_layer(found, axes),
                    config=config,
                    so_far="" if steps == job.steps else "preview",
                    offset=(0.0,) * 3,
                    step=1.0,
                    mask=None,
                    facts=facts,
                )
            )

    def _keep(self, answer: Answer) -> None:
        self.answers[self.part] = answer
        self.so_far = answer.so_far

    def _check(self) -> None:
        if self.stopped():
            raise Cancelled

    def _report(self, done: float, total: float) -> bool:
        self.fraction = (self.part + done / total) / max(len(self.job.regions), 1)
        self._reported = time.monotonic()
        return not self.stopped()

    def _report_slices(self, number: int, runs: int, done: int, total: int) -> bool:
        return self._report(number + done / total, runs)

    def text(self) -> str:
        """Say how far it is, and how long it may take."""
        if not self.fraction:
            return "Loading the model and the image…"
        what = [self.so_far] if self.so_far else []
        if len(self.job.regions) > 1:
            what.append(f"region {self.part + 1} of {len(self.job.regions)}")
        what.append(f"{self.fraction:.0%}")
        if self.fraction < 1:
            left = (self._reported - self._began) * (1 / self.fraction - 1)
            left -= time.monotonic() - self._reported
            what.append(f"about {max(left, 1):.0f} s left")
        return ", ".join(what)


def start(run: Run) -> Any:
    """Make the napari worker of a run, not yet started; its `quit` stops it at the next pass."""
    from napari.qt.threading import create_worker

    worker = create_worker(run, _start_thread=False)
    run.stopped = given_up(worker)
    return worker


def given_up(worker: Any) -> Callable[[], bool]:
    """Return what tells whether a napari worker was asked to quit, or is there no more."""
    reference = weakref.ref(worker)

    def asked() -> bool:
        alive = reference()
        return alive is None or bool(alive.abort_requested)

    return asked
