"""Volumes, slice by slice through the Segmenter, normalised by statistics of the whole volume.

A slice at the edge of a volume holds little, and percentiles of its own would stretch noise to
full contrast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .config import ModelConfig
from .errors import CdalError
from .io.volumes import needed
from .preparation import Limits, limits_of, normalise
from .segmenter import Progress, Segmentation, Segmenter

__all__ = [
    "check_takes_volumes",
    "normalised_slices",
    "segment_volume",
    "turned",
    "volume_limits",
    "with_neighbours",
]


def check_takes_volumes(config: ModelConfig) -> None:
    """Raise `CdalError` unless a model is one for grayscale volumes."""
    if not config.takes_volumes:
        raise CdalError(
            "the model is not one for volumes",
            "choose one, see `cdal models list`, or train one with image: {channels: 1, mpp: null, "
            "normalisation: percentile, mean: [], std: []} and target binary or classes",
        )


def volume_limits(voxels: NDArray[np.generic]) -> Limits:
    """Intensities that (I, J, K) voxels are normalised by: see `preparation.limits_of`.

    Raises
    ------
    CdalError
        If they are no grayscale volume, or not finite.
    """
    return limits_of(_intensities(voxels))


def normalised_slices(voxels: NDArray[np.generic], config: ModelConfig) -> Tensor:
    """Cut (I, J, K) voxels into (N, C, H, W) slices, each with its neighbours as channels.

    They are normalised by the volume's percentiles.
    """
    x = _intensities(voxels).movedim(config.image.slice_axis, 0)
    x, beside = normalise(x, config.image, limits_of(x)), config.image.neighbours
    padded = torch.cat([x[:1]] * beside + [x] + [x[-1:]] * beside)
    return padded.unfold(0, 1 + 2 * beside, 1).movedim(-1, 1)  # views: neighbours take no memory


def with_neighbours(
    slices: NDArray[np.generic], index: int, neighbours: int
) -> NDArray[np.generic]:
    """Lay a slice and its neighbours side by side, as a model takes them.

    Parameters
    ----------
    slices : ndarray
        (N, H, W); its first and last are repeated beyond them.
    index : int
        Of the slice.
    neighbours : int
        How many on either side: the model's `image.neighbours`.

    Returns
    -------
    ndarray
        (H, W), or (H, W, C) with neighbours.
    """
    if not neighbours:
        alone: NDArray[np.generic] = slices[index]
        return alone
    beside = np.arange(index - neighbours, index + neighbours + 1)
    return np.stack([slices[n] for n in beside.clip(0, len(slices) - 1)], axis=-1)


def segment_volume(
    segmenter: Segmenter,
    voxels: NDArray[np.generic],
    *,
    samples: int = 5,
    steps: int | None = None,
    seed: int = 0,
    tile_mode: str = "overlap",
    keep_samples: bool = False,
    affine: NDArray[np.float64] | None = None,
    progress: Progress | None = None,
) -> Segmentation:
    """Segment a volume slice by slice, across the axis that the model was trained on.

    Parameters
    ----------
    segmenter : Segmenter
    voxels : ndarray
        (I, J, K) intensities of any scale.
    samples, steps, seed, tile_mode, keep_samples
        See `Segmenter.segment`. All slices share their noise, so that a sample changes from
        slice to slice only as the image does.
    affine : ndarray, optional
        (4, 4), from voxel indices to millimetres right, anterior, superior: the model is shown the
        volume with its axes in that order and direction, as it was in training. None: they are.
    progress : callable, optional
        Called with slices done and slices in all; returning False cancels.

    Returns
    -------
    Segmentation
        Its arrays end in (I, J, K), the volume's own order of axes; no attention. Its objects are
        the classes: `label`, `class`, and `area` in voxels.

    Raises
    ------
    CdalError
        If the model is not for volumes, or the voxels are not finite.
    Cancelled
        If `progress` returned False.
    """
    config = segmenter.model.config
    check_takes_volumes(config)
    limits = volume_limits(voxels)
    own = np.eye(4) if affine is None else affine
    voxels = turned(voxels, own, np.eye(4))
    slices = np.moveaxis(voxels, config.image.slice_axis, 0)
    results = []
    for done in range(len(slices)):
        results.append(
            segmenter.segment(
                with_neighbours(slices, done, config.image.neighbours),
                limits=limits,
                samples=samples,
                steps=steps,
                seed=seed,
                tile_mode=tile_mode,
                keep_samples=keep_samples,
                attention=False,
                progress=_share_of(progress, done, len(slices)),
            )
        )

    def joined(name: str) -> NDArray[Any]:
        arrays = np.stack([getattr(result, name) for result in results])
        return turned(np.moveaxis(arrays, 0, config.image.slice_axis), np.eye(4), own)

    labels = joined("labels")
    if config.target == "binary":  # slices number their objects, each from 1
        labels = (labels > 0).astype(np.uint32)
    return Segmentation(
        labels=labels,
        probability=joined("probability"),
        uncertainty=joined("uncertainty"),
        deviation=joined("deviation"),
        attention=None,
        samples=joined("samples") if keep_samples else None,
        objects=_classes(labels, config),
        mpp=None,
        seconds=sum(result.seconds for result in results),
    )


def turned(
    array: NDArray[Any], affine: NDArray[np.float64], onto: NDArray[np.float64]
) -> NDArray[Any]:
    """Permute and flip the last three axes of an array so that they run as those of `onto`."""
    if np.array_equal(affine[:3, :3], onto[:3, :3]):
        return array
    orientations: Any = needed("nibabel.orientations")
    turn = orientations.ornt_transform(*(orientations.io_orientation(a) for a in (affine, onto)))
    before = range(array.ndim - 3)
    last = [axis - len(before) for axis in before]
    flipped = orientations.apply_orientation(np.moveaxis(array, before, last), turn)
    return np.moveaxis(flipped, last, before)


def _classes(labels: NDArray[np.uint32], config: ModelConfig) -> dict[str, NDArray[Any]]:
    """The classes of a volume as objects, those that it does not show included."""
    count = len(config.classes) + 1
    return {
        "label": np.arange(1, count, dtype=np.uint32),
        "class": np.array(config.classes, np.str_),
        "area": np.bincount(labels.ravel(), minlength=count)[1:count].astype(float),
    }


def _intensities(voxels: NDArray[np.generic]) -> Tensor:
    """Check (I, J, K) voxels and turn them into float32."""
    if voxels.ndim != 3 or not voxels.size or voxels.dtype.kind not in "buif":
        raise CdalError(
            f"a volume has three axes of grayscale voxels, got {voxels.dtype} of shape "
            f"{voxels.shape}",
            "save one channel and one time point",
        )
    x = torch.from_numpy(np.ascontiguousarray(voxels, np.float32))
    if not bool(torch.isfinite(x).all()):
        raise CdalError("the volume has NaN or infinite voxels", "fill or crop them first")
    return x


def _share_of(progress: Progress | None, done: int, total: int) -> Progress | None:
    """Turn a slice's passes into the volume's progress, counted in slices."""
    if progress is None:
        return None
    return lambda passes, of: progress(done + (passes >= of), total)
