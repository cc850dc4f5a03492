"""The Segment dock widget: a form, a worker, and layers when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import Container, Label, ProgressBar, PushButton, Widget
from napari.layers import Shapes
from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QKeySequence

from cdal_engine.errors import CdalError
from cdal_engine.weights import available

from .chosen import Chosen
from .engine_process import prepare
from .jobs import Answer
from .menus import refresh
from .planes import full_resolution, spacing_of
from .regions import measure_as, see_through
from .settings import preferences
from .shown import ShownRun
from .sliders import EDITED, Sliders
from .status import as_status, sentence
from .summary import found
from .worker import Run, start

if TYPE_CHECKING:
    import napari

    from .jobs import Job
    from .objects_widget import ObjectsWidget

__all__ = ["SegmentWidget"]

_POLL = 200  # milliseconds between looks at a run's progress
_BAR = 1000  # steps of the progress bar
_LATER = 200  # milliseconds: a window that moves is looked at once it rests


class SegmentWidget(Container[Widget]):
    """Choose an image layer and a model, run, and get layers.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
    models : mapping of str to Path, optional
        Model folders by name; by default the shipped ones and the user's own.
    """

    def __init__(
        self, napari_viewer: napari.viewer.Viewer, models: Mapping[str, Path] | None = None
    ) -> None:
        super().__init__(labels=False)
        self._viewer = napari_viewer
        chosen = preferences()
        folders = available(chosen.own_models) if models is None else models
        self._run: Run | None = None
        self._worker: Any = None
        self._outcome = ""
        self._shown = ShownRun(napari_viewer)
        self._before = self._shown  # shown again if nothing comes of a run
        self._seen: dict[int, Answer] = {}  # answers that were given to `_shown`
        self._objects: ObjectsWidget | None = None
        self._dock: Any = None  # of the objects
        self._chosen = Chosen(napari_viewer, folders, chosen)
        self.form = self._chosen.form
        self.sliders = Sliders(self.form, self._say)
        self.run_button = _button("Run", "Ctrl+Return")
        self.cancel_button = _button("Cancel", "Ctrl+.")
        self.cancel_button.enabled = False
        self.more_button = _button("More samples here", "Ctrl+Shift+Return")
        self.more_button.tooltip = (
            "Draw as many samples as the field says where the result lies, and add them to it."
        )
        self.more_button.enabled = False
        self.objects_button = PushButton(text="Objects…")
        self.objects_button.tooltip = "Table and histograms of the objects."
        self.progress = ProgressBar(min=0, max=1, value=0)
        self.status = Label(value="")
        self._lay_out()
        self._timer = QTimer(self.native)
        self._timer.setInterval(_POLL)
        self._timer.timeout.connect(self._show_progress)
        self._hint = ""  # what the status line says where it tells of no run
        self._shapes: Shapes | None = None  # the regions whose changes are followed
        self._later = QTimer(self.native)
        self._later.setSingleShot(True)
        self._later.setInterval(_LATER)
        self._later.timeout.connect(self._renew_hint)
        camera, dims = napari_viewer.scene.camera.events, napari_viewer.dims.events
        self._moves: tuple[Any, ...] = (
            camera.center,
            camera.zoom,
            dims.current_step,
            dims.ndisplay,
        )
        for moved in self._moves:
            moved.connect(self._on_moved)
        self.form.image.changed.connect(self._on_image)
        self.form.model.changed.connect(self._fill_resolution)
        self.form.model.changed.connect(partial(refresh, self.form.scope))
        form = self.form
        form.scope.changed.connect(self._on_scope)
        for field in (form.mpp, form.samples, form.steps, form.wanted["steps"]):
            field.changed.connect(self._show_hint)
        self.run_button.changed.connect(self._on_run)
        self.cancel_button.changed.connect(self._on_cancel)
        self.more_button.changed.connect(self._on_more)
        self.objects_button.changed.connect(self._on_objects)
        # Closed by its ×, the widget only loses its parent; with the viewer, it is destroyed.
        self.native_parent_changed.connect(self._on_parent)
        self.native.destroyed.connect(self._abandon)
        self._on_image()
        if models is None and (wrong := chosen.wrong(folders)):
            show_warning(wrong)
        prepare()

    @property
    def running(self) -> bool:
        """Whether a run is on its way."""
        return self._run is not None

    def _lay_out(self) -> None:
        """Put the form, which scrolls, above what must stay in sight."""
        self.progress.native.setTextVisible(False)  # macOS shows none: the status line has it
        status = self.status.native
        as_status(status)
        status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        for pair in (
            (self.run_button, self.cancel_button),
            (self.more_button, self.objects_button),
        ):
            buttons = Container[Widget](widgets=pair, layout="horizontal", labels=False)
            buttons.margins = (0, 0, 0, 0)
            self.append(buttons)
        self.extend([self.progress, self.status])
        self.native.layout().insertWidget(0, self.form.native)

    def reset_choices(self, *_: Any) -> None:
        """Follow the viewer's layers; napari calls it when one comes, goes or is renamed."""
        refresh(self.form.image)
        refresh(self.form.scope)

    def _on_image(self, *_: object) -> None:
        """Follow the chosen layer's resolution."""
        layer = self.form.image.value
        if layer is not self._chosen.layer:
            self._watch("disconnect")
            self._chosen.layer = layer
            self._watch("connect")
            refresh(self.form.scope)
            self._fill_resolution()
        self._show_hint()  # a rename keeps what was entered

    def _watch(self, act: str) -> None:
        """Connect to, or disconnect from, what tells of the chosen layer's resolution."""
        layer = self._chosen.layer
        for event in ("scale", "affine", "units") if layer is not None else ():
            getattr(getattr(layer.events, event), act)(self._fill_resolution)

    def _fill_resolution(self, *_: object) -> None:
        """Fill in micrometres per pixel as far as they are known."""
        self.form.mpp.value = self._chosen.mpp() or 0.0
        self._show_hint()

    def _show_hint(self, *_: object) -> None:
        """Say before a run what it will take, or why it will be refused."""
        if not self.running:
            self._hint = sentence(self._chosen.hint())
            self._say(self._hint)

    def _on_scope(self, *_: object) -> None:
        """Follow the shapes that are chosen while they are drawn."""
        scope = self.form.scope.value
        old, self._shapes = self._shapes, scope if isinstance(scope, Shapes) else None
        if self._shapes is not None:
            see_through(self._shapes)
            measure_as(self._shapes, self._chosen.layer)
        for shapes, act in ((old, "disconnect"), (self._shapes, "connect")):
            if shapes is not None:
                getattr(shapes.events.data, act)(self._on_moved)
        self._show_hint()

    def _on_moved(self, *_: object) -> None:
        self._later.start()

    def _renew_hint(self) -> None:
        """Say anew what a run will take, unless the line tells of a run."""
        if self.status.value == self._hint:
            self._show_hint()

    def _on_run(self) -> None:
        if not self.running:
            self._start(self._chosen.job, ShownRun(self._viewer))

    def _on_more(self) -> None:
        """Add samples to the result that is shown."""
        if self.running:
            return
        if not self._shown.present:
            self._say("The labels were removed: run again")
            return
        if self._shown.edited:
            self._say(EDITED)
            return
        self._start(lambda: self._chosen.more(self._shown.answers), self._shown)

    def _start(self, job: Callable[[], Job], shown: ShownRun) -> None:
        """Start what `job` gives, whose answers `shown` is to show; or say why not."""
        try:
            run = Run(job())
        except CdalError as error:
            self._hint = sentence(str(error))
            self._say(self._hint)
            show_error(str(error))
            return
        worker = start(run)
        worker.returned.connect(self._on_returned)
        worker.errored.connect(self._on_errored)
        worker.finished.connect(self._on_finished)
        self._run, self._worker = run, worker
        self._outcome = ""
        self._before, self._shown, self._seen = self._shown, shown, {}
        self.sliders.rest()
        self._set_running(True)
        self._show_progress()
        self._timer.start()
        worker.start()

    def _on_cancel(self) -> None:
        if self._worker is not None:
            self._worker.quit()
            self.cancel_button.enabled = False
            self._show_progress()

    def _show_progress(self) -> None:
        """Show how far it is, and a layer of what is new."""
        run = self._run
        if run is None:
            return
        self.progress.max = _BAR
        self.progress.value = round(run.fraction * _BAR)
        stopping = not self.cancel_button.enabled
        self._say("Stopping after the current pass…" if stopping else run.text())
        self._take_new(run)
        self._shown.add_next()

    def _take_new(self, run: Run) -> None:
        for part, answer in list(run.answers.items()):
            if self._seen.get(part) is not answer:
                self._seen[part] = answer
                self._shown.show(part, answer)

    def _on_returned(self, problem: str) -> None:
        self._outcome = problem
        if problem:
            show_error(problem)

    def _on_errored(self, error: Exception) -> None:
        self._outcome = f"Unexpected {type(error).__name__}: {error} (napari's message has more)"

    def _on_finished(self) -> None:
        self._timer.stop()
        self._worker = None
        if self._run is not None:
            self._take_new(self._run)
            self._add_rest()

    def _add_rest(self) -> None:
        """Add a layer and come back for the next, so that the window is never busy for long."""
        if self._shown.add_next():
            QTimer.singleShot(0, self._add_rest)
            return
        run, self._run = self._run, None
        if run is None:
            return
        self.progress.max, self.progress.value = 1, 0
        said = self._outcome, found(run.job, self._shown.answers), self._moved(run)
        if not self._shown.answers:
            self._shown = self._before
        self._set_running(False)
        self._say(" ".join(filter(None, (*said, self.sliders.follow(self._shown)))))

    def _moved(self, run: Run) -> str:
        """What became of the image meanwhile."""
        plane = run.job.plane
        if full_resolution(plane.layer) is not plane.data:
            return "The image's data were replaced meanwhile: placed where it was."
        if plane.layer not in self._viewer.layers:
            return "The image's layer is gone: placed where it was."
        if not np.allclose(plane.spacing or 0, spacing_of(plane.layer) or 0):
            return "The image's scale was changed meanwhile: sizes are in the earlier one."
        if self._shown.answers and not self._shown.present:
            return "Its labels were removed: run again to have them."
        return ""

    def add_model(self, name: str, folder: Path) -> None:
        """Offer a model that was made meanwhile."""
        self._chosen.add_model(name, folder)

    def _set_running(self, running: bool) -> None:
        self.run_button.enabled = not running
        self.cancel_button.enabled = running
        self._shown.hold(running)
        can_grow = any(answer.can_grow for answer in self._shown.answers.values())
        self.more_button.enabled = not running and self._shown.present and can_grow

    def _on_objects(self) -> None:
        """Open the table, or bring it into sight."""
        if self._objects is None or self._objects.native.parent() is None:
            from .objects_widget import ObjectsWidget  # matplotlib: only once it is needed

            self._objects = ObjectsWidget(self._viewer)
            self._dock = self._viewer.window.add_dock_widget(
                self._objects, name="Objects", area="bottom"
            )
        self._dock.show()
        self._dock.raise_()

    def _say(self, text: str) -> None:
        self.status.value = sentence(text)

    def _on_parent(self, parent: object) -> None:
        if parent is None:
            if self.running and self._shown.answers:
                show_info("Segment was closed: its layers show what was finished until then.")
            self._shown.hold(False)
            self._abandon()

    def _abandon(self, *_: object) -> None:
        """Let a running worker stop unheard: this widget is going away."""
        worker, self._worker = self._worker, None
        self.sliders.stop()
        run, self._run = self._run, None
        self._shown.clear()
        for moved in self._moves:
            moved.disconnect(self._on_moved)
        if self._shapes is not None:
            self._shapes.events.data.disconnect(self._on_moved)
        self._watch("disconnect")
        self._moves, self._shapes, self._chosen.layer = (), None, None
        if run is not None:
            run.abandon()
        if worker is not None:
            worker.quit()
            with suppress(RuntimeError):  # Qt may have deleted the worker's signals already
                worker.returned.disconnect(self._on_returned)
                worker.errored.disconnect(self._on_errored)
                worker.finished.disconnect(self._on_finished)


def _button(text: str, keys: str) -> PushButton:
    """A button that shows its shortcut, which acts wherever the window's focus is."""
    shortcut = QKeySequence(keys)
    shown = shortcut.toString(QKeySequence.SequenceFormat.NativeText)
    button = PushButton(text=f"{text} ({shown})")
    button.native.setShortcut(shortcut)
    return button
