"""The fields and buttons of the Review widget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from magicgui.widgets import ComboBox, Container, Label, ProgressBar, PushButton, Widget
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFormLayout, QGridLayout, QTabWidget, QWidget

from .object_colours import COLOURS
from .review import ORDERS
from .status import as_status, sentence

__all__ = ["ACTIONS", "ReviewForm"]

# Name, text, key and what it does; no key is one of napari's own for Labels layers.
ACTIONS = (
    ("accept", "Accept", "A", "It is right as it is; on to the next that is not reviewed."),
    ("delete", "Delete", "D", "It is no object; on to the next."),
    ("next", "Next", "N", "On to the next object."),
    ("previous", "Back", "Shift-N", "Back to the object before."),
    ("merge", "Merge", "G", "Then click the other object: both become one."),
    ("split", "Split", "S", "Then click two points inside: it is cut between them."),
    ("redraw", "Redraw", "R", "Napari's brush with its number; 1 erases, 6 ends painting."),
    ("undo", "Undo", "U", "Take the last step back, of the brush, too (Ctrl-Z)."),
)


class ReviewForm(Container[Widget]):
    """A page to review on, and one to learn on.

    Parameters
    ----------
    labels : callable
        Gives the layers to choose from, as (name, layer).
    scopes : callable
        Gives what of the labels may be opened, as (text, value).
    learning : QWidget
        The other page.
    """

    def __init__(
        self,
        labels: Callable[[object], list[tuple[str, Any]]],
        scopes: Callable[[object], list[tuple[str, Any]]],
        learning: QWidget,
    ) -> None:
        super().__init__(labels=False)
        self.source = ComboBox(label="Labels", choices=labels)
        self.scope = ComboBox(label="Region", choices=scopes)
        self.scope.tooltip = "What is opened for correction, as a part of its own in memory."
        self.open_button = PushButton(text="Open region")
        self.order = ComboBox(label="Order", choices=ORDERS)
        self.order.tooltip = "disagreement: lowest agreement first, then lowest score."
        self.colours = ComboBox(label="Colour by", choices=COLOURS)
        self.actions = {name: _button(f"{text}  [{key}]", tip) for name, text, key, tip in ACTIONS}
        self.progress = ProgressBar(min=0, max=1, value=0)
        self.reviewed_button = _button("Region is reviewed", "All of it is right now: save, close.")
        self.close_button = _button("Close region", "Save; some of it is still to be reviewed.")
        self.export_button = _button("Export…", "Table, outlines and labels, corrections included.")
        self.status = Label(value="")
        self._lay_out(learning)

    def _lay_out(self, learning: QWidget) -> None:
        status = self.status.native
        as_status(status)
        self.progress.native.setTextVisible(False)
        rows = QFormLayout()
        rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for field in (self.source, self.scope):
            rows.addRow(field.label, field.native)
            menu = field.native  # long names must not widen the dock
            menu.setSizeAdjustPolicy(menu.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            menu.setMinimumContentsLength(10)
        rows.addRow(self.open_button.native)
        for field in (self.order, self.colours):
            rows.addRow(field.label, field.native)
        grid = QGridLayout()
        for i, button in enumerate(self.actions.values()):
            grid.addWidget(button.native, i // 2, i % 2)
        rows.addRow(grid)
        rows.addRow(self.progress.native)
        ends = QGridLayout()
        ends.addWidget(self.reviewed_button.native, 0, 0)
        ends.addWidget(self.close_button.native, 0, 1)
        ends.addWidget(self.export_button.native, 1, 0, 1, 2)
        rows.addRow(ends)
        rows.addRow(status)
        page = QWidget()
        page.setLayout(rows)
        self.tabs = QTabWidget()
        self.tabs.addTab(page, "Review")
        self.tabs.addTab(learning, "Learn")
        self.native.layout().addWidget(self.tabs)

    def say(self, text: str) -> None:
        """Say how things stand."""
        self.status.value = sentence(text)


def _button(text: str, tooltip: str) -> PushButton:
    """A button that leaves the keys to the canvas."""
    button = PushButton(text=text, tooltip=tooltip)
    button.native.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return button
