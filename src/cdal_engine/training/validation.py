"""Validation as users run it: whole images through the Segmenter, every metric of `metrics`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..config import ModelConfig
from ..errors import CdalError
from ..segmenter import Segmentation, Segmenter
from .dataset import Pair, read_pair

__all__ = ["evaluate", "mean_of", "score"]

Scores = dict[str, float]


def score(result: Segmentation, labels: NDArray[np.integer], config: ModelConfig) -> Scores:
    """Every metric of one image.

    Parameters
    ----------
    result : Segmentation
        With its samples kept.
    labels : ndarray
        (H, W) truth: instances, class ids or a mask, as `config.target` says.
    config : ModelConfig

    Returns
    -------
    dict
        For `classes`, Dice and IoU are means over the classes; the rest is of all foreground.
    """
    truth = labels > 0
    inside = result.probability.sum(axis=0).clip(0, 1)
    threshold = config.decode.threshold
    found = inside > threshold
    scores: Scores = {}
    if config.target == "classes":
        kinds = range(1, len(config.classes) + 1)
        masks = [(result.labels == k, labels == k) for k in kinds]
        for name, (p, t) in zip(config.classes, masks, strict=True):
            scores[f"dice_{name}"] = metrics.dice(p, t)
    else:
        masks = [(found, truth)]
    scores["dice"] = float(np.mean([metrics.dice(p, t) for p, t in masks]))
    scores["iou"] = float(np.mean([metrics.iou(p, t) for p, t in masks]))
    scores["precision"], scores["recall"] = metrics.precision_recall(found, truth)
    if config.target == "nuclei":
        scores["aji"] = metrics.aji(result.labels, labels)
        scores |= metrics.panoptic_quality(result.labels, labels)
    band = metrics.near_boundary(truth)
    scores["ece"] = metrics.calibration_error(inside, truth)
    scores["ece_boundary"] = metrics.calibration_error(inside[band], truth[band])
    scores["error_auroc"] = metrics.error_auroc(result.uncertainty, found != truth)
    if result.samples is not None and len(result.samples) > 1:
        drawn = result.samples > threshold
        scores["dice_one_sample"] = float(np.mean([metrics.dice(m, truth) for m in drawn]))
        scores["dice_best_sample"] = metrics.best_of(drawn, truth)
        scores["pairwise_dice"] = metrics.pairwise_dice(drawn)
    return scores


def evaluate(
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    *,
    mpp: float | None = None,
    samples: int = 5,
    steps: int | None = None,
    seed: int = 0,
    on_image: Callable[[str, Scores], None] | None = None,
) -> dict[str, Scores]:
    """Segment and score every pair, by stem; options as `Segmenter.segment`."""
    scores = {}
    for pair in pairs:
        try:
            image, labels, own = read_pair(pair, segmenter.model.config, mpp)
            result = segmenter.segment(
                image,
                mpp=own,
                samples=samples,
                steps=steps,
                seed=seed,
                keep_samples=True,
                attention=False,
            )
        except CdalError as error:
            raise error.at(pair.image) from None
        scores[pair.stem] = score(result, labels.astype(np.int64), segmenter.model.config)
        if on_image is not None:
            on_image(pair.stem, scores[pair.stem])
    return scores


def mean_of(scores: dict[str, Scores]) -> Scores:
    """Mean of each metric over the images that have it."""
    names = dict.fromkeys(name for row in scores.values() for name in row)
    columns = {n: [row[n] for row in scores.values() if not np.isnan(row[n])] for n in names}
    return {name: float(np.mean(column)) for name, column in columns.items() if column}
