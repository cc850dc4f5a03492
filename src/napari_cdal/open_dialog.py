"""Open slides, volumes and results whose suffix napari keeps to itself: File > IO Utilities."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from napari.layers import Layer
from qtpy.QtWidgets import QFileDialog

from cdal_engine.errors import CdalError
from cdal_engine.io.dicom import dicom_files, dicom_inputs

from .readers import read

if TYPE_CHECKING:
    import napari

__all__ = ["open_dialog"]


def open_dialog(viewer: napari.viewer.Viewer) -> None:
    """Ask for files and add what they hold; a run.json stands for the results beside it."""
    paths, _ = QFileDialog.getOpenFileNames(
        None, "Open slides, volumes, results (run.json) or GeoJSON", "", "All files (*)"
    )
    for path in _inputs([Path(path) for path in paths]):
        for data in read(str(path)):
            if data[0] is not None:
                viewer.add_layer(Layer.create(*data))


def _inputs(paths: list[Path]) -> list[Path]:
    """What was chosen; of the files of a DICOM series one, which opens them all."""
    inputs = list(paths)
    for folder in {path.parent for path in paths}:
        with suppress(CdalError):  # reading says what is wrong with it
            files = [path for path in dicom_files(folder) if path in paths]
            if len(files) > 1:
                series = [path for path in dicom_inputs(folder) if path in (folder, *files)]
                inputs = [path for path in inputs if path not in files]
                inputs += series or files[:1]
    return inputs
