"""Variance-preserving diffusion of label maps in a few large steps.

States are x_0 (the label map) to x_T (close to unit Gaussian noise); step t, from 1 to T, leads
from x_t to x_{t-1}. Song et al. (2021), "Score-based generative modeling through SDEs", eq. 11,
gives the schedule; Xiao et al. (2022), "Denoising diffusion GANs", the few large steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import DiffusionConfig

__all__ = ["NoiseSchedule", "q_posterior", "q_sample", "q_step"]

_S_MIN = 1e-3  # continuous time of x_0: the SDE is singular at 0


@dataclass(frozen=True)
class NoiseSchedule:
    """Immutable float64 tables, each of T + 1 entries, indexed by t = 0 … T.

    Attributes
    ----------
    betas : Tensor
        Variance added on the way from x_{t-1} to x_t; ``betas[0]`` is 0.
    alphas_cumprod : Tensor
        Remaining signal power, ``prod(1 - betas[:t + 1])``; ``alphas_cumprod[0]`` is 1.
    """

    betas: Tensor
    alphas_cumprod: Tensor

    @classmethod
    def variance_preserving(cls, config: DiffusionConfig) -> NoiseSchedule:
        """Tabulate the schedule in `config.steps` equal parts of continuous time."""
        steps = config.steps
        s = torch.arange(steps + 1, dtype=torch.float64) / steps * (1 - _S_MIN) + _S_MIN
        log_alpha = -(s**2) * (config.beta_max - config.beta_min) / 2 - s * config.beta_min
        alphas_cumprod = torch.exp(log_alpha - log_alpha[0])
        betas = torch.zeros_like(alphas_cumprod)
        betas[1:] = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
        return cls(betas, alphas_cumprod)

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.betas) - 1

    def fraction(self, t: Tensor) -> Tensor:
        """Noise level as t / T in 0 … 1, the same for every T; (B,) integers to (B,) float32."""
        return t.to(torch.float32) / self.steps


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Gather `table[t]`, shaped to broadcast against `like` (B, ...), in its dtype and device."""
    values = table[t.cpu()].to(like.device, like.dtype)
    return values.reshape(-1, *[1] * (like.ndim - 1))


def q_sample(schedule: NoiseSchedule, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0): Ho et al. (2020), eq. 4.

    Parameters
    ----------
    schedule : NoiseSchedule
    x_0, noise : Tensor
        (B, K, ...) label map in [-1, 1] and unit Gaussian noise.
    t : Tensor
        (B,) integers in 0 … T.
    """
    a = _at(schedule.alphas_cumprod, t, x_0)
    return a.sqrt() * x_0 + (1 - a).sqrt() * noise


def q_step(schedule: NoiseSchedule, x_prev: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_{t-1}) for t in 1 … T: Ho et al. (2020), eq. 2; shapes as `q_sample`."""
    beta = _at(schedule.betas, t, x_prev)
    return (1 - beta).sqrt() * x_prev + beta.sqrt() * noise


def q_posterior(
    schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """x_{t-1} ~ q(x_{t-1} | x_t, x_0) for t in 1 … T: Ho et al. (2020), eq. 6 and 7.

    At t = 1 the variance is 0 and the result is `x_0` exactly. Shapes as `q_sample`.
    """
    beta = schedule.betas
    a = schedule.alphas_cumprod
    a_prev = a[t.cpu() - 1]
    beta_t, a_t = beta[t.cpu()], a[t.cpu()]
    index = torch.arange(len(a_t))
    of_x_0 = _at(beta_t * a_prev.sqrt() / (1 - a_t), index, x_0)
    of_x_t = _at((1 - a_prev) * (1 - beta_t).sqrt() / (1 - a_t), index, x_0)
    variance = _at(beta_t * (1 - a_prev) / (1 - a_t), index, x_0)
    return of_x_0 * x_0 + of_x_t * x_t + variance.sqrt() * noise
