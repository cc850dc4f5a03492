"""Released checkpoints as our models: they run as published, and what does not fit is refused."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cdal_engine import inference as inference_module
from cdal_engine import segmenter as segmenter_module
from cdal_engine.config import ModelConfig, read_model_config
from cdal_engine.inference import AtOnce, Inference
from cdal_engine.model import Model
from cdal_engine.networks import NcsnppGenerator, PublishedDiscriminator
from cdal_engine.networks.published_names import discriminator_names, generator_names
from cdal_engine.published import import_model, model_config, network_config
from cdal_engine.segmenter import Segmenter
from cdal_engine.tiling import hull, plan_fixed
from cdal_engine.weights import available, find, shipped, user_folder

from .test_parity import CLOSE, SIZES, Parity, parity
from .test_published_networks import COMMON, PUBLISHED, error_of, state_of

__all__ = ["parity"]  # a fixture

MAPS = ("labels", "probability", "uncertainty", "deviation", "attention", "samples")
IMAGE = np.random.default_rng(0).integers(0, 256, (75, 90), np.uint8)


def write_checkpoint(
    folder: Path, name: str = "hippocampus", size: Any = None, **changes: Any
) -> dict[str, Path]:
    """Files as released, with random weights; arguments of `import_model`."""
    parameters = {**COMMON, **PUBLISHED[name][0], "seed": 1024, "lr_d": 1e-4, **changes}
    network = network_config(parameters)
    torch.manual_seed(0)
    files = {"generator": folder / "netG.pth", "parameters": folder / "parameters.json"}
    names = generator_names(network)
    torch.save(state_of(NcsnppGenerator(network), names), files["generator"])
    if size is not None:
        files["discriminator"] = folder / "netD.pth"
        names = discriminator_names(size)
        torch.save(state_of(PublishedDiscriminator(network, size), names), files["discriminator"])
    files["parameters"].write_text(json.dumps(parameters))
    return files


TINY = {"ch_mult": [1, 2], "cond_enc_layers": 1, "ngf": 4, "num_timesteps": 2}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write_checkpoint(tmp_path, size="small", **TINY)


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


def test_what_the_paper_says_is_in_the_config(tmp_path: Path) -> None:
    configs = {
        name: model_config(network_config({**COMMON, **PUBLISHED[name][0]})) for name in PUBLISHED
    }
    edges = {name: config.image.resized for name, config in configs.items()}
    assert edges == {"monuseg": (512, 512), "lung": (256, 256), "hippocampus": (32, 32)}
    assert [c.image.channels for c in configs.values()] == [3, 1, 1]
    assert [c.network.fixed_tile for c in configs.values()] == [256, 256, 32]
    assert [c.target for c in configs.values()] == ["binary", "binary", "classes"]
    assert configs["hippocampus"].classes == ("anterior", "posterior")
    assert configs["monuseg"].image.mpp == pytest.approx(0.25 * 1000 / 512)
    for config in configs.values():
        decode = config.decode
        assert (decode.sample_weight, decode.temperature, decode.threshold) == (1, 1, 0.5)
        assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_the_card_says_what_to_know(files: dict[str, Path]) -> None:
    card = (import_model(**files, name="tiny") / "CARD.md").read_text("utf-8")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()]
    for text in ("Licence: the authors', non-commercial", "Not validated by us", *digests):
        assert text in card
    assert "answer depends on the tile" in card
    assert "Preparation, not verified" in card


def test_weights_are_kept_to_the_bit(files: dict[str, Path]) -> None:
    state = Model.load(import_model(**files, name="tiny")).networks.state_dict()
    for part, names, path in (
        (
            "generator",
            generator_names(network_config({**COMMON, **PUBLISHED["hippocampus"][0], **TINY})),
            files["generator"],
        ),
        ("discriminator", discriminator_names("small"), files["discriminator"]),
    ):
        published = torch.load(path, weights_only=True)
        assert published.keys() == names.keys()
        for key, ours in names.items():
            assert torch.equal(published[key], state[f"{part}.{ours}"]), key


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def change(path: Path, edit: Callable[[Any], None]) -> None:
    """Change what a .pth or .json file holds."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)


