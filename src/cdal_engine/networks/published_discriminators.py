"""The published discriminators, large and small: one trunk with two exits, features and logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CdalError
from ..ncsnpp_config import DISCRIMINATOR_BLOCKS, DiscriminatorSize, NcsnppConfig
from .ncsnpp_blocks import FirFilter, per_pixel, published_t, timestep_embedding

__all__ = ["PublishedDiscriminator"]

_START = 2  # channels before the first block, in multiples of `ngf`


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class _StepEmbedding(nn.Module):
    """Step t through two linear layers, the result activated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear_0 = nn.Linear(width, width)
        self.linear_1 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) in 0 … T - 1 to (B, width)."""
        h = _leaky(self.linear_0(timestep_embedding(t, self.width)))
        return _leaky(self.linear_1(h))


class _Block(nn.Module):
    """Residual block with the step added between its convolutions, optionally halving."""

    def __init__(self, c_in: int, c_out: int, temb: int, halve: bool) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.temb = nn.Linear(temb, c_out)
        self.halve = FirFilter("down") if halve else nn.Identity()
        self.conv_1 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W), or half the size; not activated."""
        h = _leaky(self.conv_0(_leaky(x)) + per_pixel(self.temb(temb)))
        summed: Tensor = self.conv_1(self.halve(h)) + self.shortcut(self.halve(x))
        return summed / math.sqrt(2)


def _with_deviation(x: Tensor) -> Tensor:
    """Append the deviation between rows as one constant channel: Karras et al. (2018), section 3.

    (B, C, h, w) to (B, C + 1, h, w). Rows b, b + B/g, b + 2 B/g, … make up a group of g.
    """
    rows, _, height, width = x.shape
    group = min(rows, NcsnppConfig.group)
    if rows % group:
        raise CdalError(
            f"the discriminator compares rows in groups of {group}, the batch has {rows}",
            f"take batches of up to {NcsnppConfig.group} or a multiple of it",
        )
    variance = x.unflatten(0, (group, rows // group)).var(dim=0, correction=0)
    deviation = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3)).repeat(group)
    return torch.cat([x, deviation[:, None, None, None].expand(-1, 1, height, width)], dim=1)


class PublishedDiscriminator(nn.Module):
    """D(x_{t-1}, x_t, t), paper section 2.2: one logit per row.

    The channel mean of feature `attn_scale` of the config is the attention map of the paper.

    Parameters
    ----------
    config : NcsnppConfig
    size : {"large", "small"}
        The large one halves six times, the small one three times.
    """

    def __init__(self, config: NcsnppConfig, size: DiscriminatorSize) -> None:
        super().__init__()
        width, temb = config.ngf, config.t_emb_dim
        self.steps = config.num_timesteps
        self.time = _StepEmbedding(temb)
        self.stem = nn.Conv2d(2 * config.num_channels, _START * width, 1)
        self.blocks = nn.ModuleList()
        channels = _START * width
        for multiple, halve in DISCRIMINATOR_BLOCKS[size]:
            self.blocks.append(_Block(channels, multiple * width, temb, halve))
            channels = multiple * width
        self.final = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.to_logit = nn.Linear(channels, 1)

    def features(
        self, x_prev: Tensor, x_t: Tensor, level: Tensor, last: int | None = None
    ) -> list[Tensor]:
        """Feature maps: of the first convolution, then of every block, not activated.

        Parameters
        ----------
        x_prev, x_t : Tensor
            (B, K, H, W) label maps before and after step t; H and W on multiples of 64 for the
            large one and of 8 for the small one.
        level : Tensor
            (B,) noise level t / T of `x_t`, t in 1 … T.
        last : int, optional
            Map to end with: smaller inputs do not reach the last one.
        """
        temb = self.time(published_t(level, self.steps))
        maps = [self.stem(torch.cat([x_prev, x_t], dim=1))]
        for block in self.blocks[:last]:
            maps.append(block(maps[-1], temb))
        return maps

    def feature(
        self, x_prev: Tensor, x_t: Tensor, image: Tensor, level: Tensor, index: int
    ) -> Tensor:
        """One of the `features`; it does not look at the image."""
        return self.features(x_prev, x_t, level, last=index)[index]

    def logits(self, last: Tensor) -> Tensor:
        """(B,) logits, positive for real, of the last of the `features`.

        Raises
        ------
        CdalError
            If B is above 4 and no multiple of it.
        """
        h = _leaky(self.final(_with_deviation(last)))
        logits: Tensor = self.to_logit(h.sum(dim=(2, 3)))
        return logits[:, 0]

    def forward(self, x_prev: Tensor, x_t: Tensor, image: Tensor, level: Tensor) -> Tensor:
        """(B,) logits, without a look at the image; others as `features`, errors as `logits`."""
        return self.logits(self.features(x_prev, x_t, level)[-1])
