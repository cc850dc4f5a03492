"""Arrays in, segmentation out: options checked, one grid, tiles with halo, objects."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import instances, targets
from .config import MAX_MEGAPIXELS, ModelConfig
from .device import memory_reported, out_of_memory, select_device
from .diffusion import NoiseSchedule
from .errors import Cancelled, CdalError
from .inference import AtOnce, Inference, Maps
from .memory import fitting
from .model import Model
from .networks import receptive_halo
from .preparation import Grid, Limits, grid_scale, normalise, prepare, resample
from .tiling import Box, plan

__all__ = ["Progress", "Segmentation", "Segmenter"]

Progress = Callable[[int, int], bool]
"""Called with (passes done, passes in all); returning False cancels."""

MAX_SAMPLES = 64
_TILE = 1024  # pixels


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
        (H, W) float32 in 0 … 2: where the discriminator looks, not evidence for a diagnosis.
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


class Segmenter:
    """Runs one model on one device.

    Parameters
    ----------
    model : Model
        Its networks are copied to the device.
    device : str
        See `device.select_device`.
    tile : int, optional
        Edge of the tiles in pixels of the model's grid, a multiple of the network's stride.

    Raises
    ------
    CdalError
        If the device is not available or `tile` is off the grid.
    """

    def __init__(self, model: Model, device: str = "auto", tile: int | None = None) -> None:
        stride = model.config.network.stride
        self.tile = _TILE if tile is None else tile
        if self.tile < stride or self.tile % stride:
            raise CdalError(
                f"tile must be a multiple of the network's stride {stride}, got {tile}",
                f"use --tile {max(round(self.tile / stride), 4) * stride}",
            )
        self.model = model
        self.device = select_device(device)
        self.networks = model.networks.made_ready(self.device)

    @classmethod
    def from_pretrained(cls, name_or_path: str, device: str = "auto") -> Segmenter:
        """Load a shipped model by name, or any by its folder; errors as `Model.load`."""
        return cls(Model.load(name_or_path), device)

    def segment(
        self,
        image: NDArray[np.generic],
        *,
        region: Box | None = None,
        mpp: float | None = None,
        limits: Limits | None = None,
        samples: int = 5,
        steps: int | None = None,
        seed: int = 0,
        keep_samples: bool = False,
        attention: bool = True,
        on_model_grid: bool = False,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment one image, or a region of it.

        Parameters
        ----------
        image : ndarray
            (H, W) or (H, W, C), as the model's `config.image` says.
        region : tuple of slice, optional
            Rows and columns to segment; the answer at a pixel is that of segmenting all. Arrays
            and objects' coordinates start at its corner, and objects end at its edge.
        mpp : float, optional
            Micrometres per pixel of the image; by default the model's own.
        limits : ndarray, optional
            Of the volume that the image is a slice of: see `volume.segment_volume`.
        samples : int
            Answers drawn from the model and averaged.
        steps : int, optional
            T, as the model was trained (default), or 0 for the supervised head's answer in one
            deterministic pass.
        seed : int
            The same seed gives the same answer.
        keep_samples, attention : bool
            Whether to return them.
        on_model_grid : bool
            Leave everything at the model's resolution, as for slides, instead of the image's.
        progress : callable, optional
            See `Progress`.

        Raises
        ------
        CdalError
            If the image, region or an option is not what the model takes, or memory does not
            suffice.
        Cancelled
            If `progress` returned False.
        """
        start = time.perf_counter()
        schedule = self.check_options(samples, steps)
        config = self.model.config if schedule else self.model.config.of_supervised_head()
        _check_memory(image.shape[0] * image.shape[1] if image.ndim > 1 else 0)
        with torch.inference_mode(), memory_reported():
            x = prepare(image, config.image)
            scale = grid_scale(mpp, config.image)
            grid = Grid.over(x.shape[1:], scale, config.network.stride, region)
            _check_memory(math.prod(s.stop - s.start for s in grid.box))
            tiles = plan(grid.size, self.tile, self.halo(schedule), grid.box)
            passes = len(tiles) * (1 + (schedule.steps * samples if schedule else 0))
            inference = Inference(
                config=config,
                networks=self.networks,
                samples=samples if schedule else 1,
                seed=seed,
                schedule=schedule,
                attention=attention and schedule is not None,
                keep_samples=keep_samples,
                device=self.device,
                at_once=AtOnce(1, samples),
                advance=_counter(progress, passes),
            )
            inference = replace(inference, at_once=fitting(inference, tiles))
            window = grid.around(self.halo(schedule))
            x = resample(normalise(x, config.image, limits), grid.scale, window)
            maps = inference.run(x, tuple(s.start for s in window), grid.box, tiles)
            mpp = mpp or config.image.mpp
            if on_model_grid and grid.scale != 1:
                grid, mpp = grid.itself(), config.image.mpp
            return _decoded(maps, grid, config, mpp, start)

    def check_options(self, samples: int, steps: int | None) -> NoiseSchedule | None:
        """Return the schedule of `steps`, None for the supervised head's answer.

        Raises
        ------
        CdalError
            If the model cannot run so many steps, or `samples` is out of range.
        """
        trained = self.model.config.diffusion.steps
        steps = trained if steps is None else steps
        if steps not in (0, trained):  # other steps' probabilities would not be right
            raise CdalError(
                f"steps must be {trained}, as the model was trained, or 0, got {steps}",
                f"use --steps {trained}",
            )
        if not 1 <= samples <= MAX_SAMPLES:
            raise CdalError(f"samples must be from 1 to {MAX_SAMPLES}, got {samples}")
        return NoiseSchedule.variance_preserving(self.model.config.diffusion) if steps else None

    def halo(self, schedule: NoiseSchedule | None) -> int:
        """Pixels a tile sees beyond what it keeps, for a schedule of `check_options`."""
        config = self.model.config
        if schedule is None:
            return receptive_halo(config, 0)
        computed = receptive_halo(config, schedule.steps)
        return computed if config.halo is None else min(config.halo, computed)


