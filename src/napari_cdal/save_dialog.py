"""Save labels in a format that is chosen from a list: File > IO Utilities.

napari's own dialog goes by the suffix that is typed, and says only that nothing was saved where the
file type that is chosen has another.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info
from qtpy.QtWidgets import QFileDialog

from cdal_engine.errors import CdalError

from .writers import GEOJSON, NIFTI, TIFF, ZARR, write_geojson, write_nifti, write_tiff, write_zarr

if TYPE_CHECKING:
    import napari

__all__ = ["save_dialog"]

_Writer = Callable[[str, Any, dict[str, Any]], list[str]]
_KINDS: dict[str, tuple[_Writer, tuple[str, ...]]] = {
    "GeoJSON outlines for QuPath (*.geojson)": (write_geojson, GEOJSON),
    "OME-Zarr (*.ome.zarr)": (write_zarr, ZARR),
    "TIFF (*.tif)": (write_tiff, TIFF),
    "NIfTI (*.nii.gz)": (write_nifti, NIFTI),
}


def save_dialog(viewer: napari.viewer.Viewer) -> None:
    """Ask where to and as what, and save the selected labels while the window goes on."""
    layer = viewer.layers.selection.active
    if not isinstance(layer, Labels):
        show_error("No labels are selected: select one Labels layer, then save.")
        return
    path, kind = QFileDialog.getSaveFileName(None, f"Save {layer.name}", "", ";;".join(_KINDS))
    if not path:
        return
    data, meta, _ = layer.as_layer_data_tuple()
    if isinstance(data, np.ndarray):
        data = data.copy()  # it may be painted on meanwhile
    worker = create_worker(_saved, _writer(path, kind), path, data, meta, _start_thread=False)
    worker.returned.connect(lambda said: (show_error if said[0] else show_info)(said[1]))
    worker.start()


def _writer(path: str, kind: str) -> _Writer:
    """What writes a name with its suffix; without a known one, what was chosen in the list."""
    for writer, suffixes in _KINDS.values():
        if path.lower().endswith(suffixes):
            return writer
    return _KINDS[kind][0]


def _saved(write: _Writer, path: str, data: Any, meta: dict[str, Any]) -> tuple[bool, str]:
    """Write; whether it failed, and what to say."""
    try:
        (target,) = write(path, data, meta)
    except CdalError as error:
        return True, f"Not saved: {error}"
    return False, f"Saved {Path(target).name} in {Path(target).parent}"
