"""The Review dock widget: objects one after the other by keys, kept as they are corrected."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels, Shapes
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_warning
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog

from cdal_engine.corrections.corrected import CORRECTED, RECORD, CorrectedCopy
from cdal_engine.errors import CdalError

from .corrected_table import CorrectedTable
from .corrections import (
    answer_of,
    box_of,
    check_reviewable,
    colours_of,
    copy_folder,
    corrected_layer,
    scopes,
    shown_corrections,
)
from .learn_page import LearnPage
from .menus import refresh
from .picking import Picking
from .planes import full_resolution
from .regions import see_through
from .results import CORRECTED_KEY, METADATA_KEY
from .review import Review
from .review_form import ACTIONS, ReviewForm
from .segment_widget import SegmentWidget
from .settings import preferences

if TYPE_CHECKING:
    import napari

    from cdal_engine.corrections.answer import Answer
    from cdal_engine.corrections.export import Colours

__all__ = ["ReviewWidget"]

_KEEP = 2000  # milliseconds between versions


class ReviewWidget(ReviewForm):
    """Choose labels and a region, step through its objects, and correct them.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        self._viewer = napari_viewer
        self.copy: CorrectedCopy | None = None
        self.review: Review | None = None
        self._source: Labels | None = None  # that `copy` is of
        self._data: Any = None  # of the source: a slider of the Segment widget replaces them
        self._labels: Any = None  # of the answer, where they are in memory
        self._table: CorrectedTable | None = None
        self._picking: Picking | None = None
        self._model = ""  # whose answer is chosen
        self._worker: Any = None  # copies a slide's labels, or exports
        self._unkept = ""  # why what was done could not be kept
        self.learning = LearnPage(preferences(), self._kept, self._on_model)
        super().__init__(self._choices, self._scopes, self.learning)
        self._connect()
        self._timer = QTimer(self.native)
        self._timer.setInterval(_KEEP)
        self._timer.timeout.connect(self._keep)
        self._on_labels()
        self._show()

    def _connect(self) -> None:
        self.source.changed.connect(self._on_labels)
        self.scope.changed.connect(self._on_scope)
        self.open_button.changed.connect(self._told(self._open))
        self.order.changed.connect(self._on_order)
        self.colours.changed.connect(self._on_colours)
        for name, button in self.actions.items():
            button.changed.connect(self._told(self._does(name)))
        self.reviewed_button.changed.connect(self._told(lambda: self._close(reviewed=True)))
        self.close_button.changed.connect(self._told(lambda: self._close(reviewed=False)))
        self.export_button.changed.connect(self._told(self._choose_export))
        self._viewer.layers.events.removed.connect(self._on_removed)
        self.native_parent_changed.connect(self._on_parent)
        self.native.destroyed.connect(self._abandon)

    def _on_scope(self, scope: object) -> None:
        if isinstance(scope, Shapes):
            see_through(scope)

    def _choices(self, _: object = None) -> list[tuple[str, Any]]:
        """Labels layers by name, those that this widget made left out."""
        ours = self.review.layer if self.review else None
        return [
            (layer.name, layer)
            for layer in self._viewer.layers
            if isinstance(layer, Labels)
            and layer is not ours
            and layer.metadata.get(METADATA_KEY, {}).get("what") != CORRECTED
        ]

    def _scopes(self, _: object = None) -> list[tuple[str, Any]]:
        layer = self.source.value if self.source.value in self._viewer.layers else None
        if layer is None or layer.ndim != 2:
            return []
        return scopes(self._viewer, layer)

    def reset_choices(self, *_: Any) -> None:
        """Follow the viewer's layers; napari calls it when one comes, goes or is renamed."""
        for layer in self._viewer.layers:
            if layer.metadata.get(METADATA_KEY, {}).get("what") == CORRECTED:
                layer.editable = False  # it is written region by region
        refresh(self.source)
        refresh(self.scope)

    def _show(self, *_: object) -> None:
        """Show how far it is, and what is under review."""
        review = self.review
        for button in (*self.actions.values(), self.reviewed_button, self.close_button):
            button.enabled = review is not None
        for field in (self.source, self.scope, self.open_button):
            field.enabled = review is None and self._worker is None
        self.export_button.enabled = review is None and self._worker is None
        if review is None:
            return
        done, every = review.progress
        self.progress.max, self.progress.value = max(every, 1), done
        prompt = self._picking.prompt if self._picking is not None else ""
        self.say(prompt or f"{review.described()}{done} of {every} reviewed.")

    def _told(self, do: Callable[[], None]) -> Callable[..., None]:
        """Have what goes wrong said, here and as napari's message."""

        def told(*_: object) -> None:
            try:
                do()
            except CdalError as error:
                self.say(str(error))
                show_error(str(error))

        return told

    # -- regions ----------------------------------------------------------------------------------

    def _on_labels(self, *_: object) -> None:
        self.scope.reset_choices()
        if self.source.value is not self._source and self.review is None:
            if self.copy is not None:
                self.say("")  # it was about another
            self._release()
        layer = self.source.value
        model = "" if layer is None else layer.metadata.get(METADATA_KEY, {}).get("model", "")
        if model != self._model:  # what was chosen for the same one stays
            self._model = model
            self.learning.suggest(str(model))

    def _on_order(self, order: str) -> None:
        if self.review is not None:
            self.review.sort(order)

    def _on_colours(self, by: str) -> None:
        if self.review is not None:
            self.review.colour(by)

    def _open(self) -> None:
        """Open the chosen region, and the corrected copy before it."""
        layer = self.source.value
        check_reviewable(layer)
        notes = ""
        if self.copy is None or self._data is not layer.data or self._source is not layer:
            answer = answer_of(layer)
            folder = copy_folder(layer, answer)
            if isinstance(answer.labels, Path) and not (folder / RECORD).is_file():
                self._copy_first(folder, answer)
                return
            notes = self._take_copy(layer, answer)
        assert self.copy is not None
        box = box_of(self._viewer, layer, self.scope.value, self.copy.regions(reviewed=True))
        shown = shown_corrections(self._viewer, layer)
        if shown is not None:
            shown.visible = False
        layer.metadata[CORRECTED_KEY] = True  # a slider must not cut it anew meanwhile
        self.review = Review(self._viewer, layer, self.copy, box, self._show)
        self._bind(self.review)
        self._unkept = ""
        self.review.sort(self.order.value)
        self.review.colour(self.colours.value)
        self._timer.start()
        self._show()
        now = full_resolution(layer)
        if self._labels is not None and not np.array_equal(now, self._labels):
            show_warning(
                f"What was painted on {layer.name!r} since it was made is not under review: "
                "paint in the region that is open now."
            )
        if notes:
            self.say(f"{notes} {self.status.value}")

    def _copy_first(self, folder: Path, answer: Answer) -> None:
        """Copy the labels of a slide, which takes long, in another thread; then open the region."""
        worker = create_worker(_copied, folder, answer, _start_thread=False)
        text = "Copying the labels; those in the results stay as they are…"
        self._start(worker, text, then=self._told(self._open))

    def _take_copy(self, layer: Labels, answer: Answer) -> str:
        """Hold the corrected copy of a layer; what is to be said about it."""
        self._release()
        self.copy = CorrectedCopy(copy_folder(layer, answer), answer)
        self._source, self._data = layer, layer.data
        self._labels = None if isinstance(answer.labels, Path) else answer.labels
        self._table = CorrectedTable(layer.features.copy(), self.copy)
        notes = [f"Kept in {self.copy.folder}."]
        if self.copy.recovered is not None:
            notes.append("Corrections that had not been saved were recovered.")
        if not self.copy.is_of(answer):
            notes.append(
                "The results were made anew since: these corrections are of the earlier answer, "
                f"and stay. Move {self.copy.folder.name} away to correct the new one."
            )
        return " ".join(notes)

    def _kept(self) -> CorrectedCopy | None:
        """The corrected copy that is held, or that of the chosen labels, if there is one."""
        layer = self.source.value
        if self.copy is None and layer is not None and layer.ndim == 2:
            answer = answer_of(layer)
            if (copy_folder(layer, answer) / RECORD).is_file():
                self._take_copy(layer, answer)
        return self.copy

    def _bind(self, review: Review) -> None:
        """Keys of the region's layer, and clicks on it."""
        for name, _, key, _ in ACTIONS:
            review.layer.bind_key(key, self._told(self._does(name)))
        review.layer.bind_key("Control-Z", self._told(review.undo), overwrite=True)
        review.layer.bind_key("Control-Shift-Z", self._told(review.redo), overwrite=True)
        self._picking = Picking(review, self.say, self._told)

    def _does(self, name: str) -> Callable[[], None]:
        def act() -> None:
            review, picking = self.review, self._picking
            if review is None or picking is None:
                return
            {
                "accept": review.accept,
                "delete": review.delete,
                "next": lambda: review.step(1),
                "previous": lambda: review.step(-1),
                "merge": picking.merge,
                "split": picking.split,
                "redraw": review.redraw,
                "undo": review.undo,
            }[name]()

        return act

    def _keep(self) -> None:
        """Keep what was done; why it is not kept is napari's message once, not at every try."""
        if self.review is None:
            return
        try:
            if self.review.keep():
                self._unkept = ""
        except CdalError as error:
            self.say(str(error))
            if self._unkept != str(error):
                self._unkept = str(error)
                show_error(self._unkept)

    def _close(self, reviewed: bool) -> None:
        """Write the region, show the corrected labels, and be ready for the next."""
        review, source, copy, table = self.review, self._source, self.copy, self._table
        if review is None or source is None or copy is None or table is None:
            return
        review.write(reviewed)
        self.review = self._picking = None
        self._timer.stop()
        review.remove_layers()
        if not copy.touched and not copy.regions(reviewed=True):
            source.metadata.pop(CORRECTED_KEY, None)
        if source in self._viewer.layers:
            layer = corrected_layer(self._viewer, source, copy, table.after(review.box))
            self._viewer.layers.selection.active = layer
        self.reset_choices()
        self._on_labels()  # the source may have gone meanwhile
        self._show()
        count = len(copy.regions(reviewed=True))
        self.say(
            f"Saved in {copy.folder}. {count} region{'s' * (count != 1)} reviewed, "
            f"{len(copy.touched)} objects touched."
        )

    def _on_model(self, name: str, folder: Path) -> None:
        """Have the Segment forms of this viewer offer a new model."""
        for widget in self._viewer.window.dock_widgets.values():
            if isinstance(widget, SegmentWidget):
                widget.add_model(name, folder)

    def _release(self) -> None:
        """Let others have the corrected copy."""
        if self.copy is not None:
            self.copy.close()
        self.copy = self._source = self._data = self._labels = self._table = None
        self._show()

    # -- export -----------------------------------------------------------------------------------

    def _choose_export(self) -> None:
        if self._kept() is None:
            raise CdalError("nothing was corrected yet", "open a region first")
        folder = QFileDialog.getExistingDirectory(self.native, "Folder for the corrected results")
        if folder:
            self.export(Path(folder))

    def export(self, folder: Path) -> None:
        """Write table, outlines and labels into `folder`, in another thread."""
        if self.copy is None or self._source is None:
            return
        colours = colours_of(self._viewer, self._source)
        worker = create_worker(_exported, self.copy, folder, colours, _start_thread=False)
        self._start(worker, "Exporting…")

    def _start(self, worker: Any, text: str, then: Callable[[], None] | None = None) -> None:
        """Start what no region is to be opened beside; say how it ended, and go on if well."""

        def ended(said: tuple[bool, str]) -> None:
            if self._worker is not worker:  # closed meanwhile
                return
            failed, outcome = said
            self._worker = None
            self._show()
            self.say(outcome)
            if failed:
                show_error(outcome)
            elif then is not None:
                then()

        worker.returned.connect(ended)
        worker.errored.connect(lambda error: ended((True, f"{type(error).__name__}: {error}")))
        self._worker = worker
        self._show()
        self.say(text)
        worker.start()

    # -- the end ----------------------------------------------------------------------------------

    def _on_removed(self, event: Any) -> None:
        """Save a region whose layer was removed by hand."""
        if self.review is not None and event.value is self.review.layer:
            # Not now: napari may be about to remove the others that this would.
            QTimer.singleShot(0, self._told(lambda: self._close(reviewed=False)))

    def _on_parent(self, parent: object) -> None:
        if parent is None:
            self._worker = None
            self.learning.abandon()
            self._told(lambda: self._close(reviewed=False))()
            self._release()

    def _abandon(self, *_: object) -> None:
        """Save what is open: the viewer is going away."""
        self._worker = None
        self.learning.abandon()
        review, copy = self.review, self.copy
        self.review = self.copy = None
        if review is not None:
            with suppress(CdalError):  # what was kept is written when it is opened again
                review.write(reviewed=False)
        if copy is not None:
            copy.close()


def _copied(folder: Path, answer: Answer) -> tuple[bool, str]:
    """Make a corrected copy; whether it failed, and why."""
    try:
        CorrectedCopy(folder, answer).close()
    except CdalError as error:
        return True, str(error)
    return False, ""


def _exported(copy: CorrectedCopy, folder: Path, colours: Colours | None) -> tuple[bool, str]:
    """Export; whether it failed, and what to say."""
    from cdal_engine.corrections.export import export

    try:
        export(copy, folder, colours)
    except CdalError as error:
        return True, str(error)
    return False, f"Exported into {folder}."
