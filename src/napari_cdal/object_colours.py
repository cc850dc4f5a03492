"""Colours of objects by what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from napari.utils import DirectLabelColormap
from napari.utils.colormaps import ensure_colormap

__all__ = ["COLOURS", "coloured"]

COLOURS = ("object", "agreement", "score", "reviewed")
_CERTAIN = 0.3  # where in the colormap: its darkest do not show on tissue
_GREY, _DONE = (0.6, 0.6, 0.6, 1.0), (0.2, 0.8, 0.3, 1.0)


def coloured(
    by: str,
    labels: Sequence[int],
    columns: Mapping[int, tuple[float, float, str]],
    is_reviewed: Callable[[int], bool],
) -> DirectLabelColormap:
    """Colour objects by one of `COLOURS`, but `object`; what is not known is grey.

    Parameters
    ----------
    by : str
    labels : sequence of int
    columns : mapping
        Agreement, score and class by label.
    is_reviewed : callable
    """
    colours: dict[int | None, Any] = {None: _GREY, 0: (0, 0, 0, 0)}
    if by == "reviewed":
        colours |= {label: _DONE for label in labels if is_reviewed(label)}
        return DirectLabelColormap(color_dict=colours)
    which = ("agreement", "score").index(by)
    known = {n: columns[n][which] for n in labels if n in columns}
    known = {label: value for label, value in known.items() if not np.isnan(value)}
    if known:
        doubt = 1 - np.array(list(known.values()))
        mapped = ensure_colormap("turbo").map(_CERTAIN + (1 - _CERTAIN) * doubt)
        colours |= dict(zip(known, mapped, strict=True))
    return DirectLabelColormap(color_dict=colours)
