"""The table of corrected labels: what a person changed is measured anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cdal_engine.corrections.corrected import CorrectedCopy
from cdal_engine.tiling import Box, surround, within

from .measured import measured

__all__ = ["CorrectedTable"]

Row = dict[str, Any]


class CorrectedTable:
    """Measures regions when they are closed, and remembers them.

    Parameters
    ----------
    table : DataFrame
        Of the labels that were corrected, as they were then.
    copy : CorrectedCopy
    """

    def __init__(self, table: pd.DataFrame, copy: CorrectedCopy) -> None:
        self._table, self._copy = table, copy
        self._rows: dict[str, tuple[Box, list[Row]]] = {}  # by region: what was read, and found

    def after(self, closed: Box) -> Any:
        """The table now that a region has been closed, as `Labels.features` takes it.

        What a person changed has no score or agreement: those were of other outlines.
        """
        table = self._table
        changed = self._copy.changed
        if "index" not in table or not changed:
            return table
        found: dict[int, Row] = {}
        for box in self._copy.regions():
            key = str(box)
            if key not in self._rows or _touch(self._rows[key][0], closed):
                around, patch = self._around(box, changed)
                self._rows[key] = around, list(self._measured(around, patch))
            for row in self._rows[key][1]:
                known = found.setdefault(row["index"], row)
                if known["area_px"] < row["area_px"]:  # of the region that has all of it
                    found[row["index"]] = row
        same = table[~table["index"].isin(changed)]
        kinds = dict(zip(table["index"], table.get("class", ["object"] * len(table)), strict=True))
        rows = [
            row | {"class": kinds.get(index, self._copy.kind)}
            for index, row in found.items()
            if index in changed
        ]
        columns = {
            name: [*same[name], *(row.get(name, np.nan) for row in rows)] for name in table.columns
        }
        order = np.argsort(columns["index"])
        return {name: np.asarray(column)[order] for name, column in columns.items()}

    def _around(self, box: Box, changed: set[int]) -> tuple[Box, NDArray[np.uint32]]:
        """Box with all of the changed objects in a region or at its edge, and these alone in it."""
        edge = surround(box, 1, self._copy.shape)  # what was erased inside may go on outside
        ids = np.intersect1d(list(changed), self._copy.read(edge))
        around, labels = self._copy.around(box, ids)
        return around, np.where(np.isin(labels, ids), labels, np.uint32(0))

    def _measured(self, box: Box, patch: NDArray[np.uint32]) -> Iterator[Row]:
        """Rows as `results.features` gives them, of what needs no image and no model."""
        corner = (box[0].start, box[1].start)
        pixel = float(self._copy.record["pixel"])
        found = measured(patch, self._copy.spacing, pixel, corner)
        for row in zip(*found.values(), strict=True):
            yield dict(zip(found, row, strict=True))


def _touch(a: Box, b: Box) -> bool:
    return all(s.stop > s.start for s in within(a, b))
