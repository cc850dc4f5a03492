"""The paper's objective, with either architecture: who learns what, and that it does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.draw import disk
from torch import Tensor

from cdal_engine.config import ModelConfig, TrainConfig
from cdal_engine.errors import CdalError
from cdal_engine.model import Model, Networks
from cdal_engine.published import network_config
from cdal_engine.training.dataset import find_pairs, load_pair
from cdal_engine.training.loop import Trainer
from cdal_engine.training.objective import Noised, Objective
from cdal_engine.training.splits import split
from cdal_engine.training.team import Team

RECIPES = Path(__file__).parents[2] / "benchmarks" / "recipes"
PUBLISHED = network_config(
    {
        "dataset": "gray",
        "image_size": 32,
        "num_channels": 1,
        "num_channels_dae": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [16],
        "cond_enc_layers": 1,
        "cond_enc_num_res_blocks": 1,
        "nz": 8,
        "z_emb_dim": 16,
        "n_mlp": 1,
        "num_timesteps": 2,
        "beta_min": 0.1,
        "beta_max": 20.0,
        "ngf": 8,
        "t_emb_dim": 16,
        "attn_scale": 2,
    }
).model_copy(update={"discriminator": "small"})
OURS = {
    "widths": (8, 12),
    "denoiser_width": 12,
    "denoiser_blocks": 1,
    "detail_width": 8,
    "latent_dim": 4,
    "discriminator_widths": (8, 8, 8),
}


def config_of(architecture: str, **changes: Any) -> TrainConfig:
    gray = {"channels": 1, "mpp": None, "mean": (0.5,), "std": (0.5,)}
    model: dict[str, Any] = {
        "target": "binary",
        "image": gray,
        "network": PUBLISHED if architecture == "ncsnpp" else OURS,
        "diffusion": {"steps": 2, "label_scale": 1.0},
        "attention": {"mode": "paper", "level": 2},
        "decode": {"sample_weight": 1.0, "min_area": 0},
    }
    settings = {
        "objective": "paper",
        "losses": {"adversarial": 0, "supervised": 0, "r1": 1.0, "r1_interval": 4},
        "crop": 32,
        "batch_size": 4,
        "augment": False,
        "decoding": "kept",
    }
    return TrainConfig.model_validate({"model": model} | settings | changes)


class Step:
    """The parts of one training step on random images."""

    def __init__(self, architecture: str) -> None:
        self.config = config_of(architecture)
        torch.manual_seed(0)
        self.networks = Networks(self.config.model).train()
        generator = self.networks.generator
        self.objective = Objective(self.config, generator, Team("cpu"))
        self.batch: Noised = self.objective.noised(
            torch.randn(4, 1, 32, 32), torch.randn(4, 1, 32, 32).sign(), self.draw()
        )
        self.features = generator.encode(self.batch.images)

    @staticmethod
    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    def shown(self) -> Tensor:
        return self.objective.shown(self.networks, self.batch, self.features, self.draw())

    def learned_from(self) -> Tensor:
        return self.objective.learned_from(
            self.networks, self.batch, self.features, self.shown(), self.draw()
        )

    def reached(self) -> dict[str, bool]:
        """Whether a gradient has come to each parameter, of whatever size."""
        return {n: p.grad is not None for n, p in self.networks.named_parameters()}


@pytest.fixture(params=["amortized", "ncsnpp"])
def step(request: pytest.FixtureRequest) -> Step:
    return Step(request.param)


def test_the_discriminator_learns_alone(step: Step) -> None:
    x_prev = step.objective.previous(step.batch, step.shown(), step.draw())
    loss, penalty = step.objective.of_discriminator(step.networks, step.batch, x_prev, True)
    assert penalty > 0
    (loss + penalty).backward()
    assert all(is_of == name.startswith("discriminator.") for name, is_of in step.reached().items())


def test_the_generator_learns_alone_from_squared_error(step: Step) -> None:
    x_0 = step.learned_from()
    losses = step.objective.of_generator(step.networks, step.batch, step.features, x_0, x_0)
    assert losses.keys() == {"reconstruction"}
    error = (x_0.detach() - step.batch.x_0).square().mean()
    torch.testing.assert_close(losses["reconstruction"].detach(), error)
    losses["reconstruction"].backward()
    assert all(is_of == name.startswith("generator.") for name, is_of in step.reached().items())
    silent = {
        name
        for name, p in step.networks.generator.named_parameters()
        if p.grad is not None and p.grad.abs().max() < 1e-9
    }
    # A norm takes out what these add, softmax what a key's bias does.
    assert all(n.endswith(("key.bias", "encoder.blocks.0.conv_0.bias")) for n in silent), silent


def test_attention_is_of_the_discriminator_that_has_just_learned(step: Step) -> None:
    """It weighs what the generator learns from, and not what the discriminator is shown."""
    shown, learned = step.shown(), step.learned_from()
    assert not torch.allclose(shown, learned)
    with torch.no_grad():
        for parameter in step.networks.discriminator.parameters():
            parameter.mul_(1.5)
    assert torch.equal(step.shown(), shown)
    assert not torch.allclose(step.learned_from(), learned)


def test_label_maps_are_noised_at_the_resolution_of_the_generator() -> None:
    assert Step("ncsnpp").batch.x_t.shape == (4, 1, 32, 32)
    assert Step("amortized").batch.x_t.shape == (4, 1, 16, 16)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of bright disks on a dark ground, 48 x 40 pixels."""
    folder = tmp_path_factory.mktemp("disks")
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for n in range(10):
        mask = np.zeros((48, 40), np.uint8)
        for _ in range(3):
            mask[disk(rng.uniform(0, 40, 2), rng.uniform(5, 9), shape=mask.shape)] = 255
        image = np.where(mask > 0, 180, 70) + rng.normal(0, 15, mask.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{n}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{n}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "steps"), [("amortized", 300), ("ncsnpp", 80)])
