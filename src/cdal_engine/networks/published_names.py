"""From the published state dicts' keys to ours.

Published files number the generator's modules in the order they run; the names here are ours.
Tensors keep their layout.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CdalError
from ..ncsnpp_config import DISCRIMINATOR_BLOCKS, DiscriminatorSize, NcsnppConfig

__all__ = [
    "discriminator_names",
    "generator_names",
    "load_published",
    "read_published",
    "translated",
]

Names = dict[str, str]
_PREFIX = "module."  # of what was trained on several devices
_ZIP = b"PK\x03\x04"  # what such a file begins with
_AGAIN = "copy or download the file again"
_ALONE = "save the state dict alone: torch.save(network.state_dict(), FILE)"
_FITTING = "check which network the file is of, and that the parameters belong to it"
_SHOWN = 5  # keys of a kind that an error names

_SELF: Names = {"": ""}
_CONDITION: Names = {
    "0.in_layers.0": "norm_0",
    "0.in_layers.2": "conv_0",
    "0.out_layers.0": "norm_1",
    "0.out_layers.3": "conv_1",
}
_RESIDUAL: Names = {
    "GroupNorm_0.style": "norm_0.style",
    "Conv_0": "conv_0",
    "Dense_0": "temb",
    "GroupNorm_1.style": "norm_1.style",
    "Conv_1": "conv_1",
}
_PROJECTED: Names = {**_RESIDUAL, "Conv_2": "shortcut"}
_ATTENTION: Names = {
    "GroupNorm_0": "norm",
    "NIN_0": "query",
    "NIN_1": "key",
    "NIN_2": "value",
    "NIN_3": "output",
}
_PYRAMID: Names = {"Conv2d_0": "conv"}


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _both(published: str, ours: str) -> Names:
    """Names of the weight and bias of one layer."""
    in_out = published.rpartition(".")[2].startswith("NIN_")  # weights stored as (in, out)
    weight, bias = ("W", "b") if in_out else ("weight", "bias")
    return {_join(published, weight): _join(ours, "weight"), _join(published, bias): f"{ours}.bias"}


def _down_modules(config: NcsnppConfig) -> Iterator[tuple[str, Names]]:
    for i in range(config.levels):
        for j, c_in in enumerate(config.block_inputs(i)):
            same = c_in == config.channels(i)
            yield f"denoiser.down.{i}.blocks.{j}", _RESIDUAL if same else _PROJECTED
            if config.attends(i):
                yield f"denoiser.down.{i}.attentions.{j}", _ATTENTION
        if i < config.levels - 1:
            yield f"denoiser.halvings.{i}.down", _PROJECTED
            yield f"denoiser.halvings.{i}.pyramid", _PYRAMID


def _up_modules(config: NcsnppConfig) -> Iterator[tuple[str, Names]]:
    for i in reversed(range(config.levels)):
        for j in range(config.num_res_blocks + 1):
            yield f"denoiser.up.{i}.blocks.{j}", _PROJECTED  # a skip tensor joins: never the same
        if config.attends(i):
            yield f"denoiser.up.{i}.attention", _ATTENTION
        if i:
            yield f"denoiser.up.{i}.up", _PROJECTED


def _modules(config: NcsnppConfig) -> Iterator[tuple[str, Names]]:
    """Our modules in the published order, each with the names of its layers."""
    yield "denoiser.time.linear_0", _SELF
    yield "denoiser.time.linear_1", _SELF
    yield "encoder.stem", _SELF
    for i in range(config.condition_blocks):
        yield f"encoder.blocks.{i}", _CONDITION
    yield "denoiser.stem", _SELF
    yield from _down_modules(config)
    yield "denoiser.middle.block_0", _RESIDUAL
    yield "denoiser.middle.attention", _ATTENTION
    yield "denoiser.middle.block_1", _RESIDUAL
    yield from _up_modules(config)
    yield "denoiser.norm", _SELF
    yield "denoiser.to_labels", _SELF


def generator_names(config: NcsnppConfig) -> Names:
    """Published key to key of `NcsnppGenerator`, for every tensor of the generator."""
    names: Names = {}
    for i in range(config.n_mlp + 1):
        names |= _both(f"{_PREFIX}z_transform.{2 * i + 1}", f"denoiser.latent.layers.{i}")
    for number, (ours, layers) in enumerate(_modules(config)):
        for layer, our_layer in layers.items():
            published = _join(f"{_PREFIX}all_modules", str(number), layer)
            names |= _both(published, _join(ours, our_layer))
    return names


def discriminator_names(size: DiscriminatorSize) -> Names:
    """Published key to key of `PublishedDiscriminator`, for every tensor."""
    names = {
        **_both("t_embed.main.0", "time.linear_0"),
        **_both("t_embed.main.2", "time.linear_1"),
        **_both("start_conv", "stem"),
        **_both("final_conv", "final"),
        **_both("end_linear", "to_logit"),
    }
    for i in range(len(DISCRIMINATOR_BLOCKS[size])):
        published, ours = f"conv{i + 1}", f"blocks.{i}"
        names |= _both(f"{published}.conv1.0", f"{ours}.conv_0")
        names |= _both(f"{published}.conv2.0", f"{ours}.conv_1")
        names |= _both(f"{published}.dense_t1", f"{ours}.temb")
        names[f"{published}.skip.0.weight"] = f"{ours}.shortcut.weight"
    return names


def translated(
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    expected: Mapping[str, Tensor],
    path: Path | None = None,
) -> dict[str, Tensor]:
    """Rename a published state dict.

    Parameters
    ----------
    state : mapping
        As published, with or without the prefix `module.`.
    names : mapping
        From `generator_names` or `discriminator_names`.
    expected : mapping
        Our network's state dict, for its shapes; it may be on the meta device.
    path : Path, optional
        Where `state` came from, for errors.

    Raises
    ------
    CdalError
        Naming keys that are missing, left over or not of the shape expected.
    """
    in_file = {key.removeprefix(_PREFIX): key for key in state}
    wanted = {key.removeprefix(_PREFIX): ours for key, ours in names.items()}
    missing = [key for key in names if key.removeprefix(_PREFIX) not in in_file]
    left_over = [key for key in state if key.removeprefix(_PREFIX) not in wanted]
    # a key that is there twice, with the prefix and without it
    left_over += [key for key in state if in_file[key.removeprefix(_PREFIX)] != key]
    renamed = {ours: state[in_file[key]] for key, ours in wanted.items() if key in in_file}
    misshaped = [
        f"{in_file[key]} {tuple(state[in_file[key]].shape)} for {tuple(expected[ours].shape)}"
        for key, ours in wanted.items()
        if key in in_file and state[in_file[key]].shape != expected[ours].shape
    ]
    problems = [
        f"{what}: {_few(keys)}"
        for what, keys in (
            ("missing", missing),
            ("left over", left_over),
            ("of another shape", misshaped),
        )
        if keys
    ]
    if problems:
        raise CdalError(f"the weights do not fit: {'; '.join(problems)}", _FITTING, path)
    return renamed


def _few(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def read_published(path: Path) -> dict[str, Tensor]:
    """Read a published state dict, tensors only; raises `CdalError` for any other file."""
    try:
        _check_archive(path)
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except CdalError:
        raise
    except OSError as error:
        raise CdalError(f"cannot read the weights: {error.strerror}", _AGAIN, path) from None
    except pickle.UnpicklingError:  # with code in it, or no pickle at all
        raise CdalError("not a file of weights only", _ALONE, path) from None
    except Exception as error:  # a corrupt file raises whatever it comes upon
        raise CdalError("damaged, or not a file of weights only", _AGAIN, path) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CdalError("not a state dict: it holds more than tensors", _ALONE, path)
    odd = [str(k) for k, v in state.items() if not _is_weight(v)]
    if odd:
        raise CdalError(f"NaN, infinite or not dense floating-point: {_few(odd)}", _AGAIN, path)
    return {str(key): value for key, value in state.items()}


def _check_archive(path: Path) -> None:
    """Refuse a zip file, as torch writes them, that is cut short or damaged.

    Torch says neither in words for users, and does not look at checksums.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
    if not zipfile.is_zipfile(path):
        raise CdalError("cut short: the end of the file is missing", _AGAIN, path)
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CdalError(f"damaged: the checksum of {damaged} is wrong", _AGAIN, path)


def _is_weight(value: Tensor) -> bool:
    dense = value.layout == torch.strided and not value.is_meta
    return dense and value.is_floating_point() and bool(value.isfinite().all())


def load_published(network: nn.Module, names: Mapping[str, str], path: Path) -> None:
    """Load a published file into `network`; raises `CdalError` if they do not fit."""
    network.load_state_dict(translated(read_published(path), names, network.state_dict(), path))
