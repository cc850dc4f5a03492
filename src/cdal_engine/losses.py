"""Losses of the generator, its supervised head and the discriminator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "SupervisedLoss",
    "discriminator_loss",
    "generator_adversarial_loss",
    "r1_penalty",
    "squared_error",
]


def squared_error(x_0: Tensor, x_0_pred: Tensor) -> Tensor:
    """‖x_0 − x̂_0‖², averaged: paper eq. 4."""
    return F.mse_loss(x_0_pred, x_0)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Non-saturating loss of D from its logits: Goodfellow et al. (2014)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_adversarial_loss(fake: Tensor) -> Tensor:
    """Non-saturating loss of G from D's logits: Goodfellow et al. (2014)."""
    return F.softplus(-fake).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], x_prev: Tensor) -> Tensor:
    """½‖∇D‖² at real x_{t-1}, averaged over the batch: Mescheder et al. (2018), eq. 9.

    Parameters
    ----------
    discriminator : callable
        From x_{t-1} (B, K, h, w) to logits (B, ...), everything else held fixed.
    x_prev : Tensor
        (B, K, h, w) real samples.
    """
    x_prev = x_prev.detach().requires_grad_(True)
    # Mean over patches, so that gamma means the same for every crop size.
    logits = discriminator(x_prev).reshape(len(x_prev), -1).mean(dim=1).sum()
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
