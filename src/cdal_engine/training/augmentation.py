"""Random crops of images and labels: geometry, stain, blur and noise."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
)
from torch import Tensor

__all__ = ["Augmentation", "random_crop"]

_TILT = math.radians(15)
_MARGIN = 1.5  # of the crop's edge, so that rotating and shrinking rarely reach beyond the image


def random_crop(
    image: Tensor, labels: Tensor, size: int, rng: np.random.Generator, upright: bool = False
) -> tuple[Tensor, Tensor]:
    """Cut the same random square out of both; a smaller image is laid somewhere in it.

    What is beyond the image mirrors it, or repeats its edge where it must stay upright.
    """
    mode: Literal["edge", "symmetric"] = "edge" if upright else "symmetric"
    inside, beyond = [], []
    for n in image.shape[1:]:
        start = int(rng.integers(abs(n - size) + 1))
        inside.append(slice(start, start + size) if n >= size else slice(None))
        before = start if n < size else 0
        beyond.append(np.pad(np.arange(min(n, size)), (before, max(size - n, 0) - before), mode))
    y, x = inside
    cut = [image[:, y, x], labels[:, y, x]]
    if min(image.shape[1:]) < size:
        rows, columns = (torch.from_numpy(index) for index in beyond)
        cut = [c[:, rows][:, :, columns] for c in cut]
    return cut[0], cut[1]


class Augmentation:
    """Augmented crops, each a function of its random generator only.

    Parameters
    ----------
    crop : int
        Edge in pixels.
    color : bool
        Whether the images are RGB stains in 0 … 1.
    upright : bool
        Whether to tilt a little only, and never mirror.
    """

    def __init__(self, crop: int, color: bool, upright: bool = False) -> None:
        self.crop = crop
        self.color, self.upright = color, upright
        both = ["image", "label"]
        self.transform = Compose(
            [
                RandAffined(
                    both,
                    prob=1.0,
                    spatial_size=(crop, crop),
                    rotate_range=_TILT if upright else math.pi,
                    scale_range=((-0.35, 0.35), (-0.35, 0.35)),
                    shear_range=0.1,
                    mode=["bilinear", "nearest"],
                    padding_mode="border" if upright else "reflection",
                ),
                RandFlipd(both, prob=0.0 if upright else 0.5, spatial_axis=0),
                RandGaussianSmoothd(["image"], (0.3, 1.5), (0.3, 1.5), prob=0.25),
                RandGaussianNoised(["image"], prob=0.2, std=0.05),
            ]
        )

    def __call__(
        self, image: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return a (C, crop, crop) image and its (1, crop, crop) int32 labels."""
        x, y = random_crop(image, labels, int(self.crop * _MARGIN), rng, self.upright)
        self.transform.set_random_state(seed=int(rng.integers(2**31)))
        out = self.transform({"image": x, "label": y.float()})  # ids below 2**24 stay exact
        x, y = (torch.as_tensor(out[key]).as_subclass(Tensor) for key in ("image", "label"))
        return (_jitter_stain(x, rng) if self.color else x), y.round().int()


def _jitter_stain(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Scale and shift each colour's optical density: Tellez et al. (2018) give the idea."""
    density = -torch.log(image.clamp(1 / 255, 1))
    scale = torch.from_numpy(rng.uniform(0.8, 1.25, (3, 1, 1)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-0.06, 0.06, (3, 1, 1)).astype(np.float32))
    return torch.exp(-(density * scale + shift)).clamp(0, 1)
