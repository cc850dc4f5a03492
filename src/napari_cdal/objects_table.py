"""A Qt table of a Labels layer's features; only the rows in sight are turned into text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt
from qtpy.QtWidgets import QAbstractItemView, QTableView

__all__ = ["ObjectsModel", "ObjectsTable"]

_HEADINGS = {"index": "object", "area_um2": "area (µm²)", "area_px": "area (px)"}


class ObjectsModel(QAbstractTableModel):
    """Rows in any order, and which object is in which; sorting moves numbers, not rows."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []
        self._columns: list[NDArray[Any]] = []
        self._labels = np.empty(0, np.int64)
        self._order = np.empty(0, np.intp)  # of the features' rows, as shown
        self._rows: dict[int, int] = {}  # shown row of each label
        self._sorted = (-1, Qt.SortOrder.AscendingOrder)

    def show(self, features: Any) -> None:
        """Show another DataFrame, a row an object; `index` is its label. The order is kept."""
        self.beginResetModel()
        self._names = [str(name) for name in features.columns]
        self._columns = [features[name].to_numpy() for name in features.columns]
        self._labels = features["index"].to_numpy(np.int64)
        self._arrange()
        self.endResetModel()

    def label(self, row: int) -> int:
        """Label of the object in a row."""
        return int(self._labels[self._order[row]])

    def row(self, label: int) -> int | None:
        """Row of a label; None if it has none."""
        return self._rows.get(label)

    def position(self, row: int) -> tuple[float, float] | None:
        """(y, x) of an object's centroid in the layer's pixels; None where it is unknown."""
        if not {"y", "x"} <= set(self._names):
            return None
        columns = (self._columns[self._names.index(name)] for name in ("y", "x"))
        y, x = (pd.to_numeric(column[self._order[row]], errors="coerce") for column in columns)
        return (float(y), float(x)) if np.isfinite([y, x]).all() else None

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        """Objects; a row has no rows below it."""
        return 0 if parent is not None and parent.isValid() else len(self._order)

    def columnCount(self, parent: QModelIndex | None = None) -> int:
        """What is known of each."""
        return 0 if parent is not None and parent.isValid() else len(self._names)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Text of a cell, numbers on the right."""
        value = self._columns[index.column()][self._order[index.row()]]
        number = isinstance(value, int | float | np.number)
        if role == Qt.ItemDataRole.DisplayRole:
            return _text(value) if number else str(value)
        if role == Qt.ItemDataRole.TextAlignmentRole and number:
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        return None

    def headerData(
        self,
        section: int,
        orientation: Qt.Orientation,
        role: int = Qt.ItemDataRole.DisplayRole,
    ) -> Any:
        """Names of the columns."""
        if role != Qt.ItemDataRole.DisplayRole or orientation != Qt.Orientation.Horizontal:
            return None
        name = self._names[section]
        return _HEADINGS.get(name, name.replace("_um", " (µm)").replace("_", " "))

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Order the rows by a column, what is unknown last."""
        self.layoutAboutToBeChanged.emit()
        self._sorted = (column, order)
        self._arrange()
        self.layoutChanged.emit()

    def _arrange(self) -> None:
        column, order = self._sorted
        rows = np.arange(len(self._labels))
        if 0 <= column < len(self._columns):
            values = self._columns[column]
            text = values.dtype.kind == "O"  # with gaps
            rows = np.argsort(values.astype(str) if text else values, kind="stable")
            if order == Qt.SortOrder.DescendingOrder:
                rows = rows[::-1]
            unknown = pd.isna(values[rows])
            rows = np.concatenate([rows[~unknown], rows[unknown]])
        self._order = rows
        shown = self._labels[rows].tolist()
        self._rows = dict(zip(shown, range(len(shown)), strict=True))


class ObjectsTable(QTableView):
    """The view of an `ObjectsModel`: whole rows, one at a time, sorted by a click on a heading."""

    def __init__(self, model: ObjectsModel) -> None:
        super().__init__()
        self.setModel(model)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setAccessibleName("Objects")
        rows, columns = self.verticalHeader(), self.horizontalHeader()
        if rows is not None and columns is not None:
            rows.setVisible(False)
            rows.setSectionResizeMode(rows.ResizeMode.Fixed)  # asks no row for its height
            rows.setDefaultSectionSize(self.fontMetrics().height() + 6)
            columns.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
            columns.setDefaultSectionSize(110)
        self.setSortingEnabled(True)


def _text(value: Any) -> str:
    if isinstance(value, int | np.integer):
        return str(value)
    return "" if np.isnan(value) else f"{value:.4g}"
