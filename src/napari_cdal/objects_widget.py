"""The Objects dock widget: table and histograms of a Labels layer; table and image select together.

napari's own table of features takes the number of a row for the label, which objects that are
numbered from 1 do not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import Container, Label, Widget
from napari.layers import Labels
from napari.utils.theme import get_theme
from pandas.api.types import is_numeric_dtype
from qtpy.QtCore import QModelIndex, Qt, QTimer
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import QSizePolicy, QSplitter

from .clicks import is_click
from .following import Following
from .histograms import Histograms
from .objects_table import ObjectsModel, ObjectsTable
from .planes import full_resolution

if TYPE_CHECKING:
    import napari

__all__ = ["ObjectsWidget"]

_FLASH = 500  # milliseconds
_NONE = "No table of objects: run Segment, open results, or select other labels."


class ObjectsWidget(Container[Widget]):
    """Objects of the Labels layer that is selected, or was last.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__(labels=False)
        self._viewer = napari_viewer
        self._layer: Labels | None = None
        self._features: Any = None  # as they are shown
        self._alone: Labels | None = None  # shows the selected object only, for a moment
        self._moment = QTimer(self.native)
        self._moment.setSingleShot(True)
        self._moment.setInterval(_FLASH)
        self._moment.timeout.connect(self._show_all)
        self._follower = Following(self.native, self._show_renewed)
        self._same_numbers = False  # as before, in newer features
        self._following = False  # whether the selection is being brought to the other side
        self.title = Label(value=_NONE)
        self.model = ObjectsModel()
        self.table = ObjectsTable(self.model)
        self.histograms = Histograms(get_theme(napari_viewer.theme).text.as_hex())
        self.title.native.setTextFormat(Qt.TextFormat.PlainText)
        self.title.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.append(self.title)
        parts = _Parts()
        # As high as the dock: napari fills one at a side up with nothing otherwise.
        parts.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        parts.addWidget(self.table)
        parts.addWidget(self.histograms)
        parts.setStretchFactor(0, 3)
        parts.setStretchFactor(1, 2)
        self.native.layout().addWidget(parts)
        selected = self.table.selectionModel()
        assert selected is not None
        selected.currentRowChanged.connect(self._on_row)
        self.table.clicked.connect(self._on_row)  # of the same row, once more
        self.model.layoutChanged.connect(self._select_row)
        self._events: tuple[tuple[Any, Any], ...] = (
            (napari_viewer.layers.selection.events.active, self._choose),
            (napari_viewer.layers.events.inserted, self._choose),
            (napari_viewer.layers.events.removed, self._choose),
        )
        for emitter, act in self._events:
            emitter.connect(act)
        self.native_parent_changed.connect(self._on_parent)
        self.native.destroyed.connect(self._abandon)
        self._choose()

    @property
    def layer(self) -> Labels | None:
        """The layer that is shown."""
        return self._layer

    def _choose(self, *_: object) -> None:
        """Show the selected Labels layer's objects; without one, the last one's, or any's."""
        labels = [layer for layer in self._viewer.layers if isinstance(layer, Labels)]
        wanted: Labels | None = max(labels, key=_has_table, default=None)
        for preferred in (self._layer, self._viewer.layers.selection.active):
            wanted = preferred if preferred in labels else wanted
        if wanted is not self._layer:
            self._follow(wanted)

    def _follow(self, layer: Labels | None) -> None:
        self._show_all()
        old, self._layer = self._layer, layer
        for watched, act in ((old, "disconnect"), (layer, "connect")):
            if watched is not None:
                for event, slot in self._slots(watched):
                    getattr(event, act)(slot)
        if old is not None and self._on_press in old.mouse_drag_callbacks:
            old.mouse_drag_callbacks.remove(self._on_press)
        if layer is not None:
            layer.mouse_drag_callbacks.append(self._on_press)
        self._follower.follow(layer)
        self._fill()

    def _slots(self, layer: Labels) -> tuple[tuple[Any, Any], ...]:
        events = layer.events
        return (
            (events.features, self._renew),
            (events.selected_label, self._select_row),
            (events.name, self._name),
            (events.paint, self._follower.painted),
            (events.set_data, self._follower.painted),  # undone, or drawn anew for other reasons
        )

    def _fill(self, *_: object) -> None:
        """Show the layer's features as they are now."""
        layer = self._layer
        if layer is None or not _has_table(layer):
            self.title.value = _NONE
            self.histograms.show_features(None)
            self.table.setVisible(False)
            return
        self.table.setVisible(True)
        self._features = layer.features
        self.model.show(layer.features)
        self.histograms.show_features(layer.features)
        self._name()
        self._select_row()

    def _show_renewed(self, layer: Labels, features: Any) -> None:
        """Show what was measured after painting: objects keep their numbers."""
        self._same_numbers = True
        layer.features = features
        self._same_numbers = False

    def _renew(self, *_: object) -> None:
        """Show newer features; what was selected is found again by its place: ids may be new."""
        layer = self._layer
        if layer is None or layer.features is self._features:  # napari says so of new data, too
            return
        if self._same_numbers:
            self._fill()
            return
        row = self.model.row(int(layer.selected_label))
        at = None if row is None else self.model.position(row)
        self._fill()
        if at is None:
            return
        if label := _label_at(layer, at):
            layer.selected_label = label
        else:
            self.table.clearSelection()

    def _name(self, *_: object) -> None:
        if self._layer is not None:
            count = self.model.rowCount()
            self.title.value = f"{count} object{'s' * (count != 1)} in {self._layer.name}"

    def _on_row(self, current: QModelIndex, *_: object) -> None:
        """Select the row's object in the image and bring it to the middle, alone for a moment."""
        layer = self._layer
        if layer is None or self._following or not current.isValid():
            return
        self._following = True
        try:
            layer.selected_label = self.model.label(current.row())
        finally:
            self._following = False
        position = self.model.position(current.row())
        if position is None:
            return
        at = np.asarray(layer.data_to_world((*(0,) * (layer.ndim - 2), *position)))
        dims = self._viewer.dims
        for axis, point in enumerate(at[:-2], dims.ndim - layer.ndim):
            dims.set_point(axis, point)
        self._viewer.scene.camera.center = tuple(at[-2:])
        self._flash(layer)

    def _flash(self, layer: Labels) -> None:
        """Show the selected object alone for a moment, to tell it from its neighbours."""
        if self._alone is None and layer.show_selected_label:  # the user has it so
            return
        self._alone = layer
        layer.show_selected_label = True
        self._moment.start()

    def _show_all(self) -> None:
        layer, self._alone = self._alone, None
        if layer is not None:
            layer.show_selected_label = False

    def _select_row(self, *_: object) -> None:
        """Select the row of the object that is selected in the image."""
        row = None if self._layer is None else self.model.row(int(self._layer.selected_label))
        if self._following:
            return
        self._following = True
        try:
            if row is None:
                self.table.clearSelection()
            else:
                self.table.selectRow(row)
                self.table.scrollTo(self.model.index(row, 0))
        finally:
            self._following = False

    def _on_press(self, layer: Labels, event: Any) -> Iterator[None]:
        """Select the object that is clicked on; a drag moves the image, as ever."""
        at = event.position
        seen = {"view_direction": event.view_direction, "dims_displayed": event.dims_displayed}
        click = yield from is_click(event)
        if not click or layer.mode != "pan_zoom":
            return
        found = layer.get_value(at, **seen, world=True)
        label = found[-1] if isinstance(found, tuple) else found  # a pyramid tells its level, too
        if label:
            layer.selected_label = int(label)

    def _on_parent(self, parent: object) -> None:
        if parent is None:
            self._abandon()

    def _abandon(self, *_: object) -> None:
        """Listen no more: this widget is going away."""
        self._show_all()
        self._follower.follow(None)
        for emitter, act in self._events:
            emitter.disconnect(act)
        self._events = ()
        layer, self._layer = self._layer, None
        if layer is not None:
            for event, slot in self._slots(layer):
                event.disconnect(slot)
            layer.mouse_drag_callbacks.remove(self._on_press)


class _Parts(QSplitter):
    """Table and histograms: side by side where there is room, else one above the other."""

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        """Follow a dock that is moved from the bottom to a side."""
        wide = self.width() > self.height()
        self.setOrientation(Qt.Orientation.Horizontal if wide else Qt.Orientation.Vertical)
        super().resizeEvent(event)


def _label_at(layer: Labels, position: tuple[float, float]) -> int:
    """Label at (y, x) in the layer's pixels."""
    data = full_resolution(layer)
    size = data.shape[-2:]
    inside = (int(np.clip(round(p), 0, n - 1)) for p, n in zip(position, size, strict=True))
    return int(data[(*(0,) * (layer.ndim - 2), *inside)])


def _has_table(layer: Labels) -> bool:
    index = layer.features.get("index")
    return index is not None and is_numeric_dtype(index) and bool(index.notna().all())
