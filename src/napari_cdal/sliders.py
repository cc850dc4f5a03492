"""Threshold and smallest object, which act on the kept maps of the run that is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.qt.threading import create_worker
from qtpy.QtCore import QTimer

from .jobs import Answer
from .segment_form import SegmentForm
from .shown import ShownRun
from .summary import found

__all__ = ["EDITED", "Sliders"]

EDITED = "The labels were edited and stay as they are (run again for others)"


class Sliders:
    """Decodes anew in another thread, and once more if the sliders went on meanwhile.

    Parameters
    ----------
    form : SegmentForm
        Has the sliders.
    say : callable
        Shows what came of it.
    """

    def __init__(self, form: SegmentForm, say: Callable[[str], None]) -> None:
        self._form, self._say = form, say
        self._shown: ShownRun | None = None
        self._worker: Any = None
        for slider in (form.threshold, form.min_area):
            slider.changed.connect(self._on_moved)

    @property
    def busy(self) -> bool:
        """Whether labels are being made anew."""
        return self._worker is not None

    @property
    def _wanted(self) -> tuple[float, float]:
        return self._form.threshold.value, self._form.min_area.value

    def stop(self) -> None:
        """Act on nothing more."""
        self._shown = self._worker = None

    def rest(self) -> None:
        """Act on nothing for now, and show it: a run begins."""
        self.stop()
        for slider in (self._form.threshold, self._form.min_area):
            slider.enabled = False

    def follow(self, shown: ShownRun) -> str:
        """Act on a run that has ended; what is to be said if they show other values than before."""
        before = self._wanted
        self._shown = shown
        for answer in shown.answers.values():
            self._form.show_cut(answer.config, enabled=answer.segmentation.mean is not None)
        moved = self._form.threshold.enabled and self._wanted != before
        return "Threshold and smallest object are the model's again." if moved else ""

    def _on_moved(self, *_: object) -> None:
        shown = self._shown
        if shown is None or self._worker is not None or not shown.present:
            return
        if shown.edited:
            self._refuse(shown)
            return
        wanted = self._wanted
        worker = create_worker(shown.recut, *wanted, _start_thread=False)

        def show(cut: dict[int, Answer]) -> None:
            if self._worker is not worker:  # closed, or another run began
                return
            if shown.edited:  # meanwhile
                self._refuse(shown)
                return
            for part, answer in cut.items():
                shown.show(part, answer)
            self._say(found(next(iter(cut.values())).job, cut))

        def again() -> None:
            if self._worker is not worker:
                return
            if shown.add_next():  # a layer in a turn: the window is never busy for long
                QTimer.singleShot(0, again)
                return
            self._worker = None
            if wanted != self._wanted:
                self._on_moved()

        worker.returned.connect(show)
        worker.finished.connect(again)
        self._worker = worker
        worker.start()

    def _refuse(self, shown: ShownRun) -> None:
        """Say that the labels stay, and show what they were made with."""
        self.follow(shown)
        self._say(EDITED)
