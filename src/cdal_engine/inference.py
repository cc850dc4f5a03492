"""One model over the tiles of one image: samples drawn, averaged and laid side by side.

The way of x_t: `_sample` draws the noise of a batch of tiles, `sampler.sample` takes it from x_T
to x̂_0, which `pooled` and `tempered` make probabilities of; `_store` averages the samples into
`Maps`, and `targets.decode` finds the objects there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .answers import object_probability, pooled, tempered
from .config import ModelConfig
from .diffusion import NoiseSchedule
from .model import Networks
from .networks import LABEL_STRIDE, Features, to_label_grid
from .noise import latent, noise
from .sampler import sample
from .tiling import Box, Tile, batches, seen_from

__all__ = ["Inference", "Maps"]


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
        (h, w) float32 in 0 … 2.
    samples : ndarray or None
        (S, h, w) float16 probability of any object, of each sample.
    """

    probability: NDArray[np.float32]
    deviation: NDArray[np.float32]
    masks: NDArray[np.bool_]
    attention: NDArray[np.float32] | None
    samples: NDArray[np.float16] | None

    @classmethod
    def empty(
        cls, channels: int, samples: int, size: tuple[int, ...], attention: bool, keep: bool
    ) -> Maps:
        """Uninitialised maps of `size`; `attention` and the `samples` only where asked for."""
        return cls(
            probability=np.empty((channels, *size), np.float32),
            deviation=np.empty(size, np.float32),
            masks=np.empty((samples, *size), bool),
            attention=np.empty(size, np.float32) if attention else None,
            samples=np.empty((samples, *size), np.float16) if keep else None,
        )


@dataclass(frozen=True)
class Inference:
    """What stays the same over all tiles of one image.

    Attributes
    ----------
    config : ModelConfig
    networks : Networks
        On `device`.
    samples, seed : int
    schedule : NoiseSchedule or None
        None for the supervised head's answer.
    attention, keep_samples : bool
        Whether to compute and keep them.
    device : torch.device
    tiles_at_once : int
        How many tiles share a batch.
    advance : callable
        Called after every pass over a tile.
    """

    config: ModelConfig
    networks: Networks
    samples: int
    seed: int
    schedule: NoiseSchedule | None
    attention: bool
    keep_samples: bool
    device: torch.device
    tiles_at_once: int
    advance: Callable[[], None]

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
            Their cores make up `box`, in any order.
        """
        first, size = tuple(s.start for s in box), tuple(s.stop - s.start for s in box)
        maps = Maps.empty(
            self.config.label_channels, self.samples, size, self.attention, self.keep_samples
        )
        tiles = sorted(tiles, key=lambda tile: [s.start for s in tile.core])  # batches the same too
        for batch in batches(tiles, self.tiles_at_once):
            cut = torch.stack([image[:, *seen_from(origin, t.box)] for t in batch])
            answers, attention = self._sample(cut, batch)
            for i, tile in enumerate(batch):
                at = seen_from(first, tile.core)
                self._store(maps, at, answers[i][:, :, *tile.inside])
                if maps.attention is not None and attention is not None:
                    maps.attention[at] = attention[i][tile.inside].float().cpu()
        return maps

    def _sample(self, image: Tensor, tiles: list[Tile]) -> tuple[Tensor, Tensor | None]:
        """Answers (B, S, K, h, w) in 0 … 1 and attention (B, h, w) for a batch of tiles."""
        config, generator = self.config, self.networks.generator
        image = image.to(self.device, memory_format=torch.channels_last)
        features = generator.encode(image)
        supervised = generator.preview(features)
        for _ in tiles:
            self.advance()
        if self.schedule is None:
            return tempered(supervised, config.decode.temperature)[:, None], None
        repeated = Features(*(_repeat(f, self.samples) for f in features))
        cells = [(_on_label_grid(tile.origin), _on_label_grid(tile.shape)) for tile in tiles]

        def draw(step: int) -> Tensor:  # (B · S, K, h, w)
            parts = [
                noise(self.seed, s, step, config.label_channels, origin, size, self.device)
                for origin, size in cells
                for s in range(self.samples)
            ]
            return torch.stack(parts).contiguous(memory_format=torch.channels_last)

        def draw_latent(step: int) -> Tensor:  # (B · S, L)
            dim = config.network.latent_dim
            z = [latent(self.seed, s, step, dim, self.device) for s in range(self.samples)]
            return torch.stack(z).repeat(len(tiles), 1)

        def denoise(x_t: Tensor, level: Tensor, z: Tensor) -> Tensor:
            x_0: Tensor = generator.denoise(x_t, level, z, repeated)
            for _ in tiles:
                self.advance()
            return x_0

        to_grid = partial(to_label_grid, scale=config.diffusion.label_scale)
        last = sample(denoise, to_grid, self.schedule, draw, draw_latent)
        x_0 = pooled(last.x_0, _repeat(supervised, self.samples), config.decode.sample_weight)
        answers = tempered(x_0, config.decode.temperature).unflatten(0, (len(tiles), self.samples))
        if not self.attention:
            return answers, None
        level = torch.full((len(last.x_t),), 1 / self.schedule.steps, device=self.device)
        attention = self.networks.attention_map(
            last.x_prev, last.x_t, _repeat(image, self.samples), level, image.shape[2:]
        )[:, 0].clamp(0, 2)
        return answers, attention.unflatten(0, (len(tiles), self.samples)).mean(dim=1)

    def _store(self, maps: Maps, at: Box, answers: Tensor) -> None:
        """Keep `answers` (S, K, h, w) in 0 … 1 of one tile's core."""
        answers = answers.cpu()
        maps.probability[:, *at] = answers.mean(dim=0)
        inside = object_probability(answers)
        maps.deviation[at] = inside.std(dim=0, correction=0)
        maps.masks[:, *at] = inside > self.config.decode.threshold
        if maps.samples is not None:
            maps.samples[:, *at] = inside


def _on_label_grid(pixels: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n // LABEL_STRIDE for n in pixels)


def _repeat(x: Tensor, count: int) -> Tensor:
    """(B, C, h, w) to (B · count, C, h, w), each row `count` times in turn."""
    return x.repeat_interleave(count, dim=0).contiguous(memory_format=torch.channels_last)
