"""Arrays in, segmentation out: tiles with halo, samples in one batch, one grid."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from . import instances, targets
from .config import MAX_MEGAPIXELS, ModelConfig
from .device import memory_reported, out_of_memory, select_device
from .diffusion import NoiseSchedule
from .errors import Cancelled, CdalError
from .model import Model
from .networks import LABEL_STRIDE, Features, receptive_halo, to_label_grid
from .noise import latent, noise
from .preparation import from_model_grid, grid_scale, normalise, prepare, resample
from .sampler import sample
from .tiling import Tile, batches, plan

__all__ = ["Progress", "Segmentation", "Segmenter"]

Progress = Callable[[int, int], bool]
"""Called with (passes done, passes in all); returning False cancels."""

MAX_SAMPLES = 64
_TILE = 1024  # pixels
_TILES_AT_ONCE = {"cpu": 1, "cuda": 4, "mps": 4}


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


@dataclass
class _Maps:
    """Results on the model's grid, filled tile by tile."""

    probability: NDArray[np.float32]  # (K, h, w)
    deviation: NDArray[np.float32]  # (h, w)
    masks: NDArray[np.bool_]  # (S, h, w), thresholded samples
    attention: NDArray[np.float32] | None  # (h, w)
    samples: NDArray[np.float16] | None  # (S, h, w)


@dataclass(frozen=True)
class _Run:
    """What stays the same over all tiles of one call."""

    samples: int
    schedule: NoiseSchedule | None  # None: the supervised head's answer
    seed: int
    attention: bool
    advance: Callable[[], None]


