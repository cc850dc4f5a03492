"""The `amortized` generator: a strong encoder once per tile, a light denoiser per step."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..config import ModelConfig
from .condition_encoder import ConditionEncoder, Features, supervised_answer
from .denoiser import LabelDenoiser
from .protocol import LabelGenerator

__all__ = ["LABEL_STRIDE", "Generator", "receptive_halo", "to_label_grid"]

LABEL_STRIDE = 2  # image pixels per pixel of the label grid, where x_t and noise live


def to_label_grid(x_0: Tensor, scale: float, stride: int = LABEL_STRIDE) -> Tensor:
    """Average (B, K, H, W) label maps to the label grid, (B, K, H/2, W/2), and scale them.

    `scale` is the config's `diffusion.label_scale`, `stride` the generator's `label_stride`.
    """
    pool = F.avg_pool2d if x_0.ndim == 4 else F.avg_pool3d
    return pool(x_0, stride) * scale


class Generator(LabelGenerator[Features]):
    """A `LabelGenerator` with a supervised head and x_t at half the image's resolution."""

    label_stride = LABEL_STRIDE
    reduced_precision = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = ConditionEncoder(config)
        self.denoiser = LabelDenoiser(config)

    @staticmethod
    def preview(features: Features) -> Tensor:
        """The supervised head's own label map (B, K, H, W) in [-1, 1], without diffusion."""
        return supervised_answer(features.logits.float())


def receptive_halo(config: ModelConfig, steps: int) -> int:
    """Pixels beyond a tile that its answer can depend on, rounded up to the total stride.

    The encoder's field plus `steps` times the denoiser's, and the discriminator's for attention,
    counted from the architecture: a 3-wide convolution at stride s reaches s further, halving and
    doubling one pixel of the coarser grid.
    """
    net = config.amortized
    strides = [1 << (i + 1) for i in range(len(net.widths))]
    looking = sum(2 << (i + 1) for i in range(len(net.discriminator_widths)))
    down = sum(2 * s for s in strides) + strides[0]  # stem
    up = sum(2 * s for s in strides[:-1]) + sum(strides[1:]) + strides[0]  # and the heads
    denoiser = 4 * (1 + 2 * net.denoiser_blocks) + 4 + 2
    reach = down + up + (steps * denoiser + looking if steps else 0)
    return -(-reach // net.stride) * net.stride
