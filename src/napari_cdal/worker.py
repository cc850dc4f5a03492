"""One run of the engine in napari's thread pool."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdal_engine.errors import Cancelled, CdalError

from .planes import Plane

if TYPE_CHECKING:
    from cdal_engine.segmenter import Segmentation

__all__ = ["Answer", "Job", "Run", "start"]


@dataclass(frozen=True)
class Job:
    """What to segment and how; the options are those of `Segmenter.segment`."""

    plane: Plane
    model: Path
    device: str
    mpp: float | None
    samples: int
    steps: int
    seed: int
    wanted: frozenset[str]  # maps to add, see `results.layer_data`


@dataclass(frozen=True)
class Answer:
    """A finished job."""

    job: Job
    segmentation: Segmentation
    model: str
    classes: tuple[str, ...]
    facts: dict[str, Any]  # kept in the layers' metadata


class Run:
    """A job on its way: called in a worker thread, looked at from the GUI's.

    Progress is read by polling rather than sent by signals, so the number of tiles never
    floods the event loop.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.done = 0
        self.total = 0
        self.stopped: Callable[[], bool] = lambda: False
        self._since: float | None = None  # when the first pass was done

    def __repr__(self) -> str:  # napari shows it when asked to close meanwhile
        return f"segmentation of {self.job.plane.name!r}"

    def __call__(self) -> Answer | str | None:
        """Segment; None if cancelled, a line to show if the user can act on what failed.

        Not the error itself: napari raises one that a worker returns, and shows its traceback.
        """
        try:
            return self._segment()
        except Cancelled:
            return None
        except CdalError as error:
            return str(error)
        except MemoryError:  # reading the layer; the engine reports its own
            return "Not enough memory to read this image (crop it)"

    def _segment(self) -> Answer:
        try:  # loads torch, which takes seconds
            from cdal_engine.model import Model
            from cdal_engine.segmenter import Segmenter
        except (ImportError, OSError) as error:
            raise CdalError(
                f"PyTorch cannot be loaded: {error}", "install torch anew for this computer"
            ) from error
        job = self.job
        self._check()
        model = Model.load(job.model)
        image = job.plane.read(model.config.image.neighbours)
        segmenter = Segmenter(model, job.device)
        self._check()
        segmentation = segmenter.segment(
            image,
            mpp=job.mpp,
            samples=job.samples,
            steps=job.steps,
            seed=job.seed,
            keep_samples="samples" in job.wanted,
            attention="attention" in job.wanted,
            progress=self._report,
        )
        facts = {
            "source": job.plane.name,
            "index": job.plane.index,
            "model": model.name,
            "digest": model.digest,
            "device": str(segmenter.device),
            "samples": job.samples if job.steps else 1,
            "steps": job.steps,
            "seed": job.seed,
            "mpp": segmentation.mpp,
            "seconds": segmentation.seconds,
        }
        return Answer(job, segmentation, model.name, model.config.classes, facts)

    def _check(self) -> None:
        if self.stopped():
            raise Cancelled

    def _report(self, done: int, total: int) -> bool:
        self._since = self._since or time.monotonic()
        self.done, self.total = done, total
        return not self.stopped()

    def text(self) -> str:
        """Say how far it is: tiles done, seconds left."""
        done, total = self.done, self.total
        if self._since is None or not total:
            return "Loading the model and the image…"
        if done >= total:
            return "Finding the objects…"
        tiles = max(total // (1 + self.job.steps * self.job.samples), 1)
        text = f"Tile {min(done * tiles // total + 1, tiles)} of {tiles}"
        if done > 1:
            left = (time.monotonic() - self._since) / (done - 1) * (total - done)
            text += f", about {left:.0f} s left"
        return text


def start(run: Run) -> Any:
    """Make the napari worker of a run, not yet started; its `quit` stops it at the next pass."""
    from napari.qt.threading import create_worker

    worker = create_worker(run, _start_thread=False)
    reference = weakref.ref(worker)

    def stopped() -> bool:
        alive = reference()
        return alive is None or bool(alive.abort_requested)

    run.stopped = stopped
    return worker
