"""Writers of Labels layers, through the engine's own: what is saved reads like its results."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray

from cdal_engine.errors import CdalError
from cdal_engine.io.records import writing

from .measured import layer_table, mpp_of, numbers
from .planes import full_resolution, in_micrometres, spacing_of
from .provenance import to_json
from .results import COLOUR_COLUMNS, METADATA_KEY, kind_of
from .sources import SOURCE_KEY, ras_affine

if TYPE_CHECKING:
    from cdal_engine.segmentation import Segmentation

__all__ = [
    "GEOJSON",
    "NIFTI",
    "TIFF",
    "ZARR",
    "write_geojson",
    "write_nifti",
    "write_tiff",
    "write_zarr",
]

# Suffixes of each format; a name without one of them gets the first.
GEOJSON = (".geojson",)
NIFTI = (".nii.gz", ".nii")
TIFF = (".tif", ".tiff")
ZARR = (".ome.zarr", ".zarr")
_MOST_ROWS = 20_000  # of a table; the metadata have no room for more
_Write = Callable[[Path, Labels], None]


def write_zarr(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save a plane of labels as OME-Zarr: a pyramid with scale and place in micrometres.

    Which run they are of, and where they lie in its image, is kept beside the format's own
    metadata. The table goes along, as the format's properties of labels, up to some thousand
    objects; what a person changed is measured anew.
    """

    def write(aside: Path, layer: Labels) -> None:
        import zarr

        from cdal_engine.io.ome_zarr import write_labels

        corner = in_micrometres(layer, np.zeros(layer.ndim))[-2:]
        labels, spacing = _plane(layer), _pixel_size(layer)
        rows = _properties(_table(layer, labels))
        write_labels(aside, labels, spacing, tuple(corner.tolist()), rows)
        if facts := to_json(layer.metadata.get(METADATA_KEY, {})):
            zarr.open_group(aside, mode="r+").attrs[METADATA_KEY] = facts

    return _saved(path, data, meta, write, ZARR)


