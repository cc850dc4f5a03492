"""Fine-tuning: what stays as it was, what is held out, and that nothing gets worse unsaid."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.draw import disk

from cdal_engine.config import DiffusionConfig, ModelConfig, NetworkConfig, TrainConfig
from cdal_engine.errors import CdalError
from cdal_engine.model import Model
from cdal_engine.training import finetune
from cdal_engine.training.curves import read_rows
from cdal_engine.training.dataset import find_pairs
from cdal_engine.training.loop import Trainer
from cdal_engine.training.splits import split

SMALL = ModelConfig(
    target="binary",
    network=NetworkConfig(
        widths=(12, 16),
        denoiser_width=12,
        denoiser_blocks=1,
        detail_width=8,
        latent_dim=4,
        discriminator_widths=(8, 8, 8),
    ),
    diffusion=DiffusionConfig(steps=2),
)
DARK, LIGHT = (90, 50, 130), (230, 190, 215)
PINK = (195, 150, 185)  # another stain, weaker


def make(folder: Path, images: int, colour: tuple[int, ...], wrong: bool = False) -> Path:
    """Write images of disks in `colour`; labels of their ground where `wrong`."""
    rng = np.random.default_rng(images)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for n in range(images):
        labels = np.zeros((96, 96), np.uint8)
        for _ in range(6):
            labels[disk(rng.uniform(0, 96, 2), rng.uniform(8, 13), shape=labels.shape)] = 1
        image = np.where(labels[..., None] > 0, colour, LIGHT) + rng.normal(0, 8, (96, 96, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"images/case{n}.png")
        tifffile.imwrite(folder / f"labels/case{n}.tif", 1 - labels if wrong else labels)
    return folder


def train(config: TrainConfig, data: Path, run: Path, init: Model | None = None) -> Path:
    Trainer(config, split(find_pairs(data), config), run, "cpu", init=init).run()
    return run


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that has learned dark disks."""
    folder = tmp_path_factory.mktemp("old")
    config = TrainConfig(
        model=SMALL,
        steps=80,
        batch_size=4,
        crop=64,
        warmup=5,
        learning_rate=3e-3,
        ema_decay=0.9,
        augment=False,
    )
    return Model.load(train(config, make(folder / "data", 5, DARK), folder / "run") / "best")


def gently(model: ModelConfig, **changes: object) -> TrainConfig:
    quick = {"batch_size": 2, "crop": 64, "steps": 4, "warmup": 1, "augment": False}
    return finetune.defaults(model).model_copy(update=quick | changes)


def same_weights(a: Model, b: Model) -> bool:
    states = a.networks.state_dict(), b.networks.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_frozen_encoder_stays_bit_for_bit(old: Model, tmp_path: Path) -> None:
    """Its trunk and all its norms' statistics; its heads and the denoiser learn."""
    data = make(tmp_path / "data", 5, PINK)
    config = gently(old.config, frozen=1.0, learning_rate=1e-2)
    last = Model.load(train(config, data, tmp_path / "run", old) / "last")
    before, after = (m.networks.generator.encoder.state_dict() for m in (old, last))
    heads = ("to_logits", "to_detail", "to_context")
    for name, value in before.items():
        assert torch.equal(value, after[name]) != name.startswith(heads), name
    assert not torch.equal(
        old.networks.generator.denoiser.stem.weight, last.networks.generator.denoiser.stem.weight
    )


def test_the_trunk_learns_after_its_share_but_its_statistics_do_not(
    old: Model, tmp_path: Path
) -> None:
    config = gently(old.config, frozen=0.5, learning_rate=1e-2)
    run = train(config, make(tmp_path / "data", 5, PINK), tmp_path / "run", old)
    before, after = (
        m.networks.generator.encoder.state_dict() for m in (old, Model.load(run / "last"))
    )
    for name, value in before.items():
        assert torch.equal(value, after[name]) == ("running" in name or "tracked" in name), name


