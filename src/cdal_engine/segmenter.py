"""Arrays in, segmentation out: options checked, one grid, tiles with halo, objects."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import targets
from .config import MAX_MEGAPIXELS, MAX_SAMPLES, ModelConfig
from .device import memory_reported, out_of_memory, select_device
from .diffusion import NoiseSchedule
from .errors import Cancelled, CdalError
from .inference import AtOnce, Inference, Maps
from .memory import fitting
from .model import Model
from .networks import receptive_halo
from .objects import entropy, measured
from .preparation import Grid, Limits, grid_scale, normalise, prepare, resample, rgb8, seen_by
from .segmentation import Segmentation
from .tiling import Box, Tile, hull, plan, plan_fixed

__all__ = [
    "TILE_MODES",
    "Progress",
    "Segmentation",
    "Segmenter",
    "counter",
]

Progress = Callable[[int, int], bool]
"""Called with (passes done, passes in all); returning False cancels."""

TILE_MODES = ("overlap", "published")
_TILE = 1024  # pixels


class Segmenter:
    """Runs one model on one device.

    Parameters
    ----------
    model : Model
        Its networks are copied to the device.
    device : str
        See `device.select_device`.
    tile : int, optional
        Edge of the tiles in pixels of the model's grid, a multiple of the network's stride; the
        last of a row may be a quarter longer. An imported model has one only, that it was
        trained with.

    Raises
    ------
    CdalError
        If the device is not available or `tile` is off the grid.
    """

    def __init__(self, model: Model, device: str = "auto", tile: int | None = None) -> None:
        stride, fixed = model.config.network.stride, model.config.network.fixed_tile
        self.tile = (fixed or _TILE) if tile is None else tile
        if fixed and self.tile != fixed:
            raise CdalError(
                f"tile must be {fixed}: the answer of this model depends on it, got {tile}",
                "leave --tile out",
            )
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
        tile_mode: str = "overlap",
        first_sample: int = 0,
        keep_samples: bool = False,
        keep_steps: bool = False,
        attention: bool = True,
        on_model_grid: bool = False,
        origin: tuple[int, ...] = (0, 0),
        shape: tuple[int, ...] | None = None,
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
        tile_mode : {"overlap", "published"}
            Of imported models: tiles that overlap at the model's resolution, or as published, the
            whole image brought to one size and cut into tiles side by side.
        first_sample : int
            Of the seed's: samples 3 and 4 are those that 5 have beside the first three.
        keep_samples, keep_steps, attention : bool
            Whether to return them; an imported model may have no attention.
        on_model_grid : bool
            Leave everything at the model's resolution, as for slides, instead of the image's.
        origin, shape : tuple of int
            Where `image` starts in a larger one, and the size (H, W) of that: the answer is that
            of the larger one, in which `region` must be given. It must hold what `seen` says.
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
        schedule = self.check_options(samples, steps, tile_mode)
        config = self.model.config if schedule else self.model.config.of_supervised_head()
        _check_memory(image.shape[0] * image.shape[1] if image.ndim > 1 else 0)
        with torch.inference_mode(), memory_reported():
            x = prepare(image, config.image)
            resized = self.resized(tile_mode)
            grid = self.grid(shape or x.shape[1:], mpp, tile_mode, region)
            _check_memory(math.prod(s.stop - s.start for s in grid.box))
            tiles = self.tiles(grid.size, grid.box, self.halo(schedule, tile_mode))
            inference = self.inference(
                schedule, samples, seed, attention=attention, keep_samples=keep_samples
            )
            inference = replace(inference, keep_steps=keep_steps, first_sample=first_sample)
            advance = counter(progress, len(tiles) * inference.passes)
            inference = replace(inference, at_once=fitting(inference, tiles), advance=advance)
            window = hull(tiles)
            mpp, shown = mpp if resized else mpp or config.image.mpp, grid
            if on_model_grid and not grid.native and resized is None:
                shown, mpp = grid.itself(), config.image.mpp
            colours = rgb8(resample(x, 1 / shown.pixel, shown.region, origin), config.image)
            x = resample(normalise(x, config.image, limits), grid.scale, window, origin)
            maps = inference.run(x, tuple(s.start for s in window), grid.box, tiles)
            return _decoded(maps, shown, config, mpp, colours, start)

    def seen(
        self, shape: tuple[int, ...], region: Box, mpp: float | None, steps: int | None = None
    ) -> Box:
        """Pixels of an image of `shape` (H, W) that the answer for a region of it depends on.

        Where intensities are normalised by the image's own, it depends on those of all.
        """
        schedule = self.check_options(1, steps)
        grid = self.grid(shape, mpp, region=region)
        window = hull(self.tiles(grid.size, grid.box, self.halo(schedule)))
        return seen_by(window, grid.scale, shape)

    def inference(
        self,
        schedule: NoiseSchedule | None,
        samples: int,
        seed: int,
        *,
        attention: bool,
        keep_samples: bool,
    ) -> Inference:
        """How tiles are answered with a schedule of `check_options`, one at a time."""
        config = self.model.config if schedule else self.model.config.of_supervised_head()
        return Inference(
            config=config,
            networks=self.networks,
            samples=samples if schedule else 1,
            seed=seed,
            schedule=schedule,
            attention=attention and schedule is not None and config.network.has_discriminator,
            keep_samples=keep_samples,
            device=self.device,
            at_once=AtOnce(1, samples),
            advance=lambda passes: None,
        )

    def check_options(
        self, samples: int, steps: int | None, tile_mode: str = "overlap"
    ) -> NoiseSchedule | None:
        """Return the schedule of `steps`, None for the supervised head's answer.

        Raises
        ------
        CdalError
            If the model cannot run so many steps or these tiles, or `samples` is out of range.
        """
        network, trained = self.model.config.network, self.model.config.diffusion.steps
        steps = trained if steps is None else steps
        if steps == 0 and not network.has_head:
            raise CdalError(
                "0 steps: this model has no supervised head, which would answer without diffusion",
                f"use --steps {trained}, as the model was trained",
            )
        if steps not in (0, trained):  # other steps' probabilities would not be right
            or_none = ", or 0" if network.has_head else ""
            raise CdalError(
                f"steps must be {trained}, as the model was trained{or_none}, got {steps}",
                f"use --steps {trained}",
            )
        if tile_mode not in TILE_MODES:
            raise CdalError(f"unknown tile mode {tile_mode!r}", f"use {' or '.join(TILE_MODES)}")
        if tile_mode != "overlap" and network.fixed_tile is None:
            raise CdalError(
                f"tile mode {tile_mode!r} is for imported models; the answer of this one does not "
                "depend on its tiles",
                "leave --tile-mode out",
            )
        if not 1 <= samples <= MAX_SAMPLES:
            raise CdalError(f"samples must be from 1 to {MAX_SAMPLES}, got {samples}")
        return NoiseSchedule.variance_preserving(self.model.config.diffusion) if steps else None

    def resized(self, tile_mode: str) -> tuple[int, int] | None:
        """(height, width) that every image is brought to; None where resolution decides."""
        image = self.model.config.image
        return image.resized if tile_mode == "published" or image.mpp is None else None

    def grid(
        self,
        shape: tuple[int, ...],
        mpp: float | None,
        tile_mode: str = "overlap",
        region: Box | None = None,
    ) -> Grid:
        """Lay the model's grid over an image of `shape` (H, W), or a region of it."""
        config, scale = self.model.config, grid_scale(mpp, self.model.config.image)
        resized = self.resized(tile_mode)
        each = tuple(n / size for n, size in zip(resized, shape, strict=True)) if resized else scale
        if fixed := config.network.fixed_tile:
            return Grid.over(shape, each, 1, region, least=fixed)
        return Grid.over(shape, each, config.network.stride, region)

    def tiles(self, size: tuple[int, ...], box: Box, halo: int) -> list[Tile]:
        """Tiles that make up a box of a grid of `size`."""
        cover = plan_fixed if self.model.config.network.fixed_tile else plan
        return cover(size, self.tile, halo, box)

    def halo(self, schedule: NoiseSchedule | None, tile_mode: str = "overlap") -> int:
        """Pixels a tile sees beyond what it keeps, for a schedule of `check_options`."""
        config = self.model.config
        if fixed := config.network.fixed_tile:
            # No halo makes its answer independent of the tile: an eighth smooths the seams.
            overlapping = fixed // 8 if config.halo is None else config.halo
            return 0 if tile_mode == "published" else overlapping
        if schedule is None:
            return receptive_halo(config, 0)
        computed = receptive_halo(config, schedule.steps)
        return computed if config.halo is None else min(config.halo, computed)


