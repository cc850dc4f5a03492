"""What the Gaussian diffusion is measured against: the same networks over classes, not numbers.

Multinomial diffusion (Hoogeboom et al. 2021) whose noise is the supervised head's answer instead
of the uniform one: x_t is a class per pixel of the label grid, kept from x_0 with a chance that
falls with t, else drawn from the head's softmax h; so x_T is a draw from the head.
"""

from __future__ import annotations

import torch
from controls import Batch, train_alone
from torch import Tensor
from torch.nn import functional as F

from cdal_engine.config import ModelConfig
from cdal_engine.diffusion import NoiseSchedule
from cdal_engine.losses import SupervisedLoss
from cdal_engine.networks import Features, Generator
from cdal_engine.training.loop import Trainer


class CategoricalDiffusion(Generator):
    """Runs all of its T steps in one call, so that the Segmenter takes it for a one-step model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.channels = config.label_channels
        tables = NoiseSchedule.variance_preserving(config.diffusion)
        self.steps = tables.steps
        # Chance that x_t is still x_0, for t = 0 … T.
        self.register_buffer("kept", tables.alphas_cumprod.sqrt().float())

    def prior(self, features: Features) -> Tensor:
        """h (B, K, H/2, W/2), the head's softmax on the label grid."""
        return F.avg_pool2d(torch.softmax(features.logits.detach().float(), dim=1), 2)

    def draw(self, p: Tensor, dice: torch.Generator) -> Tensor:
        """One-hot (B, K, h, w) drawn from probabilities."""
        gumbel = -torch.log(-torch.log(torch.rand(p.shape, generator=dice).clamp(1e-9, 1 - 1e-7)))
        hit = (torch.log(p + 1e-9) + gumbel.to(p.device)).argmax(dim=1)
        return F.one_hot(hit, self.channels).movedim(-1, 1).to(p.dtype)

    def marginal(self, x_0: Tensor, h: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0), (B, K, h, w), of t (B,)."""
        kept = self.kept[t].view(-1, 1, 1, 1)
        return kept * x_0 + (1 - kept) * h

    def posterior(self, x_0: Tensor, x_t: Tensor, h: Tensor, t: Tensor) -> Tensor:
        """q(x_{t-1} | x_t, x_0), per class: what led to x_t, times what x_0 leads to."""
        kept = (self.kept[t] / self.kept[t - 1]).view(-1, 1, 1, 1)
        led = kept * x_t + (1 - kept) * (h * x_t).sum(dim=1, keepdim=True)
        p = led * self.marginal(x_0, h, t - 1)
        return p / p.sum(dim=1, keepdim=True).clamp_min(1e-9)

    def answer(self, x_t: Tensor, t: Tensor, z: Tensor, features: Features) -> Tensor:
        """x̂_0 (B, K, H, W) in [-1, 1] from a one-hot x_t."""
        return super().denoise(2 * x_t - 1, t / self.steps, z, features)

    def denoise(self, x_t: Tensor, level: Tensor, z: Tensor, features: Features) -> Tensor:
        """One sample a row; its draws are a function of the row's z."""
        h = self.prior(features)
        rows = [torch.Generator().manual_seed(int(row.abs().sum() * 1e5)) for row in z]

        def draw(p: Tensor) -> Tensor:
            return torch.cat([self.draw(p[i : i + 1], dice) for i, dice in enumerate(rows)])

        state = draw(h)
        for step in range(self.steps, 0, -1):
            t = torch.full((len(x_t),), step, device=x_t.device)
            x_0 = self.answer(state, t, z, features)
            if step > 1:
                state = draw(self.posterior(F.avg_pool2d((x_0 + 1) / 2, 2), state, h, t))
        return x_0


def train_categorical(trainer: Trainer) -> CategoricalDiffusion:
    """Train one by cross-entropy and Dice, of x̂_0 and of the head."""
    model = trainer.config.model
    supervised = SupervisedLoss(model.label_channels)
    dice = torch.Generator().manual_seed(trainer.config.seed)

    def loss_of(network: CategoricalDiffusion, batch: Batch) -> Tensor:
        images, x_0 = batch
        features = network.encode(images)
        t = torch.randint(1, network.steps + 1, (len(x_0),), generator=dice).to(x_0.device)
        marginal = network.marginal(F.avg_pool2d((x_0 + 1) / 2, 2), network.prior(features), t)
        z = torch.randn(len(x_0), model.network.latent_dim, generator=dice)
        held = features._replace(logits=features.logits.detach())
        answer = network.answer(network.draw(marginal, dice), t, z.to(x_0.device), held)
        logs = torch.log((answer + 1) / 2 + 1e-6)
        return supervised(features.logits, x_0) + supervised(logs, x_0)

    return train_alone(trainer, lambda: CategoricalDiffusion(model), loss_of)
