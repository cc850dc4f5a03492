"""The published networks: their numbers are those of the parity vectors, within 1e-4 or less."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cdal_engine.diffusion import NoiseSchedule, q_posterior, q_sample
from cdal_engine.ncsnpp_config import DiscriminatorSize, NcsnppConfig
from cdal_engine.networks.ncsnpp import NcsnppGenerator
from cdal_engine.networks.published_discriminators import PublishedDiscriminator
from cdal_engine.networks.published_names import (
    discriminator_names,
    generator_names,
    load_published,
)
from cdal_engine.published import model_config, read_parameters
from cdal_engine.sampler import sample

SIZES: dict[str, DiscriminatorSize] = {
    "rgb_tiny": "large",
    "gray_tiny": "large",
    "threeclass_tiny": "small",
}
CLOSE = {"atol": 1e-4, "rtol": 0.0}
CLOSER = {"atol": 1e-5, "rtol": 0.0}  # for what is small itself


class Parity(NamedTuple):
    """One parity configuration: published numbers and our networks with the published weights."""

    folder: Path
    name: str
    config: NcsnppConfig
    io: dict[str, Tensor]

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule.variance_preserving(model_config(self.config).diffusion)

    @property
    def level(self) -> Tensor:
        """Noise level of x_{t+1} for the published step t."""
        return self.schedule.fraction(self.io["t"] + 1)

    def generator(self) -> NcsnppGenerator:
        network = NcsnppGenerator(self.config).eval().requires_grad_(False)
        path = self.folder / f"{self.name}_netG.pth"
        load_published(network, generator_names(self.config), path)
        return network

    def discriminator(self) -> PublishedDiscriminator:
        size = SIZES[self.name]
        config = self.config.model_copy(update={"ngf": 8, "t_emb_dim": 16})
        network = PublishedDiscriminator(config, size).eval().requires_grad_(False)
        path = self.folder / f"{self.name}_netD.pth"
        load_published(network, discriminator_names(size), path)
        return network


@pytest.fixture(scope="module", params=list(SIZES))
def parity(request: pytest.FixtureRequest, parity_data: Path) -> Parity:
    name = request.param
    config = read_parameters(parity_data / f"{name}_parameters.json")
    return Parity(parity_data, name, config, load_file(parity_data / f"{name}_io.safetensors"))


def test_generator_predicts_what_the_published_one_does(parity: Parity) -> None:
    io, generator = parity.io, parity.generator()
    x_0 = generator.denoise(io["x_t"], parity.level, io["z"], generator.encode(io["image"]))
    assert x_0.std() > 0.05
    torch.testing.assert_close(x_0, io["x0_pred"], **CLOSE)


def test_discriminator_judges_and_looks_as_the_published_one_does(parity: Parity) -> None:
    io, discriminator = parity.io, parity.discriminator()
    inputs = io["d_x_prev"], io["d_x_t"], parity.level
    features = discriminator.features(*inputs)
    assert f"d_feature_mean_{len(features)}" not in io
    for i, feature in enumerate(features):
        mean = feature.mean(dim=1, keepdim=True)
        torch.testing.assert_close(mean, io[f"d_feature_mean_{i}"], **CLOSER)
    torch.testing.assert_close(discriminator.logits(features[-1]), io["d_logits"], **CLOSE)


def test_schedule_is_the_published_one(parity: Parity) -> None:
    """Our entry t is the published entry t of the forward tables, t - 1 of the posterior's."""
    io, schedule, steps = parity.io, parity.schedule, parity.config.num_timesteps
    one, zero = torch.ones(steps, 1), torch.zeros(steps, 1)
    t = torch.arange(1, steps + 1)
    ours = {
        "betas": schedule.betas[1:],
        "alphas_cumprod": schedule.alphas_cumprod[1:],
        "alphas_cumprod_prev": schedule.alphas_cumprod[:-1],
        "posterior_mean_coef1": q_posterior(schedule, one, zero, t, zero)[:, 0],
        "posterior_mean_coef2": q_posterior(schedule, zero, one, t, zero)[:, 0],
        "posterior_variance": q_posterior(schedule, zero, zero, t, one)[:, 0].square(),
    }
    every, ones = torch.arange(steps + 1), torch.ones(steps + 1, 1)
    ours["forward_signal_cumulative"] = q_sample(schedule, ones, every, 0 * ones)[:, 0]
    ours["forward_noise_cumulative"] = q_sample(schedule, 0 * ones, every, ones)[:, 0]
    assert {f"coef_{name}" for name in ours} == {name for name in io if name.startswith("coef_")}
    for name, table in ours.items():
        torch.testing.assert_close(table.float(), io[f"coef_{name}"], **CLOSER, msg=name)


def test_sampling_runs_the_published_course(parity: Parity) -> None:
    """A whole run from the given noise: every state on the way and the answer."""
    io, steps, generator = parity.io, parity.config.num_timesteps, parity.generator()
    features = generator.encode(io["image"])
    states = []

    def denoise(x_t: Tensor, level: Tensor, z: Tensor) -> Tensor:
        states.append(x_t)
        return generator.denoise(x_t, level, z, features)

    def noise(step: int) -> Tensor:
        return io["sample_x_T"] if step == steps else io[f"sample_noise_{step}"]

    scale = model_config(parity.config).diffusion.label_scale
    last = sample(
        denoise,
        lambda x_0: x_0 * scale,
        parity.schedule,
        noise,
        lambda step: io[f"sample_z_{step - 1}"],
    )
    assert len(states) == steps
    for i, state in zip(range(steps - 1, 0, -1), states[1:], strict=True):
        torch.testing.assert_close(state, io[f"sample_x_after_{i}"], **CLOSE)
    torch.testing.assert_close(last.x_prev, io["sample_x_after_0"], **CLOSE)
