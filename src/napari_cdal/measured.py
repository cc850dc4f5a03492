"""The table of labels that a person changed: outlines that are new are measured anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype

from .planes import spacing_of
from .results import METADATA_KEY, kind_of

if TYPE_CHECKING:
    from napari.layers import Labels

__all__ = ["layer_table", "measured", "mpp_of", "numbers", "recounted", "renewed"]

_AXES = ("major_axis", "minor_axis")
_AREAS = ("area_px", "area_um2")
_SAME_SCALE = 1e-3  # sides that differ by less are written as one
_OFF, _ROUNDED = 1e-3, 1e-6  # pixels that a centroid may be off; part that an area may


def measured(
    labels: NDArray[np.integer],
    spacing: float | None,
    pixel: float = 1.0,
    corner: tuple[int, int] = (0, 0),
) -> dict[str, NDArray[Any]]:
    """Columns of a Labels layer's table that need no image and no model.

    Parameters
    ----------
    labels : ndarray
        (H, W) ids.
    spacing : float or None
        Micrometres per pixel; without it there are no columns in micrometres.
    pixel : float
        Pixels of the image to one of the labels; sizes are in the image's, as in results.
    corner : tuple of int
        Where in the layer the array begins, in pixels.

    Returns
    -------
    dict of ndarray
        `index`, the label; `area_px`; centroid `y` and `x` in the layer's pixels; axes and
        eccentricity; what has a length in micrometres, too.
    """
    from cdal_engine.instances import measure

    objects = measure(labels.astype(np.uint32, copy=False), np.zeros(labels.shape, np.float32))
    found: dict[str, NDArray[Any]] = {
        "index": objects["label"].astype(np.int64),
        "area_px": objects["area_px"] * pixel**2,
        "y": objects["y"] + corner[0] - 0.5,  # napari's pixel centres are whole numbers
        "x": objects["x"] + corner[1] - 0.5,
        "eccentricity": objects["eccentricity"],
        **{f"{name}_px": objects[name] * pixel for name in _AXES},
    }
    if spacing is not None:
        found["area_um2"] = objects["area_px"] * spacing**2
        for name in ("y", "x"):
            found[f"{name}_um"] = (found[name] + 0.5) * spacing
        for name in _AXES:
            found[f"{name}_um"] = objects[name] * spacing
    return found


def renewed(
    table: pd.DataFrame,
    labels: NDArray[np.integer],
    spacing: float | None,
    pixel: float = 1.0,
    ours: bool = True,
    kind: str = "object",
) -> pd.DataFrame:
    """The table of labels as they are now.

    A row is of the outline that is there if area and centroid are. Others are measured anew and
    have no score or agreement: those were of another outline. The rows of what is gone are left
    out.

    Parameters
    ----------
    table : DataFrame
        Of a Labels layer, the label as `index`; returned as it is if it has no such column.
    labels : ndarray
        (H, W) ids; where some are no uint32, the table is returned as it is.
    spacing : float or None
        Micrometres per pixel.
    pixel : float
        As of `measured`.
    ours : bool
        Whether the table is known to be of this plugin; of another program's, where most rows do
        not say what is measured here, nothing is changed.
    kind : str
        Class of what has no row yet.
    """
    if "index" not in table or not _are_ids(labels):
        return table
    found = pd.DataFrame(measured(labels, spacing, pixel)).set_index("index")
    old = table.drop_duplicates("index").set_index("index")
    both = old.index.intersection(found.index)
    same = both[_unchanged(old.loc[both], found.loc[both])]
    whole = len(same) == len(old) == len(found)
    if whole or not (ours or 2 * len(same) > len(old)):
        return table
    rows = old.loc[same].reindex(found.index)
    other = rows.index.difference(same)
    for name in numbers(old, found.columns):
        rows[name] = rows[name].astype(np.float64)
        rows.loc[other, name] = found.loc[other, name].astype(np.float64)
    if "class" in rows:
        rows["class"] = old["class"].astype(object).reindex(found.index).fillna(kind)
    return rows.reset_index()[list(table.columns)]


def layer_table(layer: Labels, table: pd.DataFrame, labels: NDArray[np.integer]) -> pd.DataFrame:
    """The table of a layer's labels, a plane (H, W) or a volume's classes, as they are now."""
    if labels.ndim > 2:
        return recounted(table, labels)
    facts = layer.metadata.get(METADATA_KEY, {})
    pixel, kind = facts.get("pixel", 1.0), kind_of(layer.metadata)
    return renewed(table, labels, mpp_of(layer), pixel, bool(facts), kind)


def mpp_of(layer: Labels) -> float | None:
    """Micrometres per pixel of labels: as their run took them, unless they were scaled since.

    A user may have entered for the run what the layer does not say, or says otherwise.
    """
    facts, spacing = layer.metadata.get(METADATA_KEY, {}), spacing_of(layer)
    if {"mpp", "spacing"} <= set(facts) and np.allclose(
        facts["spacing"] or 0, spacing or 0, rtol=_SAME_SCALE
    ):
        mpp: float | None = facts["mpp"]
        return mpp
    return None if spacing is None else spacing[0]


def recounted(table: pd.DataFrame, voxels: NDArray[np.integer]) -> pd.DataFrame:
    """The table of a volume's classes with the voxels that each has now.

    Parameters
    ----------
    table : DataFrame
        Of a Labels layer, with `index` and `voxels`; returned as it is without them.
    voxels : ndarray
        (..., H, W) ids.
    """
    if not {"index", "voxels"} <= set(table):
        return table
    ids, counts = np.unique(voxels, return_counts=True)
    now = pd.Series(counts, ids).reindex(table["index"], fill_value=0).to_numpy()
    return table if (now == table["voxels"]).all() else table.assign(voxels=now)


def _are_ids(labels: NDArray[np.integer]) -> bool:
    most = np.iinfo(np.uint32).max
    return not labels.size or bool(labels.min() >= 0 and labels.max() <= most)


def _unchanged(old: pd.DataFrame, found: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are of the outlines that were found."""
    same = np.ones(len(old), bool)
    for name in numbers(old, ("y", "x")):
        same &= (old[name] - found[name]).abs().to_numpy(float) < _OFF
    fits = []
    for name in numbers(old, set(_AREAS) & set(found)):
        ratio = old[name].to_numpy(float) / found[name].to_numpy(float)
        fits.append(np.abs(ratio - 1) < _ROUNDED)
        if same.sum() > 1 and not (same & fits[-1]).any():  # the layer's scale was changed since
            unit = np.median(ratio[same])
            fits.append(np.abs(ratio - unit) < _ROUNDED * unit)
    if fits:
        same &= np.any(fits, axis=0)
    return same


def numbers(table: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Those of the names that are columns of numbers."""
    return [name for name in names if name in table and is_numeric_dtype(table[name])]
