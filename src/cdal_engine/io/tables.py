"""The objects table: objects.parquet, and objects.csv where it is not too long to open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

if TYPE_CHECKING:
    from ..segmenter import Segmentation

__all__ = ["object_table", "write_table"]

_CSV_ROWS = 100_000


def object_table(result: Segmentation, mpp: float | None, shape: tuple[int, ...]) -> pa.Table:
    """One row an object, in level-0 pixels with the origin at the corner, and in micrometres.

    Parameters
    ----------
    result : Segmentation
    mpp : float or None
        Micrometres per level-0 pixel; without it there are no columns in micrometres.
    shape : tuple of int
        (H, W) of level 0: the last pixels of the model's grid may reach beyond it.

    Returns
    -------
    pyarrow.Table
        `label`, `class`, centroid `x`, `y`, bounding box `x0`, `y0`, `x1`, `y1` (half-open),
        `area_px`, `score`, `agreement` (null with one sample); `x_um`, `y_um`, `area_um2`.
    """
    objects, pixel = result.objects, result.pixel
    columns: dict[str, pa.Array] = {
        "label": pa.array(objects["label"]),
        "class": pa.array(objects["class"].tolist(), pa.string()),
    }
    for name in ("x", "y", "x0", "y0", "x1", "y1"):
        largest = shape[1] if name.startswith("x") else shape[0]
        columns[name] = pa.array((objects[name] * pixel).clip(0, largest))
    columns["area_px"] = pa.array(objects["area_px"] * pixel**2)
    for name in ("score", "agreement"):
        columns[name] = pa.array(objects[name], mask=np.isnan(objects[name].astype(float)))
    if mpp is not None:
        columns["x_um"] = pa.array(objects["x"] * pixel * mpp)
        columns["y_um"] = pa.array(objects["y"] * pixel * mpp)
        columns["area_um2"] = pa.array(objects["area_px"] * (pixel * mpp) ** 2)
    return pa.table(columns)


def write_table(folder: Path, table: pa.Table) -> None:
    """Write objects.parquet and, below 100 000 rows, objects.csv into `folder`."""
    pa.parquet.write_table(table, folder / "objects.parquet")
    if table.num_rows < _CSV_ROWS:
        pa.csv.write_csv(table, folder / "objects.csv")
