"""Gaussian noise as a function of where it falls, so that every tiling samples the same answer.

A counter-based generator (Salmon et al. 2011 give the idea): an integer hash of seed, sample, step,
channel and the pixel's coordinates on the label grid becomes a uniform, then a normal number. It
uses 32-bit integer operations only, which are exact on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["latent", "noise"]

_LATENT_STREAM = 1 << 20  # far from any step number, so that z and noise share no numbers


def _hash(x: Tensor) -> Tensor:
    """Mix int32 bits in place (Wellons' lowbias32); shifts are made logical by masking."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x


def _keys(seed: int, sample: int, step: int, count: int, device: torch.device) -> Tensor:
    """`count` int32 keys, one a channel, from everything that is not a coordinate."""
    key = torch.zeros(count, dtype=torch.int32, device=device)
    for part in (seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF, sample, step):
        key = _hash(key + part + 0x3C6EF372)
    return _hash(key + torch.arange(count, dtype=torch.int32, device=device))


def noise(
    seed: int,
    sample: int,
    step: int,
    channels: int,
    origin: tuple[int, ...],
    size: tuple[int, ...],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Unit Gaussian noise over a region of the label grid.

    Parameters
    ----------
    seed, sample, step : int
        Of the run, the sample in it and the diffusion step the noise belongs to.
    channels : int
        K, label channels.
    origin, size : tuple of int
        Of the region, in label-grid pixels; any number of dimensions.
    device : torch.device or str

    Returns
    -------
    Tensor
        (K, *size) float32; any two regions agree where they overlap.
    """
    device = torch.device(device)
    bits = _keys(seed, sample, step, channels, device)
    for axis, (start, length) in enumerate(zip(origin, size, strict=True)):
        index = torch.arange(start, start + length, dtype=torch.int32, device=device)
        index = _hash(index + (axis + 1) * 0x1E3779B9)
        bits = _hash(bits.unsqueeze(-1) ^ index)
    # 23 bits, centred in their bins: never 0 or 1.
    uniform = ((bits >> 9) & 0x7FFFFF).to(torch.float32).add_(0.5).mul_(2.0**-22).sub_(1)
    return torch.erfinv(uniform).mul_(2**0.5)


def latent(
    seed: int, sample: int, step: int, dim: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The latent z of one sample and step, (dim,) unit Gaussian: the same for every tile."""
    return noise(seed, sample, _LATENT_STREAM + step, 1, (0,), (dim,), device)[0]
