"""Networks: both architectures, each a generator (encoder and denoiser) and a discriminator."""

from .blocks import ResidualBlock
from .condition_encoder import Features
from .discriminator import Discriminator
from .generator import Generator, receptive_halo, to_label_grid
from .ncsnpp import NcsnppGenerator
from .protocol import LabelGenerator
from .published_discriminators import PublishedDiscriminator

__all__ = [
    "Discriminator",
    "Features",
    "Generator",
    "LabelGenerator",
    "NcsnppGenerator",
    "PublishedDiscriminator",
    "ResidualBlock",
    "receptive_halo",
    "to_label_grid",
]
