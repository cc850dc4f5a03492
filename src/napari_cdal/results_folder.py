"""A results folder of `cdal segment` or `cdal batch` as layers: image, maps, labels with table."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import tifffile
import zarr
from napari.utils.notifications import show_warning
from numpy.typing import NDArray

from cdal_engine.corrections.answer import kind_of_results
from cdal_engine.corrections.corrected import CORRECTED, RECORD, changed_objects
from cdal_engine.errors import CdalError
from cdal_engine.io.discovery import open_source
from cdal_engine.io.records import read_run
from cdal_engine.io.source import decoding
from cdal_engine.io.zarr_images import check_metadata, level_arrays

from .measured import renewed
from .provenance import trusted
from .results import DISPLAY, METADATA_KEY, NOTES, LayerData, kind_of
from .sources import source_layers

__all__ = ["pyramid", "results_layers", "saved_labels"]

_MOST_COLUMNS = 256
_BOX = frozenset({"y0", "x0", "y1", "x1"})  # columns in the image's pixels, not the layer's


def results_layers(folder: Path) -> list[LayerData]:
    """Return the layers of one input's results: its image if still there, maps, labels on top.

    Raises
    ------
    CdalError
        If the run did not finish, or its files are damaged.
    """
    record = read_run(folder)
    if record is None:
        raise CdalError(
            "holds no finished results", "run the same cdal command again, then open it", folder
        )
    with decoding(folder):
        layers = _image(record) + _maps(folder, record) + _labels(folder, record)
        layers += _corrected(folder, record, layers)
    if not layers:
        raise CdalError("holds neither labels nor maps", "run again with --save labels", folder)
    return layers


def saved_labels(path: Path) -> list[LayerData]:
    """The layer of labels saved as OME-Zarr; none if the folder holds something else."""
    with suppress(KeyError, TypeError, OSError, ValueError):  # `open_source` says what is wrong
        said = _attributes(path)
        ome = dict(said["ome"])
        if "image-label" in ome:
            with decoding(path):
                levels, placement = _levels(path, ome)
                many = len(levels) > 1  # a pyramid cannot be painted on, an array in memory can
                data = levels if many else np.asarray(levels[0])
            described: dict[str, Any] = {"name": path.name, "features": {}}
            with suppress(ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                described["features"] = _properties(ome["image-label"])  # not ours, or damaged
            if facts := trusted(said.get(METADATA_KEY)):
                note = {"what": "labels", "note": NOTES["labels"]}
                described["metadata"] = {METADATA_KEY: facts | note}
            return [(data, {**described, **placement, "multiscale": many}, "labels")]
    return []


def _properties(described: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The table of labels as the writer saved it; in columns of text what is not all numbers."""
    rows = [row for row in described.get("properties", ()) if int(row["label-value"]) > 0]
    table = {"index": np.array([int(row["label-value"]) for row in rows], np.int64)}
    names = dict.fromkeys(name for row in rows for name in row if name != "label-value")
    if len(names) > _MOST_COLUMNS:  # each is as long as there are rows
        raise ValueError(f"a table of {len(names)} columns")
    for name in names:
        values = [row.get(name) for row in rows]
        if all(value is None or isinstance(value, int | float) for value in values):
            table[name] = np.array(values, np.float64)
        else:
            table[name] = np.array(["" if value is None else str(value) for value in values])
    return table if rows else {}


def _image(record: dict[str, Any]) -> list[LayerData]:
    """The segmented image; a warning instead where it was moved or is another one now.

    Its pixels are as large as the run took them to be, which may not be what the file says.
    """
    path = Path(str(record["input"]["path"]))
    try:
        source = open_source(path)
        if list(source.shape) != record["input"]["shape"]:
            raise CdalError("is not the image that was segmented", "open that one by hand", path)
        layers = source_layers(source)
        if record["mpp"] is not None and source.affine is None:
            for _, arguments, _ in layers:
                arguments |= {"scale": (record["mpp"],) * 2, "units": (_unit(True),) * 2}
        return layers
    except CdalError as error:
        show_warning(f"Results are shown without their image. {error.at(path)}")
        return []


def _corrected(folder: Path, record: dict[str, Any], others: list[LayerData]) -> list[LayerData]:
    """Labels that a person has corrected, in place of those they were made of.

    What the table says of other outlines than these is measured anew, or of slides left out.
    """
    if not (folder / CORRECTED / RECORD).is_file():
        return []
    layers = _labels(folder, record, CORRECTED)
    changed = list(changed_objects(folder / CORRECTED))
    for data, arguments, _ in layers:
        table = pd.DataFrame(arguments["features"])
        if not len(table):
            continue
        if arguments.get("multiscale"):  # too large to be measured here
            table = table[~table["index"].isin(changed)]
        else:
            pixel = arguments["metadata"][METADATA_KEY]["pixel"]
            mpp = arguments["scale"][-1] if record["mpp"] is not None else None
            kind = kind_of(arguments["metadata"])
            table = renewed(table, np.asarray(data), mpp, pixel, kind=kind)
        arguments["features"] = table
    for _, arguments, kind in others if layers else ():
        if kind == "labels":
            arguments["visible"] = False
    for _, arguments, _ in layers:
        arguments["name"] = arguments["name"].replace("labels: ", f"{CORRECTED}: ", 1)
        arguments["metadata"][METADATA_KEY]["what"] = CORRECTED
    return layers


