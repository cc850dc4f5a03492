"""One run of the engine, followed in napari's thread pool."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdal_engine.errors import CdalError

from .engine_process import EngineProcess, Messages, borrowed
from .jobs import Answer, Job

__all__ = ["Run", "given_up", "start"]

_PATIENCE = 20.0  # seconds without a word after which a process that is to stop is ended
_LOOK = 0.5  # seconds between looks at whether it is to stop


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
        self._waiting: float | None = None  # since when the process has said nothing

    def __repr__(self) -> str:  # napari shows it when asked to close meanwhile
        return f"segmentation of {self.job.plane.name!r}"

    def __call__(self) -> str:
        """Segment; a line to show if the user can act on what failed.

        Not the error itself: napari raises one that a worker returns, and shows its traceback.
        """
        try:
            with borrowed() as process, self._watched(process):
                return self._follow(process.messages)
        except CdalError as error:
            return str(error)
        except MemoryError:
            return "Not enough memory for the result (segment a smaller region)"

    @contextmanager
    def _watched(self, process: EngineProcess) -> Iterator[None]:
        """Meanwhile, end the process if it hangs when it is to stop: napari waits for it to."""
        over = threading.Event()

        def watch() -> None:
            asked = 0.0
            while not over.wait(_LOOK):
                if not self.stopped():
                    continue
                now, since = time.monotonic(), self._waiting
                asked = asked or now
                if since is not None and now - max(since, asked) > _PATIENCE:
                    process.kill()
                    return

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _follow(self, messages: Messages) -> str:
        self._waiting = time.monotonic()
        messages.send("job", self.job)
        stopping = False
        while True:
            self._waiting = time.monotonic()
            word, value = messages.receive()
            self._waiting = None
            if word == "done":
                return str(value)
            if word == "failed":
                problem, trace = value
                error = RuntimeError(problem)
                error.add_note(f"In the engine's process:\n{trace}")
                raise error
            if word == "read":
                pixels = self._pixels(*value)
                self._waiting = time.monotonic()
                messages.send("pixels", pixels)
            elif word == "progress":
                self._report(*value)
            else:
                self._keep(*value)
            if not stopping and self.stopped():
                messages.send("stop")
                stopping = True

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
