"""A model: config and networks, in a folder of config.json and model.safetensors."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from . import weights
from .attention import Attention
from .config import ModelConfig, read_model_config
from .device import precision
from .errors import CdalError
from .ncsnpp_config import NcsnppConfig
from .networks import (
    Discriminator,
    Generator,
    LabelGenerator,
    NcsnppGenerator,
    PublishedDiscriminator,
    ResidualBlock,
)

__all__ = ["Model", "Networks"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class Networks(nn.Module):
    """Generator, discriminator and the attention between them, as trained and stored together.

    This is where the config's architecture is chosen. An imported generator may have come by
    itself: there is no `discriminator` then, as the config's `network.has_discriminator` says.
    """

    generator: LabelGenerator[Any]
    discriminator: Discriminator | PublishedDiscriminator

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        network = config.network
        if isinstance(network, NcsnppConfig):
            self.generator = NcsnppGenerator(network)
            if network.discriminator is not None:
                self.discriminator = PublishedDiscriminator(network, network.discriminator)
            self.attention = Attention(config.attention, resize="bilinear")
        else:
            self.generator, self.discriminator = Generator(config), Discriminator(config)
            self.attention = Attention(config.attention)
        self.attention_level = config.attention.level

    def attention_map(
        self,
        x_prev: Tensor,
        x_t: Tensor,
        image: Tensor,
        level: Tensor,
        size: torch.Size | tuple[int, ...],
    ) -> Tensor:
        """A_D (B, 1, *size) of a step; parameters as `Discriminator.features`."""
        looked = self.discriminator.feature(x_prev, x_t, image, level, self.attention_level)
        attention: Tensor = self.attention(looked, size)
        return attention

    def made_ready(self, device: torch.device) -> Networks:
        """Return a copy to run on `device`: norms folded, channels-last, in its precision."""
        networks = copy.deepcopy(self).eval().requires_grad_(False)
        for module in networks.modules():
            if isinstance(module, ResidualBlock):
                module.fold()
        dtype = precision(device) if self.generator.reduced_precision else torch.float32
        networks.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return networks

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype


@dataclass(frozen=True)
class Model:
    """A model ready to run, its networks in evaluation mode.

    Attributes
    ----------
    name : str
        Of a shipped model, or of the folder it came from.
    config : ModelConfig
    networks : Networks
    digest : str
        SHA-256 over both files, in hexadecimal: what results record.
    """

    name: str
    config: ModelConfig
    networks: Networks
    digest: str

    @classmethod
    def load(cls, name_or_path: str | Path) -> Model:
        """Load a shipped model by name, or any by its folder.

        Raises
        ------
        CdalError
            If there is no such model, or its files are missing, corrupt or do not fit together.
        """
        folder = weights.find(name_or_path)
        config = read_model_config(folder / CONFIG_FILE)
        path = folder / WEIGHTS_FILE
        remedy = "copy or download the model again"
        try:
            content = path.read_bytes()
            state = load_tensors(content)
        except OSError as error:
            raise CdalError(f"cannot read the weights: {error.strerror}", remedy, path) from None
        except (SafetensorError, ValueError) as error:
            raise CdalError(f"not a sound safetensors file: {error}", remedy, path) from None
        networks = Networks(config)
        try:
            networks.load_state_dict(state)
        except RuntimeError:
            raise CdalError("the weights do not fit config.json", remedy, path) from None
        if not all(bool(torch.isfinite(v).all()) for v in networks.state_dict().values()):
            raise CdalError("the weights hold NaN or infinity", remedy, path)
        networks.eval().requires_grad_(False)
        digest = hashlib.sha256((folder / CONFIG_FILE).read_bytes() + content).hexdigest()
        return cls(folder.name, config, networks, digest)

    @staticmethod
    def save(folder: Path, config: ModelConfig, networks: Networks) -> None:
        """Write config.json and model.safetensors into `folder`, replacing both.

        Weights are stored in float16 where the generator's `reduced_precision` allows it.
        """
        half = networks.generator.reduced_precision
        state = {
            name: (v.half() if half and v.is_floating_point() else v).detach().cpu().contiguous()
            for name, v in networks.state_dict().items()
        }
        text = json.dumps(config.model_dump(mode="json"), indent=2) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            (WEIGHTS_FILE, save_tensors(state)),
            (CONFIG_FILE, text.encode()),
        ):
            aside = folder / f".{name}.tmp"
            aside.write_bytes(content)
            os.replace(aside, folder / name)