def test_a_toy_problem_is_learned(
    architecture: str, steps: int, disks: Path, tmp_path: Path
) -> None:
    config = config_of(architecture, steps=steps, learning_rate=2e-3, warmup=5, betas=(0.5, 0.9))
    trainer = Trainer(config, split(find_pairs(disks), config), tmp_path / "run", "cpu")
    rows: list[dict[str, float]] = []
    best = trainer.run(rows.append)
    losses = [row["reconstruction"] for row in rows if "answers" not in row and "dice" not in row]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 3
    assert rows[-1]["dice"] > 0.9
    assert Model.load(best).config == config.model


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"losses": {"supervised": 0}}, "losses.adversarial and losses.supervised must be 0"),
        ({"crop": 64}, "crop must be 32"),
        ({"batch_size": 6}, "batch_size must be up to 4 or a multiple of it"),
        ({"frozen": 0.5}, "frozen must be 0"),
        ({"objective": "ours", "losses": {"supervised": 1}}, "there is no head"),
        ({"objective": "theirs"}, "objective"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        config_of("ncsnpp", **changes)


def test_a_published_network_without_discriminator_cannot_be_trained() -> None:
    alone = PUBLISHED.model_copy(update={"discriminator": None})
    model = config_of("ncsnpp").model.model_dump() | {"network": alone.model_dump()}
    with pytest.raises(ValueError, match="must be large or small"):
        config_of("ncsnpp", model=model)


def test_images_are_brought_to_the_size_that_the_published_network_has(disks: Path) -> None:
    """As in inference, where a model has no resolution: whatever their shape, ids with them."""
    config = config_of("ncsnpp").model
    image = config.image.model_copy(update={"resized": (32, 64)})
    ((x, y),) = load_pair(find_pairs(disks)[0], config.model_copy(update={"image": image}), None)
    assert (x.shape, y.shape) == ((1, 32, 64), (1, 32, 64))
    bright = x[0] > 125 / 255
    assert float((bright == (y[0] > 0)).float().mean()) > 0.9


def small(config: TrainConfig) -> TrainConfig:
    """The same with narrower networks on smaller tiles; everything else stays."""
    tile = min(config.crop, 64)
    narrow = {"num_channels_dae": 32, "ngf": 8, "image_size": tile}
    network = config.model.network.model_copy(update=narrow)
    model = ModelConfig.model_validate(config.model.model_dump() | {"network": network})
    changes = {"model": model.model_dump(), "steps": 2, "crop": tile, "validation": ()}
    return TrainConfig.model_validate(config.model_dump() | changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["monuseg", "cxr", "hippocampus"])
def test_recipes_run_two_steps_on_the_first_of_their_data(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    recipe = TrainConfig.from_file(RECIPES / f"paper-{name}.yaml")
    assert TrainConfig.from_file(RECIPES / f"paper-{name}.yaml", TrainConfig()) == recipe
    assert recipe.objective == "paper"
    assert recipe.model.attention.mode == "paper"
    config = small(recipe)
    pairs = find_pairs(shared_data / ("monuseg/train" if name == "monuseg" else name))
    trainer = Trainer(config, (pairs[:1], []), tmp_path / "run", "cpu")
    best = Model.load(trainer.run())
    assert best.config == config.model
    assert trainer.step == 2


def test_fine_tuning_of_the_published_architecture_is_refused() -> None:
    from cdal_engine.training.finetune import defaults

    with pytest.raises(CdalError, match="cannot be fine-tuned"):
        defaults(config_of("ncsnpp").model)