def _labels(folder: Path, record: dict[str, Any], below: str = "") -> list[LayerData]:
    """The labels that were found, or those in the folder `below`, with the table of the first."""
    arguments = _described(record, "labels")
    facts = arguments["metadata"][METADATA_KEY]
    pixel = facts["pixel"] = record["input"].get("downsample", 1.0)  # of the image, for outlines
    facts["folder"] = str(folder)
    here = folder / below
    if (here / "labels.nii.gz").exists():
        ((voxels, placed, _),) = source_layers(open_source(here / "labels.nii.gz"), True)
        arguments["features"] = _classes(record, voxels)
        return [(voxels, placed | arguments, "labels")]
    if (here / "labels.ome.zarr").exists():
        levels, placement = pyramid(here / "labels.ome.zarr")
        many = len(levels) > 1
        facts["pixel"] = placement["scale"][0] / (record["mpp"] or 1.0)
        _add_table(arguments, folder, record)
        placed = {**arguments, **placement, "multiscale": many}
        return [(levels if many else levels[0], placed, "labels")]
    if (here / "labels.tif").exists():
        mpp = record["mpp"]
        spacing = (mpp or 1.0) * pixel
        _add_table(arguments, folder, record)
        placement = {"scale": (spacing,) * 2, "units": (_unit(mpp is not None),) * 2}
        with decoding(here / "labels.tif"):
            labels = tifffile.imread(here / "labels.tif")
        return [(labels, {**arguments, **placement}, "labels")]
    if not below and "labels" in record["parameters"].get("save", ()):
        show_warning(f"{folder} has lost its labels: run cdal again to have them.")
    return []


def _maps(folder: Path, record: dict[str, Any]) -> list[LayerData]:
    """A hidden layer a map, as the Segment widget adds them."""
    path = folder / "maps.ome.zarr"
    if not path.exists():
        return []
    ome = _ome(path)
    levels, placement = _levels(path, ome)
    channels = ome["omero"]["channels"]
    layers: list[LayerData] = []
    for i, channel in enumerate(channels):
        title = str(channel["label"])
        what = title.split()[0].replace("sample", "samples")
        arguments = {
            **_described(record, what, title),
            **placement,
            "multiscale": len(levels) > 1,
            "visible": False,
            "opacity": 0.7,
            **DISPLAY.get(what, {}),
        }
        data = [level[i] for level in levels]
        layers.append((data if len(data) > 1 else data[0], arguments, "image"))
    return layers[::-1]


def _described(record: dict[str, Any], what: str, title: str = "") -> dict[str, Any]:
    """Name and metadata, as of a layer that the Segment widget added."""
    name, model = Path(str(record["input"]["path"])).name, str(record["model"]["name"])
    facts = {"source": name, "model": model, "digest": record["model"]["digest"]}
    facts |= {key: record["parameters"][key] for key in ("samples", "steps", "seed")}
    return {
        "name": f"{title or what}: {name}, {model}",
        "metadata": {METADATA_KEY: {"what": what, "note": NOTES.get(what, ""), **facts}},
    }


def _add_table(arguments: dict[str, Any], folder: Path, record: dict[str, Any]) -> None:
    """Add the objects' table to a layer's arguments, and the class of what a person may draw."""
    facts = arguments["metadata"][METADATA_KEY]
    arguments["features"] = table = _features(folder, facts["pixel"])
    kind = kind_of_results(record["model"], list(dict.fromkeys(table.get("class", ()))))
    facts["classes"] = () if kind == "object" else (kind,)


def _features(folder: Path, pixel: float) -> dict[str, np.ndarray[Any, Any]]:
    """Columns of objects.parquet, the label as `index`, by which napari finds the row to show.

    Centroids are in pixels of the layer, each `pixel` pixels of the image.
    """
    path = folder / "objects.parquet"
    if not path.exists():
        return {}
    try:
        with decoding(path):
            table = pq.read_table(path)
            wanted = [name for name in table.column_names if name not in _BOX]
            columns = {name: table[name].to_numpy() for name in wanted}
            columns["label"] = columns["label"].astype(np.int64)
    except CdalError as error:
        show_warning(f"Labels are shown without their table. {error}")
        return {}
    for name in {"y", "x"} & columns.keys():  # napari's pixel centres are whole numbers
        columns[name] = columns[name] / pixel - 0.5
    return {"index": columns.pop("label"), **columns}


def _classes(record: dict[str, Any], voxels: NDArray[np.integer]) -> dict[str, NDArray[Any]]:
    """Table of a volume's classes, as the Segment widget gives it; none where none are named."""
    names = list(record["counts"].get("volume_mm3", {}))
    ids = np.arange(1, len(names) + 1)
    counts = np.array([np.count_nonzero(voxels == n) for n in ids])
    return {"index": ids, "class": np.array(names), "voxels": counts} if names else {}


def _ome(path: Path) -> dict[str, Any]:
    return dict(_attributes(path)["ome"])


def _attributes(path: Path) -> dict[str, Any]:
    check_metadata(path)
    return dict(zarr.open_group(path, mode="r").attrs)


def pyramid(path: Path) -> tuple[list[da.Array], dict[str, Any]]:
    """Levels of an OME-Zarr image of ours as lazy arrays, and where it lies."""
    return _levels(path, _ome(path))


def _levels(path: Path, ome: dict[str, Any]) -> tuple[list[da.Array], dict[str, Any]]:
    """As `pyramid`, of metadata that were read: each time, all of the store is looked through."""
    multiscale = ome["multiscales"][0]
    arrays = level_arrays(path, [str(d["path"]) for d in multiscale["datasets"]])
    levels = [da.from_zarr(array) for array in arrays]  # type: ignore[no-untyped-call]
    step, shift = (
        part[key][-2:]
        for part, key in zip(
            multiscale["datasets"][0]["coordinateTransformations"],
            ("scale", "translation"),
            strict=True,
        )
    )
    known = multiscale["axes"][-1].get("unit") == "micrometer"
    return levels, {"scale": step, "translate": shift, "units": (_unit(known),) * 2}


def _unit(known: bool) -> str:
    return "micrometer" if known else "pixel"
