"""What one training step computes: a noised batch, the generator's answer, the losses of both.

x_0 becomes x_{t-1} and x_t at a random t; the generator answers with x̂_0 from x_t; x̂_{t-1} is drawn
from it. The discriminator D tells (x_{t-1}, x_t) from (x̂_{t-1}, x_t), both given the image and t.

Ours: the generator answers once, on x_t^att, and both learn from that. The paper's (section 2.2): D
learns from the answer to x_t; then the generator from a second one, on x_t^att by D's new features.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import TrainConfig
from ..diffusion import NoiseSchedule, q_posterior, q_sample, q_step
from ..losses import (
    SupervisedLoss,
    discriminator_loss,
    generator_adversarial_loss,
    r1_penalty,
    squared_error,
)
from ..model import Networks
from ..networks import LabelGenerator, to_label_grid
from .team import Team

__all__ = ["Noised", "Objective"]


class Noised(NamedTuple):
    """A batch at random noise levels.

    Attributes
    ----------
    images : Tensor
        (B, C, H, W) normalised intensities.
    x_0 : Tensor
        (B, K, H, W) label maps in [-1, 1].
    on_grid, x_prev, x_t : Tensor
        (B, K, h, w) label maps on the generator's label grid, and their states x_{t-1} and x_t.
    t : Tensor
        (B,) integers in 1 … T.
    level : Tensor
        (B,) t / T.
    """

    images: Tensor
    x_0: Tensor
    on_grid: Tensor
    x_prev: Tensor
    x_t: Tensor
    t: Tensor
    level: Tensor


class Objective:
    """Losses of a training config for its generator, of this device's rows of a batch."""

    def __init__(self, config: TrainConfig, generator: LabelGenerator[Any], team: Team) -> None:
        self.config, self.team, self.device = config, team, team.device
        self.to_grid = partial(
            to_label_grid,
            scale=config.model.diffusion.label_scale,
            stride=generator.label_stride,
        )
        self.weights = {
            "reconstruction": 1.0,
            "adversarial": config.losses.adversarial,
            "supervised": config.losses.supervised,
        }
        self.schedule = NoiseSchedule.variance_preserving(config.model.diffusion)
        self.supervised_loss = SupervisedLoss(config.model.label_channels)

    def noised(self, images: Tensor, x_0: Tensor, draw: torch.Generator) -> Noised:
        """Draw t, x_{t-1} and x_t for a batch."""
        on_grid = self.to_grid(x_0)
        t = self.team.share(partial(self._levels, draw), (len(x_0),))
        x_prev = q_sample(self.schedule, on_grid, t - 1, self.gaussian(on_grid.shape, draw))
        x_t = q_step(self.schedule, x_prev, t, self.gaussian(on_grid.shape, draw))
        level = self.schedule.fraction(t).to(self.device)
        return Noised(images, x_0, on_grid, x_prev, x_t, t, level)

    def _levels(self, draw: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(1, self.schedule.steps + 1, shape, generator=draw)

    def gaussian(self, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        """Unit Gaussian numbers, the same on every device."""
        noise = self.team.share(partial(torch.randn, generator=draw), shape).to(self.device)
        return noise.contiguous(memory_format=torch.channels_last) if noise.ndim == 4 else noise

    def shown(
        self, networks: Networks, batch: Noised, features: Any, draw: torch.Generator
    ) -> Tensor:
        """x̂_0 (B, K, H, W) that D is shown: in the paper with the generator frozen, of x_t."""
        if self.config.objective == "ours":
            return self.predicted(networks, batch, features, draw)
        with torch.no_grad():
            return self._denoised(networks, batch, batch.x_t, features, draw)

    def learned_from(
        self,
        networks: Networks,
        batch: Noised,
        features: Any,
        x_0_shown: Tensor,
        draw: torch.Generator,
    ) -> Tensor:
        """x̂_0 that the generator learns from, after D has: paper eq. 4; in ours the one `shown`."""
        if self.config.objective == "ours":
            return x_0_shown
        return self.predicted(networks, batch, features, draw)

    def predicted(
        self, networks: Networks, batch: Noised, features: Any, draw: torch.Generator
    ) -> Tensor:
        """x̂_0 (B, K, H, W) of x_t^att and a latent drawn for each row."""
        if self.config.losses.supervised > 0:  # the head then learns from its own loss only
            features = features._replace(logits=features.logits.detach())
        x_t = batch.x_t + self._attention_shift(networks, batch)
        return self._denoised(networks, batch, x_t, features, draw)

    def _denoised(
        self,
        networks: Networks,
        batch: Noised,
        x_t: Tensor,
        features: Any,
        draw: torch.Generator,
    ) -> Tensor:
        z = self.gaussian((len(x_t), self.config.model.network.latent_dim), draw)
        x_0: Tensor = networks.generator.denoise(x_t, batch.level, z, features)
        return x_0.float()

    @torch.no_grad()
    def _attention_shift(self, networks: Networks, batch: Noised) -> Tensor | float:
        """x_t^att − x_t, where x_t^att ~ q(x_t | x_0 ⊙ A_D) with the noise of x_t: section 2.2."""
        attention = networks.attention_map(
            batch.x_prev, batch.x_t, batch.images, batch.level, batch.on_grid.shape[2:]
        )
        if self.config.model.attention.mode == "none":
            return 0.0  # the running mean was wanted, to show the map by
        silent = torch.zeros_like(batch.on_grid)
        return q_sample(self.schedule, (attention - 1) * batch.on_grid, batch.t, silent)

    def previous(self, batch: Noised, x_0_pred: Tensor, draw: torch.Generator) -> Tensor:
        """x̂_{t-1} ~ q(x_{t-1} | x_t, x̂_0)."""
        on_grid = self.to_grid(x_0_pred)
        noise = self.gaussian(on_grid.shape, draw)
        return q_posterior(self.schedule, on_grid, batch.x_t, batch.t, noise)

    def of_discriminator(
        self, networks: Networks, batch: Noised, x_prev_pred: Tensor, penalise: bool
    ) -> tuple[Tensor, Tensor]:
        """Loss of D and, if asked for, its gradient penalty."""

        def judge(x_prev: Tensor) -> Tensor:
            logits: Tensor = networks.discriminator(x_prev, batch.x_t, batch.images, batch.level)
            return logits

        loss = discriminator_loss(judge(batch.x_prev).float(), judge(x_prev_pred).float())
        penalty = r1_penalty(judge, batch.x_prev) if penalise else torch.zeros_like(loss)
        return loss, penalty

    def of_generator(
        self,
        networks: Networks,
        batch: Noised,
        features: Any,
        x_0_pred: Tensor,
        x_prev_pred: Tensor,
    ) -> dict[str, Tensor]:
        """The generator's losses by name, unweighted; those of no weight are left out."""
        losses = {"reconstruction": squared_error(batch.x_0, x_0_pred)}
        if self.weights["adversarial"] > 0:
            networks.discriminator.requires_grad_(False)
            fake = networks.discriminator(x_prev_pred, batch.x_t, batch.images, batch.level)
            networks.discriminator.requires_grad_(True)
            losses["adversarial"] = generator_adversarial_loss(fake.float())
        if self.weights["supervised"] > 0:  # its Dice is of a whole batch's pixels together
            losses["supervised"] = self.supervised_loss(
                self.team.gathered(features.logits), self.team.gathered(batch.x_0)
            )
        return losses
