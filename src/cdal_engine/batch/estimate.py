"""How long a run may take: megapixels at the model's resolution, at a rate tried out here."""

from __future__ import annotations

import math
import time

import numpy as np

from ..io.source import Source
from ..segmenter import Segmenter
from .provenance import Parameters, Resolution

__all__ = ["megapixels", "rate"]

_TRIAL = 512  # pixels


def megapixels(
    source: Source, resolution: Resolution, segmenter: Segmenter, parameters: Parameters
) -> float:
    """Million pixels of an input, of all slices of a volume, that the model will see."""
    image = segmenter.model.config.image
    level = source.levels[resolution.level]
    slices = level.shape[image.slice_axis] if source.kind == "volume" else 1
    if resized := segmenter.resized(parameters.tile_mode):
        return slices * math.prod(resized) / 1e6
    zoom = (resolution.mpp or 1.0) * level.step / image.mpp if image.mpp else 1.0
    return math.prod(level.shape) * zoom**2 / 1e6


def rate(segmenter: Segmenter, parameters: Parameters) -> float:
    """Megapixels a second through the model, timed on noise of 512 x 512 pixels."""
    image = segmenter.model.config.image
    shape = (_TRIAL, _TRIAL, image.channels)[: 3 if image.channels > 1 else 2]
    noise = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    for size in (_TRIAL // 8, _TRIAL):  # the first warms up
        start = time.perf_counter()
        segmenter.segment(
            noise[:size, :size],
            samples=parameters.samples,
            steps=parameters.steps,
            tile_mode=parameters.tile_mode,
            attention="attention" in parameters.save,
        )
    return _TRIAL**2 / 1e6 / (time.perf_counter() - start)
