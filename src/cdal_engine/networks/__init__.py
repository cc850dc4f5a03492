"""Networks: the `amortized` generator (encoder and denoiser) and the discriminator."""

from .blocks import ResidualBlock
from .condition_encoder import Features
from .discriminator import Discriminator
from .generator import LABEL_STRIDE, Generator, receptive_halo, to_label_grid

__all__ = [
    "LABEL_STRIDE",
    "Discriminator",
    "Features",
    "Generator",
    "ResidualBlock",
    "receptive_halo",
    "to_label_grid",
]
