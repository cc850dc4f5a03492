"""Losses of the generator, its supervised head and the discriminator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "SupervisedLoss",
    "cross_entropy",
    "discriminator_loss",
    "energy_score",
    "generator_adversarial_loss",
    "r1_penalty",
    "squared_error",
]


_FLOOR = 1e-4  # of probabilities in the cross-entropy
_PATCHES = (2, 8, 32)  # pixels


def squared_error(x_0: Tensor, x_0_pred: Tensor) -> Tensor:
    """‖x_0 − x̂_0‖² (B,), averaged over each label map (B, K, ...): paper eq. 4."""
    return (x_0 - x_0_pred).square().flatten(1).mean(dim=1)


def cross_entropy(x_0: Tensor, x_0_pred: Tensor) -> Tensor:
    """Cross-entropy (B,) of x̂_0 (B, K, ...) read as class probabilities, (x̂_0 + 1) / 2.

    A little of every class is mixed in, so that a sure and wrong answer still has a gradient.
    """
    y, kinds = (x_0 + 1) / 2, max(x_0.shape[1], 2)
    p = _FLOOR + (1 - kinds * _FLOOR) * (x_0_pred + 1) / 2
    likelihood = y * p.log()
    if x_0.shape[1] == 1:
        likelihood = likelihood + (1 - y) * (1 - p).log()
    return -likelihood.sum(dim=1).flatten(1).mean(dim=1)


def energy_score(x_0: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Energy score (B,) of two draws, ½‖x_0 − a‖ + ½‖x_0 − b‖ − ½‖a − b‖: a proper score.

    Least where patches of the draws are distributed as those of x_0, so that it neither pulls them
    to their mean, as the squared error does, nor needs an opponent: Gneiting and Raftery (2007),
    section 4.3; for few-step diffusion, De Bortoli et al. (2025), arXiv:2502.02483. The norms are
    over patches of several sizes: of a pixel's surroundings, of a part of an object, of an object.
    How places further apart go together, it does not judge.

    Parameters
    ----------
    x_0, first, second : Tensor
        (B, K, H, W) label map and draws in [-1, 1].
    """
    total = x_0.new_zeros(len(x_0))
    for edge in _PATCHES:

        def distance(a: Tensor, b: Tensor, edge: int = edge) -> Tensor:
            squared = F.avg_pool2d((a - b).square().mean(dim=1, keepdim=True), edge)
            return (squared + 1e-6).sqrt().flatten(1).mean(dim=1)

        to_truth = distance(x_0, first) + distance(x_0, second)
        total = total + (to_truth - distance(first, second)) / 2
    return total


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Non-saturating loss of D from its logits: Goodfellow et al. (2014)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_adversarial_loss(fake: Tensor) -> Tensor:
    """Non-saturating loss (B,) of G from D's logits (B, 1, ...): Goodfellow et al. (2014)."""
    return F.softplus(-fake).flatten(1).mean(dim=1)


def r1_penalty(discriminator: Callable[[Tensor], Tensor], x_prev: Tensor) -> Tensor:
    """½‖∇D‖² at real x_{t-1}, averaged over the batch: Mescheder et al. (2018), eq. 9.

    Parameters
    ----------
    discriminator : callable
        From x_{t-1} (B, K, h, w) to patch logits, everything else held fixed.
    x_prev : Tensor
        (B, K, h, w) real samples.
    """
    x_prev = x_prev.detach().requires_grad_(True)
    # Mean over patches, so that gamma means the same for every crop size.
    logits = discriminator(x_prev).flatten(1).mean(dim=1).sum()
    (gradient,) = torch.autograd.grad(logits, x_prev, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(dim=1).mean()


class SupervisedLoss(nn.Module):
    """Cross-entropy plus Dice of the supervised head's logits against the clean label map."""

    def __init__(self, label_channels: int) -> None:
        super().__init__()
        single = label_channels == 1
        self.loss = DiceCELoss(
            sigmoid=single, softmax=not single, include_background=single, batch=True
        )

    def forward(self, logits: Tensor, x_0: Tensor) -> Tensor:
        """Compare (B, K, H, W) logits with the label map in [-1, 1]."""
        loss: Tensor = self.loss(logits.float(), (x_0 + 1) / 2)
        return loss
