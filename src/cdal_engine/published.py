"""A released cDAL checkpoint made into one of our models, with a card that says what it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import weights
from .config import ModelConfig, validated
from .errors import CdalError
from .model import Model, Networks
from .ncsnpp_config import DISCRIMINATOR_BLOCKS, NcsnppConfig
from .networks.published_names import (
    discriminator_names,
    generator_names,
    load_published,
    read_published,
    translated,
)

__all__ = ["import_model", "model_config", "network_config", "read_parameters"]

CARD_FILE = "CARD.md"

# Of the training runs; without effect on the networks. `num_channels_disc` is not always true:
# the discriminator takes twice `num_channels`. `fourier_scale` belongs to another embedding.
# fmt: off
_IGNORED = frozenset((
    "seed", "resume", "exp", "fold", "batch_size", "num_epoch", "T_max", "lr_g", "lr_d", "beta1",
    "beta2", "no_lr_decay", "use_ema", "ema_decay", "r1_gamma", "lazy_reg", "save_content",
    "save_content_every", "save_ckpt_every", "log_step", "num_channels_disc", "fourier_scale",
))
# fmt: on


class _Preparation(NamedTuple):
    """What the paper did to the images of a data set, and which classes it found there."""

    classes: tuple[str, ...]
    edge: int = 1  # of the resized image, in tiles
    field: float | None = None  # micrometres along that edge, where images are of one scale
    normalisation: str = "constant"


# MoNuSeg's images are 1000 pixels at 0.25 µm. MRI has no scale of intensities: each volume's own.
_PREPARATIONS = {
    "monu": _Preparation(("nucleus",), edge=2, field=250.0),
    "lung": _Preparation(("lung",)),
    "hippo": _Preparation(("anterior", "posterior"), normalisation="percentile"),
}


def read_parameters(path: Path) -> NcsnppConfig:
    """Read a published parameters file (JSON); raises `CdalError` as `network_config`."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CdalError(f"cannot be read: {error.strerror}", "check the path", path) from None
    except (ValueError, RecursionError) as error:  # of its encoding, syntax or depth
        raise CdalError(f"not JSON: {error}", "check its syntax", path) from None
    return network_config(values, path)


def network_config(values: object, path: Path | None = None) -> NcsnppConfig:
    """Take from published parameters what the networks are built from.

    Raises
    ------
    CdalError
        Naming every key that is missing, unknown, or set to what is not built here.
    """
    if isinstance(values, Mapping):
        values = {key: value for key, value in values.items() if key not in _IGNORED}
    return validated(NcsnppConfig, values, path)


def model_config(network: NcsnppConfig, path: Path | None = None) -> ModelConfig:
    """The config of a model with the published network, preparing images as the paper says.

    The paper names neither the constants of intensities nor how images were resized. `centered`
    of the parameters is taken to mean that 0 … 1 becomes -1 … 1.
    """
    channels, objects = network.image_channels, max(network.num_channels - 1, 1)
    known = _PREPARATIONS.get(network.dataset, _Preparation(()))
    numbered = tuple(f"class {i + 1}" for i in range(objects))
    edge = known.edge * network.image_size
    values: dict[str, Any] = {
        "target": "binary" if network.num_channels == 1 else "classes",
        "classes": known.classes if len(known.classes) == objects else numbered,
        "image": {
            "channels": channels,
            "mpp": None if known.field is None else known.field / edge,
            "resized": (edge, edge),
            "normalisation": known.normalisation,
            "mean": (0.5,) * channels,
            "std": (0.5,) * channels,
        },
        "network": network.model_dump(),
        "diffusion": {
            "steps": network.num_timesteps,
            "beta_min": network.beta_min,
            "beta_max": network.beta_max,
            "label_scale": 1.0,
        },
        "attention": {"mode": "paper", "level": network.attn_scale},
        # Samples are averaged and cut at 0.5, and every piece is kept.
        "decode": {"sample_weight": 1.0, "min_area": 0.0},
    }
    return validated(ModelConfig, values, path)


