"""What the diffusion is measured against: answers of the same encoder without any diffusion.

Each stands in for a generator, so that the Segmenter tiles, averages and decodes it like one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdal_engine.config import ModelConfig
from cdal_engine.losses import SupervisedLoss
from cdal_engine.networks import Features, Generator
from cdal_engine.networks.blocks import conv, depth_to_space
from cdal_engine.networks.condition_encoder import supervised_answer
from cdal_engine.training.learner import learning_rate_factor, update_average
from cdal_engine.training.loop import Trainer

RANK = 10  # of the covariance of a stochastic segmentation network, as in its paper
DRAWS = 10  # of the logits, for its likelihood


class _Averaged(nn.Module):
    """A supervised head whose softmax is a mean over several passes."""

    def passes(self, image: Tensor) -> list[Tensor]:
        """Logits (B, K, H, W) of each pass."""
        raise NotImplementedError

    def encode(self, image: Tensor) -> Features:
        """Features of which only the logits count."""
        mean = sum(torch.softmax(logits, dim=1) for logits in self.passes(image))
        empty = image.new_zeros(len(image), 1, 1, 1)
        return Features(torch.log(mean + 1e-8), empty, empty)

    preview = staticmethod(Generator.preview)


class EightViews(_Averaged):
    """Test-time augmentation: the four rotations of the image and of its mirror."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def passes(self, image: Tensor) -> list[Tensor]:
        """One of each view, turned back."""
        logits = []
        for mirrored in (False, True):
            for turns in range(4):
                view = torch.rot90(image.flip(3) if mirrored else image, turns, (2, 3))
                back = torch.rot90(self.generator.encode(view.contiguous()).logits, -turns, (2, 3))
                logits.append(back.flip(3) if mirrored else back)
        return logits


class Ensemble(_Averaged):
    """Networks trained from different seeds."""

    def __init__(self, generators: list[Generator]) -> None:
        super().__init__()
        self.generators = nn.ModuleList(generators)

    def passes(self, image: Tensor) -> list[Tensor]:
        """One of each network."""
        return [generator.encode(image).logits for generator in self.generators]


class StochasticSegmentation(Generator):
    """Low-rank Gaussian over the logits of the whole image: Monteiro et al. (2020), eq. 4 to 8.

    A sample takes its factors from z and its pixels' own noise from x_T, in one step.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.denoiser = nn.Identity()  # none is needed
        self.channels = config.label_channels
        out = self.channels * 4 * (RANK + 1)
        self.to_covariance = conv(2, config.network.detail_width, out, kernel=1)
        nn.init.normal_(self.to_covariance.weight, std=1e-2)
        nn.init.constant_(self.to_covariance.bias, -3.0 / RANK)

    def logits(self, features: Features, factors: Tensor, noise: Tensor) -> Tensor:
        """Draw (B, K, H, W) logits by unit `factors` (B, RANK) and `noise` (B, K, H/2, W/2)."""
        both = depth_to_space(self.to_covariance(features.detail))
        both = both.unflatten(1, (RANK + 1, self.channels))
        shared = (both[:, :RANK] * factors[:, :, None, None, None]).sum(dim=1)
        own = F.softplus(both[:, RANK]) * F.interpolate(noise, scale_factor=2.0, mode="nearest")
        logits: Tensor = features.logits + shared + own
        return logits

    def denoise(self, x_t: Tensor, level: Tensor, z: Tensor, features: Features) -> Tensor:
        """One sample, whatever the level."""
        return supervised_answer(self.logits(features, z[:, :RANK], x_t))


Batch = tuple[Tensor, Tensor]
Trained = TypeVar("Trained", bound=Generator)


def train_alone(
    trainer: Trainer, make: Callable[[], Trained], loss_of: Callable[[Trained, Batch], Tensor]
) -> Trained:
    """Train a network on a trainer's batches, at its learning rate, averaged as it does.

    `make` builds the network once the seed is set; `loss_of` is all that it learns by.
    """
    config = trainer.config
    torch.manual_seed(config.seed)
    network = make().to(trainer.team.device)
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, betas=(0.9, 0.99))
    for step, batch in zip(range(config.steps), trainer.learner.batches(), strict=False):
        rate = config.learning_rate * learning_rate_factor(config, step, step / config.steps)
        optimizer.param_groups[0]["lr"] = rate
        loss = loss_of(network, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        update_average(average, network, min(config.ema_decay, (step + 1) / (step + 10)))
    return average.eval().requires_grad_(False)


def train_stochastic(trainer: Trainer) -> StochasticSegmentation:
    """Train one by the likelihood of whole crops, and its mean logits by our supervised loss."""
    model = trainer.config.model
    supervised = SupervisedLoss(model.label_channels)

    def loss_of(network: StochasticSegmentation, batch: Batch) -> Tensor:
        images, x_0 = batch
        features = network.encode(images)
        truth = x_0.argmax(dim=1)
        likelihoods = []
        for _ in range(DRAWS):
            factors = torch.randn(len(x_0), RANK, device=x_0.device)
            noise = torch.randn_like(F.avg_pool2d(x_0, 2))
            wrong = F.cross_entropy(
                network.logits(features, factors, noise), truth, reduction="none"
            )
            likelihoods.append(-wrong.sum(dim=(1, 2)))
        likelihood = torch.logsumexp(torch.stack(likelihoods), dim=0).mean() / truth[0].numel()
        return supervised(features.logits, x_0) - likelihood

    return train_alone(trainer, lambda: StochasticSegmentation(model), loss_of)
