"""The `ncsnpp` generator: the published cDAL network, a condition encoder before an NCSN++ U-Net.

x_t and the image have one size. The U-Net is that of Song et al. (2021), appendix H, with the
latent of Xiao et al. (2022), "Denoising diffusion GANs"; the condition is added to its first
convolution and enters nowhere else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ncsnpp_config import NcsnppConfig
from .ncsnpp_blocks import (
    PyramidConv,
    Resample,
    ResidualBlock,
    SelfAttention,
    group_norm,
    published_t,
    timestep_embedding,
)
from .protocol import LabelGenerator

__all__ = ["NcsnppFeatures", "NcsnppGenerator"]


class NcsnppFeatures(NamedTuple):
    """What the denoiser needs of the image.

    Attributes
    ----------
    context : Tensor
        (B, C, H, W), added to the first convolution of x_t.
    """

    context: Tensor


class _ConditionBlock(nn.Module):
    """Residual block that knows neither step nor latent; its sum is not divided."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm_0 = nn.GroupNorm(32, channels)
        self.conv_0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_1 = nn.GroupNorm(32, channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        h = self.conv_0(F.silu(self.norm_0(x)))
        change: Tensor = self.conv_1(self.dropout(F.silu(self.norm_1(h))))
        return x + change


class NcsnppConditionEncoder(nn.Module):
    """Residual blocks at full resolution, run once per image."""

    def __init__(self, config: NcsnppConfig) -> None:
        super().__init__()
        width = config.num_channels_dae
        self.stem = nn.Conv2d(config.image_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            _ConditionBlock(width, config.dropout) for _ in range(config.condition_blocks)
        )

    def forward(self, image: Tensor) -> NcsnppFeatures:
        """Encode (B, C, H, W) normalised intensities."""
        h = self.stem(image)
        for block in self.blocks:
            h = block(h)
        return NcsnppFeatures(h)


class _TimeEmbedding(nn.Module):
    """Step t through two linear layers; every residual block activates the result itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear_0 = nn.Linear(width, 4 * width)
        self.linear_1 = nn.Linear(4 * width, 4 * width)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) in 0 … T - 1 to (B, 4 · width)."""
        temb: Tensor = self.linear_1(F.silu(self.linear_0(timestep_embedding(t, self.width))))
        return temb


class _LatentMapping(nn.Module):
    """Latent z, normalised, through `n_mlp` + 1 linear layers: Karras et al. (2019), section 2."""

    def __init__(self, config: NcsnppConfig) -> None:
        super().__init__()
        widths = [config.nz, *[config.z_emb_dim] * config.n_mlp]
        self.layers = nn.ModuleList(nn.Linear(width, config.z_emb_dim) for width in widths)

    def forward(self, z: Tensor) -> Tensor:
        """(B, nz) to (B, z_emb_dim), activated."""
        z = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)  # pixel norm
        for layer in self.layers:
            z = F.silu(layer(z))
        return z


def _block(
    config: NcsnppConfig, c_in: int, c_out: int, resample: Resample = "none"
) -> ResidualBlock:
    temb = 4 * config.num_channels_dae
    return ResidualBlock(c_in, c_out, temb, config.z_emb_dim, config.dropout, resample)