def import_model(
    generator: Path, parameters: Path, name: str, discriminator: Path | None = None
) -> Path:
    """Make a released checkpoint a model of the user's; all of it appears at once, or nothing.

    Parameters
    ----------
    generator : Path
        Its state dict, a .pth file.
    parameters : Path
        The JSON file it was trained with.
    name : str
        Of the new model.
    discriminator : Path, optional
        Its state dict, to show where it looks.

    Returns
    -------
    Path
        The model's folder.

    Raises
    ------
    CdalError
        If a file cannot be read, does not fit or holds more than weights, or the name is taken.
    """
    folder = weights.folder_for(name)
    network = read_parameters(parameters)
    if discriminator is not None:
        changed = network.model_dump() | {"discriminator": _size_of(discriminator)}
        network = validated(NcsnppConfig, changed, parameters)
    config = model_config(network, parameters)
    with torch.device("meta"):  # no memory is taken for what the files do not fit
        expected = Networks(config).generator.state_dict()
    names = generator_names(network)
    state = translated(read_published(generator), names, expected, generator)
    networks = Networks(config)
    networks.generator.load_state_dict(state)
    if discriminator is not None and network.discriminator is not None:
        names = discriminator_names(network.discriminator)
        load_published(networks.discriminator, names, discriminator)
    sources = [path for path in (generator, discriminator, parameters) if path is not None]
    _publish(folder, config, networks, _card(name, config, network, sources))
    return folder


def _size_of(path: Path) -> str:
    """Which discriminator a file holds: the large one has more blocks."""
    last = f"conv{len(DISCRIMINATOR_BLOCKS['large'])}.conv1.0.weight"
    return "large" if any(key.endswith(last) for key in read_published(path)) else "small"


def _publish(folder: Path, config: ModelConfig, networks: Networks, card: str) -> None:
    """Write a model aside, load it as a check, and rename it."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        Model.save(aside, config, networks)
        (aside / CARD_FILE).write_text(card, "utf-8")
        Model.load(aside)
        aside.rename(folder)  # unlike `replace`, fails where there is a model by now
    except CdalError as error:
        raise CdalError(error.reason, error.remedy) from None  # not naming a file that is gone
    except OSError as error:
        raise CdalError(
            f"cannot write the model: {error.strerror}",
            "check the disk and its rights, or choose another folder by $CDAL_MODELS",
            folder,
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _card(name: str, config: ModelConfig, network: NcsnppConfig, sources: list[Path]) -> str:
    """What the user should know of an imported model."""
    image, tile = config.image, network.fixed_tile
    kind = "RGB" if image.channels == 3 else "grayscale"
    height, width = image.resized or (0, 0)
    at = f"{image.mpp:.4g} µm per pixel" if image.mpp else f"{height} x {width} pixels"
    scaled = (
        "0 … 1 becomes -1 … 1 in every channel"
        if image.normalisation == "constant"
        else "each image's, or volume's, 1st and 99th percentile become -1 and 1"
    )
    looks = (
        "imported: the attention map is its raw channel mean, where it looks, not evidence for a "
        "diagnosis"
        if network.has_discriminator
        else "not imported: there is no attention map"
    )
    files = "\n".join(
        f"  - `{path.name}`, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sources
    )
    return f"""# {name}

A cDAL model in the published architecture (`ncsnpp`), imported from a checkpoint: finds
{", ".join(config.classes)} in {kind} images.

Licence: the authors', non-commercial (github.com/Hejrati/cDAL)

- **Not validated by us.** The networks compute what the published ones compute, to float32
  accuracy; how good these weights are, and on which images, only their authors know. For research
  only; not for diagnosis or treatment.
- **The answer depends on the tile.** Group norms and attention look at all of a tile at once: the
  same pixel has another answer in another tile. All tiles have {tile} x {tile} pixels.
  `--tile-mode overlap` (default) brings images to {at}, lets tiles overlap
  and keeps the middle of each; `--tile-mode published` brings every image as a whole to
  {height} x {width} pixels and lays tiles side by side.
- **Preparation, not verified.** Intensities: {scaled}.
  The paper says neither with which constants nor how images were resized: this is what its text
  and the parameters suggest. If you know better, correct `image` in `config.json`.
- **Sampling.** T = {network.num_timesteps} steps; samples are averaged and cut at 0.5. There is no
  supervised head: no `--steps 0`, and samples are not pooled with its answer.
- **Discriminator** {looks}.
- **Made from**
{files}
"""
