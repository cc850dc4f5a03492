"""The image encoder: a U-Net run once per tile, feeding every denoising step and sample."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .blocks import ResidualBlock, conv, depth_to_space, space_to_depth, upsample

__all__ = ["ConditionEncoder", "Features"]


class Features(NamedTuple):
    """What the denoiser needs of the image.

    Attributes
    ----------
    logits : Tensor
        (B, K, H, W) answer of the supervised head, a prediction by itself.
    detail : Tensor
        (B, C, H/2, W/2) to draw boundaries with.
    context : Tensor
        (B, W, H/4, W/4) where the denoiser works.
    """

    logits: Tensor
    detail: Tensor
    context: Tensor


class ConditionEncoder(nn.Module):
    """U-Net from stride 2 down to the total stride and back to stride 2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        net = config.amortized
        dims, widths = net.spatial_dims, net.widths
        pairs = list(pairwise(widths))
        self.stem = conv(dims, config.image.planes * 2**dims, widths[0])
        self.down = nn.ModuleList(
            [ResidualBlock(dims, widths[0], widths[0])]
            + [ResidualBlock(dims, a, b, stride=2) for a, b in pairs]
        )
        self.lateral = nn.ModuleList(conv(dims, b, a, kernel=1) for a, b in pairs)
        self.up = nn.ModuleList(ResidualBlock(dims, a, a) for a, _ in pairs)
        self.to_logits = conv(dims, widths[0], config.label_channels * 2**dims)
        self.to_detail = conv(dims, widths[0], net.detail_width, kernel=1)
        self.to_context = conv(dims, widths[1], net.denoiser_width, kernel=1)

    def forward(self, image: Tensor) -> Features:
        """Encode (B, C, H, W) normalised intensities; H and W on multiples of the stride."""
        skips = [self.stem(space_to_depth(image))]
        for block in self.down:
            skips.append(block(skips[-1]))
        h = skips.pop()
        context = h
        for lateral, block in zip(reversed(self.lateral), reversed(self.up), strict=True):
            context, h = h, block(upsample(lateral(h)) + skips.pop())
        return Features(
            logits=depth_to_space(self.to_logits(h)),
            detail=self.to_detail(h),
            context=self.to_context(context),
        )


def supervised_answer(logits: Tensor) -> Tensor:
    """Turn logits (B, K, ...) into a label map in [-1, 1]: one-hot channels, or one by itself."""
    if logits.shape[1] == 1:
        return torch.tanh(logits / 2)  # = 2 sigmoid - 1
    return 2 * torch.softmax(logits, dim=1) - 1
