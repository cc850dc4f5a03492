"""The pixels that a region's answer depends on, read at the level that suits the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .live import Options
from .volumes import Turn, turn_of

if TYPE_CHECKING:
    from cdal_engine.config import ImageConfig
    from cdal_engine.segmenter import Segmenter

    from .jobs import Job
    from .regions import Region

__all__ = ["Seen", "read"]

_ALL = 16e6  # pixels; of a larger image only what is seen is read


@dataclass(frozen=True)
class Seen:
    """What the engine is given of a region.

    Attributes
    ----------
    image : ndarray
        A window of the level, as `Segmenter.segment` takes it.
    box : tuple of slice
        The region, in pixels of the level as the model is shown it.
    options : Options
    colours : ndarray or None
        (H, W, 3) uint8 of the box, where the model takes colours.
    step : float
        Edge of the level's pixels in the layer's.
    corner : tuple of float
        Where the region starts on the layer, in its pixels.
    turn : Turn or None
        Of a volume's slice, how the model is shown it.
    """

    image: NDArray[np.generic]
    box: tuple[slice, slice]
    options: Options
    colours: NDArray[np.uint8] | None
    step: float
    corner: tuple[float, float]
    turn: Turn | None


def read(job: Job, region: Region, segmenter: Segmenter, first_sample: int = 0) -> Seen:
    """Read what the answer for a region depends on.

    Raises
    ------
    CdalError
        If the layer's data cannot be read.
    """
    from cdal_engine.tiling import seen_from
    from cdal_engine.volume import volume_limits

    config, plane = segmenter.model.config, job.plane
    index, level = plane.level_for(job.mpp, config.image)
    shape, step = level.shape, level.step
    starts = [min(int(s.start / step), n - 1) for s, n in zip(region.box, shape, strict=True)]
    rows, columns = (  # of the smallest shape one pixel
        slice(start, max(min(round(s.stop / step), n), start + 1))
        for start, s, n in zip(starts, region.box, shape, strict=True)
    )
    box = (rows, columns)
    mpp = None if job.mpp is None else job.mpp * step
    # Statistics of the whole need all of it.
    every = shape[0] * shape[1] <= _ALL or config.image.normalisation != "constant"
    whole = tuple(slice(0, n) for n in shape)
    window = whole if every else segmenter.seen(shape, box, mpp, job.steps)
    image = plane.read(index, window, config.image.neighbours)
    origin = tuple(s.start for s in window)
    colours = _colours(image, seen_from(origin, box), config.image)
    volume = plane.is_volume and config.takes_volumes
    # Of the volume: a slice's own would stretch an empty one's noise.
    limits = volume_limits(plane.read_volume()) if volume else None
    turn = turn_of(plane, config) if volume else None
    if turn is not None:
        image, box = turn.onto_model(image), turn.box_onto_model(box, shape)
        origin = tuple(s.start for s in turn.box_onto_model(window, shape))
        shape = shape[::-1] if turn.swapped else shape
    options = Options(
        mpp=mpp,
        samples=job.samples,
        steps=job.steps,
        seed=job.seed,
        limits=limits,
        first_sample=first_sample,
        keep_steps="steps" in job.wanted,
        origin=origin,
        shape=shape,
    )
    corner = rows.start * step, columns.start * step
    return Seen(image, box, options, colours, step, corner, turn)


def _colours(
    image: NDArray[np.generic], box: tuple[slice, ...], config: ImageConfig
) -> NDArray[np.uint8] | None:
    """The box's colours as the engine measures them; None where the model takes none."""
    from cdal_engine.preparation import largest_intensity, prepare, rgb8

    if config.channels != 3 or config.normalisation != "constant":
        return None
    return rgb8(prepare(image[box], config, largest_intensity(image)), config)
