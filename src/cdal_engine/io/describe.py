"""What a file is and how it would be read, for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import CdalError
from .discovery import open_source
from .levels import best_level
from .source import Source, sides

__all__ = ["describe"]

_WHOLE = 64e6  # pixels; of larger levels only samples are decoded
_SAMPLE = 256  # pixels


def describe(path: Path, model_mpp: float = 0.25) -> list[tuple[str, str]]:
    """Return what `cdal doctor` prints, as names and texts.

    Pixels of each level are decoded to find out whether they can be: all, or nine samples of a
    large level.

    Parameters
    ----------
    path : Path
    model_mpp : float
        Micrometres per pixel of a model, to say which level it would read.

    Raises
    ------
    CdalError
        If it cannot be opened.
    """
    source = open_source(path)
    lines = [("file", str(path)), ("kind", source.kind), ("reader", source.reader)]
    colour = "grayscale" if source.channels == 1 else "RGB"
    lines.append(("pixels", f"{colour}, {source.pixels.dtype}"))
    if source.kind == "volume":
        lines += [("size", f"{sides(source.shape)} voxels"), ("resolution", source.mpp_source)]
    else:
        lines += _levels(source) + _resolution(source, model_mpp)
    wrong = [problem for problem in _problems(source) if problem]
    return lines + [("wrong", problem) for problem in wrong or ["nothing found"]]


def _levels(source: Source) -> list[tuple[str, str]]:
    lines = [("size", f"{sides(source.shape)}, {len(source.levels)} level(s)")]
    for index, level in enumerate(source.levels):
        mpp = f", {level.mpp:.4g} µm per pixel" if level.mpp else ""
        tile = " x ".join(map(str, source.pixels.tile(index)[::-1]))
        steps = f"1/{level.downsample[0]:.6g}"
        text = f"{sides(level.shape)}, {steps}{mpp}, tiles {tile}"
        lines.append((f"level {index}", text))
    if source.bounds is None:
        return [*lines, ("bounds", "not in the file: all of it")]
    rows, columns = source.bounds
    text = f"x {columns.start} to {columns.stop}, y {rows.start} to {rows.stop}"
    return [*lines, ("bounds", text)]


def _resolution(source: Source, model_mpp: float) -> list[tuple[str, str]]:
    mpp = f"{source.mpp:.4g} µm per pixel" if source.mpp else "unknown"
    power = f"{source.magnification:g}x" if source.magnification else "not in the file"
    lines = [("resolution", f"{mpp} ({source.mpp_source})"), ("magnification", power)]
    if source.mpp is None:
        hint = f"{10 / (source.magnification or 40):g}"
        unknown = {
            "slide": f"nothing until you give --mpp, e.g. --mpp {hint}",
            "image": "level 0, taken to be at the model's resolution unless you give --mpp",
        }
        return [*lines, ("would read", unknown[source.kind])]
    level = best_level(source.levels, source.mpp, model_mpp)
    read = f"level {level} for a model at {model_mpp:g} µm per pixel"
    return [*lines, ("would read", read)]


def _problems(source: Source) -> list[str]:
    """What keeps levels from being decoded."""
    problems = []
    for index, level in enumerate(source.levels):
        try:
            if np.prod(level.shape, dtype=float) <= _WHOLE:
                source.read(index)
                continue
            sizes = [min(n, _SAMPLE) for n in level.shape]
            for at in np.ndindex(*(3,) * len(sizes)):
                starts = [
                    i * (n - size) // 2 for i, n, size in zip(at, level.shape, sizes, strict=True)
                ]
                source.read(
                    index, tuple(slice(a, a + size) for a, size in zip(starts, sizes, strict=True))
                )
        except CdalError as error:
            remedy = f" ({error.remedy})" if error.remedy else ""
            problems.append(f"level {index}: {error.reason}{remedy}")
    return problems
