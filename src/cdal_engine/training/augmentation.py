"""Random crops of images and labels: geometry, stain, blur, JPEG and noise.

Every number is drawn on the CPU, where labels are cut, too; intensities are then changed on the
training device, a batch at a time, which MONAI's transforms of single images are not made for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .jpeg import compressed

__all__ = ["Augmentation", "Drawn", "random_crop"]

_TILT = math.radians(15)
_SHEAR = 0.1
_BEND = 0.012  # standard deviation of the elastic shift at its nodes, as a share of the crop
_NODES = 6  # along each edge of the crop
_BLUR = (0.3, 1.5)  # standard deviation, pixels
_NOISE = 0.05
_QUALITY = (30, 95)  # of JPEG
_CONTRAST, _BRIGHTNESS = (0.8, 1.25), 0.06


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


@dataclass(frozen=True)
class Drawn:
    """What one crop is made from.

    Attributes
    ----------
    window : Tensor
        (C, M, M) intensities around it.
    grid : Tensor
        (crop, crop, 2) where each of its pixels lies in the window, as `grid_sample` counts.
    scale, shift : Tensor
        (C, 1, 1) contrast and brightness: of a stain's optical density, or of intensities.
    blur, noise : float
        Standard deviations, in pixels and as intensity; 0: none.
    quality : int or None
        Of JPEG compression.
    seed : int
        Of the noise.
    """

    window: Tensor
    grid: Tensor
    scale: Tensor
    shift: Tensor
    blur: float
    noise: float
    quality: int | None
    seed: int


class Augmentation:
    """Augmented crops, each a function of its random generator only.

    Parameters
    ----------
    crop : int
        Edge in pixels.
    color : bool
        Whether the images are RGB stains in 0 … 1. They are also shown at half to twice their
        size, so that one model knows 20x and 40x, and compressed as slides are.
    upright : bool
        Whether to tilt a little only, and never mirror.
    """

    def __init__(self, crop: int, color: bool, upright: bool = False) -> None:
        self.crop, self.color, self.upright = crop, color, upright
        self.octaves = 1.0 if color else 0.45  # of size, up and down
        self.window = math.ceil(crop * 2**self.octaves)

    def draw(self, image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Drawn, Tensor]:
        """Choose a crop of a (C, H, W) image, and cut its (1, crop, crop) labels.

        Labels are those of the nearest pixels, and so are exact, whatever their ids.
        """
        window, ids = random_crop(image, labels, self.window, rng, self.upright)
        grid = self._grid(rng)
        at = ((grid + 1) * (self.window / 2)).floor().long()
        at = _reflected(at, self.window) if not self.upright else at.clamp(0, self.window - 1)
        channels = len(window) if self.color else 1
        drawn = Drawn(
            window,
            grid,
            scale=_uniform(rng, *_CONTRAST, channels),
            shift=_uniform(rng, -_BRIGHTNESS, _BRIGHTNESS, channels),
            blur=float(rng.uniform(*_BLUR)) if rng.random() < 0.25 else 0.0,
            noise=float(rng.uniform(0, _NOISE)) if rng.random() < 0.2 else 0.0,
            quality=int(rng.integers(*_QUALITY)) if rng.random() < 0.3 and self.color else None,
            seed=int(rng.integers(2**31)),
        )
        return drawn, ids[:, at[..., 1], at[..., 0]]

    def _grid(self, rng: np.random.Generator) -> Tensor:
        """Where the crop's pixels lie: turned, sheared, scaled, mirrored and bent."""
        angle = rng.uniform(-_TILT, _TILT) if self.upright else rng.uniform(-math.pi, math.pi)
        # Most crops stay near their own size: it is what the model is for.
        size = 2 ** rng.triangular(-self.octaves, 0, self.octaves)
        mirror = -1.0 if not self.upright and rng.random() < 0.5 else 1.0
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shear = np.array([[1, rng.uniform(-_SHEAR, _SHEAR)], [rng.uniform(-_SHEAR, _SHEAR), 1]])
        matrix = turn @ shear @ np.diag([mirror, 1.0]) * (self.crop / self.window / size)
        theta = torch.from_numpy(np.column_stack([matrix, [0, 0]]).astype(np.float32))
        bend = rng.normal(0, _BEND, (1, 2, _NODES, _NODES)).astype(np.float32)
        edge = [self.crop, self.crop]
        bent = F.interpolate(torch.from_numpy(bend), edge, mode="bicubic", align_corners=True)
        return F.affine_grid(theta[None], [1, 1, *edge], False)[0] + bent[0].permute(1, 2, 0)

    def render(self, crops: Sequence[Drawn], device: torch.device) -> Tensor:
        """Make the (B, C, crop, crop) images on `device`."""
        beyond = "border" if self.upright else "reflection"
        cut = [  # one by one: windows side by side would be as much again in fresh memory
            F.grid_sample(
                crop.window[None].to(device), crop.grid[None].to(device), "bilinear", beyond, False
            )
            for crop in crops
        ]
        scale, shift = (
            torch.stack([getattr(crop, name) for crop in crops]).to(device)
            for name in ("scale", "shift")
        )
        x = torch.cat(cut)
        if self.color:
            # Of each colour's optical density, -log x: Tellez et al. (2018) give the idea.
            x = (x.clamp(1 / 255, 1) ** scale * torch.exp(-shift)).clamp(0, 1)
        else:
            x = x * scale + shift
        if (blurred := _rows(crops, "blur", device)) is not None:
            x[blurred] = _blur(x[blurred], [crop.blur for crop in crops if crop.blur])
        if (packed := _rows(crops, "quality", device)) is not None:
            x[packed] = compressed(x[packed], [c.quality for c in crops if c.quality is not None])
        for image, crop in zip(x, crops, strict=True):
            if crop.noise:
                unit = torch.Generator().manual_seed(crop.seed)
                image += crop.noise * torch.randn(image.shape, generator=unit).to(device)
        return x


def _uniform(rng: np.random.Generator, low: float, high: float, channels: int) -> Tensor:
    return torch.from_numpy(rng.uniform(low, high, (channels, 1, 1)).astype(np.float32))


def _reflected(index: Tensor, size: int) -> Tensor:
    """Pixels beyond 0 … size - 1 mirrored into it, edges repeated: `grid_sample`'s reflection."""
    index = index % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def _rows(crops: Sequence[Drawn], name: str, device: torch.device) -> Tensor | None:
    """Which crops an effect is for, None for none."""
    rows = [i for i, crop in enumerate(crops) if getattr(crop, name)]
    return torch.tensor(rows, device=device) if rows else None


def _blur(x: Tensor, deviations: Sequence[float]) -> Tensor:
    """Blur (B, C, H, W), each image by a Gaussian of its own standard deviation in pixels."""
    batch, channels, radius = *x.shape[:2], math.ceil(3 * _BLUR[1])
    sigma = torch.tensor(deviations, device=x.device)[:, None]
    kernel = torch.exp(-((torch.arange(-radius, radius + 1, device=x.device) / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    x = F.pad(x.flatten(0, 1)[None], [radius] * 4, mode="replicate")
    x = F.conv2d(x, kernel[:, None, :, None], groups=batch * channels)
    x = F.conv2d(x, kernel[:, None, None, :], groups=batch * channels)
    blurred: Tensor = x[0].unflatten(0, (batch, channels))
    return blurred
