"""The answer for one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .counts import SampleCounts

__all__ = ["Segmentation"]


@dataclass(frozen=True)
class Segmentation:
    """The answer for one image; all arrays have its height and width, or the model grid's.

    Attributes
    ----------
    labels : ndarray
        (H, W) uint32: instance ids, or class ids for target `classes`.
    probability : ndarray
        (C, H, W) float32 mean probability of each foreground class, 0 … 1.
    uncertainty : ndarray
        (H, W) float32 entropy of the mean, 0 … 1.
    deviation : ndarray
        (H, W) float32 standard deviation of the foreground probability between samples.
    attention : ndarray or None
        (H, W) float32: where the discriminator looks, not evidence for a diagnosis. In 0 … 2, or
        of any sign and size where the model's attention mode is `paper`.
    samples : ndarray or None
        (S, H, W) float16 foreground probability of each sample, if kept.
    objects : dict of ndarray
        A column each: see `instances.measure`, with `class` and `agreement`.
    mpp : float or None
        Micrometres per pixel of all arrays.
    seconds : float
        Spent in the networks and in decoding.
    pixel : float
        Edge of the arrays' pixels in pixels of the image: 1 on the image's own grid.
    counts : SampleCounts or None
        What each sample alone would find; None with one sample.
    mean : ndarray or None
        (K, H, W) float32 mean probability of every label channel, of which `targets.decode` makes
        the labels; None of volumes.
    steps : ndarray or None
        (2, T, S, H, W) float16, if kept: x_t, then x̂_0 made of it, at steps T … 1 of each sample.
        Label maps of any object, -1 … 1; x_t has noise in it, and pixels of the label grid.
    """

    labels: NDArray[np.uint32]
    probability: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    deviation: NDArray[np.float32]
    attention: NDArray[np.float32] | None
    samples: NDArray[np.float16] | None
    objects: dict[str, NDArray[Any]]
    mpp: float | None
    seconds: float
    pixel: float = 1.0
    counts: SampleCounts | None = None
    mean: NDArray[np.float32] | None = None
    steps: NDArray[np.float16] | None = None
