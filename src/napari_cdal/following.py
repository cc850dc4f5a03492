"""A layer's table that follows what is painted on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from napari.layers import Labels
from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, QTimer

from .measured import layer_table

__all__ = ["Following"]

_REST = 700  # milliseconds


class Following:
    """Measures anew in another thread once the brush rests, one time after the other.

    Parameters
    ----------
    parent : QObject
        With which it ends.
    show : callable
        Called with a layer and its newer table.
    """

    def __init__(self, parent: QObject, show: Callable[[Labels, Any], None]) -> None:
        self._show = show
        self._layer: Labels | None = None
        self._seen: Any = None  # labels that the table is of
        # As it was before anything was painted, whose rows come back when that is undone; as shown.
        self._tables: WeakKeyDictionary[Labels, tuple[Any, Any]] = WeakKeyDictionary()
        self._worker: Any = None
        self._rest = QTimer(parent)
        self._rest.setSingleShot(True)
        self._rest.setInterval(_REST)
        self._rest.timeout.connect(self._look)

    def follow(self, layer: Labels | None) -> None:
        """Follow another layer; it may have been painted on before."""
        self._layer, self._seen, self._worker = layer, None, None
        self._rest.stop()
        if layer is not None:
            self._rest.start()

    def painted(self, *_: object) -> None:
        """Something was painted, undone, or drawn anew for other reasons."""
        self._rest.start()

    def _look(self) -> None:
        layer = self._layer
        if layer is None or not _is_painted(layer) or np.array_equal(layer.data, self._seen):
            return
        if self._worker is not None:  # come back when it has ended
            self._rest.start()
            return
        labels, table = layer.data.copy(), layer.features
        first, last = self._tables.get(layer, (table, table))
        first = first if last is table else table  # another one since
        plane = labels.shape[-2:]
        seen = labels.reshape(plane) if labels.size == np.prod(plane) else labels
        worker = create_worker(layer_table, layer, first, seen, _start_thread=False)

        def show(found: Any) -> None:
            if self._worker is not worker or layer.features is not table:  # another table since
                return
            self._seen = labels
            if not found.equals(table):
                self._show(layer, found)
            self._tables[layer] = first, layer.features

        def end() -> None:
            if self._worker is worker:
                self._worker = None

        worker.returned.connect(show)
        worker.finished.connect(end)
        self._worker = worker
        worker.start()


def _is_painted(layer: Labels) -> bool:
    """Whether a person can paint on it, and it has a table."""
    if layer.multiscale or not layer.editable or "index" not in layer.features:
        return False
    return isinstance(layer.data, np.ndarray)
