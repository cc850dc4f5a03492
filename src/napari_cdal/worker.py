"""Jobs of the engine, followed in napari's thread pool."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdal_engine.errors import CdalError

from .engine_process import EngineProcess, borrowed
from .jobs import Answer, Job

__all__ = ["Errand", "Run", "start"]


class Errand:
    """A job on its way: called in a worker thread, looked at from the GUI's.

    The engine works in a process of its own. Progress and answers are read by polling rather than
    sent by signals, so their number never floods the event loop.
    """

    remedy: str  # where memory does not suffice

    def __init__(self) -> None:
        self.given_up: Callable[[], bool] = lambda: False  # set by `start`
        self._process: EngineProcess | None = None
        self._abandoned = False

    def _do(self, job: object, heard: Mapping[str, Callable[..., None]]) -> Any:
        """Have the engine do a job, see `EngineProcess.do`.

        Raises
        ------
        CdalError
            If it cannot be started, or ends meanwhile.
        """
        with borrowed(self.remedy) as process:
            self._process = process
            if self._abandoned:  # meanwhile
                process.kill()
            try:
                return process.do(job, heard, self._stopped)
            finally:
                self._process = None  # the next job is another's

    def _stopped(self) -> bool:
        """Whether the engine is to stop, and to give what it has."""
        return self.given_up()

    def _tell(self, word: str, value: object) -> None:
        assert self._process is not None
        self._process.messages.send(word, value)

    def abandon(self) -> None:
        """End the process, whatever it does: nobody wants what it has found, or waits for it."""
        self._abandoned = True
        process = self._process
        if process is not None:
            process.kill()


class Run(Errand):
    """A segmentation on its way."""

    remedy = "segment a smaller region or draw fewer samples"

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.answers: dict[int, Answer] = {}  # by region, the newest of each
        self.part = 0  # region being worked on
        self.so_far = ""
        self.fraction = 0.0  # of the work
        self._began = self._reported = 0.0  # when the first pass began, and the last one ended

    def __repr__(self) -> str:  # napari shows it when asked to close meanwhile
        return f"segmentation of {self.job.plane.name!r}"

    def __call__(self) -> str:
        """Segment; a line to show if the user can act on what failed.

        Not the error itself: napari raises one that a worker returns, and shows its traceback.
        """
        try:
            return str(
                self._do(
                    self.job,
                    {"read": self._read, "progress": self._report, "answer": self._keep},
                )
            )
        except CdalError as error:
            return str(error)
        except MemoryError:
            return "Not enough memory for the result (segment a smaller region)"

    def _read(self, level: int, index: Any) -> None:
        """Send pixels of the layer, whose data are in this process only, or what went wrong."""
        pixels: NDArray[np.generic] | Exception
        try:
            pixels = self.job.plane.part(level, index)
        except (CdalError, MemoryError) as error:
            pixels = error
        self._tell("pixels", pixels)

    def _keep(self, part: int, answer: Answer) -> None:
        kept = self.job.kept.get(part)
        job = kept.job if kept else self.job  # not the other process's copy, which has no layer
        self.answers[part] = replace(answer, job=job)
        self.so_far = answer.so_far

    def _report(self, part: int, fraction: float) -> None:
        now = time.monotonic()
        self._began = self._began or now
        self.part, self.fraction, self._reported = part, fraction, now

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
        return f"{', '.join(what)}."


def start(errand: Errand) -> Any:
    """Make the napari worker of a job, not yet started; its `quit` gives the job up."""
    from napari.qt.threading import create_worker

    worker = create_worker(errand, _start_thread=False)
    reference = weakref.ref(worker)

    def given_up() -> bool:
        """Whether the worker was asked to quit, or is there no more."""
        alive = reference()
        return alive is None or bool(alive.abort_requested)

    errand.given_up = given_up
    return worker