class _DownLevel(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the level attends."""

    def __init__(self, config: NcsnppConfig, level: int) -> None:
        super().__init__()
        channels = config.channels(level)
        self.blocks = nn.ModuleList(_block(config, c, channels) for c in config.block_inputs(level))
        self.attentions = nn.ModuleList(
            SelfAttention(channels) if config.attends(level) else nn.Identity() for _ in self.blocks
        )

    def forward(self, h: Tensor, temb: Tensor, zemb: Tensor) -> list[Tensor]:
        """Skip tensors of the level: its input and its outputs, the last of which goes on."""
        skips = [h]
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(h, temb, zemb))
            skips.append(h)
        return skips


class _Halving(nn.Module):
    """From one level to the next: the last output halved, joined by the input pyramid."""

    def __init__(self, config: NcsnppConfig, level: int) -> None:
        super().__init__()
        channels = config.channels(level)
        pyramid = config.channels(level - 1) if level else config.num_channels
        self.down = _block(config, channels, channels, "down")
        self.pyramid = PyramidConv(pyramid, channels)

    def forward(self, pyramid: Tensor, h: Tensor, temb: Tensor, zemb: Tensor) -> Tensor:
        """(B, P, H, W) of the pyramid and (B, C, H, W) to (B, C, H/2, W/2)."""
        summed: Tensor = self.pyramid(pyramid) + self.down(h, temb, zemb)
        return summed / math.sqrt(2)


class _Middle(nn.Module):
    """The coarsest resolution, always with attention."""

    def __init__(self, config: NcsnppConfig) -> None:
        super().__init__()
        channels = config.channels(config.levels - 1)
        self.block_0 = _block(config, channels, channels)
        self.attention = SelfAttention(channels)
        self.block_1 = _block(config, channels, channels)

    def forward(self, h: Tensor, temb: Tensor, zemb: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        h = self.attention(self.block_0(h, temb, zemb))
        h = self.block_1(h, temb, zemb)
        return h


class _UpLevel(nn.Module):
    """A residual block for every skip tensor, attention where the level attends, and doubling."""

    def __init__(self, config: NcsnppConfig, level: int) -> None:
        super().__init__()
        channels = config.channels(level)
        below = config.channels(min(level + 1, config.levels - 1))
        incoming = [below, *[channels] * config.num_res_blocks]
        skips = reversed(config.skips(level))
        self.blocks = nn.ModuleList(
            _block(config, c + skip, channels) for c, skip in zip(incoming, skips, strict=True)
        )
        self.attention = SelfAttention(channels) if config.attends(level) else nn.Identity()
        self.up = _block(config, channels, channels, "up") if level else None

    def forward(self, h: Tensor, skips: list[Tensor], temb: Tensor, zemb: Tensor) -> Tensor:
        """(B, C_below, H, W) to (B, C, 2H, 2W), or to (B, C, H, W) on the finest level."""
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            h = block(torch.cat([h, skip], dim=1), temb, zemb)
        h = self.attention(h)
        if self.up is not None:
            h = self.up(h, temb, zemb)
        return h


class NcsnppDenoiser(nn.Module):
    """x̂_0 = G(x_t, t, z, features), paper eq. 3: the U-Net, run once per step and sample."""

    def __init__(self, config: NcsnppConfig) -> None:
        super().__init__()
        width, levels = config.num_channels_dae, config.levels
        self.steps = config.num_timesteps
        self.bounded = not config.not_use_tanh
        self.time = _TimeEmbedding(width)
        self.latent = _LatentMapping(config)
        self.stem = nn.Conv2d(config.num_channels, width, 3, padding=1)
        self.down = nn.ModuleList(_DownLevel(config, i) for i in range(levels))
        self.halvings = nn.ModuleList(_Halving(config, i) for i in range(levels - 1))
        self.middle = _Middle(config)
        self.up = nn.ModuleList(_UpLevel(config, i) for i in range(levels))
        self.norm = group_norm(config.channels(0))
        self.to_labels = nn.Conv2d(config.channels(0), config.num_channels, 3, padding=1)

    def forward(self, x_t: Tensor, level: Tensor, z: Tensor, features: NcsnppFeatures) -> Tensor:
        """Predict the clean label map.

        Parameters
        ----------
        x_t : Tensor
            (B, K, H, W) noisy label map; H and W on multiples of the config's `stride`.
        level : Tensor
            (B,) noise level t / T of `x_t`, t in 1 … T.
        z : Tensor
            (B, nz) unit Gaussian latent.
        features : NcsnppFeatures
            Of the image, one row per row of `x_t`.

        Returns
        -------
        Tensor
            (B, K, H, W) x̂_0, in [-1, 1] unless the config says `not_use_tanh`.
        """
        temb, zemb = self.time(published_t(level, self.steps)), self.latent(z)
        h = self.stem(x_t) + features.context
        pyramid, skips = x_t, [self.down[0](h, temb, zemb)]
        for halving, down in zip(self.halvings, self.down[1:], strict=True):
            pyramid = halving(pyramid, skips[-1][-1], temb, zemb)
            skips.append(down(pyramid, temb, zemb))
        h = self.middle(skips[-1][-1], temb, zemb)
        for up in reversed(self.up):
            h = up(h, skips.pop(), temb, zemb)
        x_0: Tensor = self.to_labels(F.silu(self.norm(h)))
        return torch.tanh(x_0) if self.bounded else x_0


class NcsnppGenerator(LabelGenerator[NcsnppFeatures]):
    """The published `LabelGenerator`; weights are kept as published, in float32."""

    label_stride = 1
    reduced_precision = False

    def __init__(self, config: NcsnppConfig) -> None:
        super().__init__()
        self.encoder = NcsnppConditionEncoder(config)
        self.denoiser = NcsnppDenoiser(config)