class Segmenter:
    """Runs one model on one device.

    Parameters
    ----------
    model : Model
        Moved to the device.
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
        self.networks = model.networks.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_pretrained(cls, name_or_path: str, device: str = "auto") -> Segmenter:
        """Load a shipped model by name, or any by its folder; errors as `Model.load`."""
        return cls(Model.load(name_or_path), device)

    def segment(
        self,
        image: NDArray[np.generic],
        *,
        mpp: float | None = None,
        samples: int = 5,
        steps: int | None = None,
        seed: int = 0,
        keep_samples: bool = False,
        attention: bool = True,
        on_model_grid: bool = False,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment one image.

        Parameters
        ----------
        image : ndarray
            (H, W) or (H, W, C), as the model's `config.image` says.
        mpp : float, optional
            Micrometres per pixel of the image; by default the model's own.
        samples : int
            Answers drawn from the model and averaged.
        steps : int, optional
            T: a divisor of the T the model was trained with (default), or 0 for the supervised
            head's answer in one deterministic pass.
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
            If the image or an option is not what the model takes, or memory does not suffice.
        Cancelled
            If `progress` returned False.
        """
        start = time.perf_counter()
        config = self.model.config
        schedule = self.check_options(samples, steps)
        samples = samples if schedule else 1
        scale = grid_scale(mpp, config.image)
        x = prepare(image, config.image)
        _check_memory(x.shape[1] * x.shape[2] * scale**2)
        x = normalise(resample(x, scale) if scale != 1 else x, config.image)
        tiles = plan(self._padded(x).shape[1:], self.tile, self._halo(schedule))
        advance = _counter(progress, len(tiles) * (1 + (schedule.steps if schedule else 0)))
        run = _Run(samples, schedule, seed, attention and schedule is not None, advance)
        with torch.inference_mode(), memory_reported():
            maps = self._fill(x, tiles, run, keep_samples)
        mpp = mpp or config.image.mpp
        if on_model_grid and scale != 1:
            grid = (int(x.shape[1]), int(x.shape[2]))
            return self._decode(maps, grid, 1.0, config.image.mpp, start, pixel=1 / scale)
        return self._decode(maps, image.shape[:2], scale, mpp, start)

    def check_options(self, samples: int, steps: int | None) -> NoiseSchedule | None:
        """Return the schedule of `steps`, None for the supervised head's answer.

        Raises
        ------
        CdalError
            If the model cannot run so many steps, or `samples` is out of range.
        """
        trained = self.model.config.diffusion.steps
        choices = [0, *(t for t in range(1, trained + 1) if trained % t == 0)]
        steps = trained if steps is None else steps
        if steps not in choices:
            raise CdalError(
                f"steps must be one of {choices} for a model trained with {trained}, got {steps}",
                f"use --steps {trained}",
            )
        if not 1 <= samples <= MAX_SAMPLES:
            raise CdalError(f"samples must be from 1 to {MAX_SAMPLES}, got {samples}")
        return (
            NoiseSchedule.variance_preserving(self.model.config.diffusion, steps) if steps else None
        )

    def _halo(self, schedule: NoiseSchedule | None) -> int:
        config = self.model.config
        if schedule is None:
            return receptive_halo(config, 0)
        computed = receptive_halo(config, schedule.steps)
        return computed if config.halo is None else min(config.halo, computed)

    def _padded(self, x: Tensor) -> Tensor:
        """Extend (C, h, w) below and to the right to a multiple of the stride."""
        stride = self.model.config.network.stride
        height, width = (-size % stride for size in x.shape[1:])
        return F.pad(x[None], (0, width, 0, height), mode="replicate")[0]

    def _fill(self, x: Tensor, tiles: list[Tile], run: _Run, keep_samples: bool) -> _Maps:
        x = self._padded(x)
        size = tuple(x.shape[1:])
        count = run.samples
        maps = _Maps(
            probability=np.empty((self.model.config.label_channels, *size), np.float32),
            deviation=np.empty(size, np.float32),
            masks=np.empty((count, *size), bool),
            attention=np.empty(size, np.float32) if run.attention else None,
            samples=np.empty((count, *size), np.float16) if keep_samples else None,
        )
        for batch in batches(tiles, _TILES_AT_ONCE[self.device.type]):
            image = torch.stack([x[(slice(None), *tile.box)] for tile in batch])
            answers, attention = self._sample(image, batch, run)
            for i, tile in enumerate(batch):
                self._store(maps, tile, answers[i], None if attention is None else attention[i])
        return maps

    def _sample(self, image: Tensor, tiles: list[Tile], run: _Run) -> tuple[Tensor, Tensor | None]:
        """Answers (B, S, K, h, w) in 0 … 1 and attention (B, h, w) for a batch of tiles."""
        config, generator = self.model.config, self.networks.generator
        image = image.to(self.device, memory_format=torch.channels_last)
        features = generator.encode(image)
        run.advance()
        if run.schedule is None:
            return (generator.preview(features)[:, None] + 1) / 2, None
        repeated = Features(*(_repeat(f, run.samples) for f in features))
        cells = [(_on_label_grid(tile.origin), _on_label_grid(tile.shape)) for tile in tiles]

        def draw(step: int) -> Tensor:  # (B · S, K, h, w)
            parts = [
                noise(run.seed, s, step, config.label_channels, origin, size, self.device)
                for origin, size in cells
                for s in range(run.samples)
            ]
            return torch.stack(parts).contiguous(memory_format=torch.channels_last)

        def draw_latent(step: int) -> Tensor:  # (B · S, L)
            dim = config.network.latent_dim
            z = [latent(run.seed, s, step, dim, self.device) for s in range(run.samples)]
            return torch.stack(z).repeat(len(tiles), 1)

        def denoise(x_t: Tensor, level: Tensor, z: Tensor) -> Tensor:
            x_0: Tensor = generator.denoise(x_t, level, z, repeated)
            for _ in tiles:
                run.advance()
            return x_0

        to_grid = partial(to_label_grid, scale=config.diffusion.label_scale)
        last = sample(denoise, to_grid, run.schedule, draw, draw_latent)
        answers = ((last.x_0 + 1) / 2).unflatten(0, (len(tiles), run.samples))
        if not run.attention:
            return answers, None
        level = torch.full((len(last.x_t),), 1 / run.schedule.steps, device=self.device)
        looked = self.networks.discriminator.features(
            last.x_prev, last.x_t, _repeat(image, run.samples), level
        )[config.attention.level]
        attention = self.networks.attention(looked, image.shape[2:])[:, 0]
        return answers, attention.unflatten(0, (len(tiles), run.samples)).mean(dim=1)

    def _store(self, maps: _Maps, tile: Tile, answers: Tensor, attention: Tensor | None) -> None:
        """Keep the core of one tile: `answers` (S, K, h, w) in 0 … 1."""
        y, x = tile.core
        answers = answers[(slice(None), slice(None), *tile.inside)].float().cpu()
        maps.probability[:, y, x] = answers.mean(dim=0)
        inside = _object_probability(answers, self.model.config)
        maps.deviation[y, x] = inside.std(dim=0, correction=0)
        maps.masks[:, y, x] = inside > self.model.config.decode.threshold
        if maps.samples is not None:
            maps.samples[:, y, x] = inside
        if maps.attention is not None and attention is not None:
            maps.attention[y, x] = attention[tile.inside].float().cpu()

    def _decode(
        self,
        maps: _Maps,
        size: tuple[int, int],
        scale: float,
        mpp: float | None,
        start: float,
        pixel: float = 1.0,
    ) -> Segmentation:
        """Bring the maps to a grid of `size` and find the objects there."""
        config = self.model.config
        mean = from_model_grid(maps.probability, scale, size)

        def each(stack: NDArray[np.generic]) -> NDArray[np.float32]:
            # One map at a time: a stack of samples in float32 would not fit beside a slide.
            return np.stack(
                [from_model_grid(m[None].astype(np.float32), scale, size)[0] for m in stack]
            )

        masks = each(maps.masks) > 0.5 if scale != 1 else maps.masks[:, : size[0], : size[1]]
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
            samples=None if maps.samples is None else each(maps.samples).astype(np.float16),
            objects=objects,
            mpp=mpp,
            pixel=pixel,
            seconds=time.perf_counter() - start,
        )


def _check_memory(pixels: float) -> None:
    """Refuse what would not fit, before memory is taken."""
    if pixels > MAX_MEGAPIXELS * 1e6:
        raise out_of_memory(
            f"{pixels / 1e6:.0f} megapixels at the model's resolution; up to {MAX_MEGAPIXELS} "
            "are segmented at once so far"
        )


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None and not progress(done, total):
            raise Cancelled

    return advance


def _on_label_grid(pixels: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n // LABEL_STRIDE for n in pixels)


def _repeat(x: Tensor, count: int) -> Tensor:
    """(B, C, h, w) to (B · count, C, h, w), each row `count` times in turn."""
    return x.repeat_interleave(count, dim=0).contiguous(memory_format=torch.channels_last)


def _object_probability(answers: Tensor, config: ModelConfig) -> Tensor:
    """Probability (S, h, w) of belonging to any object, from (S, K, h, w)."""
    return answers[:, 0] if config.target == "binary" else 1 - answers[:, 0]


def _entropy(inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """Entropy of (C, H, W) foreground probabilities and the background left, 0 … 1."""
    p = np.concatenate([1 - inside.sum(axis=0, keepdims=True), inside]).clip(1e-7, 1)
    return np.asarray(-(p * np.log(p)).sum(axis=0) / np.log(len(p)), np.float32).clip(0, 1)
