"""What learns in a run: generator, supervised head and discriminator, a step at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..errors import CdalError
from ..model import Model, Networks
from .batches import Batch, batches
from .dataset import Item
from .freezing import freeze
from .objective import Objective
from .team import Team

__all__ = ["Learner", "learning_rate_factor", "update_average"]

_DIVERGED = 1e5  # losses of a run that learns stay below 10, norms of gradients below 1000
_PARTS = ("networks", "average", "optimizer", "discriminator_optimizer")


class Learner:
    """Networks, their moving average and their optimisers, on this process's device.

    Parameters
    ----------
    config : TrainConfig
    data : sequence of Item
    team : Team
    init : Model, optional
        Start from its weights.

    Raises
    ------
    CdalError
        If `init` is of another architecture.
    """

    def __init__(
        self, config: TrainConfig, data: Sequence[Item], team: Team, init: Model | None = None
    ) -> None:
        self.config, self.data, self.team, self.step = config, data, team, 0
        torch.manual_seed(config.seed)
        self.networks = Networks(config.model)
        self.objective = Objective(config, self.networks.generator, team)
        if init is not None:
            _start_from(self.networks, init)
        self.networks.to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if team.devices > 1 and team.device.type == "cuda":
            self.networks = nn.SyncBatchNorm.convert_sync_batchnorm(self.networks)
        self.networks.requires_grad_(True)
        self.average = copy.deepcopy(self.networks).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.networks.generator.parameters(), config.learning_rate, betas=config.betas
        )
        self.discriminator_optimizer = torch.optim.Adam(
            self.networks.discriminator.parameters(),
            config.discriminator_learning_rate,
            betas=(0.5, 0.9),
        )

    def batches(self) -> Iterator[Batch]:
        """Make this device's rows of the batches from `self.step` on."""
        rows = self.team.rows(self.config.batch_size)
        return batches(self.config, self.data, self.team.device, self.step, rows)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint needs."""
        return {"step": self.step} | {name: getattr(self, name).state_dict() for name in _PARTS}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.step = state["step"]
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])

    def learn(self, images: Tensor, x_0: Tensor, progress: float) -> dict[str, float]:
        """One step of the discriminator and one of the generator, sharing one encoder pass.

        Parameters
        ----------
        images, x_0 : Tensor
            A `Batch`.
        progress : float
            Share of the run that is done, 0 … 1.

        Returns
        -------
        dict of float
            The losses, of all devices' rows together.

        Raises
        ------
        CdalError
            If training diverges: it cannot go on from here.
        """
        self._set_rates(progress)
        networks, weights, objective = self.networks.train(), self.config.losses, self.objective
        if self.config.frozen > 0:
            freeze(networks.generator.encoder, trunk=progress < self.config.frozen)
        draw = torch.Generator().manual_seed(hash((self.config.seed, self.step)) & 0x7FFFFFFF)
        with self.team.autocast(networks.generator.reduced_precision):
            batch = objective.noised(images, x_0, draw)
            features = networks.generator.encode(images)
            x_0_pred = objective.shown(networks, batch, features, draw)
            x_prev_pred = objective.previous(batch, x_0_pred, draw)
            penalise = weights.r1 > 0 and self.step % weights.r1_interval == 0
            loss_d, penalty = objective.of_discriminator(
                networks, batch, x_prev_pred.detach(), penalise
            )
            self.discriminator_optimizer.zero_grad(set_to_none=True)
            (loss_d + weights.r1 * weights.r1_interval * penalty).backward()
            self._average_gradients(networks.discriminator)
            self.discriminator_optimizer.step()
            x_0_pred = objective.learned_from(networks, batch, features, x_0_pred, draw)
            losses = objective.of_generator(networks, batch, features, x_0_pred, x_prev_pred)
        loss = torch.stack([objective.weights[k] * value for k, value in losses.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._average_gradients(networks.generator)
        norm = torch.nn.utils.clip_grad_norm_(networks.generator.parameters(), 5.0)
        seen = torch.stack([value.detach() for value in [*losses.values(), loss_d]])
        self.team.average([seen])
        values = dict(zip([*losses, "discriminator"], seen.tolist(), strict=True))
        self._check_sound(values | {"gradient": norm.item()})
        self.optimizer.step()
        self.team.average(b for b in networks.buffers() if b.is_floating_point())
        decay = min(self.config.ema_decay, (self.step + 1) / (self.step + 10))  # faster at first
        update_average(self.average, networks, decay)
        self.step += 1
        return values

    def _set_rates(self, progress: float) -> None:
        factor = learning_rate_factor(self.config, self.step, progress)
        for optimizer, rate in (
            (self.optimizer, self.config.learning_rate),
            (self.discriminator_optimizer, self.config.discriminator_learning_rate),
        ):
            optimizer.param_groups[0]["lr"] = rate * factor

    def _average_gradients(self, network: nn.Module) -> None:
        self.team.average(p.grad for p in network.parameters() if p.grad is not None)

    def _check_sound(self, values: dict[str, float]) -> None:
        """Stop before weights are spoilt, so that no checkpoint ever holds such."""
        wrong = [n for n, v in values.items() if not math.isfinite(v) or v > _DIVERGED]
        if wrong:
            learner = {"reconstruction", "supervised"} & set(wrong)
            key = "learning_rate" if learner else "discriminator_learning_rate"
            rate = getattr(self.config, key)
            raise CdalError(
                f"training diverged at step {self.step + 1}: {', '.join(wrong)} beyond all bounds",
                f"start anew with {key} {rate / 10:g} instead of {rate:g}; what the folder holds "
                "is of before",
            )


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """Share of the learning rate at `progress` 0 … 1: warm-up, then cosine to a hundredth."""
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    return warm * (0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


@torch.no_grad()
def update_average(average: nn.Module, networks: nn.Module, decay: float) -> None:
    """Move the exponential moving average of weights and buffers a step."""
    state = networks.state_dict()
    for name, averaged in average.state_dict().items():
        if averaged.is_floating_point():
            averaged.lerp_(state[name], 1 - decay)
        else:
            averaged.copy_(state[name])


def _start_from(networks: Networks, init: Model) -> None:
    """Copy a model's weights; both must be of one architecture."""
    try:
        networks.load_state_dict(init.networks.state_dict())
    except RuntimeError:
        raise CdalError(
            f"model {init.name!r} has another architecture than the config",
            "take `model:` of the config from the model's config.json",
        ) from None
