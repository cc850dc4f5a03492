"""The schedule's and the posterior's defining properties."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdal_engine.config import DiffusionConfig
from cdal_engine.diffusion import NoiseSchedule, q_posterior, q_sample, q_step
from cdal_engine.sampler import sample

STEPS = st.integers(1, 16)


def schedule_of(steps: int) -> NoiseSchedule:
    return NoiseSchedule.variance_preserving(DiffusionConfig(steps=steps))


@given(STEPS)
def test_signal_falls_from_one_to_almost_nothing(steps: int) -> None:
    a = schedule_of(steps).alphas_cumprod
    assert a.dtype == torch.float64
    assert a[0] == 1
    assert (a.diff() < 0).all()
    assert a[-1] < 1e-4


@pytest.mark.parametrize(("few", "many"), [(1, 4), (2, 4), (4, 16), (3, 12)])
def test_schedules_share_common_noise_levels(few: int, many: int) -> None:
    a, b = schedule_of(few), schedule_of(many)
    torch.testing.assert_close(a.alphas_cumprod, b.alphas_cumprod[:: many // few])


@pytest.mark.parametrize("steps", [0, 17, -1])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="than or equal to"):
        schedule_of(steps)


@given(STEPS, st.integers(0, 2**31))
def test_last_step_returns_the_prediction_exactly(steps: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x_0, x_t, noise = (torch.randn(3, 2, 4, 5, generator=draw) for _ in range(3))
    assert torch.equal(q_posterior(schedule_of(steps), x_0, x_t, torch.ones(3).long(), noise), x_0)


@pytest.mark.parametrize("t", [2, 3, 4])
def test_posterior_undoes_the_forward_step_in_distribution(t: int) -> None:
    """x_{t-1} ~ q(x_{t-1} | x_t, x_0) of x_t ~ q(x_t | x_0) is distributed as q(x_{t-1} | x_0)."""
    schedule = schedule_of(4)
    draw = torch.Generator().manual_seed(0)
    n = 200_000
    x_0 = torch.full((n, 1, 1, 1), 0.7)
    at = torch.full((n,), t)
    x_t = q_sample(schedule, x_0, at, torch.randn(x_0.shape, generator=draw))
    x_prev = q_posterior(schedule, x_0, x_t, at, torch.randn(x_0.shape, generator=draw))
    a = schedule.alphas_cumprod[t - 1]
    assert x_prev.mean().item() == pytest.approx(0.7 * a.sqrt().item(), abs=0.01)
    assert x_prev.var().item() == pytest.approx(1 - a.item(), rel=0.02)


def test_steps_compose_to_the_direct_forward_process() -> None:
    schedule = schedule_of(4)
    draw = torch.Generator().manual_seed(1)
    x = x_0 = torch.full((100_000, 1, 1, 1), -0.4)
    for t in range(1, 4):
        x = q_step(schedule, x, torch.full((len(x),), t), torch.randn(x.shape, generator=draw))
    direct = q_sample(schedule, x_0, torch.full((len(x),), 3), torch.randn(x.shape, generator=draw))
    assert x.mean().item() == pytest.approx(direct.mean().item(), abs=0.01)
    assert x.var().item() == pytest.approx(direct.var().item(), rel=0.02)


def test_published_coefficients(shared_data: Path) -> None:
    """The tables agree with those of the published networks' sampler."""
    from safetensors.numpy import load_file

    for name, steps in (("rgb_tiny", 4), ("gray_tiny", 2)):
        path = shared_data.parent / "parity" / f"{name}_io.safetensors"
        if not path.is_file():
            pytest.skip("parity data are not here")
        published = load_file(path)
        schedule = schedule_of(steps)
        np.testing.assert_allclose(published["coef_betas"], schedule.betas[1:], rtol=1e-5)
        np.testing.assert_allclose(
            published["coef_alphas_cumprod"], schedule.alphas_cumprod[1:], rtol=2e-4
        )
        x_0, x_t = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        of_x_0 = [
            q_posterior(schedule, x_0, x_t, torch.tensor([t + 1]), x_t).item() for t in range(steps)
        ]
        np.testing.assert_allclose(published["coef_posterior_mean_coef1"], of_x_0, rtol=1e-4)


def test_a_perfect_denoiser_is_sampled_exactly() -> None:
    truth = torch.sign(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    last = sample(
        lambda x_t, level, z: truth,
        lambda x: x,
        schedule_of(4),
        lambda step: torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step)),
        lambda step: torch.zeros(2, 1),
    )
    assert torch.equal(last.x_0, truth)
    assert torch.equal(last.x_prev, truth)


def test_sampler_visits_each_level_once_in_order() -> None:
    levels = []

    def denoise(x_t: torch.Tensor, level: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        levels.append(level.item())
        return x_t

    zeros = torch.zeros(1, 1, 2, 2)
    sample(denoise, lambda x: x, schedule_of(4), lambda s: zeros, lambda s: zeros)
    assert levels == [1.0, 0.75, 0.5, 0.25]
