"""Objects found again in a probability map that is kept: another threshold, no new run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdal_engine import targets
from cdal_engine.objects import entropy, measured

if TYPE_CHECKING:
    from cdal_engine.config import ModelConfig
    from cdal_engine.segmentation import Segmentation

__all__ = ["decoded", "inside", "with_more"]


def decoded(
    segmentation: Segmentation, config: ModelConfig, colours: NDArray[np.uint8] | None
) -> Segmentation:
    """Find the objects in `segmentation.mean`, as the engine does, and measure them."""
    assert segmentation.mean is not None
    probability = targets.foreground(segmentation.mean, config)
    mpp = None if config.image.mpp is None else segmentation.mpp
    labels = targets.decode(segmentation.mean, config, mpp)
    samples = segmentation.samples
    kept = np.empty((0, *labels.shape), np.float16) if samples is None else samples
    masks = kept.astype(np.float32) > config.decode.threshold
    objects, counts = measured(labels, probability, masks, colours, config, mpp)
    return replace(
        segmentation, labels=labels, probability=probability, objects=objects, counts=counts
    )


def inside(
    segmentation: Segmentation,
    config: ModelConfig,
    mask: NDArray[np.bool_],
    colours: NDArray[np.uint8] | None,
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
    return decoded(cut, config, colours)


def with_more(
    kept: Segmentation,
    more: Segmentation,
    config: ModelConfig,
    colours: NDArray[np.uint8] | None,
) -> Segmentation:
    """Return what all samples of two answers for the same pixels give together.

    Both must have kept their samples.
    """
    assert kept.samples is not None
    assert more.samples is not None
    assert kept.mean is not None
    assert more.mean is not None
    share = len(more.samples) / (len(kept.samples) + len(more.samples))

    def pooled(first: Any, second: Any) -> Any:
        return None if first is None or second is None else first + share * (second - first)

    mean = pooled(kept.mean, more.mean)
    ours, theirs = (targets.foreground(m, config).sum(axis=0) for m in (kept.mean, more.mean))
    # The variance of all is the mean variance and the variance of the means.
    variance = pooled(kept.deviation**2, more.deviation**2)
    variance += share * (1 - share) * (ours - theirs) ** 2
    steps = None
    if kept.steps is not None and more.steps is not None:
        steps = np.concatenate([kept.steps, more.steps], axis=2)
    joined = replace(
        kept,
        mean=mean,
        uncertainty=entropy(targets.foreground(mean, config)),
        deviation=np.sqrt(variance),
        attention=pooled(kept.attention, more.attention),
        samples=np.concatenate([kept.samples, more.samples]),
        steps=steps,
        seconds=kept.seconds + more.seconds,
    )
    return decoded(joined, config, colours)
