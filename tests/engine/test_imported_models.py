"""Imported models run as published, tile by tile."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cdal_engine import inference as inference_module
from cdal_engine import segmenter as segmenter_module
from cdal_engine.inference import AtOnce, Inference
from cdal_engine.model import Model
from cdal_engine.published import import_model
from cdal_engine.segmenter import Segmenter
from cdal_engine.tiling import plan_fixed
from cdal_engine.weights import find, user_folder

from .test_parity import CLOSE, SIZES, Parity, parity
from .test_published_import import files, write_checkpoint
from .test_published_networks import PUBLISHED, error_of

__all__ = ["files", "parity"]  # fixtures

MAPS = ("labels", "probability", "uncertainty", "deviation", "attention", "samples")
IMAGE = np.random.default_rng(0).integers(0, 256, (75, 90), np.uint8)


@pytest.fixture
def imported(files: dict[str, Path]) -> Segmenter:
    """A model of three label channels and tiles of 32 pixels, resolution fixed at 2 µm."""
    folder = import_model(**files, name="tiny")
    config = json.loads((folder / "config.json").read_text())
    config["image"] |= {"mpp": 2.0, "resized": [64, 64]}
    (folder / "config.json").write_text(json.dumps(config))
    return Segmenter(Model.load("tiny"), "cpu")


def is_same(a: Any, b: Any, where: tuple[slice, ...] = ()) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)[..., *where]) for name in MAPS)


def import_parity(parity: Parity, folder: Path) -> Path:
    """Both parity checkpoints as one model; their discriminators are narrower than said."""
    source = parity.folder / f"{parity.name}_parameters.json"
    parameters = json.loads(source.read_text()) | {"ngf": 8, "t_emb_dim": 16}
    (folder / "parameters.json").write_text(json.dumps(parameters))
    return import_model(
        parity.folder / f"{parity.name}_netG.pth",
        folder / "parameters.json",
        parity.name,
        parity.folder / f"{parity.name}_netD.pth",
    )


def test_one_tile_is_the_published_sampling_run(
    parity: Parity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_parity(parity, tmp_path)
    io, steps = parity.io, parity.config.num_timesteps
    segmenter = Segmenter(Model.load(parity.name), "cpu")
    config, edge = segmenter.model.config, parity.config.image_size
    assert config.network.discriminator == SIZES[parity.name]
    assert segmenter.halo(parity.schedule, "overlap") == edge // 8
    tiles = plan_fixed((edge, edge), edge, edge // 8)
    for row, image in enumerate(io["image"]):

        def noise(seed: int, sample: int, step: int, *_: Any, row: int = row) -> Tensor:
            return io["sample_x_T" if step == steps else f"sample_noise_{step}"][row]

        def latent(seed: int, sample: int, step: int, *_: Any, row: int = row) -> Tensor:
            return io[f"sample_z_{step - 1}"][row]

        monkeypatch.setattr(inference_module, "noise", noise)
        monkeypatch.setattr(inference_module, "latent", latent)
        inference = Inference(
            config=config,
            networks=segmenter.networks,
            samples=1,
            seed=0,
            schedule=segmenter.check_options(1, None),
            attention=False,
            keep_samples=False,
            device=segmenter.device,
            at_once=AtOnce(1, 1),
            advance=lambda passes: None,
        )
        with torch.inference_mode():
            maps = inference.run(image, (0, 0), tiles[0].box, tiles)
        answer = torch.from_numpy(maps.probability) * 2 - 1
        torch.testing.assert_close(answer, io["sample_x_after_0"][row], **CLOSE)


def test_the_attention_map_is_the_published_one(parity: Parity, tmp_path: Path) -> None:
    networks = Model.load(import_parity(parity, tmp_path)).networks
    io, size = parity.io, (40, 40)
    image = torch.zeros(len(io["t"]), parity.config.image_channels, *size)
    looked = networks.attention_map(io["d_x_prev"], io["d_x_t"], image, parity.level, size)
    mean = io[f"d_feature_mean_{parity.config.attn_scale}"]
    expected = F.interpolate(mean, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(looked, expected, **CLOSE)


SHAPES = [
    "hippocampus",
    "lung",
    pytest.param("monuseg", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", SHAPES)
def test_the_published_shapes_are_imported_and_run(name: str, tmp_path: Path) -> None:
    folder = import_model(**write_checkpoint(tmp_path, name), name=name)
    model = Model.load(name)
    assert folder == find(name) == user_folder() / name
    assert sum(p.numel() for p in model.networks.generator.parameters()) == PUBLISHED[name][2]
    image = np.stack([IMAGE] * 3, axis=-1) if name == "monuseg" else IMAGE
    result = Segmenter(model, "cpu").segment(image, samples=1)
    assert result.labels.shape == IMAGE.shape
    assert result.probability.shape == (2 if name == "hippocampus" else 1, *IMAGE.shape)
    assert np.isfinite(result.probability).all()
    assert result.attention is None  # no discriminator came with it


def test_what_it_cannot_do_is_refused(imported: Segmenter) -> None:
    assert "no supervised head" in error_of(lambda: imported.segment(IMAGE, steps=0))
    assert "steps must be 2, as the model was trained, got 4" in error_of(
        lambda: imported.segment(IMAGE, steps=4)
    )
    assert "tile must be 32" in error_of(lambda: Segmenter(imported.model, "cpu", tile=64))
    assert "unknown tile mode" in error_of(lambda: imported.segment(IMAGE, tile_mode="both"))


def test_our_own_models_have_no_tile_mode(tiny_model: Path) -> None:
    segmenter = Segmenter(Model.load(tiny_model), "cpu")
    message = error_of(lambda: segmenter.check_options(1, None, "published"))
    assert "does not depend on its tiles" in message


@pytest.mark.parametrize("mode", ["overlap", "published"])
@pytest.mark.parametrize("mpp", [pytest.param(2.0, marks=pytest.mark.slow), 1.3])
def test_order_region_and_batch_change_no_bit(
    imported: Segmenter, mode: str, mpp: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"samples": 2, "tile_mode": mode, "mpp": mpp, "keep_samples": True}
    whole = imported.segment(IMAGE, **options)
    assert whole.probability.shape == (2, *IMAGE.shape)
    assert is_same(imported.segment(IMAGE, **options), whole)
    part = imported.segment(IMAGE, region=(slice(20, 60), slice(31, 90)), **options)
    assert is_same(part, whole, (slice(20, 60), slice(31, 90)))

    def shuffled(*arguments: Any) -> list[Any]:
        tiles = plan_fixed(*arguments)
        return [tiles[i] for i in np.random.default_rng(1).permutation(len(tiles))]

    monkeypatch.setattr(segmenter_module, "plan_fixed", shuffled)
    assert is_same(imported.segment(IMAGE, **options), whole)
    for at_once in (AtOnce(1, 1), AtOnce(3, 2)):
        monkeypatch.setattr(segmenter_module, "fitting", lambda *_, at_once=at_once: at_once)
        again = imported.segment(IMAGE, **options)
        for name in ("probability", "deviation", "attention"):
            np.testing.assert_allclose(getattr(again, name), getattr(whole, name), atol=1e-5)


def test_published_tiles_lie_side_by_side_and_know_nothing_of_each_other(
    imported: Segmenter,
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)  # 2 x 2 tiles
    other = image.copy()
    other[0, 40:64] = np.random.default_rng(1).permutation(other[0, 40:64])  # same percentiles
    before, after = (
        imported.segment(x, samples=1, tile_mode="published").probability for x in (image, other)
    )
    changed = (before != after).any(axis=0)
    assert changed[:32, 32:].mean() > 0.9  # global norms: a pixel changes all of its tile
    assert not changed[32:].any()
    assert not changed[:, :32].any()


def test_the_halo_is_an_eighth_of_a_tile_or_as_configured(imported: Segmenter) -> None:
    config = imported.model.config
    assert imported.halo(None) == 4
    assert imported.halo(None, "published") == 0
    with_halo = config.model_copy(update={"halo": 8})
    assert Segmenter(replace(imported.model, config=with_halo), "cpu").halo(None) == 8


@pytest.mark.parametrize("shape", [(5, 9), (32, 32), (33, 200), (301, 40)])
@pytest.mark.parametrize("mode", ["overlap", "published"])
def test_images_of_any_size_are_answered_on_their_own_grid(
    imported: Segmenter, shape: tuple[int, int], mode: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    result = imported.segment(image, samples=1, tile_mode=mode)
    assert result.labels.shape == shape
    assert result.probability.shape == (2, *shape)
    assert result.attention is not None
    assert result.attention.shape == shape
    # brought to one size whatever its resolution, an image says nothing of it
    assert result.mpp == (2.0 if mode == "overlap" else None)


def test_without_a_resolution_every_image_is_brought_to_one_size(files: dict[str, Path]) -> None:
    import_model(**files, name="tiny")
    segmenter = Segmenter(Model.load("tiny"), "cpu")
    passes: list[tuple[int, int]] = []
    segmenter.segment(IMAGE, samples=1, progress=lambda *done: passes.append(done) or True)
    assert passes[-1] == (3, 3)  # one tile: encoded, and two steps
