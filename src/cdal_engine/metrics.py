"""Segmentation, instance and calibration metrics, each defined once."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from scipy.sparse import coo_matrix
from scipy.stats import rankdata

__all__ = [
    "CALIBRATION_BINS",
    "aji",
    "best_of",
    "calibration_error",
    "calibration_table",
    "dice",
    "dice_by_threshold",
    "error_auroc",
    "iou",
    "near_boundary",
    "pairwise_dice",
    "panoptic_quality",
    "precision_recall",
]

Mask = NDArray[np.bool_]
Labels = NDArray[np.integer]

CALIBRATION_BINS = 15


def dice(prediction: Mask, truth: Mask) -> float:
    """2|A∩B| / (|A| + |B|); 1 where both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def iou(prediction: Mask, truth: Mask) -> float:
    """|A∩B| / |A∪B|; 1 where both are empty."""
    union = int((prediction | truth).sum())
    return int((prediction & truth).sum()) / union if union else 1.0


def precision_recall(prediction: Mask, truth: Mask) -> tuple[float, float]:
    """|A∩B| / |A| and |A∩B| / |B|; 1 where the denominator is empty."""
    both, a, b = int((prediction & truth).sum()), int(prediction.sum()), int(truth.sum())
    return (both / a if a else 1.0), (both / b if b else 1.0)


def _overlaps(
    prediction: Labels, truth: Labels
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], list[NDArray[np.int64]]]:
    """Pairs of objects that overlap (truth, prediction, pixels) and the areas of all objects."""
    _, p = np.unique(np.append(prediction.ravel(), 0), return_inverse=True)
    _, t = np.unique(np.append(truth.ravel(), 0), return_inverse=True)
    p, t = p[:-1], t[:-1]  # the appended 0 makes index 0 the background
    table = coo_matrix((np.ones(len(p), np.int64), (t, p))).tocsr().tocoo()
    inside = (table.row > 0) & (table.col > 0)
    areas = [np.bincount(t), np.bincount(p)]
    return table.row[inside], table.col[inside], table.data[inside], areas


def aji(prediction: Labels, truth: Labels) -> float:
    """Aggregated Jaccard index: Kumar et al. (2017), algorithm 1."""
    t, p, both, (area_t, area_p) = _overlaps(prediction, truth)
    union = area_t[t] + area_p[p] - both
    order = np.lexsort((p, -both / union, t))  # per true object, its best match first
    first = order[np.unique(t[order], return_index=True)[1]]
    unmatched_t = np.setdiff1d(np.arange(1, len(area_t)), t[first])
    unused_p = np.setdiff1d(np.arange(1, len(area_p)), p[first])
    total = union[first].sum() + area_t[unmatched_t].sum() + area_p[unused_p].sum()
    return float(both[first].sum() / total) if total else 1.0


def panoptic_quality(prediction: Labels, truth: Labels) -> dict[str, float]:
    """Panoptic quality `pq`, its factors `sq` and `rq` (= F1 at IoU > 0.5): Kirillov et al. (2019).

    1 where neither image has an object.
    """
    t, p, both, (area_t, area_p) = _overlaps(prediction, truth)
    overlap = both / (area_t[t] + area_p[p] - both)
    matched = overlap[overlap > 0.5]  # such matches are unique
    objects = len(area_t) - 1 + len(area_p) - 1
    if not objects:
        return {"pq": 1.0, "sq": 1.0, "rq": 1.0}
    rq = 2 * len(matched) / objects
    sq = float(matched.mean()) if len(matched) else 0.0
    return {"pq": rq * sq, "sq": sq, "rq": rq}


def near_boundary(truth: Mask, width: float = 10) -> Mask:
    """Pixels within `width` pixels of the true boundary, on either side."""
    if truth.all() or not truth.any():
        return np.zeros(truth.shape, bool)
    distance = np.where(
        truth, ndi.distance_transform_edt(truth), ndi.distance_transform_edt(~truth)
    )
    return np.asarray(distance <= width)


def calibration_table(
    probability: NDArray[np.floating], truth: Mask, bins: int = CALIBRATION_BINS
) -> NDArray[np.float64]:
    """Pixels, summed probability and summed truth in equal bins of probability, (3, bins).

    Tables of several images may be added: theirs is that of all pixels together.
    """
    index = np.minimum((probability.ravel() * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    confidence = np.bincount(index, probability.ravel(), bins)
    return np.stack([count, confidence, np.bincount(index, truth.ravel(), bins)]).astype(float)


def calibration_error(table: NDArray[np.float64]) -> float:
    """Expected calibration error from a `calibration_table`: Guo et al. (2017), eq. 3.

    NaN where it holds no pixel.
    """
    count, confidence, frequency = table
    return (
        float(np.abs(confidence - frequency).sum() / count.sum()) if count.any() else float("nan")
    )


def dice_by_threshold(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Dice (bins,) of thresholding at the lower edge of each bin of a `calibration_table`."""
    found = table[0][::-1].cumsum()[::-1]
    both = table[2][::-1].cumsum()[::-1]
    total = found + table[2].sum()
    return np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)


def error_auroc(uncertainty: NDArray[np.floating], error: Mask) -> float:
    """Area under the ROC curve of `uncertainty` as a detector of wrong pixels.

    NaN where no pixel, or every pixel, is wrong.
    """
    wrong = int(error.sum())
    right = error.size - wrong
    if not wrong or not right:
        return float("nan")
    ranks = rankdata(uncertainty.ravel())[error.ravel()].sum()
    return float((ranks - wrong * (wrong + 1) / 2) / (wrong * right))


def pairwise_dice(masks: NDArray[np.bool_]) -> float:
    """Mean Dice over all pairs of (S, H, W) thresholded samples; NaN for one sample."""
    pairs = [dice(a, b) for a, b in combinations(masks, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")


def best_of(masks: NDArray[np.bool_], truth: Mask) -> float:
    """Dice of the best of (S, H, W) thresholded samples."""
    return max(dice(mask, truth) for mask in masks)
