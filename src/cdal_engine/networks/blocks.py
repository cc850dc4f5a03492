"""Building blocks for any number of spatial dimensions; none looks beyond its receptive field."""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = [
    "ChannelNorm",
    "LevelEmbedding",
    "ResidualBlock",
    "conv",
    "depth_to_space",
    "space_to_depth",
    "upsample",
]

Conv = nn.Conv2d | nn.Conv3d

_CONV: dict[int, type[Conv]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


def conv(
    dims: int, c_in: int, c_out: int, kernel: int = 3, stride: int = 1
) -> nn.Conv2d | nn.Conv3d:
    """Return a convolution in `dims` dimensions with zero padding of half its kernel."""
    return _CONV[dims](c_in, c_out, kernel, stride=stride, padding=kernel // 2)


def space_to_depth(x: Tensor, factor: int = 2) -> Tensor:
    """(B, C, s·H, s·W, ...) to (B, C·sⁿ, H, W, ...), for n spatial dimensions."""
    n = x.ndim - 2
    if n == 2:
        return F.pixel_unshuffle(x, factor)  # the same, and keeps channels-last
    split = chain.from_iterable((size // factor, factor) for size in x.shape[2:])
    x = x.reshape(*x.shape[:2], *split)  # (B, C, H, s, W, s)
    x = x.permute(0, 1, *range(3, 3 + 2 * n, 2), *range(2, 2 + 2 * n, 2))  # (B, C, s, s, H, W)
    return x.flatten(1, 1 + n)


def depth_to_space(x: Tensor, factor: int = 2) -> Tensor:
    """Undo `space_to_depth`."""
    n = x.ndim - 2
    if n == 2:
        return F.pixel_shuffle(x, factor)
    sizes = x.shape[2:]
    x = x.unflatten(1, (-1, *[factor] * n))  # (B, C, s, s, H, W)
    x = x.permute(0, 1, *chain.from_iterable((2 + n + i, 2 + i) for i in range(n)))
    return x.reshape(*x.shape[:2], *(size * factor for size in sizes))


def upsample(x: Tensor) -> Tensor:
    """Double the spatial size by repeating: exact on any tile whose origin is on the grid."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, so that no statistics cross pixels."""

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to (B, C, ...)."""
        last = x.movedim(1, -1)  # free where memory is channels-last
        return F.layer_norm(last, (self.channels,), self.weight, self.bias).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """conv, norm, ReLU, conv, norm + shortcut, ReLU (He et al. 2016); stride 2 halves the size.

    BatchNorm: at inference its statistics are constants of the model, not of the tile.
    """

    def __init__(self, dims: int, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_0 = conv(dims, c_in, c_out, stride=stride)
        self.norm_0: nn.Module = _NORM[dims](c_out)
        self.conv_1 = conv(dims, c_out, c_out)
        self.norm_1: nn.Module = _NORM[dims](c_out)
        same = c_in == c_out and stride == 1
        self.shortcut = nn.Identity() if same else conv(dims, c_in, c_out, 1, stride)

    def fold(self) -> None:
        """Fold the norms of a block in evaluation mode into its convolutions."""
        for conv, norm in (("conv_0", self.norm_0), ("conv_1", self.norm_1)):
            assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d)
            setattr(self, conv, fuse_conv_bn_eval(getattr(self, conv), norm))
        self.norm_0 = self.norm_1 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W, ...) to (B, C_out, H / stride, W / stride, ...)."""
        h = F.relu(self.norm_0(self.conv_0(x)))
        return F.relu(self.norm_1(self.conv_1(h)) + self.shortcut(x))


class LevelEmbedding(nn.Module):
    """Noise level t / T as sines and cosines (Vaswani et al. 2017) through two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies = [math.pi * 2**j for j in range(5)]
        self.layers = nn.Sequential(
            nn.Linear(2 * len(self.frequencies), width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, level: Tensor) -> Tensor:
        """(B,) in 0 … 1 to (B, width)."""
        angles = torch.stack([level * f for f in self.frequencies], dim=1)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        embedding: Tensor = self.layers(waves.to(next(self.layers.parameters()).dtype))
        return embedding