def _decoded(
    maps: Maps, grid: Grid, config: ModelConfig, mpp: float | None, start: float
) -> Segmentation:
    """Bring the maps to the grid's region and find the objects there."""
    mean = grid.bring_back(maps.probability)

    def each(stack: NDArray[np.generic], dtype: type = np.float32) -> NDArray[Any]:
        # One map at a time: a stack of samples in float32 would not fit beside a slide.
        return np.stack(
            [grid.bring_back(m[None].astype(np.float32))[0].astype(dtype) for m in stack]
        )

    if grid.scale == 1:
        masks = grid.bring_back(maps.masks)
    else:
        masks = np.stack([grid.bring_back(m[None].astype(np.float32))[0] > 0.5 for m in maps.masks])
    labels = targets.decode(mean, config, None if config.image.mpp is None else mpp)
    inside = targets.foreground(mean, config)
    objects = instances.measure(labels, inside.max(axis=0))
    objects["agreement"] = instances.agreement(labels, objects, masks)
    kind = objects["label"].astype(int) - 1 if config.target == "classes" else 0
    objects["class"] = np.broadcast_to(
        np.array(config.classes, np.str_)[kind], objects["label"].shape
    ).copy()
    return Segmentation(
        labels=labels,
        probability=inside,
        uncertainty=_entropy(inside),
        deviation=each(maps.deviation[None])[0],
        attention=None if maps.attention is None else each(maps.attention[None])[0],
        samples=None if maps.samples is None else each(maps.samples, np.float16),
        objects=objects,
        mpp=mpp,
        pixel=grid.pixel,
        seconds=time.perf_counter() - start,
    )


def _check_memory(pixels: float) -> None:
    """Refuse what would not fit, before memory is taken."""
    if pixels > MAX_MEGAPIXELS * 1e6:
        raise out_of_memory(
            f"{pixels / 1e6:.0f} megapixels at the model's resolution; up to {MAX_MEGAPIXELS} "
            "are segmented at once so far"
        )


def _counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def advance(passes: int) -> None:
        nonlocal done
        done = min(done + passes, total)  # some are done twice where memory did not suffice
        if progress is not None and not progress(done, total):
            raise Cancelled

    return advance


def _entropy(inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """Entropy of (C, H, W) foreground probabilities and the background left, 0 … 1."""
    p = np.concatenate([1 - inside.sum(axis=0, keepdims=True), inside]).clip(1e-7, 1)
    return np.asarray(-(p * np.log(p)).sum(axis=0) / np.log(len(p)), np.float32).clip(0, 1)
