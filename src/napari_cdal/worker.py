"""One run of the engine, followed in napari's thread pool."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdal_engine.errors import CdalError

from .engine_process import EngineProcess, Messages, borrowed
from .jobs import Answer, Job

__all__ = ["Run", "given_up", "start"]


class Run:
    """A job on its way: called in a worker thread, looked at from the GUI's.

    The engine works in a process of its own. Progress and answers are read by polling rather than
    sent by signals, so the number of tiles never floods the event loop.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.answers: dict[int, Answer] = {}  # by region, the newest of each
        self.part = 0  # region being worked on
        self.so_far = ""
        self.fraction = 0.0  # of the work
        self.stopped: Callable[[], bool] = lambda: False
        self._began = self._reported = 0.0  # when the first pass began, and the last one ended
        self._process: EngineProcess | None = None
        self._abandoned = False

    def __repr__(self) -> str:  # napari shows it when asked to close meanwhile
        return f"segmentation of {self.job.plane.name!r}"

    def __call__(self) -> str:
        """Segment; a line to show if the user can act on what failed.

        Not the error itself: napari raises one that a worker returns, and shows its traceback.
        """
        try:
            with borrowed() as process:
                self._process = process
                if self._abandoned:  # meanwhile
                    process.kill()
                try:
                    return self._follow(process.messages)
                finally:
                    self._process = None  # the next job is another's
        except CdalError as error:
            return str(error)
        except MemoryError:
            return "Not enough memory for the result (segment a smaller region)"

    def _follow(self, messages: Messages) -> str:
        messages.send("job", self.job)
        stopping = False
        while True:
            word, value = messages.receive()
            if word == "done":
                return str(value)
            if word == "failed":
                problem, trace = value
                error = RuntimeError(problem)
                error.add_note(f"In the engine's process:\n{trace}")
                raise error
            if word == "read":
                messages.send("pixels", self._pixels(*value))
            elif word == "progress":
                self._report(*value)
            else:
                self._keep(*value)
            if not stopping and self.stopped():
                messages.send("stop")
                stopping = True

    def abandon(self) -> None:
        """End the process, whatever it does: nobody wants what it has found, or waits for it."""
        self._abandoned = True
        process = self._process
        if process is not None:
            process.kill()

    def _pixels(self, level: int, index: Any) -> NDArray[np.generic] | Exception:
        """Read the layer, whose data are in this process only; or what keeps it from being read."""
        try:
            return self.job.plane.part(level, index)
        except (CdalError, MemoryError) as error:
            return error

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
