"""The objects table: objects.parquet, and objects.csv where it is not too long to open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

__all__ = ["TableWriter", "level_0", "object_table"]

_CSV_ROWS = 100_000
_AXES = ("major_axis", "minor_axis")
_COLOURS = ("red", "green", "blue", "haematoxylin")
_AS_THEY_ARE = ("eccentricity", "solidity", "score", "agreement", *_COLOURS)


def level_0(
    objects: dict[str, NDArray[Any]], pixel: float, mpp: float | None, shape: tuple[int, ...]
) -> dict[str, NDArray[Any]]:
    """Columns of objects in level-0 pixels with the origin at the corner, and in micrometres.

    Parameters
    ----------
    objects : dict of ndarray
        Columns of `instances.measure`, with `class` and `agreement`, in pixels of the grid.
    pixel : float
        Level-0 pixels to a pixel of that grid.
    mpp : float or None
        Micrometres per level-0 pixel; without it there are no columns in micrometres.
    shape : tuple of int
        (H, W) of level 0: the last pixels of the model's grid may reach beyond it.

    Returns
    -------
    dict of ndarray
        `label`, `class`, centroid `x`, `y`, bounding box `x0`, `y0`, `x1`, `y1` (half-open),
        `area_px`, `major_axis_px`, `minor_axis_px`, `eccentricity`, `solidity` where it was asked
        for, `score`, `agreement` (NaN with one sample); `red`, `green`, `blue`, `haematoxylin` of
        colour images; `x_um`, `y_um`, `area_um2`, `major_axis_um`, `minor_axis_um`.
    """
    columns = {"label": objects["label"], "class": objects["class"]}
    for name in ("x", "y", "x0", "y0", "x1", "y1"):
        largest = shape[1] if name.startswith("x") else shape[0]
        columns[name] = (objects[name] * pixel).clip(0, largest)
    columns["area_px"] = objects["area_px"] * pixel**2
    for name in _AXES:
        columns[f"{name}_px"] = objects[name] * np.float32(pixel)
    columns |= {name: objects[name] for name in _AS_THEY_ARE if name in objects}
    if mpp is not None:
        columns["x_um"] = objects["x"] * pixel * mpp
        columns["y_um"] = objects["y"] * pixel * mpp
        columns["area_um2"] = objects["area_px"] * (pixel * mpp) ** 2
        for name in _AXES:
            columns[f"{name}_um"] = objects[name] * np.float32(pixel * mpp)
    return columns


def object_table(
    objects: dict[str, NDArray[Any]], pixel: float, mpp: float | None, shape: tuple[int, ...]
) -> pa.Table:
    """One row an object; parameters and columns are those of `level_0`, with null for NaN."""
    columns = level_0(objects, pixel, mpp, shape)
    kinds = {"class": pa.array(columns.pop("class").tolist(), pa.string())}
    arrays = {name: pa.array(column, from_pandas=True) for name, column in columns.items()}
    return pa.table({"label": arrays.pop("label"), **kinds, **arrays})


class TableWriter:
    """Writes objects.parquet and, below 100 000 rows, objects.csv into a folder.

    The same tables give the same bytes.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._parquet, self._csv = folder / "objects.parquet", folder / "objects.csv"
        self._writers: list[Any] = []
        self._rows = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()
        if self._rows >= _CSV_ROWS:
            self._csv.unlink()

    def add(self, table: pa.Table) -> None:
        """Append a table of `object_table` as one row group.

        At least one is needed, with or without rows: the files have its columns.
        """
        if not self._writers:
            self._writers = [
                pa.parquet.ParquetWriter(self._parquet, table.schema),
                pa.csv.CSVWriter(self._csv, table.schema),
            ]
        parquet, text = self._writers
        parquet.write_table(table, row_group_size=max(table.num_rows, 1))
        if self._rows < _CSV_ROWS:
            text.write_table(table)
        self._rows += table.num_rows