def write_tiff(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save labels as compressed TIFF, with their resolution where it is known."""

    def write(aside: Path, layer: Labels) -> None:
        from cdal_engine.io.results import write_plane

        write_plane(aside, _ids(layer), _pixel_size(layer))

    return _saved(path, data, meta, write, TIFF)


def write_nifti(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save labels as NIfTI: where they lie in the viewer, in millimetres.

    The viewer's axes count as superior, posterior, left; pixels of unknown size as 1 mm. Labels of
    a volume that was read here have its order of axes, voxel by voxel; others left first.
    """

    def write(aside: Path, layer: Labels) -> None:
        from cdal_engine.io.volumes import write_placed_labels

        if layer.ndim > 3:
            raise CdalError(f"labels with {layer.ndim} axes", "save one volume of them")
        origin = in_micrometres(layer, np.zeros(layer.ndim))
        steps = [in_micrometres(layer, step) - origin for step in np.eye(layer.ndim)]
        matrix, new = np.eye(4), 3 - layer.ndim  # a plane becomes one slice
        matrix[new:3, new:3] = np.stack(steps, axis=1) / 1000
        matrix[new:3, 3] = origin / 1000
        labels = _ids(layer)
        labels = labels.reshape((1,) * new + labels.shape)
        order = _file_order(layer)
        write_placed_labels(aside, labels.transpose(order), ras_affine(matrix[:, (*order, 3)]))

    return _saved(path, data, meta, write, NIFTI)


def write_geojson(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save the outlines of labels for QuPath, in pixels of the image they are of."""

    def write(aside: Path, layer: Labels) -> None:
        from cdal_engine.io.geojson import GeoJsonWriter

        facts = layer.metadata.get(METADATA_KEY, {})
        pixel, corner = facts.get("pixel", 1.0), facts.get("corner", (0.0, 0.0))
        _square(spacing_of(layer))
        spacing = mpp_of(layer)
        found = _measured(layer, spacing, pixel)
        shape = tuple(
            round(n * pixel + at) for n, at in zip(found.labels.shape, corner, strict=True)
        )
        mpp = None if spacing is None else spacing / pixel
        name = facts.get("source", layer.name)
        with GeoJsonWriter(aside, name, mpp, shape, pixel, corner) as outlines:
            outlines.add(found.labels, found.objects)

    return _saved(path, data, meta, write, GEOJSON)


def _saved(
    path: str, data: Any, meta: dict[str, Any], write: _Write, suffixes: tuple[str, ...]
) -> list[str]:
    """Write aside, then rename; napari has asked before a file is replaced, and shows errors.

    Its dialog leaves a name as it was typed: one without a suffix gets the first, so that readers
    know the file.
    """
    target = Path(path)
    try:
        if not target.name.lower().endswith(suffixes):
            target = target.with_name(target.name + suffixes[0])
            if target.exists():  # nobody was asked about this one
                raise CdalError("exists already", "choose another name")
        if target.is_dir():
            raise CdalError("exists already", "choose another name")
        with writing(target):
            aside = Path(tempfile.mkdtemp(prefix=".cdal-writing-", dir=target.parent))
            try:
                write(aside / target.name, Labels(data, **meta))
                os.replace(aside / target.name, target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except CdalError as error:
        raise error.at(target) from None
    return [str(target)]


def _ids(layer: Labels) -> NDArray[np.uint32]:
    """All labels at full resolution, as uint32."""
    labels = np.asarray(full_resolution(layer))
    if labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.uint32).max):
        raise CdalError("labels below 0 or above 4294967295", "renumber them first")
    return labels.astype(np.uint32, copy=False)


def _plane(layer: Labels) -> NDArray[np.uint32]:
    """The only plane of a layer."""
    labels = _ids(layer)
    if labels.size != np.prod(labels.shape[-2:]):
        raise CdalError("labels of several planes", "save as NIfTI or TIFF, or one plane of them")
    return labels.reshape(labels.shape[-2:])


def _table(layer: Labels, labels: NDArray[np.uint32]) -> Any:
    """The table of a layer's labels as they are now; nobody paints on a pyramid."""
    return layer.features if layer.multiscale else layer_table(layer, layer.features, labels)


def _properties(table: Any) -> list[dict[str, Any]]:
    """Rows of the table; a value that is not known, which JSON cannot say, is left out."""
    if "index" not in table or len(table) > _MOST_ROWS:
        return []
    rows = table.rename(columns={"index": "label-value"}).to_dict("records")
    return [{name: value for name, value in row.items() if _says(value)} for row in rows]


def _says(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))


def _pixel_size(layer: Labels) -> float | None:
    """Micrometres per pixel, the same along both axes of planes that are not turned."""
    spacing = spacing_of(layer)
    if spacing is None:
        return None
    origin = in_micrometres(layer, np.zeros(layer.ndim))
    ends = np.stack([in_micrometres(layer, e) - origin for e in np.eye(layer.ndim)[-2:]])[:, -2:]
    if not np.allclose(ends, np.diag(spacing), rtol=1e-3, atol=1e-3 * max(spacing)):
        raise CdalError("the layer is turned", "save as NIfTI, which keeps its place")
    return _square(spacing)


def _square(spacing: tuple[float, float] | None) -> float | None:
    """Side of a pixel; refuses sides that differ."""
    if spacing is None:
        return None
    if not np.isclose(*spacing, rtol=1e-3):
        raise CdalError("its pixels are not square", "save as NIfTI, which keeps their sides")
    return spacing[0]


def _file_order(layer: Labels) -> tuple[int, ...]:
    """Which of three axes each axis of a NIfTI file is to be: of a volume's file, its own."""
    for key in (METADATA_KEY, SOURCE_KEY):
        axes = layer.metadata.get(key, {}).get("axes")
        if axes is not None and layer.ndim == len(axes):
            return tuple(np.argsort(axes).tolist())
    return 2, 1, 0


def _measured(layer: Labels, mpp: float | None, pixel: float) -> Segmentation:
    """Labels with what their table says; a score only where a model gave one."""
    from cdal_engine.instances import measure
    from cdal_engine.segmentation import Segmentation

    labels = _plane(layer)
    nothing = np.full(labels.shape, np.nan, np.float32)
    objects, table = measure(labels, nothing), _table(layer, labels)
    # The image is not at hand.
    if colours := numbers(table, COLOUR_COLUMNS) if "index" in table else []:
        rows = table.drop_duplicates("index").set_index("index").reindex(objects["label"])
        objects |= {name: rows[name].to_numpy(float) for name in colours}
    kind = kind_of(layer.metadata)
    for name, default in (("score", np.nan), ("agreement", np.nan), ("class", kind)):
        row = {}
        if {"index", name} <= set(table):
            row = dict(zip(table["index"], table[name], strict=True))
        values = [row.get(int(label), default) for label in objects["label"]]
        objects[name] = np.array(values, np.str_ if name == "class" else np.float32)
    return Segmentation(
        labels=labels,
        probability=nothing[None],
        uncertainty=nothing,
        deviation=nothing,
        attention=None,
        samples=None,
        objects=objects,
        mpp=mpp,
        seconds=0.0,
        pixel=pixel,
    )
