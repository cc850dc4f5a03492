"""The Segment dock widget: a form, a worker, and layers when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.widgets import Container, Label, ProgressBar, PushButton, Widget
from napari.layers import Image, Shapes
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QSizePolicy

from cdal_engine.config import ModelConfig, read_model_config
from cdal_engine.errors import CdalError
from cdal_engine.weights import available

from .planes import (
    Plane,
    check,
    check_memory,
    check_shown,
    enlargement,
    full_resolution,
    plane_of,
)
from .regions import Region, in_view, of_shapes, whole
from .results import METADATA_KEY
from .segment_form import SegmentForm
from .settings import preferences
from .shown import ShownRun
from .summary import found
from .volumes import check_slice
from .worker import Answer, Job, Run, start

if TYPE_CHECKING:
    import napari

__all__ = ["SegmentWidget"]

_NOTABLE = 1.5  # a change of scale worth a word before running
_POLL = 100  # milliseconds between looks at a run's progress
_BAR = 1000  # steps of the progress bar
_WHOLE, _VIEW, _VOLUME = "whole image", "current view", "whole volume"


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
        self._preferences = preferences()
        self._folders = dict(available(self._preferences.own_models) if models is None else models)
        configs = _readable(self._folders)
        self._watched: Any = None  # the layer whose resolution the form follows
        self._run: Run | None = None
        self._worker: Any = None
        self._outcome = ""
        self._shown = ShownRun(napari_viewer)
        self._seen: dict[int, Answer] = {}  # answers that were given to `_shown`
        self._cutter: Any = None  # the worker that decodes anew
        self.form = SegmentForm(self._images, self._scopes, configs, self._preferences)
        self.run_button = PushButton(text="Run")
        self.cancel_button = PushButton(text="Cancel", enabled=False)
        self.progress = ProgressBar(min=0, max=1, value=0)
        self.status = Label(value="")
        self._lay_out()
        self._timer = QTimer(self.native)
        self._timer.setInterval(_POLL)
        self._timer.timeout.connect(self._show_progress)
        self.form.image.changed.connect(self._on_image)
        self.form.model.changed.connect(self._fill_resolution)
        self.form.model.changed.connect(self.form.scope.reset_choices)
        for field in (self.form.mpp, self.form.scope, self.form.samples):
            field.changed.connect(self._show_hint)
        for slider in (self.form.threshold, self.form.min_area):
            slider.changed.connect(self._on_cut)
        self.run_button.changed.connect(self._on_run)
        self.cancel_button.changed.connect(self._on_cancel)
        # Closed by its ×, the widget only loses its parent; with the viewer, it is destroyed.
        self.native_parent_changed.connect(self._on_parent)
        self.native.destroyed.connect(self._abandon)
        self._on_image()

    @property
    def running(self) -> bool:
        """Whether a run is on its way."""
        return self._run is not None

    def _lay_out(self) -> None:
        """Put the form, which scrolls, above what must stay in sight."""
        self.progress.native.setTextVisible(False)  # macOS shows none: the status line has it
        status = self.status.native
        status.setTextFormat(Qt.TextFormat.PlainText)
        status.setWordWrap(True)
        status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        status.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.MinimumExpanding)
        status.setAlignment(Qt.AlignmentFlag.AlignTop)
        status.setMinimumHeight(5 * status.fontMetrics().lineSpacing())
        buttons = Container[Widget](
            widgets=[self.run_button, self.cancel_button], layout="horizontal", labels=False
        )
        buttons.margins = (0, 0, 0, 0)
        self.extend([buttons, self.progress, self.status])
        self.native.layout().insertWidget(0, self.form.native)

    def _images(self, _: object = None) -> list[tuple[str, Any]]:
        """Image layers by name, those that this widget made left out."""
        return [
            (layer.name, layer)
            for layer in self._viewer.layers
            if isinstance(layer, Image) and METADATA_KEY not in layer.metadata
        ]

    def _scopes(self, _: object = None) -> list[tuple[str, Any]]:
        """What of the image may be segmented; shapes are offered a layer at a time."""
        plane = self._plane()
        config = self.form.config if plane is not None else None
        scopes: list[tuple[str, Any]] = [("Whole image", _WHOLE), ("Current view", _VIEW)]
        if plane is not None and plane.is_volume and config and config.takes_volumes:
            scopes = [("Whole volume", _VOLUME), ("Slice shown", _WHOLE), scopes[1]]
        shapes = [layer for layer in self._viewer.layers if isinstance(layer, Shapes)]
        return scopes + [(f"Regions: {layer.name}", layer) for layer in shapes]

    def reset_choices(self, *_: Any) -> None:
        """Follow the viewer's layers; napari calls it when one comes, goes or is renamed."""
        self.form.image.reset_choices()
        self.form.scope.reset_choices()
        if self.form.image.value is None:
            self._on_image()

    def _on_image(self, *_: object) -> None:
        """Follow the chosen layer's resolution."""
        layer = self.form.image.value
        if layer is not self._watched:
            for watched, act in ((self._watched, "disconnect"), (layer, "connect")):
                for event in ("scale", "affine", "units") if watched is not None else ():
                    getattr(getattr(watched.events, event), act)(self._fill_resolution)
            self._watched = layer
            self.form.scope.reset_choices()
            self._fill_resolution()
        self._show_hint()  # a rename keeps what was entered

    def _plane(self) -> Plane | None:
        layer = self._watched
        return None if layer is None else plane_of(layer, self._viewer.dims.point)

    def _fill_resolution(self, *_: object) -> None:
        """Fill micrometres per pixel from the layer, else from the model."""
        plane, config = self._plane(), self.form.config
        mpp = (plane and plane.mpp) or (config and config.image.mpp) or 0.0
        self.form.mpp.value = mpp
        self._show_hint()

    def _show_hint(self, *_: object) -> None:
        """Say before a run what it will take, or why it will be refused."""
        if self.running:
            return
        try:
            plane, config, regions = self._checked()
        except CdalError as error:
            self._say(str(error))
            return
        if not regions:
            self._say(f"All {len(plane.data)} slices of the volume.")
            return
        height, width = plane.size if len(regions) > 1 else regions[0].size
        many = f"{len(regions)} regions of an image of " if len(regions) > 1 else ""
        note = self._resolution_note(plane, config, (height, width))
        self._say(f"{many}{width} × {height} pixels{note}.")

    def _resolution_note(self, plane: Plane, config: ModelConfig, size: tuple[int, int]) -> str:
        notes = []
        if plane.index:
            notes.append(", of the stack only the slice shown (2-D)")
        larger = enlargement(self.form.mpp.value, config.image)
        if larger > _NOTABLE or larger < 1 / _NOTABLE:
            height, width = (round(n * larger) for n in size)
            notes.append(f". At the model's resolution: {width} × {height}")
        if plane.spacing and max(plane.spacing) > 1.1 * min(plane.spacing):
            notes.append(f". They are not square: taken as {plane.mpp:.3g} µm")
        elif plane.mpp is None and config.image.mpp == self.form.mpp.value:
            notes.append(f". Their size is unknown: the model's {config.image.mpp:g} µm is assumed")
        return "".join(notes)

    def _checked(self) -> tuple[Plane, ModelConfig, tuple[Region, ...]]:
        """What would be run; no region: the whole volume."""
        plane, config = self._plane(), self.form.config
        if plane is None:
            raise CdalError("no image layer", "open one, or File > Open Sample > cDAL")
        if config is None:
            raise CdalError("no model is installed", "install napari-cdal again")
        check(plane, config.image)
        if self.form.scope.value == _VOLUME:
            return plane, config, ()
        dims = self._viewer.dims
        if dims.ndisplay != 2 or tuple(dims.displayed) != (dims.ndim - 2, dims.ndim - 1):
            raise CdalError(
                "the viewer shows a volume, or other axes than the last two",
                "show the image's own planes in 2-D first",
            )
        check_shown(plane)
        if plane.is_volume and config.takes_volumes:
            check_slice(plane, config)
        regions = self._regions(plane)
        larger = enlargement(self.form.mpp.value or None, config.image)
        for region in regions:
            allowed = self._preferences.memory_gb
            check_memory(plane.name, region.size, larger, self.form.samples.value, allowed)
        return plane, config, regions

    def _regions(self, plane: Plane) -> tuple[Region, ...]:
        scope = self.form.scope.value
        if isinstance(scope, Shapes):
            return of_shapes(plane, scope)
        return in_view(plane) if scope == _VIEW else whole(plane)

    def _job(self) -> Job:
        plane, _, regions = self._checked()
        form = self.form
        return Job(
            plane=plane,
            regions=regions,
            model=self._folders[form.model.value],
            device=form.device.value,
            mpp=form.mpp.value or None,
            samples=form.samples.value,
            steps=form.steps.value,
            seed=form.seed.value,
            wanted=frozenset(what for what, box in form.wanted.items() if box.value),
        )

    def _on_run(self) -> None:
        if self.running:
            return
        try:
            run = Run(self._job())
        except CdalError as error:
            self._say(str(error))
            show_error(str(error))
            return
        worker = start(run)
        worker.returned.connect(self._on_returned)
        worker.errored.connect(self._on_errored)
        worker.finished.connect(self._on_finished)
        self._run, self._worker = run, worker
        self._outcome = ""
        self._shown, self._seen, self._cutter = ShownRun(self._viewer), {}, None
        for slider in (self.form.threshold, self.form.min_area):
            slider.enabled = False
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
        self._say("Stopping after the current pass…" if stopping else f"{run.text()}.")
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
        self._set_running(False)
        self.progress.max, self.progress.value = 1, 0
        answers = self._shown.answers
        for answer in answers.values():
            self.form.show_cut(answer.config, enabled=answer.segmentation.mean is not None)
        self._say(
            " ".join(filter(None, (self._outcome, found(run.job, answers), self._moved(run))))
        )

    def _moved(self, run: Run) -> str:
        """What became of the image meanwhile."""
        plane = run.job.plane
        if full_resolution(plane.layer) is not plane.data:
            return "The image's data were replaced meanwhile: placed where it was."
        if plane.layer not in self._viewer.layers:
            return "The image's layer is gone: placed where it was."
        return ""

    def _on_cut(self, *_: object) -> None:
        """Decode the kept maps anew, and once more if the sliders went on meanwhile."""
        if self.running or self._cutter is not None or not self._shown.present:
            return
        if self._shown.edited:
            self._say("The labels were edited and stay as they are (run again for others)")
            return
        wanted = (self.form.threshold.value, self.form.min_area.value)
        worker = create_worker(self._shown.recut, *wanted, _start_thread=False)

        def show(cut: dict[int, Answer]) -> None:
            if self._cutter is not worker:  # closed, or another run began
                return
            for part, answer in cut.items():
                self._shown.show(part, answer)
            while self._shown.add_next():
                pass
            job = next(iter(cut.values())).job
            self._say(found(job, cut))

        def again() -> None:
            if self._cutter is not worker:
                return
            self._cutter = None
            if wanted != (self.form.threshold.value, self.form.min_area.value):
                self._on_cut()

        worker.returned.connect(show)
        worker.finished.connect(again)
        self._cutter = worker
        worker.start()

    def add_model(self, name: str, folder: Path) -> None:
        """Offer a model that was made meanwhile."""
        self._folders[name] = folder
        self.form.add_model(name, read_model_config(folder / "config.json"))

    def _set_running(self, running: bool) -> None:
        self.run_button.enabled = not running
        self.cancel_button.enabled = running

    def _say(self, text: str) -> None:
        self.status.value = text[:1].upper() + text[1:]

    def _on_parent(self, parent: object) -> None:
        if parent is None:
            self._abandon()

    def _abandon(self, *_: object) -> None:
        """Let a running worker stop unheard: this widget is going away."""
        worker, self._worker, self._run, self._cutter = self._worker, None, None, None
        self._shown.clear()
        if worker is not None:
            worker.quit()
            with suppress(RuntimeError):  # Qt may have deleted the worker's signals already
                worker.returned.disconnect(self._on_returned)
                worker.errored.disconnect(self._on_errored)
                worker.finished.disconnect(self._on_finished)


def _readable(folders: Mapping[str, Path]) -> dict[str, ModelConfig]:
    """Configs by name; a broken model of the user's must not keep the others from being shown."""
    configs = {}
    for name, folder in folders.items():
        with suppress(CdalError):  # `cdal models list` says what is wrong with it
            configs[name] = read_model_config(folder / "config.json")
    return configs
