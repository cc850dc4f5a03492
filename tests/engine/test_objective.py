"""What the objective teaches, and what it leaves alone."""

import pytest
import torch

from cdal_engine.config import TrainConfig
from cdal_engine.model import Networks
from cdal_engine.training.objective import Objective
from cdal_engine.training.team import Team


@pytest.mark.parametrize("supervised", [1.0, 0.0])
def test_the_head_learns_from_its_own_loss_if_it_has_one(supervised: float) -> None:
    """And else from what the denoiser makes of it, as nothing would teach it."""
    weight = 0.3 if supervised else 1.0
    config = TrainConfig(
        model={"decode": {"sample_weight": weight}}, losses={"supervised": supervised}
    )
    networks, draw = Networks(config.model), torch.Generator().manual_seed(0)
    objective = Objective(config, networks.generator, Team("cpu"))
    images, x_0 = torch.randn(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    batch = objective.noised(images, x_0, draw)
    features = networks.generator.encode(images)
    objective.predicted(networks, batch, features, draw).square().sum().backward()
    head = networks.generator.encoder.to_logits.weight.grad
    assert (head is None) == (supervised > 0)


def test_samples_are_not_pooled_with_a_head_that_learns_nothing() -> None:
    with pytest.raises(ValueError, match="sample_weight must be 1"):
        TrainConfig(losses={"supervised": 0})


def test_without_attention_the_map_to_show_is_normalised_all_the_same() -> None:
    config = TrainConfig(model={"attention": {"mode": "none"}})
    networks, draw = Networks(config.model), torch.Generator().manual_seed(0)
    objective = Objective(config, networks.generator, Team("cpu"))
    images, x_0 = torch.randn(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    before = networks.attention.running_mean.clone()
    batch = objective.noised(images, x_0, draw)
    objective.predicted(networks, batch, networks.generator.encode(images), draw)
    assert networks.attention.running_mean != before
