"""What the losses ask for."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from cdal_engine.config import ModelConfig, TrainConfig
from cdal_engine.losses import cross_entropy, energy_score, squared_error
from cdal_engine.model import Networks
from cdal_engine.training.objective import Objective

LEFT = torch.full((1, 1, 32, 32), -1.0)
LEFT[..., :16] = 1
RIGHT = LEFT.flip(3)


def expected(score: object, draws: list[torch.Tensor]) -> float:
    """Mean score where the truth is left or right as often, and so are independent `draws`."""
    cases = itertools.product((LEFT, RIGHT), draws, draws)
    return float(torch.stack([score(*case) for case in cases]).mean())


def test_the_energy_score_is_best_for_draws_that_differ_as_the_truth_does() -> None:
    both, mean, one = [LEFT, RIGHT], [(LEFT + RIGHT) / 2], [LEFT]
    assert expected(energy_score, both) < expected(energy_score, mean)
    assert expected(energy_score, both) < expected(energy_score, one)


def test_the_squared_error_is_best_for_the_mean() -> None:
    """Which is why, with it, all samples are the same."""

    def score(x_0: torch.Tensor, first: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return squared_error(x_0, first)

    assert expected(score, [(LEFT + RIGHT) / 2]) < expected(score, [LEFT, RIGHT])


def test_the_energy_score_is_0_only_for_the_truth_itself() -> None:
    assert energy_score(LEFT, LEFT, LEFT).item() == pytest.approx(0, abs=2e-3)
    assert energy_score(LEFT, RIGHT, RIGHT).item() > 1


@pytest.mark.parametrize("channels", [1, 3])
def test_cross_entropy_is_that_of_the_head(channels: int) -> None:
    logits = torch.randn(2, channels, 4, 4)
    if channels == 1:
        truth = (torch.randn(logits.shape) > 0).float()
        p, expected = logits.sigmoid(), F.binary_cross_entropy_with_logits(logits, truth)
    else:
        index = torch.randint(channels, (2, 4, 4))
        truth = F.one_hot(index, channels).movedim(-1, 1).float()
        p, expected = logits.softmax(dim=1), F.cross_entropy(logits, index)
    found = cross_entropy(2 * truth - 1, 2 * p - 1)
    assert found.shape == (2,)
    torch.testing.assert_close(found.mean(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sure_and_wrong_answer_still_learns(channels: int) -> None:
    logits = torch.zeros(1, channels, 2, 2)
    logits[:, 0] = 40.0
    truth = -torch.ones_like(logits)
    if channels > 1:
        truth[:, 1] = 1
    answer = (torch.tanh(logits / 2) if channels == 1 else 2 * logits.softmax(1) - 1).detach()
    answer.requires_grad_(True)
    cross_entropy(truth, answer).sum().backward()
    assert (answer.grad[:, 0 if channels == 1 else 1] != 0).all()


@pytest.mark.parametrize("steps", [1, 4])
def test_the_last_of_several_steps_answers_and_is_not_judged(steps: int) -> None:
    """At t = 1 the answer is a probability: an opponent would make it a draw."""
    config = ModelConfig(diffusion={"steps": steps})
    objective = Objective(TrainConfig(model=config), torch.device("cpu"))
    networks, draw = Networks(config), torch.Generator().manual_seed(0)
    images, x_0 = torch.randn(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    judged = {}
    while len(judged) < steps:  # until every t has been drawn
        batch = objective.noised(images, x_0, draw)
        features = networks.generator.encode(images)
        draws = objective.draws(networks, batch, features, draw)
        assert not torch.equal(*draws)
        previous = objective.previous(batch, draws[0], draw)
        losses = objective.of_generator(networks, batch, features, draws, previous)
        judged[int(batch.t)] = losses["adversarial"].item() > 0
    assert judged == {t: t > 1 or steps == 1 for t in range(1, steps + 1)}


@pytest.mark.parametrize("supervised", [1.0, 0.0])
def test_the_head_learns_from_its_own_loss_if_it_has_one(supervised: float) -> None:
    """And else from what the denoiser makes of it, as nothing would teach it."""
    config = TrainConfig(losses={"supervised": supervised})
    objective = Objective(config, torch.device("cpu"))
    networks, draw = Networks(config.model), torch.Generator().manual_seed(0)
    images, x_0 = torch.randn(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    batch = objective.noised(images, x_0, draw)
    features = networks.generator.encode(images)
    sum(x.square().sum() for x in objective.draws(networks, batch, features, draw)).backward()
    head = networks.generator.encoder.to_logits.weight.grad
    assert (head is None) == (supervised > 0)


def test_without_attention_the_map_to_show_is_normalised_all_the_same() -> None:
    config = TrainConfig(model={"attention": {"mode": "none"}})
    objective = Objective(config, torch.device("cpu"))
    networks, draw = Networks(config.model), torch.Generator().manual_seed(0)
    images, x_0 = torch.randn(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    before = networks.attention.running_mean.clone()
    batch = objective.noised(images, x_0, draw)
    objective.draws(networks, batch, networks.generator.encode(images), draw)
    assert networks.attention.running_mean != before
