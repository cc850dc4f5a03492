"""Spatial attention from the discriminator's features: paper section 2.2."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import AttentionConfig

__all__ = ["Attention"]

_LARGEST = 2.0


class Attention(nn.Module):
    """A_D: what the discriminator's features say of each place.

    Mode `paper` is the raw mean over the channels: signed, unbounded, and its scale grows as the
    discriminator trains. Mode `normalized` is softplus(channel mean) / running mean, clipped to
    [0, 2]: dividing by one scalar, learned in training and stored with the model, keeps it near 1
    without any statistics of the tile. Mode `none` trains without attention; the map is then only
    shown, as in `normalized`.

    Parameters
    ----------
    config : AttentionConfig
    momentum : float
        Of the running mean.
    resize : {"nearest", "bilinear"}
        To the size asked for; nearest looks at no neighbours, which another tile may not have.
    """

    running_mean: Tensor

    def __init__(
        self,
        config: AttentionConfig,
        momentum: float = 0.01,
        resize: Literal["nearest", "bilinear"] = "nearest",
    ) -> None:
        super().__init__()
        self.resize = resize
        self.mode = config.mode
        self.momentum = momentum
        self.register_buffer("running_mean", F.softplus(torch.zeros(())))

    def forward(self, features: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
        """Map (B, C, h, w) features to (B, 1, *size) attention."""
        attention = features.float().mean(dim=1, keepdim=True)
        if self.mode != "paper":
            attention = F.softplus(attention)
            if self.training:
                with torch.no_grad():
                    self.running_mean.lerp_(attention.mean(), self.momentum)
            attention = (attention / self.running_mean).clamp(0, _LARGEST)
        return F.interpolate(attention, size=tuple(size), mode=self.resize)
