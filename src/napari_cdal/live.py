"""A region segmented so that something is seen soon: a preview, then tile by tile the samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdal_engine.errors import Cancelled
from cdal_engine.tiling import cut, seen_from

from .decode import decoded

if TYPE_CHECKING:
    from cdal_engine.preparation import Limits
    from cdal_engine.segmentation import Segmentation
    from cdal_engine.segmenter import Progress, Segmenter

    Box = tuple[slice, slice]

__all__ = ["Options", "answer", "live", "tiles_of"]

_SHARE = 10  # times as long as decoding takes goes by before the next


@dataclass(frozen=True)
class Options:
    """Options of `Segmenter.segment`."""

    mpp: float | None
    samples: int
    steps: int
    seed: int
    limits: Limits | None = None
    first_sample: int = 0
    keep_steps: bool = False
    origin: tuple[int, ...] = (0, 0)
    shape: tuple[int, ...] | None = None


def tiles_of(segmenter: Segmenter, box: Box, mpp: float | None) -> list[Box]:
    """Cut a box of an image into tiles of the engine's size, as the engine does.

    The answer of an imported model depends on its tiles: it is run in one piece.
    """
    config = segmenter.model.config
    if config.network.fixed_tile:
        return [box]
    scale = mpp / config.image.mpp if mpp and config.image.mpp else 1.0
    edge = max(round(segmenter.tile / scale), 1)
    rows, columns = (cut(along, edge) for along in box)
    return list(product(rows, columns))


def live(
    segmenter: Segmenter,
    image: NDArray[np.generic],
    box: Box,
    options: Options,
    progress: Callable[[float, float], bool],
    colours: NDArray[np.uint8] | None = None,
) -> Iterator[tuple[Segmentation, str]]:
    """Yield the answer for a box of an image, better and better, the last one complete.

    Where samples are drawn, the supervised head's answer comes first. Then tile after tile
    replaces it; the last answer is that of `Segmenter.segment`.

    Parameters
    ----------
    segmenter : Segmenter
    image : ndarray
        As `Segmenter.segment` takes it.
    box : tuple of slice
    options : Options
    progress : callable
        Called with work done and work in all; returning False cancels.
    colours : ndarray, optional
        (H, W, 3) uint8 of the box, for the columns of colour.

    Yields
    ------
    tuple of Segmentation and str
        The answer so far, and what it is.
    """
    config = segmenter.model.config
    tiles = tiles_of(segmenter, box, options.mpp)
    cost = 1 + options.samples * options.steps  # of a tile, in passes
    first = 1 if options.steps and config.network.has_head else 0
    total = len(tiles) * (first + cost)

    def share(begun: int, passes: int) -> Progress:
        return lambda done, of: progress(begun + passes * done / of, total)

    preview = None
    if first:
        deterministic = replace(options, steps=0)
        preview = answer(segmenter, image, box, deterministic, share(0, len(tiles)))
        yield preview, "preview"
    if len(tiles) == 1:
        yield answer(segmenter, image, box, options, share(first, cost)), ""
        return
    yield from _tile_by_tile(segmenter, image, box, tiles, options, preview, share, colours)


def _tile_by_tile(
    segmenter: Segmenter,
    image: NDArray[np.generic],
    box: Box,
    tiles: list[Box],
    options: Options,
    preview: Segmentation | None,
    share: Callable[[int, int], Progress],
    colours: NDArray[np.uint8] | None,
) -> Iterator[tuple[Segmentation, str]]:
    """Yield the answer as tiles replace the preview, and what is finished where it is cancelled."""
    config = segmenter.model.config
    if not options.steps:
        config = config.of_supervised_head()
    cost = 1 + options.samples * options.steps
    first = 0 if preview is None else 1
    whole: Segmentation | None = None
    seconds = 0.0
    done = np.zeros([s.stop - s.start for s in box], bool)
    due = 0.0

    def joined(number: int) -> tuple[Segmentation, str]:
        assert whole is not None
        found = replace(decoded(whole, config, colours), seconds=seconds)
        so_far = f"{number} of {len(tiles)} tiles" if number < len(tiles) else ""
        return _joined(found, preview, done), so_far

    for number, tile in enumerate(tiles, 1):
        begun = len(tiles) * first + (number - 1) * cost
        try:
            part = answer(segmenter, image, tile, options, share(begun, cost))
        except Cancelled:
            if whole is not None:
                yield joined(number - 1)
            raise
        whole = _empty_like(part, done.shape) if whole is None else whole
        at = seen_from(tuple(s.start for s in box), tile)
        _lay_in(whole, part, at)
        done[at] = True
        seconds += part.seconds
        start = time.monotonic()
        if number == len(tiles) or start > due:
            yield joined(number)
            due = time.monotonic() + _SHARE * (time.monotonic() - start)


def answer(
    segmenter: Segmenter, image: NDArray[np.generic], box: Box, options: Options, progress: Progress
) -> Segmentation:
    """Return the whole answer for a box of an image, its samples kept."""
    keep = options.steps > 0
    return segmenter.segment(
        image, region=box, keep_samples=keep, progress=progress, **vars(options)
    )


_MAPS = ("mean", "probability", "uncertainty", "deviation", "attention", "samples", "steps")


def _empty_like(part: Segmentation, size: tuple[int, ...]) -> Segmentation:
    """A segmentation of `size` with the maps that one of its parts has."""

    def empty(array: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if array is None else np.zeros(array.shape[:-2] + size, array.dtype)

    maps: dict[str, Any] = {name: empty(getattr(part, name)) for name in _MAPS}
    if maps["mean"] is not None and len(maps["mean"]) > 1:
        maps["mean"][0] = 1  # background where nothing was done yet
    return replace(part, labels=np.zeros(size, np.uint32), seconds=0.0, **maps)


def _lay_in(whole: Segmentation, part: Segmentation, at: tuple[slice, ...]) -> None:
    for name in _MAPS:
        array = getattr(whole, name)
        if array is not None:
            array[..., *at] = getattr(part, name)


def _joined(
    sampled: Segmentation, preview: Segmentation | None, done: NDArray[np.bool_]
) -> Segmentation:
    """The preview where no tile is done yet, ids and table included."""
    if preview is None or done.all():
        return replace(sampled, uncertainty=sampled.uncertainty.copy())  # tiles are still laid in
    count = int(sampled.labels.max(initial=0))
    rest = np.where(done, 0, preview.labels)
    labels = np.where(rest > 0, rest + count, sampled.labels).astype(np.uint32)
    kept = ~np.isin(preview.objects["label"], preview.labels[done])  # the cut ones are left out
    labels[np.isin(rest, preview.objects["label"][~kept]) & (rest > 0)] = 0
    old = {name: column[kept] for name, column in preview.objects.items()}
    old["label"] = old["label"] + np.uint32(count)
    new = sampled.objects
    assert sampled.mean is not None
    assert preview.mean is not None
    return replace(
        sampled,
        labels=labels,
        mean=np.where(done, sampled.mean, preview.mean),
        probability=np.where(done, sampled.probability, preview.probability),
        uncertainty=np.where(done, sampled.uncertainty, preview.uncertainty),
        samples=None,  # where the preview is there are none
        counts=None,
        objects={name: np.concatenate([new[name], old[name]]) for name in new},
    )
