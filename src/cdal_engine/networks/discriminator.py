"""The discriminator: tells real from generated steps, and where it looks becomes attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ModelConfig
from .blocks import ChannelNorm, LevelEmbedding, conv, space_to_depth

__all__ = ["Discriminator"]


class _Stage(nn.Module):
    """Two convolutions, the noise level added between them; stride 2 halves the size."""

    def __init__(self, dims: int, c_in: int, c_out: int, stride: int, embedding: int) -> None:
        super().__init__()
        self.conv_0 = conv(dims, c_in, c_out, stride=stride)
        self.level = nn.Linear(embedding, c_out)
        self.norm = ChannelNorm(c_out)
        self.conv_1 = conv(dims, c_out, c_out)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C_in, h, w) and (B, E) to (B, C_out, h / stride, w / stride)."""
        shift = self.level(embedding)
        h = self.conv_0(x) + shift.reshape(*shift.shape, *[1] * (x.ndim - 2))
        return F.leaky_relu(self.conv_1(F.leaky_relu(self.norm(h), 0.2)), 0.2)


class Discriminator(nn.Module):
    """D(x_{t-1}, x_t, image, t): one trunk with two exits, features and logits.

    Paper section 2.2, with the image as a further input; logits are per patch, so that the answer
    at a place depends on its surroundings only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        net = config.amortized
        dims, widths = net.spatial_dims, net.discriminator_widths
        c_in = 2 * config.label_channels + config.image.planes * 2**dims
        self.level = LevelEmbedding(widths[0])
        self.stages = nn.ModuleList(
            _Stage(dims, a, b, 1 if i == 0 else 2, widths[0])
            for i, (a, b) in enumerate(zip((c_in, *widths[:-1]), widths, strict=True))
        )
        self.to_logits = conv(dims, widths[-1], 1, kernel=1)

    def features(self, x_prev: Tensor, x_t: Tensor, image: Tensor, level: Tensor) -> list[Tensor]:
        """Feature maps at strides 2, 4, 8, … of the image.

        Parameters
        ----------
        x_prev, x_t : Tensor
            (B, K, H/2, W/2) label maps before and after step t.
        image : Tensor
            (B, C, H, W) normalised intensities.
        level : Tensor
            (B,) noise level t / T of `x_t`.
        """
        embedding = F.silu(self.level(level))
        h = torch.cat([x_prev.to(image.dtype), x_t.to(image.dtype), space_to_depth(image)], dim=1)
        maps = []
        for stage in self.stages:
            h = stage(h, embedding)
            maps.append(h)
        return maps

    def feature(
        self, x_prev: Tensor, x_t: Tensor, image: Tensor, level: Tensor, index: int
    ) -> Tensor:
        """One of the `features`."""
        return self.features(x_prev, x_t, image, level)[index]

    def forward(self, x_prev: Tensor, x_t: Tensor, image: Tensor, level: Tensor) -> Tensor:
        """Patch logits (B, 1, h, w), positive for real; parameters as `features`."""
        logits: Tensor = self.to_logits(self.features(x_prev, x_t, image, level)[-1])
        return logits
