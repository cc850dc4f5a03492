"""The published networks: translation of their weights, their options, how they run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdal_engine.diffusion import NoiseSchedule
from cdal_engine.errors import CdalError
from cdal_engine.ncsnpp_config import NcsnppConfig
from cdal_engine.networks.ncsnpp import NcsnppGenerator
from cdal_engine.networks.ncsnpp_blocks import FirFilter, timestep_embedding
from cdal_engine.networks.published_discriminators import PublishedDiscriminator
from cdal_engine.networks.published_names import (
    discriminator_names,
    generator_names,
    load_published,
    read_published,
    translated,
)
from cdal_engine.published import model_config, network_config, read_parameters
from cdal_engine.sampler import sample

COMMON: dict[str, Any] = {
    "num_res_blocks": 1,
    "attn_resolutions": [16],
    "cond_enc_layers": 3,
    "cond_enc_num_res_blocks": 2,
    "num_channels": 1,
    "num_channels_dae": 32,
    "n_mlp": 3,
    "num_timesteps": 4,
    "beta_min": 0.1,
    "beta_max": 20.0,
    "ngf": 64,
    "t_emb_dim": 256,
    "attn_scale": 3,
}
# The three published shapes, and how many tensors and parameters they have.
PUBLISHED: dict[str, tuple[dict[str, Any], int, int]] = {
    "monuseg": (
        {
            "dataset": "monu",
            "image_size": 256,
            "num_channels_dae": 64,
            "ch_mult": [1, 1, 1, 2, 2, 4, 4],
            "num_res_blocks": 2,
            "attn_resolutions": [16, 8],
            "cond_enc_layers": 5,
            "cond_enc_num_res_blocks": 1,
            "nz": 100,
            "z_emb_dim": 256,
        },
        702,
        41_666_753,
    ),
    "lung": (
        {
            "dataset": "lung",
            "image_size": 256,
            "ch_mult": [1, 1, 2, 2, 4, 4],
            "num_timesteps": 2,
            "nz": 100,
            "z_emb_dim": 256,
            "attn_scale": 2,
        },
        456,
        8_843_777,
    ),
    "hippocampus": (
        {
            "dataset": "hippo",
            "image_size": 32,
            "num_channels": 3,
            "ch_mult": [1, 2, 2, 2],
            "nz": 50,
            "z_emb_dim": 128,
            "t_emb_dim": 128,
        },
        334,
        2_691_971,
    ),
}


def published(name: str, **changes: Any) -> NcsnppConfig:
    return network_config({**COMMON, **PUBLISHED[name][0], **changes})


def tiny(**changes: Any) -> NcsnppConfig:
    return published("hippocampus", ch_mult=[1, 2], cond_enc_layers=1, ngf=4, **changes)


def state_of(network: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """Our weights under the published keys."""
    ours = network.state_dict()
    return {key: ours[name] for key, name in names.items()}


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(CdalError) as raised:
        action()
    return str(raised.value)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_names_are_those_of_the_published_weights(name: str, parity_data: Path) -> None:
    facts = json.loads((parity_data / "published_configs.json").read_text("utf-8"))[name]
    config = network_config(facts["parameters"])
    with torch.device("meta"):
        shapes = {k: list(v.shape) for k, v in NcsnppGenerator(config).state_dict().items()}
    names = generator_names(config)
    assert {key: shapes[ours] for key, ours in names.items()} == facts["state_dict_shapes"]
    assert config == published(name)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_every_published_tensor_has_one_place(name: str) -> None:
    config = published(name)
    with torch.device("meta"):
        network = NcsnppGenerator(config)
        names = generator_names(config)
        state = {key: torch.empty_like(v) for key, v in state_of(network, names).items()}
    renamed = translated(state, names, network.state_dict())
    _, tensors, parameters = PUBLISHED[name]
    assert len(names) == tensors
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert renamed.keys() == network.state_dict().keys()
    back = {id(v): k for k, v in renamed.items()}
    assert {key: back[id(v)] for key, v in state.items()} == names  # the very same tensors


def test_modules_are_numbered_as_the_published_ones() -> None:
    """Positions for three levels, the second of which attends."""
    config = published(
        "monuseg",
        num_channels_dae=32,
        image_size=32,
        ch_mult=[1, 1, 2],
        num_res_blocks=1,
        attn_resolutions=[16],
        cond_enc_layers=2,
    )
    number = {v: k.split(".")[2] for k, v in generator_names(config).items()}
    for ours, expected in {
        "denoiser.down.0.blocks.0.temb.bias": 6,
        "denoiser.down.1.blocks.0.temb.bias": 9,
        "denoiser.down.1.attentions.0.key.bias": 10,
        "denoiser.down.2.blocks.0.temb.bias": 13,
        "denoiser.middle.block_0.temb.bias": 14,
        "denoiser.up.2.blocks.0.temb.bias": 17,
        "denoiser.up.1.blocks.0.temb.bias": 20,
        "denoiser.up.0.blocks.0.temb.bias": 24,
        "denoiser.norm.bias": 26,
        "denoiser.to_labels.bias": 27,
    }.items():
        assert number[ours] == str(expected), ours


@pytest.mark.parametrize("prefix", ["", "module."])
def test_random_weights_survive_the_way_there_and_back(tmp_path: Path, prefix: str) -> None:
    config = tiny()
    torch.manual_seed(0)
    for kind, names in (
        (lambda: NcsnppGenerator(config), generator_names(config)),
        (lambda: PublishedDiscriminator(config, "large"), discriminator_names("large")),
        (lambda: PublishedDiscriminator(config, "small"), discriminator_names("small")),
    ):
        first, second = kind(), kind()
        state = state_of(first, names)
        stored = {prefix + key.removeprefix("module."): value for key, value in state.items()}
        torch.save(stored, tmp_path / "published.pth")
        load_published(second, names, tmp_path / "published.pth")
        assert second.state_dict().keys() == first.state_dict().keys() == set(names.values())
        for key, value in first.state_dict().items():
            assert torch.equal(second.state_dict()[key], value), key


def test_keys_that_do_not_fit_are_named() -> None:
    config = tiny()
    names = generator_names(config)
    network = NcsnppGenerator(config)
    state = state_of(network, names)
    key = "module.all_modules.2.weight"

    def error(changed: dict[str, Tensor]) -> str:
        return error_of(lambda: translated(changed, names, network.state_dict(), Path("net.pth")))

    missing = error({k: v for k, v in state.items() if k != key})
    assert f"missing: {key}" in missing
    assert missing.startswith("net.pth: ")
    assert "left over: module.extra" in error({**state, "module.extra": torch.zeros(1)})
    misshaped = error({**state, key: torch.zeros(32, 3, 3, 3)})
    assert f"of another shape: {key} (32, 3, 3, 3) for (32, 1, 3, 3)" in misshaped
    twice = key.removeprefix("module.")
    assert "left over: module.all_modules.2.weight" in error({**state, twice: state[key]})
    other = {k.replace("all_modules.2.", "all_modules.900."): v for k, v in state.items()}
    assert f"missing: {key}" in error(other)
    assert "left over: module.all_modules.900.weight" in error(other)


def test_the_wrong_size_of_discriminator_is_told_from_its_keys() -> None:
    config = tiny()
    small = PublishedDiscriminator(config, "small")
    state = state_of(small, discriminator_names("small"))
    expected = PublishedDiscriminator(config, "large").state_dict()
    message = error_of(lambda: translated(state, discriminator_names("large"), expected))
    assert "missing: conv5.conv1.0.weight" in message
    assert "conv1.conv1.0.weight (8, 8, 3, 3) for (16, 8, 3, 3)" in message


def test_files_of_anything_but_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    assert "cannot read" in error_of(lambda: read_published(path))
    path.write_bytes(b"not weights at all")
    assert "not a file of weights only" in error_of(lambda: read_published(path))
    torch.save({"module.a": Path("/")}, path)  # a pickle that would run code of pathlib
    assert "save the state dict alone" in error_of(lambda: read_published(path))
    for odd in (
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3).long(),
        torch.tensor([torch.nan]),
    ):
        torch.save({"module.a": odd}, path)
        assert "floating-point: module.a" in error_of(lambda: read_published(path))
    torch.save({"module.a": torch.linspace(0, 1, 4096)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40  # torch itself does not notice
    path.write_bytes(content)
    assert "checksum" in error_of(lambda: read_published(path))
    for length in (10, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "cut short" in error_of(lambda: read_published(path))
    for whole in ({"epoch": 3}, {"state_dict": {"module.a": torch.ones(3)}}):
        torch.save(whole, path)
        message = error_of(lambda: read_published(path))
        assert "more than tensors" in message
        assert "save the state dict alone" in message


def test_the_image_is_encoded_once_for_all_steps_and_samples() -> None:
    config = tiny()
    torch.manual_seed(0)
    generator = NcsnppGenerator(config).eval().requires_grad_(False)
    runs = []
    generator.encoder.register_forward_hook(lambda *_: runs.append(1))
    schedule = NoiseSchedule.variance_preserving(model_config(config).diffusion)
    image, samples = torch.randn(1, 1, 32, 32), 3
    drawn = [torch.randn(samples, 3, 32, 32) for _ in range(schedule.steps + 1)]
    z = torch.randn(samples, config.nz)

    def run(denoise: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        return sample(denoise, lambda x: x, schedule, lambda t: drawn[t], lambda t: z).x_0

    features = generator.encode(image)
    repeated = type(features)(*(f.repeat(samples, 1, 1, 1) for f in features))
    reused = run(lambda x_t, level, z: generator.denoise(x_t, level, z, repeated))
    assert len(runs) == 1
    images = image.repeat(samples, 1, 1, 1)
    anew = run(lambda x_t, level, z: generator(x_t, level, z, images))
    assert len(runs) == 1 + schedule.steps
    torch.testing.assert_close(reused, anew, atol=1e-5, rtol=0)
    assert not torch.allclose(reused[0], reused[1], atol=1e-3)


def test_gradient_reaches_every_parameter_that_has_effect() -> None:
    torch.manual_seed(0)
    config = tiny()
    generator = NcsnppGenerator(config)
    discriminators = [PublishedDiscriminator(config, size) for size in ("large", "small")]
    x_t, level = torch.randn(2, 3, 64, 64), torch.tensor([0.25, 1.0])
    image = torch.randn(2, 1, 64, 64)
    x_0 = generator(x_t, level, torch.randn(2, config.nz), image)
    answer = x_0.square().mean()
    for discriminator in discriminators:
        answer = answer + discriminator(x_0, x_t, image, level).square().mean()
    answer.backward()
    without = {f"encoder.blocks.{i}.conv_0.bias" for i in range(config.condition_blocks)}
    for network in (generator, *discriminators):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            if name not in without and not name.endswith("key.bias"):  # their norms cancel these
                assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("bounded", [True, False])
def test_the_head_is_bounded_unless_told(bounded: bool) -> None:
    generator = NcsnppGenerator(tiny(not_use_tanh=not bounded))
    nn.init.constant_(generator.denoiser.to_labels.bias, 5.0)
    x_t, image = torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)
    x_0 = generator(x_t, torch.ones(1), torch.randn(1, 50), image)
    assert (x_0.abs().max() <= 1) == bounded


def test_filter_weighs_neighbours_as_its_formulas_say() -> None:
    x = torch.arange(1.0, 7.0)[None, None, :, None].expand(1, 2, 6, 6)
    p = torch.cat([torch.zeros(1), torch.arange(1.0, 7.0), torch.zeros(1)])
    down = (p[0:-2:2] + 3 * p[1:-1:2] + 3 * p[2::2] + p[3::2]) / 8
    torch.testing.assert_close(FirFilter("down")(x)[0, 1, :, 1], down)
    even, odd = (p[:-2] + 3 * p[1:-1]) / 4, (3 * p[1:-1] + p[2:]) / 4
    up = torch.stack([even, odd], dim=1).flatten()
    torch.testing.assert_close(FirFilter("up")(x)[0, 1, :, 5], up)
    assert FirFilter("none")(x).shape == (1, 2, 7, 7)


def test_timestep_embedding_begins_with_sines_of_the_bare_step() -> None:
    embedding = timestep_embedding(torch.tensor([0.0, 3.0]), 8)
    assert embedding[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    angles = 3.0 * 10000.0 ** -(torch.arange(4) / 3)
    torch.testing.assert_close(embedding[1], torch.cat([angles.sin(), angles.cos()]))


def test_rows_are_compared_in_the_published_groups() -> None:
    """Of eight rows, the even ones are one group and the odd ones another."""
    torch.manual_seed(0)
    discriminator = PublishedDiscriminator(tiny(), "small").eval().requires_grad_(False)
    x, level = torch.randn(8, 3, 8, 8), torch.ones(8)
    before = discriminator(x, x, x, level)
    for row in range(8):
        changed = x.clone()
        changed[row] += 1
        differs = (discriminator(changed, changed, x, level) - before).abs() > 1e-6
        assert differs.tolist() == [other % 2 == row % 2 for other in range(8)]
    message = error_of(lambda: discriminator(x[:6], x[:6], x[:6], level[:6]))
    assert "groups of 4, the batch has 6" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resblock_type", "ddpm"),
        ("embedding_type", "fourier"),
        ("progressive", "output_skip"),
        ("progressive_input", "none"),
        ("progressive_combine", "cat"),
        ("fir", False),
        ("fir_kernel", [1, 2, 1]),
        ("skip_rescale", False),
        ("conditional", False),
        ("centered", False),
        ("use_geometric", True),
        ("resamp_with_conv", False),
        ("num_channels_dae", 48),
        ("image_size", 100),
        ("num_timesteps", 0),
        ("a_new_option", 1),
    ],
)
def test_options_that_are_not_built_are_refused(key: str, value: object) -> None:
    message = error_of(lambda: published("lung", **{key: value}))
    assert key in message


def test_a_missing_option_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "parameters.json"
    parameters = {**COMMON, **PUBLISHED["lung"][0], "seed": 1, "lr_d": 1e-05}
    path.write_text(json.dumps(parameters))
    assert read_parameters(path) == published("lung")
    del parameters["nz"]
    path.write_text(json.dumps(parameters))
    message = error_of(lambda: read_parameters(path))
    assert message.startswith(f"{path}: ")
    assert "nz: " in message
    path.write_text("{")
    assert "not JSON" in error_of(lambda: read_parameters(path))
    assert "cannot be read" in error_of(lambda: read_parameters(tmp_path))
