"""Models on disk: what is saved is what is loaded, and what is broken is refused in one line."""

import shutil
from pathlib import Path

import pytest
import torch

from cdal_engine.config import ModelConfig, TrainConfig, read_model_config
from cdal_engine.errors import CdalError
from cdal_engine.model import Model, Networks
from cdal_engine.weights import available, find, shipped


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_what_is_saved_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    model = Model.load(tiny_model)
    Model.save(tmp_path / "again", model.config, model.networks)
    again = Model.load(tmp_path / "again")
    assert again.config == model.config
    assert again.digest == model.digest
    for name, value in model.networks.state_dict().items():
        assert torch.equal(value, again.networks.state_dict()[name]), name


def test_the_digest_covers_config_and_weights(copy: Path) -> None:
    before = Model.load(copy).digest
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"min_area": 4.0', '"min_area": 5.0'))
    assert Model.load(copy).digest != before


def test_loaded_networks_are_ready_to_run(tiny_model: Path) -> None:
    networks = Model.load(tiny_model).networks
    assert not networks.training
    assert not any(p.requires_grad for p in networks.parameters())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: truncate(f / "model.safetensors"), "safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"), "safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot read the weights"),
        (lambda f: truncate(f / "config.json"), "not YAML or JSON"),
        (lambda f: (f / "config.json").write_text('{"halloo": 1}'), "halloo"),
        (lambda f: (f / "config.json").write_text("{}"), "do not fit"),
    ],
)
def test_broken_models_are_refused_with_file_and_reason(copy: Path, harm, message: str) -> None:
    harm(copy)
    with pytest.raises(CdalError, match=message) as caught:
        Model.load(copy)
    assert caught.value.path is not None
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_weights_with_nan_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = read_model_config(tiny_model / "config.json")
    networks = Networks(config)
    with torch.no_grad():
        next(networks.parameters())[0] = float("nan")
    Model.save(tmp_path, config, networks)
    with pytest.raises(CdalError, match="NaN"):
        Model.load(tmp_path)


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(CdalError, match="unknown model 'nuclei-xx'") as caught:
        find("nuclei-xx")
    assert all(name in caught.value.remedy for name in available())


def test_shipped_models_load_and_carry_a_card_with_licence() -> None:
    assert "nuclei-he" in shipped()
    for name, folder in shipped().items():
        model = Model.load(name)
        parameters = sum(p.numel() for p in model.networks.parameters())
        assert parameters <= 7_500_000
        assert (folder / "model.safetensors").stat().st_size <= 15_000_000
        assert "Licence:" in (folder / "CARD.md").read_text("utf-8")


@pytest.mark.parametrize("kind", [ModelConfig, TrainConfig])
def test_configs_round_trip_and_refuse_unknown_keys(kind: type, tmp_path: Path) -> None:
    config = kind()
    assert kind.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="Extra inputs"):
        kind.model_validate({"learning_rat": 1})
    with pytest.raises(ValueError, match="frozen"):
        config.__setattr__(next(iter(kind.model_fields)), None)


def test_training_config_file_names_every_wrong_key(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("learning_rat: 1\nmodel: {target: cells}\ncrop: 100\n")
    with pytest.raises(CdalError) as caught:
        TrainConfig.from_file(path)
    assert "learning_rat" in str(caught.value)
    assert "model.target" in str(caught.value)
