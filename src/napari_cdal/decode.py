"""Objects found again in a probability map that is kept: another threshold, no new run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cdal_engine import targets
from cdal_engine.objects import measured

if TYPE_CHECKING:
    from cdal_engine.config import ModelConfig
    from cdal_engine.segmenter import Segmentation

__all__ = ["decoded", "inside"]


def decoded(segmentation: Segmentation, config: ModelConfig) -> Segmentation:
    """Find the objects in `segmentation.mean`, as the engine does, and measure them."""
    assert segmentation.mean is not None
    probability = targets.foreground(segmentation.mean, config)
    mpp = None if config.image.mpp is None else segmentation.mpp
    labels = targets.decode(segmentation.mean, config, mpp)
    samples = segmentation.samples
    kept = np.empty((0, *labels.shape), np.float16) if samples is None else samples
    masks = kept.astype(np.float32) > config.decode.threshold
    objects, counts = measured(labels, probability, masks, None, config, mpp)
    return replace(
        segmentation, labels=labels, probability=probability, objects=objects, counts=counts
    )


def inside(
    segmentation: Segmentation, config: ModelConfig, mask: NDArray[np.bool_]
) -> Segmentation:
    """What lies in a mask: the model's maps are cut there, and the objects end at its edge."""
    assert segmentation.mean is not None
    mean = np.where(mask, segmentation.mean, 0)
    if len(mean) > 1:
        mean[0][~mask] = 1  # the background's channel
    samples = segmentation.samples
    cut = replace(
        segmentation,
        mean=mean,
        uncertainty=np.where(mask, segmentation.uncertainty, 0),
        deviation=np.where(mask, segmentation.deviation, 0),
        samples=None if samples is None else np.where(mask, samples, np.float16(0)),
    )
    return decoded(cut, config)
