"""An input opened for a run: what it is, how it is read, and what would make it fail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import CdalError
from ..io.discovery import open_source
from ..io.levels import best_level
from ..io.source import Source, check_size, sides
from ..segmenter import Segmenter
from ..volume import check_takes_volumes
from .provenance import (
    MAPS,
    Earlier,
    Input,
    Parameters,
    Record,
    Resolution,
    earlier_run,
    record_of,
)

__all__ = ["Opened", "check_source", "open_input"]

_MAX_GIGAPIXELS = 100


@dataclass(frozen=True, eq=False)
class Opened:
    """An input and all that its results depend on.

    Attributes
    ----------
    item : Input
    source, resolution
        Of `check_source`.
    segmenter : Segmenter
    parameters : Parameters
        `save` is what will be written.
    earlier : Earlier
        What an earlier run left.
    """

    item: Input
    source: Source
    resolution: Resolution
    segmenter: Segmenter
    parameters: Parameters
    earlier: Earlier

    def record(self, counts: Record, seconds: dict[str, float]) -> Record:
        """What run.json says."""
        record = record_of(
            self.item,
            self.source,
            self.resolution,
            self.segmenter,
            self.parameters,
            counts,
            self.earlier,
        )
        return record | {"seconds": seconds}


def open_input(item: Input, segmenter: Segmenter, parameters: Parameters) -> Opened:
    """Open an input, and see what an earlier run left of it.

    Raises
    ------
    CdalError
        See `check_source`.
    """
    source, resolution = check_source(item.path, segmenter, parameters)
    earlier, save = earlier_run(item, segmenter, parameters)
    parameters = replace(parameters, save=tuple(sorted(save)))
    return Opened(item, source, resolution, segmenter, parameters, earlier)


def check_source(
    path: Path, segmenter: Segmenter, parameters: Parameters
) -> tuple[Source, Resolution]:
    """Open an input and find what would make it fail before its pixels are read.

    Raises
    ------
    CdalError
        If it cannot be opened, is of another kind than the model's, lacks its resolution, or is
        too large.
    """
    source = open_source(path)
    if parameters.regions is not None and source.kind != "slide":
        raise CdalError(
            f"regions are of slides, this is a {source.kind}", "leave --regions out", path
        )
    if source.kind == "volume":
        return _check_volume(source, segmenter, parameters)
    wanted, kind = segmenter.model.config.image.channels, {1: "grayscale", 3: "RGB"}
    if source.channels != wanted:
        raise CdalError(
            f"the model takes {kind[wanted]} images, this one is {kind[source.channels]}",
            "choose a model for this kind of image, see `cdal models list`",
            path,
        )
    resized = segmenter.resized(parameters.tile_mode)
    if resized is not None and source.kind == "slide":
        raise CdalError(
            f"a slide would be brought to {resized[0]} x {resized[1]} pixels as a whole",
            "use --tile-mode overlap",
            path,
        )
    own = None if resized else segmenter.model.config.image.mpp
    resolution = _resolution(source, parameters.mpp, own)
    # Level 0 unless a coarser one shows all that the model sees; both lie on the same corner, so
    # that only the size of the result's pixels tells which was read.
    level = best_level(source.levels, resolution.mpp, own)
    if source.kind == "slide":
        _check_extent(source)
    else:
        check_size(source.levels[level].shape, path)
    return source, replace(resolution, level=level)


def _check_volume(
    source: Source, segmenter: Segmenter, parameters: Parameters
) -> tuple[Source, Resolution]:
    check_takes_volumes(segmenter.model.config)
    maps = sorted(MAPS & set(parameters.save))
    if maps or "labels" not in parameters.save:
        raise CdalError(
            f"of a volume only labels are written so far, not {', '.join(maps or parameters.save)}",
            "use --save labels",
            source.path,
        )
    return source, Resolution(None, source.mpp_source)


def _check_extent(source: Source) -> None:
    """Refuse a slide of a size that no scanner makes, before anything is read.

    Raises
    ------
    CdalError
        Naming the size.
    """
    gigapixels = float(np.prod(source.shape, dtype=object)) / 1e9
    if not 0 < gigapixels <= _MAX_GIGAPIXELS:
        raise CdalError(
            f"{sides(source.shape)} pixels are {gigapixels:.0f} gigapixels; up to "
            f"{_MAX_GIGAPIXELS} are read",
            "check the file",
            source.path,
        )


def _resolution(source: Source, override: float | None, own: float | None) -> Resolution:
    """Micrometres per pixel: from the option, the file, or the model's own."""
    if override is not None:
        return Resolution(override, "--mpp")
    if source.mpp is not None or own is None:
        return Resolution(source.mpp, source.mpp_source)
    if source.kind == "slide":
        hint = f"; its magnification says {source.magnification:g}x" if source.magnification else ""
        raise CdalError(
            f"the slide does not say its micrometres per pixel{hint}",
            f"give --mpp, e.g. --mpp {10 / (source.magnification or 40):g}",
            source.path,
        )
    return Resolution(own, f"assumed: the model's own {own:g} µm")