def _decoded(
    maps: Maps,
    grid: Grid,
    config: ModelConfig,
    mpp: float | None,
    colours: NDArray[np.uint8] | None,
    start: float,
) -> Segmentation:
    """Bring the maps to the grid's region and find the objects there."""
    mean = grid.bring_back(maps.probability)

    def each(stack: NDArray[np.generic], dtype: type = np.float32) -> NDArray[Any]:
        # One map at a time: a stack of samples in float32 would not fit beside a slide.
        return np.stack(
            [grid.bring_back(m[None].astype(np.float32))[0].astype(dtype) for m in stack]
        )

    if grid.native:
        masks = grid.bring_back(maps.masks)
    else:
        masks = np.stack([grid.bring_back(m[None].astype(np.float32))[0] > 0.5 for m in maps.masks])
    known = None if config.image.mpp is None else mpp
    labels = targets.decode(mean, config, known)
    inside = targets.foreground(mean, config)
    objects, counts = measured(labels, inside, masks, colours, config, known)
    return Segmentation(
        labels=labels,
        probability=inside,
        uncertainty=entropy(inside),
        deviation=each(maps.deviation[None])[0],
        attention=None if maps.attention is None else each(maps.attention[None])[0],
        samples=None if maps.samples is None else each(maps.samples, np.float16),
        steps=None if maps.steps is None else _each_step(maps.steps, grid),
        objects=objects,
        mpp=mpp,
        pixel=grid.pixel,
        counts=counts,
        mean=mean,
        seconds=time.perf_counter() - start,
    )


def _each_step(steps: NDArray[np.float16], grid: Grid) -> NDArray[np.float16]:
    stack = steps.reshape(-1, 1, *steps.shape[-2:])
    back = [grid.bring_back(m.astype(np.float32))[0].astype(np.float16) for m in stack]
    return np.stack(back).reshape(*steps.shape[:-2], *back[0].shape)


def _check_memory(pixels: float) -> None:
    """Refuse what would not fit, before memory is taken."""
    if pixels > MAX_MEGAPIXELS * 1e6:
        raise out_of_memory(
            f"{pixels / 1e6:.0f} megapixels at the model's resolution; up to {MAX_MEGAPIXELS} "
            "are segmented at once so far"
        )


def counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Count what is newly done of `total` passes and report it; raises `Cancelled` if asked to."""
    done = 0

    def advance(passes: int) -> None:
        nonlocal done
        done = min(done + passes, total)  # some are done twice where memory did not suffice
        if progress is not None and not progress(done, total):
            raise Cancelled

    return advance
