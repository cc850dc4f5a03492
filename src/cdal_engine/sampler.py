"""From noise to label map in T steps, over any denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .diffusion import NoiseSchedule, q_posterior

__all__ = ["Sample", "sample"]


class Sample(NamedTuple):
    """What sampling ends with.

    Attributes
    ----------
    x_0 : Tensor
        (B, K, H, W) label map in [-1, 1] at full resolution.
    x_prev, x_t : Tensor
        (B, K, h, w) states after and before the last step, as a discriminator takes them.
    """

    x_0: Tensor
    x_prev: Tensor
    x_t: Tensor


def sample(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    to_label_grid: Callable[[Tensor], Tensor],
    schedule: NoiseSchedule,
    noise: Callable[[int], Tensor],
    latent: Callable[[int], Tensor],
    seen: Callable[[Tensor, Tensor], None] | None = None,
) -> Sample:
    """Run the reverse process: Xiao et al. (2022), eq. 4; paper section 2.3.

    Parameters
    ----------
    denoise : callable
        (x_t, t / T, z) to x̂_0 (B, K, H, W) in [-1, 1].
    to_label_grid : callable
        From x̂_0 to the grid of x_t.
    schedule : NoiseSchedule
        Its `steps` is T.
    noise : callable
        Step t in 1 … T to unit Gaussian noise (B, K, h, w); T gives x_T, t - 1 that of step t.
    latent : callable
        Step t to the latent z (B, L).
    seen : callable, optional
        Called at each step, from T to 1, with x_t and its x̂_0.
    """
    x_t = noise(schedule.steps)
    for step in range(schedule.steps, 0, -1):
        t = torch.full((len(x_t),), step)
        x_0 = denoise(x_t, schedule.fraction(t).to(x_t.device), latent(step))
        if seen is not None:
            seen(x_t, x_0)
        fresh = noise(step - 1) if step > 1 else torch.zeros_like(x_t)
        x_prev = q_posterior(schedule, to_label_grid(x_0), x_t, t, fresh)
        if step > 1:
            x_t = x_prev
    return Sample(x_0, x_prev, x_t)
