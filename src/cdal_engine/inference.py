"""One model over the tiles of one image: samples drawn, averaged and laid side by side.

The way of x_t: `_drawn` gives the noise of a batch of tiles to `sampler.sample`, which takes it
from x_T to x̂_0; `answer` makes probabilities of it and averages the samples; `_store` lays them
into `Maps`, and `targets.decode` finds the objects there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .answers import object_map, object_probability, pooled, tempered
from .config import ModelConfig
from .device import is_out_of_memory
from .diffusion import NoiseSchedule
from .model import Networks
from .networks import to_label_grid
from .noise import latent, noise
from .sampler import Sample, sample
from .tiling import Box, Tile, first_batch, seen_from

__all__ = ["AtOnce", "Inference", "Maps"]

logger = logging.getLogger("cdal_engine")


@dataclass
class Maps:
    """Results over a box of the model's grid, filled tile by tile.

    Attributes
    ----------
    probability : ndarray
        (K, h, w) float32 mean over the samples of every label channel, 0 … 1.
    deviation : ndarray
        (h, w) float32 standard deviation between samples of the probability of any object.
    masks : ndarray
        (S, h, w) thresholded samples.
    attention : ndarray or None
        (h, w) float32 in 0 … 2, or of any sign and size for attention mode `paper`.
    samples : ndarray or None
        (S, h, w) float16 probability of any object, of each sample.
    steps : ndarray or None
        (2, T, S, h, w) float16 x_t and x̂_0 of any object, from step T to 1.
    """

    probability: NDArray[np.float32]
    deviation: NDArray[np.float32]
    masks: NDArray[np.bool_]
    attention: NDArray[np.float32] | None
    samples: NDArray[np.float16] | None
    steps: NDArray[np.float16] | None = None

    @classmethod
    def empty(
        cls,
        channels: int,
        samples: int,
        size: tuple[int, ...],
        attention: bool,
        keep: bool,
        steps: int = 0,
    ) -> Maps:
        """Maps of `size`, all 0; `attention`, `samples` and `steps` only where asked for."""
        return cls(
            probability=np.zeros((channels, *size), np.float32),
            deviation=np.zeros(size, np.float32),
            masks=np.zeros((samples, *size), bool),
            attention=np.zeros(size, np.float32) if attention else None,
            samples=np.zeros((samples, *size), np.float16) if keep else None,
            steps=np.zeros((2, steps, samples, *size), np.float16) if steps else None,
        )


@dataclass(frozen=True)
class AtOnce:
    """How much goes through the networks together.

    Attributes
    ----------
    tiles : int
        In a batch.
    samples : int
        Of each of them.
    """

    tiles: int
    samples: int

    def halved(self) -> AtOnce | None:
        """Half the tiles, or else half the samples; None where there is one of each."""
        if self.tiles > 1:
            return replace(self, tiles=self.tiles // 2)
        return replace(self, samples=self.samples // 2) if self.samples > 1 else None


class _Answer(NamedTuple):
    """Of a batch of tiles: mean (B, K, h, w), objects (B, S, h, w), attention (B, h, w).

    And the steps (B, 2, T, S, h, w).
    """

    mean: Tensor
    inside: Tensor
    attention: Tensor | None
    steps: Tensor | None


@dataclass(frozen=True)
class Inference:
    """What stays the same over all tiles of one image.

    Attributes
    ----------
    config : ModelConfig
    networks : Networks
        On `device`, made ready.
    samples, seed : int
    schedule : NoiseSchedule or None
        None for the supervised head's answer.
    attention, keep_samples, keep_steps : bool
        Whether to compute and keep them.
    device : torch.device
    at_once : AtOnce
        Halved as often as memory does not suffice.
    advance : callable
        Called with how many passes over a tile, encoder's and denoiser's, are newly done.
    first_sample : int
        Which sample of the seed's is drawn first.
    """

    config: ModelConfig
    networks: Networks
    samples: int
    seed: int
    schedule: NoiseSchedule | None
    attention: bool
    keep_samples: bool
    device: torch.device
    at_once: AtOnce
    advance: Callable[[int], None]
    keep_steps: bool = False
    first_sample: int = 0

    @property
    def passes(self) -> int:
        """Over each tile: the encoder's, and the denoiser's of every sample and step."""
        return 1 + (self.schedule.steps * self.samples if self.schedule else 0)

    def run(self, image: Tensor, origin: tuple[int, ...], box: Box, tiles: list[Tile]) -> Maps:
        """Fill the maps of a box of the model's grid.

        Parameters
        ----------
        image : Tensor
            (C, H, W) normalised intensities on the model's grid; it holds every tile's box.
        origin : tuple of int
            Of `image` on that grid.
        box : tuple of slice
            What is wanted.
        tiles : list of Tile
            Their cores lie in `box`, in any order; what they leave out stays 0.
        """
        first, size = tuple(s.start for s in box), tuple(s.stop - s.start for s in box)
        maps = Maps.empty(
            self.config.label_channels,
            self.samples,
            size,
            self.attention,
            self.keep_samples,
            self.schedule.steps if self.schedule and self.keep_steps else 0,
        )
        tiles = sorted(tiles, key=lambda tile: [s.start for s in tile.core])  # batches the same too
        at_once = self.at_once
        while tiles:
            batch = first_batch(tiles, at_once.tiles)
            cut = torch.stack([image[:, *seen_from(origin, t.box)] for t in batch])
            try:
                answer = self.answer(cut, batch, at_once.samples)
            except (MemoryError, RuntimeError) as error:
                smaller = at_once.halved()
                if smaller is None or not is_out_of_memory(error):
                    raise
                if at_once == self.at_once:
                    logger.warning(
                        "memory does not suffice for %d tiles of %d samples at once: "
                        "going on with less",
                        at_once.tiles,
                        at_once.samples,
                    )
                at_once = smaller
                continue
            for i, tile in enumerate(batch):
                self._store(maps, seen_from(first, tile.core), answer, (i, ..., *tile.inside))
            tiles = tiles[len(batch) :]
        return maps

    def answer(self, image: Tensor, tiles: list[Tile], samples_at_once: int) -> _Answer:
        """Answers for a batch of tiles (B, C, H, W), probabilities all."""
        generator, decode = self.networks.generator, self.config.decode
        image = image.to(self.device, self.networks.dtype, memory_format=torch.channels_last)
        features = generator.encode(image)
        supervised = generator.preview(features)
        self.advance(len(tiles))
        if self.schedule is None:
            assert supervised is not None  # `Segmenter.check_options` has asked
            mean = tempered(supervised, decode.temperature)
            return _Answer(mean, object_probability(mean)[:, None], None, None)
        shape = len(tiles), self.config.label_channels, *image.shape[2:]
        total, inside, attention = torch.zeros(shape, device=self.device), [], []
        steps: list[Tensor] = []
        last = self.first_sample + self.samples
        for start in range(self.first_sample, last, samples_at_once):
            group = range(start, min(start + samples_at_once, last))
            drawn, seen = self._drawn(features, tiles, group)
            if seen:
                steps.append(torch.stack(seen, dim=1).unflatten(2, (-1, len(group))))
            x_0 = drawn.x_0
            if supervised is not None:
                x_0 = pooled(x_0, _repeat(supervised, len(group)), decode.sample_weight)
            p = tempered(x_0, decode.temperature)
            total += p.unflatten(0, (-1, len(group))).sum(dim=1)
            inside.append(object_probability(p).unflatten(0, (-1, len(group))))
            if self.attention:
                looked = self._attention(drawn, _repeat(image, len(group)))
                attention.append(looked.unflatten(0, (-1, len(group))))
        return _Answer(
            total / self.samples,
            torch.cat(inside, dim=1),
            torch.cat(attention, dim=1).mean(dim=1) if attention else None,
            torch.cat(steps, dim=3).movedim(2, 0) if steps else None,
        )

    def _drawn(self, features: Any, tiles: list[Tile], group: range) -> tuple[Sample, list[Tensor]]:
        """Some of the samples of a batch of tiles, (B · S, ...), and what was seen at each step."""
        assert self.schedule is not None
        generator, config = self.networks.generator, self.config
        stride = generator.label_stride
        repeated = features._make(_repeat(f, len(group)) for f in features)
        cells = [(_divided(tile.origin, stride), _divided(tile.shape, stride)) for tile in tiles]

        def draw(step: int) -> Tensor:  # (B · S, K, h, w)
            parts = [
                noise(self.seed, s, step, config.label_channels, origin, size, self.device)
                for origin, size in cells
                for s in group
            ]
            return torch.stack(parts).contiguous(memory_format=torch.channels_last)

        def draw_latent(step: int) -> Tensor:  # (B · S, L)
            dim = config.network.latent_dim
            z = [latent(self.seed, s, step, dim, self.device) for s in group]
            return torch.stack(z).repeat(len(tiles), 1)

        def denoise(x_t: Tensor, level: Tensor, z: Tensor) -> Tensor:
            x_0: Tensor = generator.denoise(x_t, level, z, repeated)
            self.advance(len(tiles) * len(group))
            return x_0

        seen: list[Tensor] = []  # (2, B · S, H, W) each

        def see(x_t: Tensor, x_0: Tensor) -> None:
            state = object_map(x_t).repeat_interleave(stride, -2).repeat_interleave(stride, -1)
            seen.append(torch.stack([state, object_map(x_0)]).half().cpu())

        to_grid = partial(to_label_grid, scale=config.diffusion.label_scale, stride=stride)
        watched = see if self.keep_steps else None
        return sample(denoise, to_grid, self.schedule, draw, draw_latent, watched), seen

    def _attention(self, drawn: Sample, image: Tensor) -> Tensor:
        """A_D (B · S, h, w) of the last step."""
        assert self.schedule is not None
        level = torch.full((len(drawn.x_t),), 1 / self.schedule.steps, device=self.device)
        size = image.shape[2:]
        looked = self.networks.attention_map(drawn.x_prev, drawn.x_t, image, level, size)
        return looked[:, 0]

    def _store(self, maps: Maps, at: Box, answer: _Answer, tile: tuple[Any, ...]) -> None:
        """Keep one tile's core of a batch's answer."""
        maps.probability[:, *at] = answer.mean[tile].cpu()
        inside = answer.inside[tile].cpu()
        maps.deviation[at] = inside.std(dim=0, correction=0)
        maps.masks[:, *at] = inside > self.config.decode.threshold
        if maps.samples is not None:
            maps.samples[:, *at] = inside
        if maps.steps is not None and answer.steps is not None:
            maps.steps[:, :, :, *at] = answer.steps[tile]
        if maps.attention is not None and answer.attention is not None:
            maps.attention[at] = answer.attention[tile].float().cpu()


def _divided(pixels: tuple[int, ...], stride: int) -> tuple[int, ...]:
    return tuple(n // stride for n in pixels)


def _repeat(x: Tensor, count: int) -> Tensor:
    """(B, C, h, w) to (B · count, C, h, w), each row `count` times in turn."""
    return x.repeat_interleave(count, dim=0).contiguous(memory_format=torch.channels_last)
