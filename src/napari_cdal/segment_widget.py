"""The Segment dock widget: a form, a worker, and layers when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.widgets import Container, Label, ProgressBar, PushButton, Widget
from napari.layers import Image, Labels, Layer
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QSizePolicy

from cdal_engine import weights
from cdal_engine.config import ModelConfig, read_model_config
from cdal_engine.errors import CdalError

from .planes import Plane, check, enlargement, full_resolution, placement, plane_of
from .results import METADATA_KEY, LayerData, layer_data
from .segment_form import SegmentForm
from .worker import Answer, Job, Run, start

if TYPE_CHECKING:
    import napari

__all__ = ["SegmentWidget"]

_NOTABLE = 1.5  # a change of scale worth a word before running
_OUTLINE = 2  # pixels; the objects stay visible inside it
_POLL = 100  # milliseconds between looks at a run's progress


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
        self._folders = dict(weights.available() if models is None else models)
        configs = _readable(self._folders)
        self._watched: Any = None  # the layer whose resolution the form follows
        self._run: Run | None = None
        self._worker: Any = None
        self._outcome = ""
        self._pending: list[LayerData] = []  # layers still to be added
        self.form = SegmentForm(self._images, configs)
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
        self.form.mpp.changed.connect(self._show_hint)
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

    def reset_choices(self, *_: Any) -> None:
        """Follow the viewer's layers; napari calls it when one comes, goes or is renamed."""
        self.form.image.reset_choices()
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
            self._fill_resolution()
        self._show_hint()  # a rename keeps what was entered

    def _plane(self) -> Plane | None:
        layer = self.form.image.value
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
            plane, config = self._checked()
        except CdalError as error:
            self._say(str(error))
            return
        height, width = plane.size
        self._say(f"{width} × {height} pixels{self._resolution_note(plane, config)}.")

    def _resolution_note(self, plane: Plane, config: ModelConfig) -> str:
        notes = []
        if plane.index:
            notes.append(", of the stack only the slice shown (2-D)")
        larger = enlargement(self.form.mpp.value, config.image)
        if larger > _NOTABLE or larger < 1 / _NOTABLE:
            height, width = (round(n * larger) for n in plane.size)
            notes.append(f". At the model's resolution: {width} × {height}")
        if plane.spacing and max(plane.spacing) > 1.1 * min(plane.spacing):
            notes.append(f". They are not square: taken as {plane.mpp:.3g} µm")
        elif plane.mpp is None and config.image.mpp == self.form.mpp.value:
            notes.append(f". Their size is unknown: the model's {config.image.mpp:g} µm is assumed")
        return "".join(notes)

    def _checked(self) -> tuple[Plane, ModelConfig]:
        plane, config = self._plane(), self.form.config
        if plane is None:
            raise CdalError("no image layer", "open one, or File > Open Sample > cDAL")
        if config is None:
            raise CdalError("no model is installed", "install napari-cdal again")
        dims = self._viewer.dims
        if dims.ndisplay != 2 or tuple(dims.displayed) != (dims.ndim - 2, dims.ndim - 1):
            raise CdalError(
                "the viewer shows a volume, or other axes than the last two",
                "show the image's own planes in 2-D first",
            )
        check(plane, config.image, self.form.mpp.value or None)
        return plane, config

    def _job(self) -> Job:
        plane, _ = self._checked()
        form = self.form
        return Job(
            plane=plane,
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
            return
        worker = start(run)
        worker.returned.connect(self._on_returned)
        worker.errored.connect(self._on_errored)
        worker.finished.connect(self._on_finished)
        self._run, self._worker = run, worker
        self._outcome = "Cancelled: nothing was added."
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
        if self._run is not None:
            self.progress.max = max(self._run.total, 1)
            self.progress.value = self._run.done
            stopping = not self.cancel_button.enabled
            self._say("Stopping after the current pass…" if stopping else self._run.text())

    def _on_returned(self, result: Answer | str | None) -> None:
        if isinstance(result, str):
            self._outcome = result
        elif result is not None:
            self._outcome, self._pending = self._layers(result)

    def _on_errored(self, error: Exception) -> None:
        self._outcome = f"Unexpected {type(error).__name__}: {error} (napari's message has more)"

    def _on_finished(self) -> None:
        self._timer.stop()
        self._worker = None
        self._add_next()

    def _add_next(self) -> None:
        """Add a layer and come back for the next, so that the window is never busy for long."""
        if self._pending:
            QTimer.singleShot(0, self._add_next)  # also if this one cannot be added
            added = self._viewer.add_layer(Layer.create(*self._pending.pop(0)))
            if isinstance(added, Labels):
                added.contour = _OUTLINE
        elif self._run is not None:
            self._run = None
            self._set_running(False)
            self.progress.max, self.progress.value = 1, 0
            self._say(self._outcome)

    def _layers(self, answer: Answer) -> tuple[str, list[LayerData]]:
        """What to tell the user, and the layers, placed as the source is now."""
        plane, segmentation = answer.job.plane, answer.segmentation
        layer, layers = plane.layer, self._viewer.layers
        same_image = full_resolution(layer) is plane.data
        present = layer in layers and same_image
        made = layer_data(
            segmentation,
            source=str(layer.name),
            model=answer.model,
            classes=answer.classes,
            placement=placement(layer, plane.index) if present else plane.placement,
            wanted=answer.job.wanted,
            taken=[other.name for other in layers],
            run=answer.facts,
        )
        count = len(segmentation.objects["label"])
        device = answer.facts["device"]
        text = f"{count} object{'s' * (count != 1)} in {segmentation.seconds:.1f} s on {device}."
        if len(made) > 1:
            text += " The maps are hidden: click their eyes to see them."
        if not present:
            what = "layer is gone" if same_image else "data were replaced meanwhile"
            text += f" The image's {what}: placed where it was."
        return text, made

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
        worker, self._worker, self._run = self._worker, None, None
        self._pending.clear()
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