@pytest.mark.slow
def test_a_frozen_run_resumes_bit_identical(old: Model, tmp_path: Path) -> None:
    data = make(tmp_path / "data", 5, PINK)
    config = gently(old.config, checkpoint_every=1e-9)
    pairs = split(find_pairs(data), config)
    whole = Trainer(config, pairs, tmp_path / "whole", "cpu", init=old)
    whole.run()

    class Killed(Exception):
        pass

    for at in (0, 1, 3):  # before the first step, while frozen, and after
        run = tmp_path / f"cut{at}"

        def kill(row: dict[str, float], at: int = at) -> None:
            if "answers" not in row and row["step"] == at:
                raise Killed

        with pytest.raises(Killed):
            Trainer(config, pairs, run, "cpu", init=old).run(kill)
        resumed = Trainer(config, pairs, run, "cpu", resume=True)
        resumed.run()
        assert resumed.best == whole.best
        for name, value in whole.learner.average.state_dict().items():
            assert torch.equal(value, resumed.learner.average.state_dict()[name]), name


@pytest.mark.slow
def test_it_adapts_to_another_stain_and_says_by_how_much(old: Model, tmp_path: Path) -> None:
    data = make(tmp_path / "data", 6, PINK)
    config = gently(old.config, steps=40, batch_size=4, learning_rate=3e-3, ema_decay=0.8)
    run = train(config, data, tmp_path / "run", old)
    outcome = finetune.outcome_of(run, config)
    assert outcome is not None
    assert outcome.better
    assert outcome.after["dice"] > outcome.before["dice"] + 0.02
    assert f"{outcome.before['dice']:.4f} -> {outcome.after['dice']:.4f}" in str(outcome)
    assert not same_weights(Model.load(run / "best"), old)
    assert Model.load(run / "best").config == old.config  # normalisation and decoding, too


@pytest.mark.slow
@pytest.mark.parametrize("images", [3, 5])
def test_wrong_labels_keep_the_old_model(old: Model, tmp_path: Path, images: int) -> None:
    """Learning the opposite on training images makes held-out ones worse: it is not kept."""
    data = make(tmp_path / "data", images, DARK)
    pairs = find_pairs(data)
    config = gently(old.config, steps=30, learning_rate=3e-3, ema_decay=0.5)
    if images == 5:
        sides = split(pairs, config)
        for pair in sides[0]:
            tifffile.imwrite(pair.label, 1 - tifffile.imread(pair.label))
        Trainer(config, sides, tmp_path / "run", "cpu", init=old).run()
        outcome = finetune.outcome_of(tmp_path / "run", config)
    else:  # noise: no image says anything about another
        for n, pair in enumerate(pairs):
            noise = np.random.default_rng(n).random((96, 96)) < (0.9 if n == 1 else 0.02)
            tifffile.imwrite(pair.label, noise.astype(np.uint8))
        outcome = finetune.fine_tune(config, pairs, tmp_path / "run", "cpu", old)
        assert not (tmp_path / "run" / "all").exists()
    assert outcome is not None
    assert not outcome.better
    best = Model.load(tmp_path / "run" / "best")
    assert same_weights(best, old)
    assert best.config == old.config


@pytest.mark.slow
def test_few_patients_are_held_out_one_by_one(old: Model, tmp_path: Path) -> None:
    data = make(tmp_path / "data", 3, PINK)
    pairs = find_pairs(data)
    config = gently(old.config, steps=30, batch_size=4, learning_rate=3e-3, ema_decay=0.8)
    assert finetune.is_leave_one_out(pairs, config)
    assert not finetune.is_leave_one_out(pairs, config.model_copy(update={"fold": (1, 3)}))
    outcome = finetune.fine_tune(config, pairs, tmp_path / "run", "cpu", old)
    dice = [
        read_rows(tmp_path / "run" / "held-out" / p.stem / "metrics.csv")[0]["dice"] for p in pairs
    ]
    assert outcome.before["dice"] == pytest.approx(np.mean(dice))
    assert outcome.better
    final = Model.load(tmp_path / "run" / "all" / "last")
    assert same_weights(Model.load(tmp_path / "run" / "best"), final)
    with pytest.raises(CdalError, match="run folder is not empty"):
        finetune.fine_tune(config, pairs, tmp_path / "run", "cpu", old)
    with pytest.raises(CdalError, match="cut it into two"):
        finetune.fine_tune(config, pairs[:1], tmp_path / "one", "cpu", old)


def test_a_config_lies_over_the_defaults_of_fine_tuning(old: Model, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("steps: 7\nmodel: {decode: {min_area: 9}}\n")
    config = TrainConfig.from_file(path, finetune.defaults(old.config))
    expected = finetune.defaults(old.config).model_dump()
    expected["steps"], expected["model"]["decode"]["min_area"] = 7, 9.0
    assert config.model_dump() == expected
