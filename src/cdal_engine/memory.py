"""How much memory the networks take, and what fits at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .config import ModelConfig
from .device import memory_budget
from .inference import AtOnce, Inference
from .ncsnpp_config import NcsnppConfig
from .tiling import Tile

__all__ = ["activation_bytes", "fitting"]


def activation_bytes(config: ModelConfig, dtype: torch.dtype) -> tuple[float, float]:
    """Peak bytes for each pixel of a tile: for its encoding, and for each sample of it.

    How many copies of a layer's output live at once was measured, and the tests repeat that for
    several shapes of network.
    """
    if isinstance(config.network, NcsnppConfig):
        return _published(config.network, dtype.itemsize)
    net, labels = config.amortized, config.label_channels
    half = dtype.itemsize / 2**net.spatial_dims  # bytes of a channel at half the image's resolution
    quarter = half / 2**net.spatial_dims
    encoding = 6.0 * half * net.widths[0]
    sample = 2.7 * half * net.detail_width + 3.0 * quarter * net.denoiser_width + 4.0 * 4 * labels
    return encoding, sample


def _published(net: NcsnppConfig, size: int) -> tuple[float, float]:
    """The same of `ncsnpp`, where the most is taken at full resolution."""
    below = net.channels(min(1, net.levels - 1))
    joined = below + net.channels(0)  # what comes up from below, and a skip tensor
    denoiser = sum(net.skips(0)) + below + 5.0 * joined
    looking = {None: 0.0, "large": 10.0 * net.ngf, "small": 12.0 * net.ngf}[net.discriminator]
    return 4.0 * size * net.channels(0), size * max(denoiser, looking)


def fitting(inference: Inference, tiles: Sequence[Tile]) -> AtOnce:
    """How many tiles, and samples of each, fit the device's budget together.

    It does not depend on what else is in memory, so that the same run has the same batches.
    """
    encoding, sample = activation_bytes(inference.config, inference.networks.dtype)
    budget, most = memory_budget(inference.device)
    pixels = max(math.prod(tile.shape) for tile in tiles)
    samples = min(inference.samples, max(1, int((budget / pixels - encoding) / sample)))
    tile = pixels * (encoding + sample * samples)
    return AtOnce(max(1, min(most, int(budget / tile))), samples)
