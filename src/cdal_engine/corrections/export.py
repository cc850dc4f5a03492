"""Corrected labels as results are: table, outlines and labels; and as a folder to train with."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from numpy.typing import NDArray

from ..errors import CdalError
from ..instances import measure
from ..io.geojson import GeoJsonWriter
from ..io.records import writing
from ..io.results import write_plane
from ..io.tables import TableWriter, object_table
from ..tiling import Box
from .corrected import RECORD, CorrectedCopy

__all__ = ["Colours", "export", "pieces", "training_folder"]

Colours = Callable[[Box], NDArray[np.uint8]]
_TILE = 2048  # pixels of the grid that are measured at once
_ENDS = ("y0", "x0", "y1", "x1")
_PIECE = 512  # pixels of the largest training image
_NAMES = ("objects.parquet", "objects.csv", "objects.geojson", RECORD)


def export(copy: CorrectedCopy, folder: Path, colours: Colours | None = None) -> None:
    """Write objects.parquet and .csv, objects.geojson, the labels and corrections.json.

    The table has the columns of `cdal batch`, and `corrected`, what a person did to the object.
    What a person drew has neither score nor agreement.

    Parameters
    ----------
    copy : CorrectedCopy
    folder : Path
    colours : callable, optional
        Gives the image's (h, w, 3) uint8 pixels on the grid of the labels, of a box of it; without
        it the table lacks the columns of colour.

    Raises
    ------
    CdalError
        If one of these files is there already, the image cannot be read, or the disk does not take
        them.
    """
    names = [*_NAMES, copy.labels_path.name]
    present = [name for name in names if (folder / name).exists()]
    if present:
        raise CdalError(f"{', '.join(present)} exist already", "choose another folder", folder)
    record = copy.record
    shape, pixel = tuple(record["shape"]), record["pixel"]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".cdal-writing-", dir=folder))
        try:
            outlines = GeoJsonWriter(
                aside / "objects.geojson",
                record["answer"]["source"],
                record["mpp"],
                shape,
                pixel,
                tuple(record["corner"]),
            )
            with TableWriter(aside) as table, outlines:
                for labels, objects, corner in _measured(copy, colours):
                    outlines.add(labels, objects, corner)
                    table.add(_table(copy, objects))
            source = copy.labels_path
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, aside / source.name)
            shutil.copy2(copy.folder / RECORD, aside / RECORD)
            for path in sorted(aside.iterdir()):
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _table(copy: CorrectedCopy, objects: dict[str, NDArray[Any]]) -> pa.Table:
    """Rows of objects in pixels of the image, with what a person did."""
    record, touched = copy.record, copy.touched
    placed = dict(objects)
    for axis, at in zip("yx", record["corner"], strict=True):
        for name in (axis, f"{axis}0", f"{axis}1"):
            placed[name] = objects[name] + at / record["pixel"]
    table = object_table(placed, record["pixel"], record["mpp"], tuple(record["shape"]))
    actions = [touched.get(int(n), {}).get("action") for n in objects["label"]]
    return table.append_column("corrected", pa.array(actions, pa.string()))


def _measured(
    copy: CorrectedCopy, colours: Colours | None
) -> Iterator[tuple[NDArray[np.uint32], dict[str, NDArray[Any]], tuple[int, int]]]:
    """Objects a tile at a time, each whole in a window of labels that starts at a corner."""
    rows = pq.read_table(copy.folder / "answer.parquet").to_pydict()
    values = zip(rows["class"], rows["score"], rows["agreement"], strict=True)
    known = dict(zip(rows["label"], values, strict=True))
    drawn = copy.kind, np.nan, np.nan
    other = copy.changed  # no score of the model's is of them
    labels = copy.labels
    empty = True
    for ids, window in _windows(labels):
        patch = labels[window]
        patch = np.where(np.isin(patch, ids), patch, np.uint32(0))
        objects = measure(
            patch, np.full(patch.shape, np.nan, np.float32), colours and colours(window)
        )
        corner = (window[0].start, window[1].start)
        for axis, at in zip("yx", corner, strict=True):
            for name in (axis, f"{axis}0", f"{axis}1"):
                objects[name] = objects[name] + at
        every = [known.get(int(n), drawn) for n in objects["label"]]
        said = [np.nan if int(n) in other else 1.0 for n in objects["label"]]
        objects["class"] = np.array([row[0] for row in every], np.str_)
        for column, name in enumerate(("score", "agreement"), 1):
            objects[name] = np.array([row[column] for row in every], np.float32) * said
        empty = False
        yield patch, objects, corner
    if empty:
        nothing, image = np.zeros((1, 1), np.uint32), np.zeros((1, 1, 3), np.uint8)
        objects = measure(nothing, nothing.astype(np.float32), colours and image)
        columns = {"class": np.array([], np.str_), "agreement": np.array([], np.float32)}
        yield nothing, objects | columns, (0, 0)


def _windows(labels: Any) -> Iterator[tuple[NDArray[np.uint32], Box]]:
    """Labels of the objects that start in a tile, and a window that holds them whole."""
    found = [np.empty((5, 0), np.int64)]
    for y in range(0, labels.shape[0], _TILE):
        for x in range(0, labels.shape[1], _TILE):
            part = labels[y : y + _TILE, x : x + _TILE]
            objects = measure(part, np.zeros(part.shape, np.float32))
            ends = [objects[name] + at for name, at in zip(_ENDS, (y, x, y, x), strict=True)]
            found.append(np.array([objects["label"], *ends], np.int64))
    ids, *ends = np.concatenate(found, axis=1)
    present, number = np.unique(ids, return_inverse=True)
    low, high = np.full((2, len(present)), np.iinfo(np.int64).max), np.zeros((2, len(present)), int)
    for axis in range(2):
        np.minimum.at(low[axis], number, ends[axis])
        np.maximum.at(high[axis], number, ends[axis + 2])
    tiles = (low // _TILE).T
    for tile in np.unique(tiles, axis=0):
        here = (tiles == tile).all(axis=1)
        starts, stops = low[:, here].min(axis=1), high[:, here].max(axis=1)
        window = tuple(slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))
        yield present[here].astype(np.uint32), window


# -- to train with --------------------------------------------------------------------------------


def pieces(box: Box) -> list[Box]:
    """Parts of a region of at most 512 pixels, about equally large."""
    cuts = []
    for side in box:
        count = -(-(side.stop - side.start) // _PIECE)
        ends = np.linspace(side.start, side.stop, count + 1).round().astype(int).tolist()
        cuts.append([slice(a, b) for a, b in pairwise(ends)])
    return [(rows, columns) for rows in cuts[0] for columns in cuts[1]]


def training_folder(copy: CorrectedCopy, folder: Path) -> dict[int, list[str]]:
    """Write the reviewed regions as `images/` and `labels/`, for `cdal train`.

    Others are left out: what nobody has looked at would be taught as background.

    Returns
    -------
    dict
        Stems of the files by region, in pieces of at most 512 pixels.

    Raises
    ------
    CdalError
        If no region with its picture is reviewed, the folder is not empty, or it cannot be written.
    """
    boxes = [box for box in copy.regions(reviewed=True) if copy.picture_path(box).is_file()]
    if not boxes:
        raise CdalError(
            "no region is marked as reviewed, with its image in the viewer",
            "correct one and press Region is reviewed",
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise CdalError("the folder is not empty", "choose another", folder)
    stems: dict[int, list[str]] = {}
    with writing(folder):
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, box in enumerate(boxes, 1):
            picture, labels = tifffile.imread(copy.picture_path(box)), copy.read(box)
            rgb = picture.ndim == 3
            for i, piece in enumerate(pieces(tuple(slice(0, n) for n in labels.shape)), 1):
                stem = f"region-{number}-{i}"
                write_plane(folder / "images" / f"{stem}.tif", picture[piece], copy.spacing, rgb)
                write_plane(folder / "labels" / f"{stem}.tif", labels[piece], copy.spacing)
                stems.setdefault(number, []).append(stem)
    return stems
