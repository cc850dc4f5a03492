"""Label maps to what is diffused, and probabilities back to label maps.

Channels of what is diffused: `binary`: foreground; `classes`: background and one a class;
`nuclei`: background, interior and boundary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import instances
from .config import ModelConfig
from .errors import CdalError

__all__ = ["decode", "encode", "find_objects", "foreground", "min_area"]

_INTERIOR = 0.5  # probability of the interior above which a pixel belongs to a marker


def encode(labels: NDArray[np.integer], config: ModelConfig) -> NDArray[np.float32]:
    """Turn (H, W) labels into a (K, H, W) label map x_0 of -1 and 1.

    Parameters
    ----------
    labels : ndarray
        At the model's resolution: instance ids for `nuclei`, class ids 0 … C for `classes`,
        anything above 0 for `binary`.
    config : ModelConfig

    Raises
    ------
    CdalError
        If a class id is beyond the config's classes.
    """
    if config.target == "binary":
        channels = (labels > 0)[None]
    elif config.target == "classes":
        if labels.max(initial=0) > len(config.classes):
            raise CdalError(
                f"class id {labels.max()} with {len(config.classes)} classes configured",
                "name every class in `classes`, or check the label files",
            )
        channels = labels[None] == np.arange(len(config.classes) + 1)[:, None, None]
    else:
        inner = instances.interior(labels, config.decode.boundary / (config.image.mpp or 1.0))
        channels = np.stack([labels == 0, inner, (labels > 0) & ~inner])
    return channels.astype(np.float32) * 2 - 1


def foreground(probability: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float32]:
    """Foreground classes (C, H, W) out of the diffused channels (K, H, W), all in 0 … 1."""
    if config.target == "binary":
        return probability
    if config.target == "classes":
        return probability[1:]
    return np.asarray(probability[1:].sum(axis=0, keepdims=True))


def decode(
    probability: NDArray[np.float32], config: ModelConfig, mpp: float | None
) -> NDArray[np.uint32]:
    """Turn mean probabilities into labels.

    Parameters
    ----------
    probability : ndarray
        (K, H, W) in 0 … 1.
    config : ModelConfig
        Its `decode` gives the threshold and, in square micrometres, the smallest object.
    mpp : float or None
        Micrometres per pixel of `probability`; None where the model knows none.

    Returns
    -------
    ndarray
        (H, W) uint32: instance ids for `nuclei` and `binary`, class ids for `classes`.
    """
    if config.target == "classes":
        return np.asarray(probability.argmax(axis=0), np.uint32)
    return instances.remove_small(find_objects(probability, config)[0], min_area(config, mpp))


def find_objects(
    probability: NDArray[np.float32], config: ModelConfig
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Instances of any size, and the marker each grew from, under the same ids (H, W).

    Ids are ordered by their marker's first pixel. Parameters as `decode`.

    Raises
    ------
    ValueError
        For target `classes`, which has no objects.
    """
    if config.target == "classes":
        raise ValueError("target 'classes' has regions, not objects: use `decode`")
    mask = foreground(probability, config)[0] > config.decode.threshold
    if config.target == "binary":
        labels = instances.components(mask)
        return labels, labels
    seeds = instances.markers(mask, probability[1] > _INTERIOR)
    return instances.flood(seeds, probability[1], mask), seeds


def min_area(config: ModelConfig, mpp: float | None) -> float:
    """Pixels of the smallest object kept, at `mpp` micrometres per pixel."""
    return config.decode.min_area / (mpp or 1.0) ** 2
