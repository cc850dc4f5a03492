"""What runs in the engine's process: one job after another, until the other end is gone."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdal_engine.errors import Cancelled, CdalError

from .engine_process import Messages
from .jobs import Answer, Job, Lesson
from .learning import learned
from .segmenting import Segmenting

__all__ = ["main"]


class Server:
    """Does jobs.

    Asked: `job` (a `Job` or `Lesson`), `pixels` (an array, or the error that kept it from being
    read) and `stop`. Told: of a `Job`, `read` (a level's number and an index, answered by
    `pixels`), `progress` (region and part of the work) and `answer` (region and `Answer`); of a
    `Lesson`, `row` (of the training's curves). Last, `done` (what a lesson gave, or a line to show
    if the user can act on what failed) or `failed` (what nobody expected, and its traceback).
    """

    def __init__(self, messages: Messages) -> None:
        self._messages = messages
        self._came: SimpleQueue[Any] = SimpleQueue()
        self._stop = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Take what comes, also while a job is being done."""
        try:
            while True:
                word, value = self._messages.receive()
                if word == "stop":
                    self._stop.set()
                    continue
                if word == "job":
                    self._stop.clear()  # of the job before
                self._came.put(value)
        except EOFError:
            os._exit(0)  # napari is gone, or wants no more
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def serve(self) -> None:
        """Do jobs for ever."""
        while True:
            self._tell(*self._done(self._came.get()))
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # others use the graphics card, too

    def _tell(self, word: str, value: object) -> None:
        try:
            self._messages.send(word, value)
        except OSError:
            os._exit(0)  # napari is gone

    def _done(self, job: Job | Lesson) -> tuple[str, object]:
        try:
            if isinstance(job, Lesson):
                return "done", learned(job, self._row)
            Segmenting(self._here(job), self._keep, self._report)()
        except Cancelled:
            return "done", ""
        except CdalError as error:
            return "done", str(error)
        except MemoryError:  # reading the layer, most often; the engine reports its own
            return "done", "Not enough memory (crop the image, or close other programs)"
        except Exception as error:
            return "failed", (f"{type(error).__name__}: {error}", traceback.format_exc())
        return "done", ""

    def _here(self, job: Job) -> Job:
        """The job, with levels whose pixels are asked for."""
        levels = tuple(
            _Elsewhere(self, number, level.shape) for number, level in enumerate(job.plane.levels)
        )
        return replace(job, plane=replace(job.plane, levels=levels))

    def _row(self, row: dict[str, float]) -> None:
        self._tell("row", (row,))
        if self._stop.is_set():
            raise Cancelled

    def _keep(self, part: int, answer: Answer) -> None:
        self._tell("answer", (part, answer))

    def _report(self, part: int, fraction: float) -> bool:
        self._tell("progress", (part, fraction))
        return not self._stop.is_set()

    def read(self, level: int, index: Any) -> NDArray[np.generic]:
        """Ask for a part of a level of the layer."""
        self._tell("read", (level, index))
        pixels = self._came.get()
        if isinstance(pixels, Exception):
            raise pixels
        return np.asarray(pixels)


class _Elsewhere:
    """A level of a layer whose pixels are asked for."""

    def __init__(self, server: Server, number: int, shape: tuple[int, ...]) -> None:
        self._server, self._number = server, number
        self.shape = shape

    def __getitem__(self, index: Any) -> NDArray[np.generic]:
        return self._server.read(self._number, index)


def main() -> None:
    """Serve over standard input and output; what libraries print goes to standard error."""
    if hasattr(os, "nice"):  # Windows is told when the process is started
        os.nice(5)  # the window comes first
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    server = Server(Messages(sys.stdin.buffer, outgoing))
    with suppress(ImportError, OSError):  # the first job says what is wrong with it
        import cdal_engine.segmenter  # noqa: F401 (PyTorch, which takes seconds)
    server.serve()
