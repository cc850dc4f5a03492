"""Import of released checkpoints: all of one is taken over, and what does not fit is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdal_engine.config import ModelConfig, read_model_config
from cdal_engine.model import Model
from cdal_engine.networks import NcsnppGenerator, PublishedDiscriminator
from cdal_engine.networks.published_names import discriminator_names, generator_names
from cdal_engine.published import import_model, model_config, network_config
from cdal_engine.weights import available, shipped, user_folder

from .test_published_networks import COMMON, PUBLISHED, error_of, state_of


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
        "cut short",
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
