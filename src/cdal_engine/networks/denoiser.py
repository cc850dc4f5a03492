"""The light denoiser: run once per step and sample, at a quarter of the image's resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ModelConfig
from .blocks import ChannelNorm, LevelEmbedding, conv, depth_to_space, space_to_depth
from .condition_encoder import Features, supervised_answer

__all__ = ["LabelDenoiser"]


class _AdaptiveBlock(nn.Module):
    """Residual block whose norms are scaled and shifted by the embedding of (t, z)."""

    def __init__(self, dims: int, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width, affine=False)
        self.conv_0 = conv(dims, width, width)
        self.conv_1 = conv(dims, width, width)
        self.modulation = nn.Linear(embedding, 4 * width)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, W, h, w) and (B, E) to (B, W, h, w)."""
        modulation = self.modulation(embedding)
        modulation = modulation.reshape(*modulation.shape, *[1] * (x.ndim - 2))
        scale_0, shift_0, scale_1, shift_1 = modulation.chunk(4, dim=1)
        h = self.conv_0(F.silu(torch.addcmul(shift_0, self.norm(x), 1 + scale_0)))
        change: Tensor = self.conv_1(F.silu(torch.addcmul(shift_1, self.norm(h), 1 + scale_1)))
        return x + change


class LabelDenoiser(nn.Module):
    """x̂_0 = G(x_t, t, z, features), paper eq. 3, as a correction of the supervised logits.

    The latent z reaches every block through its adaptive norms. x_t lives on the label grid, half
    the image's resolution; the last layer draws x̂_0 at full resolution with the encoder's detail.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        net = config.amortized
        dims, width, labels = net.spatial_dims, net.denoiser_width, config.label_channels
        self.level = LevelEmbedding(width)
        self.latent = nn.Sequential()
        if net.latent_dim:
            linear = nn.Linear(net.latent_dim, width), nn.Linear(width, width)
            self.latent = nn.Sequential(linear[0], nn.SiLU(), linear[1], nn.SiLU())
        self.stem = conv(dims, labels * 2**dims, width)
        embedding = 2 * width if net.latent_dim else width
        self.blocks = nn.ModuleList(
            _AdaptiveBlock(dims, width, embedding) for _ in range(net.denoiser_blocks)
        )
        self.norm = ChannelNorm(width)
        self.to_detail = conv(dims, width, net.detail_width * 2**dims, kernel=1)
        self.to_correction = conv(dims, net.detail_width, labels * 2**dims)

    def forward(self, x_t: Tensor, level: Tensor, z: Tensor, features: Features) -> Tensor:
        """Predict the clean label map.

        Parameters
        ----------
        x_t : Tensor
            (B, K, H/2, W/2) noisy label map.
        level : Tensor
            (B,) noise level t / T in 0 … 1.
        z : Tensor
            (B, latent_dim) unit Gaussian latent.
        features : Features
            Of the image, one row per row of `x_t`; their precision is that of the layers.

        Returns
        -------
        Tensor
            (B, K, H, W) x̂_0 in [-1, 1], in float32.
        """
        dtype = features.context.dtype
        z = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)  # pixel norm
        embedding = torch.cat([self.level(level), self.latent(z.to(dtype))], dim=1)
        h = self.stem(space_to_depth(x_t.to(dtype))) + features.context
        for block in self.blocks:
            h = block(h, embedding)
        h = depth_to_space(self.to_detail(F.silu(self.norm(h)))) + features.detail
        correction = depth_to_space(self.to_correction(F.silu(h)))
        return supervised_answer((features.logits + correction).float())
