"""Several devices, a real process each: together they make the steps of one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from cdal_engine.config import LossConfig, ModelConfig, NetworkConfig, TrainConfig
from cdal_engine.errors import Cancelled, CdalError
from cdal_engine.model import Model
from cdal_engine.training.curves import read_rows
from cdal_engine.training.dataset import Pair, find_pairs
from cdal_engine.training.loop import Trainer
from cdal_engine.training.splits import split
from cdal_engine.training.team import Team

SMALL = ModelConfig(
    network=NetworkConfig(
        widths=(8, 12),
        denoiser_width=12,
        denoiser_blocks=1,
        detail_width=8,
        latent_dim=4,
        discriminator_widths=(8, 8, 8),
    ),
    diffusion={"steps": 2},
)
SCRIPT = """
import sys
from pathlib import Path
import torch
from cdal_engine.config import TrainConfig
from cdal_engine.training.checks import load_checked
from cdal_engine.training.dataset import find_pairs
from cdal_engine.training.learner import Learner
from cdal_engine.training.team import Team

def prepare(team, folder):
    config = TrainConfig.from_file(folder / "config.yaml")
    learner = Learner(config, load_checked((find_pairs(folder), []), config), team)
    def work():
        batches = learner.batches()
        for step in range(5):
            images, x_0 = next(batches)
            assert len(images) == config.batch_size // team.devices
            learner.learn(images, x_0, step / 5)
        torch.save(learner.state(), folder / f"{team.rank}.pt")
    return work

if __name__ == "__main__":
    team, folder = Team("cpu", 2), Path(sys.argv[1])
    with team.together(prepare, folder):
        prepare(team, folder)()
"""


def config_of(**changes: object) -> TrainConfig:
    base = {"model": SMALL, "steps": 6, "batch_size": 4, "crop": 64, "warmup": 2}
    return TrainConfig(**base | {"losses": LossConfig(r1_interval=2)} | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for n in range(3):
        labels = np.kron(np.arange(64).reshape(8, 8), np.ones((12, 12))).astype(np.uint16)
        labels[rng.random(labels.shape) < 0.02] = 0
        labels[labels % (n + 3) > 1] = 0
        image = np.where(labels[..., None] > 0, (90, 50, 130), (230, 190, 215)).astype(np.uint8)
        tifffile.imwrite(folder / "images" / f"case{n}.tif", image)
        tifffile.imwrite(folder / "labels" / f"case{n}.tif", labels)
    return folder


def losses_of(config: TrainConfig, data: Path, run: Path, devices: int) -> tuple[Trainer, list]:
    rows: list[dict[str, float]] = []
    pairs = split(find_pairs(data), config)
    trainer = Trainer(config, pairs, run, "cpu", devices=devices)
    trainer.run(rows.append)
    return trainer, [row for row in rows if "reconstruction" in row and "dice" not in row]


@pytest.mark.slow
def test_two_processes_have_the_same_parameters(data: Path, tmp_path: Path) -> None:
    """Norms' statistics and optimisers' state included, though each sees other crops."""
    (data / "config.yaml").write_text(config_of().model_dump_json())
    (tmp_path / "script.py").write_text(SCRIPT)
    subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(data)], check=True, timeout=200
    )
    first, second = (torch.load(data / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["step"] == second["step"] == 5
    for part in ("networks", "average"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name
    for name in ("optimizer", "discriminator_optimizer"):
        for n, moments in first[name]["state"].items():
            assert torch.equal(moments["exp_avg"], second[name]["state"][n]["exp_avg"])


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(data: Path, tmp_path: Path) -> None:
    """With norms that keep their statistics, the loss of every step is that of one process."""
    config = config_of(frozen=0.5)
    one, expected = losses_of(config, data, tmp_path / "one", 1)
    two, found = losses_of(config, data, tmp_path / "two", 2)
    assert len(expected) == len(found) == 6
    for a, b in zip(expected, found, strict=True):
        for name in ("reconstruction", "adversarial", "supervised", "discriminator"):
            assert b[name] == pytest.approx(a[name], abs=1e-5), (a["step"], name)
    before = one.learner.networks.state_dict()
    for name, value in two.learner.networks.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-4, rtol=1e-3)
    assert read_rows(tmp_path / "two" / "metrics.csv")[-1]["step"] == 6
    Model.load(tmp_path / "two" / "best")


@pytest.mark.slow
def test_several_devices_are_resumed_and_stopped_as_one(data: Path, tmp_path: Path) -> None:
    config, pairs = config_of(frozen=0.5), split(find_pairs(data), config_of())
    whole, _ = losses_of(config, data, tmp_path / "whole", 2)

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        Trainer(config, pairs, tmp_path / "cut", "cpu", devices=2).run(stop)
    resumed = Trainer(config, pairs, tmp_path / "cut", "cpu", resume=True, devices=2)
    resumed.run()
    assert resumed.step == 6
    for name, value in whole.learner.networks.state_dict().items():
        assert torch.equal(value, resumed.learner.networks.state_dict()[name]), name


def test_what_devices_cannot_do_is_said(data: Path, tmp_path: Path) -> None:
    pairs = split(find_pairs(data), config_of())
    with pytest.raises(CdalError, match="2 devices cannot share a batch of 3 evenly"):
        Trainer(config_of(batch_size=3), pairs, tmp_path / "run", "cpu", devices=2)
    with pytest.raises(CdalError, match="1000 devices"):
        Team("cpu", 1000)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run(data: Path, tmp_path: Path) -> None:
    config = config_of()
    training, validation = split(find_pairs(data), config)
    trainer = Trainer(config, (training, validation), tmp_path / "run", "cpu", devices=2)
    lost = [Pair(pair.image, tmp_path / "gone.tif") for pair in training]
    trainer.pairs = lost, validation  # what the other process is told to read
    with pytest.raises(CdalError, match="one of the devices' processes failed"):
        trainer.run()
