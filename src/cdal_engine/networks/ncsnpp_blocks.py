"""Blocks of the published networks: NCSN++ (Song et al. 2021, appendix H) with a latent.

Two spatial dimensions. Group norms look at the whole input, so an answer depends on all of it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AdaptiveGroupNorm",
    "FirFilter",
    "PyramidConv",
    "ResidualBlock",
    "SelfAttention",
    "group_norm",
    "published_t",
    "timestep_embedding",
]

Resample = Literal["none", "down", "up"]
_EPS = 1e-6


def published_t(level: Tensor, steps: int) -> Tensor:
    """Noise level t / T of x_t, t in 1 … T, as the published step 0 … T - 1; (B,) to (B,)."""
    return (level * steps).round() - 1


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of t at `width` / 2 frequencies: Vaswani et al. (2017), section 3.5.

    (B,) steps, not scaled, to (B, `width`) float32. Frequencies fall from 1 to 1 / 10000.
    """
    half = width // 2
    order = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(order * (-math.log(10000) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _groups(channels: int) -> int:
    return min(channels // 4, 32)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with at least four channels to a group, and weight and bias of its own."""
    return nn.GroupNorm(_groups(channels), channels, eps=_EPS)


def per_pixel(vector: Tensor) -> Tensor:
    """(B, C) to (B, C, 1, 1), to add to or multiply every pixel."""
    return vector[:, :, None, None]


class FirFilter(nn.Module):
    """Low-pass (1, 3, 3, 1) along both axes before halving or after doubling; zero outside.

    Zhang (2019), "Making convolutional networks shift-invariant again". (B, C, H, W) to
    (B, C, H/2, W/2) for "down", (B, C, 2H, 2W) for "up" and (B, C, H+1, W+1) for "none".
    """

    kernel: Tensor

    def __init__(self, resample: Resample) -> None:
        super().__init__()
        self.resample = resample
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        gain = 4 if resample == "up" else 1  # three of four samples are zeros then
        self.register_buffer("kernel", gain * torch.outer(line, line) / 64, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Filter every channel by itself."""
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        if self.resample == "up":
            return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)
        if self.resample == "down":
            return F.conv2d(x, kernel, stride=2, padding=1, groups=channels)
        return F.conv2d(x, kernel, padding=2, groups=channels)


class PyramidConv(nn.Module):
    """FIR filter and a convolution of stride 2: a lower level of the input pyramid."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.smooth = FirFilter("none")
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H/2, W/2)."""
        halved: Tensor = self.conv(self.smooth(x))
        return halved


class AdaptiveGroupNorm(nn.Module):
    """Group norm scaled and shifted by the latent: Karras et al. (2019), eq. 1."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(channels), channels, eps=_EPS, affine=False)
        self.style = nn.Linear(embedding, 2 * channels)
        with torch.no_grad():  # untrained, it is the group norm on average
            self.style.bias[:channels] = 1
            self.style.bias[channels:] = 0

    def forward(self, x: Tensor, zemb: Tensor) -> Tensor:
        """(B, C, H, W) and (B, E) to (B, C, H, W)."""
        scale, shift = self.style(zemb).chunk(2, dim=1)
        normed: Tensor = self.norm(x)
        return per_pixel(scale) * normed + per_pixel(shift)


class ResidualBlock(nn.Module):
    """Residual block of BigGAN (Brock et al. 2019) with step and latent, optionally resampling.

    Both ways are resampled before the first convolution, and their sum divided by √2.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        temb: int,
        zemb: int,
        dropout: float = 0.0,
        resample: Resample = "none",
    ) -> None:
        super().__init__()
        self.norm_0 = AdaptiveGroupNorm(c_in, zemb)
        self.resample = nn.Identity() if resample == "none" else FirFilter(resample)
        self.conv_0 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.temb = nn.Linear(temb, c_out)
        self.norm_1 = AdaptiveGroupNorm(c_out, zemb)
        self.dropout = nn.Dropout(dropout)
        self.conv_1 = nn.Conv2d(c_out, c_out, 3, padding=1)
        same = c_in == c_out and resample == "none"
        self.shortcut = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, temb: Tensor, zemb: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W), or half or twice the size."""
        h = self.resample(F.silu(self.norm_0(x, zemb)))
        h = self.conv_0(h) + per_pixel(self.temb(F.silu(temb)))
        h = self.conv_1(self.dropout(F.silu(self.norm_1(h, zemb))))
        summed: Tensor = self.shortcut(self.resample(x)) + h
        return summed / math.sqrt(2)


class _PixelMap(nn.Module):
    """Linear map of channels whose weight is stored as (in, out), as published files have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return x @ self.weight + self.bias


class SelfAttention(nn.Module):
    """Single-headed attention over all pixels, as in Ho et al. (2020), appendix B; sum / √2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.query = _PixelMap(channels)
        self.key = _PixelMap(channels)
        self.value = _PixelMap(channels)
        self.output = _PixelMap(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        h = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1 head, H · W, C)
        h = F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        h = self.output(h)[:, 0].transpose(1, 2).reshape(x.shape)
        summed: Tensor = x + h
        return summed / math.sqrt(2)
