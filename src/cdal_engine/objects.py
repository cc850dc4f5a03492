"""What is told of an answer beside its labels: columns of its objects, counts, uncertainty."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import instances, targets
from .config import ModelConfig
from .counts import SampleCounts, count_samples

__all__ = ["entropy", "measured"]


def measured(
    labels: NDArray[np.uint32],
    inside: NDArray[np.float32],
    masks: NDArray[np.bool_],
    colours: NDArray[np.uint8] | None,
    config: ModelConfig,
    mpp: float | None,
    *,
    own: int | None = None,
    where: NDArray[np.bool_] | None = None,
) -> tuple[dict[str, NDArray[Any]], SampleCounts | None]:
    """Columns of objects, and what each sample alone would find.

    Parameters
    ----------
    labels, inside, masks, colours : ndarray
        (H, W) ids, (C, H, W) probabilities, (S, H, W) samples and (H, W, 3) image.
    config, mpp
        As `targets.decode`.
    own : int, optional
        Last id of a block's own objects; only they have a row.
    where : ndarray, optional
        See `count_samples`.
    """
    objects = instances.measure(labels, inside.max(axis=0), colours)
    if own is not None:
        owned = objects["label"] <= own
        objects = {name: column[owned] for name, column in objects.items()}
    votes = instances.contained(labels, objects, masks)
    objects["agreement"] = instances.agreement(votes)
    least = targets.min_area(config, mpp)
    counts = count_samples(labels, votes, masks, least, where) if len(masks) > 1 else None
    kind = objects["label"].astype(int) - 1 if config.target == "classes" else 0
    objects["class"] = np.broadcast_to(
        np.array(config.classes, np.str_)[kind], objects["label"].shape
    ).copy()
    return objects, counts


def entropy(inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """Entropy of (C, H, W) foreground probabilities and the background left, 0 … 1."""
    p = np.concatenate([1 - inside.sum(axis=0, keepdims=True), inside]).clip(1e-7, 1)
    return np.asarray(-(p * np.log(p)).sum(axis=0) / np.log(len(p)), np.float32).clip(0, 1)