FIRST = "module.all_modules.2.weight"
HARMS: dict[str, tuple[Callable[[dict[str, Path]], Any], str]] = {
    "missing": (lambda f: change(f["generator"], lambda s: s.pop(FIRST)), f"missing: {FIRST}"),
    "left over": (
        lambda f: change(f["generator"], lambda s: s.update(extra=torch.ones(1))),
        "left over: extra",
    ),
    "misshaped": (
        lambda f: change(f["generator"], lambda s: s.update({FIRST: torch.ones(1)})),
        f"of another shape: {FIRST}",
    ),
    "not finite": (lambda f: change(f["generator"], lambda s: s[FIRST].fill_(torch.nan)), "NaN"),
    "discriminator": (
        lambda f: change(f["discriminator"], lambda s: s.pop("end_linear.bias")),
        "missing: end_linear.bias",
    ),
    "swapped": (lambda f: f.update(generator=f["discriminator"]), "do not fit"),
    "other network": (lambda f: change(f["parameters"], lambda p: p.update(nz=7)), "another shape"),
    "no key": (lambda f: change(f["parameters"], lambda p: p.pop("nz")), "nz: "),
    "other key": (lambda f: change(f["parameters"], lambda p: p.update(nzz=7)), "nzz: "),
    "attention": (
        lambda f: change(f["parameters"], lambda p: p.update(attn_scale=5)),
        "attn_scale",
    ),
    "steps": (
        lambda f: change(f["parameters"], lambda p: p.update(num_timesteps=99)),
        "num_timesteps",
    ),
    "a list": (lambda f: f["parameters"].write_text("[1]"), "invalid config"),
    "not JSON": (lambda f: f["parameters"].write_bytes(b"\x80"), "not JSON"),
    "absent": (lambda f: f["parameters"].unlink(), "cannot be read"),
    "weights absent": (lambda f: f["generator"].unlink(), "cannot read"),
    "cut short": (
        lambda f: f["generator"].write_bytes(f["generator"].read_bytes()[:9999]),
        "cannot read the weights",
    ),
}


@pytest.mark.parametrize("name", list(HARMS))
def test_what_does_not_fit_is_refused_and_leaves_nothing(name: str, files: dict[str, Path]) -> None:
    harm, reason = HARMS[name]
    harm(files)
    message = error_of(lambda: import_model(**files, name="tiny"))
    assert reason in message
    assert "\n" not in message
    assert not user_folder().exists() or not list(user_folder().iterdir())


def test_a_pickle_that_runs_code_is_refused_unrun(files: dict[str, Path], tmp_path: Path) -> None:
    mark = tmp_path / "exploded"
    torch.save({FIRST: _Bomb(mark)}, files["generator"])
    assert "not a file of weights only" in error_of(lambda: import_model(**files, name="tiny"))
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["../tiny", "a/b", "a\\b", "/tmp/tiny", "", ".", "..", ".hidden", "a b", "nul", "a."]
)
def test_names_that_are_no_folder_of_ours_are_refused(name: str, files: dict[str, Path]) -> None:
    assert "cannot be a model's name" in error_of(lambda: import_model(**files, name=name))


def test_a_name_is_taken_once(files: dict[str, Path]) -> None:
    folder = import_model(**files, name="tiny")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "there is a model 'tiny' already" in error_of(lambda: import_model(**files, name="tiny"))
    assert "already" in error_of(lambda: import_model(**files, name="nuclei-he"))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [p.name for p in user_folder().iterdir()] == ["tiny"]
    assert list(available()) == [*shipped(), "tiny"]


def test_a_config_that_contradicts_its_network_is_refused(files: dict[str, Path]) -> None:
    path = import_model(**files, name="tiny") / "config.json"
    text = path.read_text()
    for harm, reason in (
        (lambda c: c["diffusion"].update(steps=3), "diffusion.steps is 3, not 2"),
        (lambda c: c.update(classes=["one"]), "channels of target and classes is 2, not 3"),
        (lambda c: c["decode"].update(sample_weight=0.3), "decode.sample_weight is 0.3"),
        (lambda c: c["network"].update(nzz=1), "network.nzz: "),
        (lambda c: c["network"].update(architecture="unet"), "network: "),
        (lambda c: c.update(halo=16), "halo"),
    ):
        path.write_text(text)
        change(path, harm)
        message = error_of(lambda: read_model_config(path))
        assert message.startswith(f"{path}: invalid config: ")
        assert reason in message


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
@pytest.mark.parametrize("mpp", [2.0, 1.3])
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


@given(st.data())
def test_fixed_tiles_cover_a_grid_once(data: st.DataObject) -> None:
    tile = data.draw(st.integers(2, 40))
    halo = data.draw(st.integers(0, (tile - 1) // 2))
    size = tuple(data.draw(st.integers(tile, 150)) for _ in range(2))
    tiles = plan_fixed(size, tile, halo)
    covered = np.zeros(size, int)
    for one in tiles:
        covered[one.core] += 1
        assert one.shape == (tile, tile)
        for core, box, n in zip(one.core, one.box, size, strict=True):
            assert box.start >= 0
            assert box.stop <= n
            assert core.start - box.start >= halo or core.start == 0
            assert box.stop - core.stop >= halo or core.stop == n
    assert (covered == 1).all()
    assert hull(tiles) == tuple(slice(0, n) for n in size)
    part = tuple(
        slice(a := data.draw(st.integers(0, n - 1)), data.draw(st.integers(a + 1, n))) for n in size
    )
    of_part = plan_fixed(size, tile, halo, part)
    assert {str(t.box) for t in of_part} <= {str(t.box) for t in tiles}
    covered[part] = 0
    for one in of_part:
        covered[one.core] += 1
    assert (covered == 1).all()
