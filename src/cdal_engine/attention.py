"""Spatial attention from the discriminator's features: paper section 2.2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NormalizedAttention"]

_LARGEST = 2.0


class NormalizedAttention(nn.Module):
    """softplus(channel mean of features) / running mean, clipped to [0, 2].

    The paper's raw mean is signed and its scale grows as the discriminator trains; dividing by one
    scalar, learned in training and stored with the model, keeps it near 1 without any statistics
    of the tile.
    """

    running_mean: Tensor

    def __init__(self, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", F.softplus(torch.zeros(())))

    def forward(self, features: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
        """Map (B, C, h, w) features to (B, 1, *size) attention in [0, 2]."""
        weight = F.softplus(features.mean(dim=1, keepdim=True))
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(weight.mean(), self.momentum)
        attention = (weight / self.running_mean).clamp(0, _LARGEST)
        return F.interpolate(attention, size=tuple(size), mode="nearest")
