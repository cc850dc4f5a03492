"""Training: what it refuses, what it learns, and that resuming changes nothing."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.draw import disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cdal_engine.config import (
    DiffusionConfig,
    ImageConfig,
    LossConfig,
    ModelConfig,
    NetworkConfig,
    TrainConfig,
)
from cdal_engine.errors import Cancelled, CdalError
from cdal_engine.model import Model
from cdal_engine.segmenter import Segmenter
from cdal_engine.training.batches import batches
from cdal_engine.training.board import add_to_board
from cdal_engine.training.checks import load_checked
from cdal_engine.training.curves import read_rows
from cdal_engine.training.dataset import Pair, find_pairs, load_pair
from cdal_engine.training.loop import Trainer
from cdal_engine.training.splits import split
from cdal_engine.training.validation import evaluate

SMALL = ModelConfig(
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


def config_of(**changes: object) -> TrainConfig:
    base = {
        "model": SMALL,
        "steps": 6,
        "batch_size": 2,
        "crop": 64,
        "warmup": 2,
        "losses": LossConfig(r1_interval=2),
    }
    return TrainConfig(**base | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of dark disks on a light ground, with instance labels."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    for n in range(6):
        labels = np.zeros((96, 96), np.uint16)
        for i in range(1, 9):
            rr, cc = disk(rng.uniform(0, 96, 2), rng.uniform(7, 12), shape=labels.shape)
            labels[rr, cc] = i
        image = np.where(labels[..., None] > 0, (90, 50, 130), (230, 190, 215))
        image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"case{n}.png")
        tifffile.imwrite(folder / "labels" / f"case{n}.tif", labels)
    return folder


def train(config: TrainConfig, data: Path, run: Path, **options: object) -> Trainer:
    trainer = Trainer(config, split(find_pairs(data), config), run, "cpu", **options)
    trainer.run()
    return trainer


def test_resuming_ends_bit_identical_to_never_stopping(data: Path, tmp_path: Path) -> None:
    config = config_of(checkpoint_every=1e-9)
    whole = train(config, data, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(row: dict[str, float]) -> None:
        if row["step"] == 4:
            raise Killed

    pairs = split(find_pairs(data), config)
    with pytest.raises(Killed):
        Trainer(config, pairs, tmp_path / "cut", "cpu").run(kill)
    resumed = train(config, data, tmp_path / "cut", resume=True)
    assert resumed.step == whole.step == 6
    for part in ("networks", "average"):
        expected = getattr(whole.learner, part).state_dict()
        for name, value in getattr(resumed.learner, part).state_dict().items():
            assert torch.equal(value, expected[name]), name
    assert (
        Model.load(tmp_path / "cut" / "last").digest
        == Model.load(tmp_path / "whole" / "last").digest
    )


def test_a_run_leaves_what_it_promises(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config_of(), data, run)
    rows = read_rows(run / "metrics.csv")
    assert rows[-1]["step"] == 6
    assert {"dice", "aji", "pairwise_dice", "reconstruction", "discriminator"} <= rows[-1].keys()
    with Image.open(run / "curves.png") as picture:
        assert picture.width > 500
    (drawn,) = (run / "examples").iterdir()
    with Image.open(drawn) as picture:
        assert picture.size == (3 * 96, 3 * 96)  # enlarged
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("dice")] == [6]
    assert board.Scalars("dice")[0].value == pytest.approx(rows[-1]["dice"], abs=1e-5)
    assert board.Tags()["images"] == [drawn.stem]
    assert TrainConfig.from_file(run / "config.yaml") == config_of()
    assert not list(run.glob("*.tmp*"))
    Segmenter(Model.load(run / "best"), "cpu").segment(np.zeros((40, 40, 3), np.uint8), samples=1)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_it_learns(data: Path, tmp_path: Path) -> None:
    """A few seconds are enough for dark disks; the samples differ and each is right."""
    config = config_of(steps=150, batch_size=4, learning_rate=3e-3, ema_decay=0.9, augment=False)
    train(config, data, tmp_path / "run")
    model = Model.load(tmp_path / "run" / "best")
    config_alone = model.config.with_decoding(sample_weight=1.0)  # the diffusion's own samples
    segmenter = Segmenter(replace(model, config=config_alone), "cpu")
    scores = evaluate(segmenter, split(find_pairs(data), config)[1]).mean
    assert scores["dice"] > 0.93
    assert scores["dice_one_sample"] > 0.9
    assert scores["pairwise_dice"] < 0.9999


def test_fine_tuning_starts_from_the_given_model(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    train(config_of(steps=1), data, tmp_path / "first")
    init = Model.load(tmp_path / "first" / "last")
    config = config_of(steps=1, learning_rate=1e-9, discriminator_learning_rate=1e-9)
    tuned = train(config, data, tmp_path / "second", init=init)
    weight = tuned.learner.networks.generator.encoder.to_logits.weight
    torch.testing.assert_close(weight, init.networks.generator.encoder.to_logits.weight)


def test_without_attention_the_generator_sees_plain_x_t(data: Path, tmp_path: Path) -> None:
    none = SMALL.model_copy(
        update={"attention": SMALL.attention.model_copy(update={"mode": "none"})}
    )
    runs = [
        train(config_of(steps=2, model=m), data, tmp_path / m.attention.mode) for m in (SMALL, none)
    ]
    a, b = (run.learner.networks.generator.denoiser.stem.weight for run in runs)
    assert not torch.equal(a, b)


def test_a_run_folder_is_never_overwritten(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CdalError, match="not empty"):
        train(config_of(), data, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_resume_needs_the_same_config_and_a_checkpoint(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CdalError, match="no checkpoint to resume"):
        train(config_of(), data, tmp_path / "none", resume=True)
    train(config_of(steps=1), data, tmp_path / "run")
    with pytest.raises(CdalError, match="another config"):
        train(config_of(steps=1, crop=32), data, tmp_path / "run", resume=True)


def test_a_run_without_progress_ends_early(data: Path, tmp_path: Path) -> None:
    """Two validations without a better model are enough; the end survives a resume."""
    config = config_of(
        steps=50, learning_rate=1e-12, ema_decay=0.0, validate_every=1e-9, patience=2
    )
    ended = train(config, data, tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    best = max(range(len(rows)), key=lambda i: rows[i]["fitted_dice"])
    assert ended.step == len(rows) == best + 3 < 50
    assert list((tmp_path / "run" / "examples").glob("*.png"))
    assert train(config, data, tmp_path / "run", resume=True).step == ended.step


def test_tensorboard_can_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    add_to_board(tmp_path, {"step": 1.0, "dice": 0.5}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "rate"), [("learning_rate", 30), ("discriminator_learning_rate", 50)]
)
def test_divergence_stops_and_keeps_the_last_checkpoint(
    data: Path, tmp_path: Path, key: str, rate: float
) -> None:
    config = config_of(**{key: rate}, warmup=40, steps=100, checkpoint_every=1e-9)
    with pytest.raises(CdalError, match=rf"diverged.*start anew with {key} {rate / 10:g} ") as e:
        train(config, data, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert f"step {state['step'] + 1}:" in str(e.value)
    for part in ("networks", "average"):
        assert all(torch.isfinite(v).all() for v in state[part].values())


def test_no_patient_is_on_both_sides(data: Path, tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for patient in range(5):
        for slide in ("A", "B"):
            name = f"TCGA-AA-000{patient}-01{slide}.png"
            (tmp_path / "images" / name).touch()
            (tmp_path / "labels" / name).touch()
    pairs = find_pairs(tmp_path)
    training, validation = split(pairs, config_of())
    assert {p.patient for p in training} & {p.patient for p in validation} == set()
    assert len(training) + len(validation) == 10
    assert len(validation) == 2
    with pytest.raises(CdalError, match="same patients"):
        split(pairs, config_of(validation=("TCGA-AA-0001-01A",)))
    with pytest.raises(CdalError, match="no images for"):
        split(pairs, config_of(validation=("elsewhere",)))
    with pytest.raises(CdalError, match="cannot be split"):
        split(pairs[:2], config_of())


def test_every_unpaired_file_is_named(data: Path, tmp_path: Path) -> None:
    for kind, names in (("images", "abc"), ("labels", "bcd")):
        (tmp_path / kind).mkdir()
        for name in names:
            (tmp_path / kind / f"{name}.png").touch()
    with pytest.raises(CdalError, match="without partner: a, d"):
        find_pairs(tmp_path)
    with pytest.raises(CdalError, match="images/ and labels/"):
        find_pairs(tmp_path / "images")


def test_every_unusable_pair_is_named_at_once(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    rgb, ids = np.zeros((20, 20, 3), np.uint8), np.arange(400, dtype=np.uint16).reshape(20, 20)
    pairs = {
        "small": (rgb, ids[:10]),
        "gray": (rgb[..., 0], ids),
        "color": (rgb, rgb),
        "mask": (rgb, (ids % 20 > 9).astype(np.uint8) * (ids // 20 % 2).astype(np.uint8) * 255),
    }
    for name, (image, label) in pairs.items():
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", image)
        tifffile.imwrite(tmp_path / "labels" / f"{name}.tif", label)
    (tmp_path / "images" / "text.png").write_text("not a picture")
    tifffile.imwrite(tmp_path / "labels" / "text.tif", ids)
    with pytest.raises(CdalError, match="5 problems") as caught:
        load_checked((find_pairs(tmp_path), []), config_of())
    for words in (
        "differ in size",
        "takes RGB",
        "one integer a pixel",
        "one id per object",
        "holds no PNG, JPEG or TIFF",
    ):
        assert words in str(caught.value)


def test_images_are_brought_to_the_models_resolution(data: Path) -> None:
    pair = find_pairs(data)[0]
    (_, labels), (large, large_labels) = (load_pair(pair, SMALL, mpp)[0] for mpp in (None, 0.5))
    assert large.shape == (3, 192, 192)
    assert large_labels.shape == (1, 192, 192)
    assert torch.equal(large_labels[:, ::2, ::2], labels)
    assert large_labels.unique().tolist() == labels.unique().tolist()


def test_what_is_not_kept_in_memory_gives_the_same_batches(data: Path) -> None:
    """None of it, two of the six images, and all."""
    seen, kept = [], []
    for limit in (0, 1, 8000):
        config = config_of(cache_mb=limit)
        items = load_checked((find_pairs(data), []), config)
        made = batches(config, items, torch.device("cpu"), start=0)
        seen.append([x for _ in range(6) for x in next(made)])
        kept.append(len(items.kept))
        assert len(items) == 6
    size = sum(tensor.nbytes for tensor in items[0])
    assert kept == [0, 10**6 // size, 6]
    for others in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], others, strict=True))


def test_binary_and_grayscale_models_train_too(data: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for pair in find_pairs(data):
        with Image.open(pair.image) as image:
            image.convert("L").save(tmp_path / "data" / "images" / f"{pair.stem}.png")
        mask = (tifffile.imread(pair.label) > 0).astype(np.uint8) * 255
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{pair.stem}.png")
    image = ImageConfig(channels=1, mpp=None, normalisation="percentile", mean=(), std=())
    model = SMALL.model_copy(update={"target": "binary", "image": image})
    trainer = train(config_of(model=model, steps=2), tmp_path / "data", tmp_path / "run")
    rows = read_rows(trainer.run_folder / "metrics.csv")
    assert 0 <= rows[-1]["dice"] <= 1
    assert "aji" not in rows[-1]


def test_a_stopped_run_is_saved_where_it_stopped(data: Path, tmp_path: Path) -> None:
    config = config_of()
    whole = train(config, data, tmp_path / "whole")

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        Trainer(config, split(find_pairs(data), config), tmp_path / "cut", "cpu").run(stop)
    resumed = train(config, data, tmp_path / "cut", resume=True)
    for name, value in whole.learner.networks.state_dict().items():
        assert torch.equal(value, resumed.learner.networks.state_dict()[name]), name


def test_validation_can_be_stopped_too(data: Path, tmp_path: Path) -> None:
    config = config_of()
    answers = []

    def stop(row: dict[str, float]) -> None:
        if "answers" in row:
            answers.append(row["answers"])
            raise Cancelled

    trainer = Trainer(config, split(find_pairs(data), config), tmp_path / "cut", "cpu")
    with pytest.raises(Cancelled):
        trainer.run(stop)
    assert answers == [1]
    resumed = train(config, data, tmp_path / "cut", resume=True)
    (row,) = read_rows(tmp_path / "cut" / "metrics.csv")
    assert row["step"] == resumed.step == config.steps
    assert "dice" in row


def test_resuming_a_finished_run_changes_nothing(data: Path, tmp_path: Path) -> None:
    train(config_of(), data, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert train(config_of(), data, tmp_path / "run", resume=True).step == 6
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    longer = train(config_of(steps=8), data, tmp_path / "run", resume=True)
    assert longer.step == 8


def test_a_damaged_validation_image_is_named_before_training(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    config = config_of(validation=("case0",))
    (copy / "images" / "case0.png").write_bytes((copy / "images" / "case0.png").read_bytes()[:999])
    with pytest.raises(CdalError, match=r"case0\.png: cannot be decoded"):
        Trainer(config, split(find_pairs(copy), config), tmp_path / "run", "cpu")


def test_a_damaged_checkpoint_and_another_architecture(
    data: Path, tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"no checkpoint")
    pairs = split(find_pairs(data), config_of())
    with pytest.raises(CdalError, match="checkpoint is damaged"):
        Trainer(config_of(), pairs, tmp_path / "run", "cpu", resume=True)
    with pytest.raises(CdalError, match="another architecture"):
        Trainer(config_of(), pairs, tmp_path / "new", "cpu", init=Model.load(tiny_model))


def test_images_normalised_by_their_own_statistics_keep_them_in_crops(data: Path) -> None:
    image = ImageConfig(mpp=None, normalisation="percentile", mean=(), std=())
    model = SMALL.model_copy(update={"image": image})
    pixels, _ = load_pair(find_pairs(data)[0], model, None)[0]
    assert pixels.min() < -0.9
    assert pixels.max() > 0.9


def test_the_files_resolution_is_believed(data: Path, tmp_path: Path) -> None:
    pair = find_pairs(data)[0]
    copy = tmp_path / pair.image.name
    with Image.open(pair.image) as image:
        image.save(copy, dpi=(50800, 50800))
    marked = Pair(copy, pair.label)
    sizes = [load_pair(p, SMALL, None)[0][0].shape[1] for p in (pair, marked)]
    assert sizes == [96, 192]
    assert load_pair(marked, SMALL, 0.25)[0][0].shape[1] == 96
