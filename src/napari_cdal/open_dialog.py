"""Open slides, volumes and results whose suffix napari keeps to itself: File > IO Utilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari.layers import Layer
from qtpy.QtWidgets import QFileDialog

from .readers import read

if TYPE_CHECKING:
    import napari

__all__ = ["open_dialog"]


def open_dialog(viewer: napari.viewer.Viewer) -> None:
    """Ask for files and add what they hold; a run.json stands for the results beside it."""
    paths, _ = QFileDialog.getOpenFileNames(
        None, "Open slides, volumes or results (run.json)", "", "All files (*)"
    )
    for path in paths:
        for data in read(path):
            if data[0] is not None:
                viewer.add_layer(Layer.create(*data))
