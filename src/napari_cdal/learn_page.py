"""The Learn page of the Review widget: a model fine-tuned on the reviewed regions."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from magicgui.widgets import ComboBox, LineEdit, PushButton, SpinBox
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QFormLayout, QLabel, QWidget

from cdal_engine.corrections.corrected import CorrectedCopy
from cdal_engine.errors import CdalError
from cdal_engine.weights import available, folder_for, user_folder

from .curve import Curve
from .jobs import Learned, Lesson
from .settings import Preferences
from .status import as_status, sentence
from .worker import Errand, start

__all__ = ["LearnPage"]

_POLL = 200  # milliseconds between looks at how far it is
_FIRST = "Reading the regions, and judging the model as it is…"


class Learning(Errand):
    """A fine-tuning on its way.

    Parameters
    ----------
    copy : CorrectedCopy
    lesson : Lesson
        Without `stems`: its training folder is written first. Its folder is removed in the end.
    """

    remedy = "close other programs, then fine-tune again"

    def __init__(self, copy: CorrectedCopy, lesson: Lesson) -> None:
        super().__init__()
        self._copy, self._lesson = copy, lesson
        self.rows: deque[dict[str, float]] = deque()  # reported, and not shown yet
        self.stop = False  # a worker that is told to quit returns nothing

    def _stopped(self) -> bool:
        """As asked for; napari, where it closes, waits for the worker and wants no model."""
        if self.given_up():
            self.abandon()
        return self.stop

    def __repr__(self) -> str:  # napari shows it when asked to close meanwhile
        return "fine-tuning on corrections"

    def __call__(self) -> Learned | str:
        """What was learned, or why nothing was."""
        from cdal_engine.corrections.export import training_folder

        try:
            stems = training_folder(self._copy, self._lesson.folder / "data")
            given = self._do(replace(self._lesson, stems=stems), {"row": self.rows.append})
            return given if isinstance(given, Learned) else str(given)
        except CdalError as error:
            return str(error)
        finally:
            shutil.rmtree(self._lesson.folder, ignore_errors=True)


class LearnPage(QWidget):
    """A form, a curve, and a model in the user's folder when it is done.

    Parameters
    ----------
    preferences : Preferences
    copy : callable
        Returns the corrected copy of the chosen labels, or None; raises `CdalError` where it cannot
        be had.
    on_model : callable
        Called with name and folder of a new model.
    """

    def __init__(
        self,
        preferences: Preferences,
        copy: Callable[[], CorrectedCopy | None],
        on_model: Callable[[str, Path], None],
    ) -> None:
        super().__init__()
        self._preferences, self._copy, self._on_model = preferences, copy, on_model
        self._learning: Learning | None = None
        self._worker: Any = None
        self._begun = 0.0
        self.model = ComboBox(label="Start from", choices=self._models)
        self.name = LineEdit(label="New model", value="my-nuclei")
        self.minutes = SpinBox(label="Minutes, at most", value=8, min=1, max=600)
        self.learn_button = PushButton(text="Fine-tune on these corrections")
        self.learn_button.tooltip = "Learns from the regions that are marked as reviewed."
        self.stop_button = PushButton(text="Stop", enabled=False)
        self.stop_button.tooltip = "What was learned so far is judged, and kept if it is better."
        self.data_button = PushButton(text="Export as training folder…")
        self.data_button.tooltip = "The same images and labels, for cdal train."
        self.curve = Curve()
        self.status = QLabel()
        self._lay_out()
        self._timer = QTimer(self)
        self._timer.setInterval(_POLL)
        self._timer.timeout.connect(self._look)
        self.learn_button.changed.connect(self._on_learn)
        self.stop_button.changed.connect(self._on_stop)
        self.data_button.changed.connect(self._on_data)

    @property
    def running(self) -> bool:
        """Whether a model is learning."""
        return self._learning is not None

    def _models(self, _: object = None) -> list[str]:
        return list(available(self._preferences.own_models))

    def _lay_out(self) -> None:
        rows = QFormLayout(self)
        rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for field in (self.model, self.name, self.minutes):
            rows.addRow(field.label, field.native)
        for button in (self.learn_button, self.stop_button):
            rows.addRow(button.native)
        rows.addRow(self.curve)
        as_status(self.status, lines=6)
        rows.addRow(self.status)
        rows.addRow(self.data_button.native)

    def suggest(self, model: str) -> None:
        """Start from the model whose answer is corrected, if it is there."""
        if model in self.model.choices:
            self.model.value = model
            name, number = f"{model}-corrected", 1
            while name in self.model.choices:  # learned before
                number += 1
                name = f"{model}-corrected-{number}"
            self.name.value = name

    def _ready(self) -> CorrectedCopy:
        copy = self._copy()
        if copy is None:
            raise CdalError("nothing was corrected yet", "open a region on the Review page first")
        return copy

    # -- learning ---------------------------------------------------------------------------------

    def _on_learn(self) -> None:
        if self.running:
            return
        try:
            learning = Learning(self._ready(), self._lesson())
        except CdalError as error:
            self._say(str(error))
            show_error(str(error))
            return
        worker = start(learning)
        worker.returned.connect(self._on_returned)
        worker.errored.connect(lambda error: self._say(f"{type(error).__name__}: {error}"))
        worker.finished.connect(self._on_finished)
        self._learning, self._worker = learning, worker
        self.curve.clear()
        self._set_running(True)
        self._begun = time.monotonic()
        self._say(_FIRST)
        self._timer.start()
        worker.start()

    def _lesson(self) -> Lesson:
        chosen, name, start = self._preferences, str(self.name.value), str(self.model.value)
        own = chosen.own_models or user_folder()
        folder_for(name, own)  # refuses a name that is taken
        models = available(own)
        if start not in models:
            raise CdalError(f"there is no model {start!r} any more", "start from another")
        return Lesson(
            folder=Path(tempfile.mkdtemp(prefix="cdal-learning-")),
            stems={},
            model=models[start],
            device=chosen.device,
            minutes=float(self.minutes.value),
            name=name,
            start=start,
            own=own,
        )

    def _on_stop(self) -> None:
        if self._learning is not None:
            self._learning.stop = True
            self.stop_button.enabled = False
            self._say("Stopping: what was learned so far is judged…")

    def _look(self) -> None:
        """Show what was reported since the last look."""
        learning = self._learning
        while learning is not None and learning.rows:
            row = learning.rows.popleft()
            self.curve.add(row)
            if self.stop_button.enabled and "dice" not in row:
                self._say(f"Step {row['step']:.0f}, {row['progress']:.0%}.")
        if self.stop_button.enabled and not self.curve.losses:
            self._say(f"{_FIRST} {time.monotonic() - self._begun:.0f} s.")

    def _on_returned(self, result: Learned | str) -> None:
        self._look()
        if isinstance(result, str):
            self._say(result)
            if self._learning is not None and not self._learning.stop:
                show_error(result)
            return
        start, name = result.lesson.start, result.lesson.name
        if result.folder is None:
            kept = f"{start} stays as it was, and is the better one"
            self._say(f"It did not help: {kept}. {result.scores}.")
            return
        ended = "Stopped; the best so far is kept. " if result.stopped else ""
        self._say(f"{ended}New model {name!r}: {result.scores}. It lies in {result.folder}.")
        self.model.reset_choices()
        self.suggest(start)  # this name is taken now
        self._on_model(name, result.folder)

    def _on_finished(self) -> None:
        self._timer.stop()
        self._learning = self._worker = None
        self._set_running(False)

    def _set_running(self, running: bool) -> None:
        self.learn_button.enabled = not running
        self.stop_button.enabled = running

    def _say(self, text: str) -> None:
        self.status.setText(sentence(text))

    def abandon(self) -> None:
        """End the fine-tuning unheard: the widget is going away."""
        worker, self._worker = self._worker, None
        if worker is not None:
            self._timer.stop()
            if self._learning is not None:
                self._learning.abandon()
            worker.quit()

    # -- the same data, for the command line ------------------------------------------------------

    def _on_data(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Empty folder for images and labels")
        if chosen:
            self.export(Path(chosen))

    def export(self, folder: Path) -> None:
        """Write the reviewed regions into `folder`, for `cdal train`, in another thread."""
        try:
            worker = create_worker(_exported, self._ready(), folder, _start_thread=False)
        except CdalError as error:
            self._on_exported((True, str(error)))
            return
        self._say("Exporting…")
        worker.returned.connect(self._on_exported)
        worker.start()

    def _on_exported(self, said: tuple[bool, str]) -> None:
        failed, text = said
        self._say(text)
        if failed:
            show_error(text)


def _exported(copy: CorrectedCopy, folder: Path) -> tuple[bool, str]:
    """Export; whether it failed, and what to say."""
    from cdal_engine.corrections.export import training_folder

    try:
        stems = training_folder(copy, folder)
    except CdalError as error:
        return True, str(error)
    count = sum(len(each) for each in stems.values())
    return False, f"{count} images with labels in {folder}: cdal train {folder} --init MODEL"
