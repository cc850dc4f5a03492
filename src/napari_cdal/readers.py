"""Reader of slides, volumes, results and annotations; napari reads the other images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_error

from cdal_engine.errors import CdalError
from cdal_engine.io.dicom import dicom_files, is_dicom, series_of
from cdal_engine.io.discovery import open_source
from cdal_engine.io.records import RUN, SUMMARY, is_results_folder
from cdal_engine.io.source import decoding
from cdal_engine.io.volumes import says_labels

from .sources import source_layers

if TYPE_CHECKING:
    from .results import LayerData

__all__ = ["get_reader", "read"]

Paths = str | Sequence[str]
_RESULTS = ("labels.tif", "labels.ome.zarr", "labels.nii.gz", "maps.ome.zarr", "objects.parquet")
_AT_ONCE = 1.0  # seconds between files of one drop
_NOTHING = [(None,)]  # napari's sign for: read, and there is nothing to add


class _Last:
    """The file that was read last."""

    path = Path()
    moment = 0.0  # when that had been done

    def is_followed_by(self, path: Path) -> bool:
        """Whether a file is of the same DICOM series, which the last one has given, in one drop.

        napari reads files that are dropped at once one after the other, each by itself.
        """
        at_once = time.monotonic() - self.moment < _AT_ONCE
        beside = path.parent == self.path.parent and path != self.path
        if not (at_once and beside and is_dicom(path) and series_of(path) == series_of(self.path)):
            return False
        self.moment = time.monotonic()
        return True


_last = _Last()


def get_reader(path: Paths) -> Callable[[Paths], list[LayerData]] | None:
    """Return `read` for what cDAL reads better than napari; None for other folders and stacks.

    Files come here by their suffix, see napari.yaml. PNG, JPEG and TIFF are not among them.
    """
    one = _one(path)
    if one is None:
        return None
    if one.is_dir():
        ours = one.suffix == ".zarr" or _is_results(one) or bool(_dicom_in(one))
        return read if ours else None
    return read


def read(path: Paths) -> list[LayerData]:
    """Read a slide, a volume, a results folder or QuPath's annotations into layers.

    What keeps it from being read is shown as a notification, with what can be done.
    """
    one = _one(path)
    assert one is not None  # `get_reader` saw it
    try:
        if one.name == RUN or (one.is_dir() and _is_results(one)):
            from .results_folder import results_layers

            return results_layers(_results_of(one))
        if one.suffix.lower() == ".geojson":
            from .annotations import areas

            return areas(one)
        if _last.is_followed_by(one):
            return list(_NOTHING)  # type: ignore[arg-type]
        layers = _layers(one)
        _last.path, _last.moment = one, time.monotonic()
        return layers
    except CdalError as error:
        show_error(str(error.at(one)))
        return list(_NOTHING)  # type: ignore[arg-type]


def _layers(path: Path) -> list[LayerData]:
    """An image's layer; of labels where the file says that it holds them, as those saved here."""
    if path.is_dir() and path.suffix == ".zarr":
        from .results_folder import saved_labels

        if labels := saved_labels(path):
            return labels
    source = open_source(path)
    is_labels = path.name.endswith((".nii", ".nii.gz")) and says_labels(path)
    layers = source_layers(source, is_labels)
    (first, arguments, _), *_ = layers
    if getattr(first, "dtype", None) == np.uint32 and source.affine is None:
        return [_ids(path, first, arguments)]
    return layers


def _ids(path: Path, data: Any, arguments: dict[str, Any]) -> LayerData:
    """Labels of a TIFF, in memory so that they can be painted on; intensities have fewer bits."""
    with decoding(path):
        ids = np.asarray(data)
    kept = {name: arguments[name] for name in ("name", "scale", "units", "metadata")}
    return ids, kept, "labels"


def _one(path: Paths) -> Path | None:
    """The one input that these paths are: a stack of DICOM files is their series."""
    if isinstance(path, str):
        return Path(path)
    paths = [Path(p) for p in path]
    series = len({p.parent for p in paths}) == 1 and all(p.suffix == ".dcm" for p in paths)
    return paths[0] if len(paths) == 1 or series else None


def _is_results(folder: Path) -> bool:
    """Whether it holds results of ours, of one input or of several, or what is left of them.

    Other programs write a run.json and a summary.csv, too.
    """
    damaged = (folder / RUN).is_file() and any((folder / name).exists() for name in _RESULTS)
    return is_results_folder(folder) or damaged or bool(_inputs_of(folder))


def _inputs_of(folder: Path) -> list[Path]:
    """Folders of results in the output folder of a command."""
    if not (folder / SUMMARY).is_file():
        return []
    return sorted(each.parent for each in folder.glob(f"*/{RUN}") if is_results_folder(each.parent))


def _results_of(path: Path) -> Path:
    """The folder of one input's results: that of a run.json, or the only one of a command's."""
    folder = path if path.is_dir() else path.parent
    inputs = _inputs_of(folder)
    if len(inputs) > 1:
        raise CdalError(
            f"holds the results of {len(inputs)} inputs",
            f"drop one of its folders, such as {inputs[0].name}",
            folder,
        )
    return inputs[0] if inputs else folder


def _dicom_in(folder: Path) -> list[Path]:
    try:
        return dicom_files(folder)
    except CdalError:  # not to be listed: napari's reader says so
        return []
