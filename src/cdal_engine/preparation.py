"""Images in: checked, resampled to the model's grid and normalised; maps back to the image's grid.

The model's grid is anchored at the image's corner: model pixel i covers the interval
[i, i + 1) · model_mpp / image_mpp of image pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .config import ImageConfig
from .errors import CdalError
from .tiling import Box, seen_from

__all__ = [
    "Grid",
    "Limits",
    "grid_scale",
    "largest_intensity",
    "limits_of",
    "normalise",
    "prepare",
    "resample",
    "rgb8",
    "seen_by",
]

Limits = NDArray[np.floating]
"""(2,) intensities that `percentile` normalisation takes to -1 and 1."""

_Pixels = TypeVar("_Pixels", np.float32, np.bool_)

_OVERSHOOT = 0.05  # beyond 0 … 1, as interpolation leaves it; clipped
_SAME_RESOLUTION = 0.02  # closer than this, an image is taken as being at the model's resolution


def grid_scale(mpp: float | None, config: ImageConfig) -> float:
    """Model pixels per image pixel; 1 where either resolution is unknown or they nearly agree."""
    if mpp is None or config.mpp is None:
        return 1.0
    if not mpp > 0:
        raise CdalError(f"micrometres per pixel must be above 0, got {mpp}", "correct --mpp")
    scale = mpp / config.mpp
    return 1.0 if abs(scale - 1) < _SAME_RESOLUTION else scale


@dataclass(frozen=True)
class Grid:
    """The model's grid over one image, and the part of it that a region of the image needs.

    Attributes
    ----------
    size : tuple of int
        (h, w) of the whole grid, up to a multiple of the network's stride.
    box : tuple of slice
        The part to fill, on multiples of the stride.
    region : tuple of slice
        Rows and columns asked for, in pixels that `scale` leads to.
    scale : tuple of float
        Grid pixels per pixel of `region`, along rows and columns.
    pixel : float
        Edge of `region`'s pixels in pixels of the image.
    """

    size: tuple[int, ...]
    box: Box
    region: Box
    scale: tuple[float, ...]
    pixel: float = 1.0

    @classmethod
    def over(
        cls,
        shape: tuple[int, ...],
        scale: float | tuple[float, ...],
        stride: int,
        region: Box | None = None,
        least: int = 0,
    ) -> Self:
        """Lay a grid over an image of `shape` (H, W), `scale` grid pixels to an image pixel.

        It has `least` pixels along each axis, be the image smaller.

        Raises
        ------
        CdalError
            If `region` is not rows and columns of the image.
        """
        region = _checked(region, shape)
        scales = _each_axis(scale, len(shape))
        size = tuple(
            max(-(-_ceil(n * s) // stride) * stride, least)
            for n, s in zip(shape, scales, strict=True)
        )
        box = []
        for part, s, n in zip(region, scales, size, strict=True):
            margin = 0 if s == 1 else math.ceil(max(s, 1)) + 1  # what resampling back reaches
            start = max(_floor(part.start * s) - margin, 0) // stride * stride
            stop = min(-(-(_ceil(part.stop * s) + margin) // stride) * stride, n)
            box.append(slice(start, stop))
        return cls(size, tuple(box), region, scales)

    @property
    def native(self) -> bool:
        """Whether `region` is counted in pixels of the grid itself."""
        return all(scale == 1 for scale in self.scale)

    def itself(self) -> Grid:
        """The same, its region counted in pixels of the grid; both axes must have one scale."""
        (scale,) = set(self.scale)
        region = tuple(slice(_floor(s.start * scale), _ceil(s.stop * scale)) for s in self.region)
        return replace(self, region=region, scale=(1.0,) * len(region), pixel=1 / scale)

    def bring_back(self, maps: NDArray[_Pixels]) -> NDArray[_Pixels]:
        """Bring (C, h, w) maps of the box to the region, (C, H, W)."""
        origin = tuple(s.start for s in self.box)
        if not self.native:
            grid, back = torch.from_numpy(maps), tuple(1 / scale for scale in self.scale)
            return resample(grid, back, self.region, origin).contiguous().numpy()
        y, x = seen_from(origin, self.region)
        return np.ascontiguousarray(maps[:, y, x])


def _checked(region: Box | None, shape: tuple[int, ...]) -> Box:
    """`region` with both ends of each slice given, all of the image by default."""
    whole = tuple(slice(0, n) for n in shape)
    if region is None:
        return whole
    if len(region) == len(shape) and all(s.step in (None, 1) for s in region):
        ends = [s.indices(n)[:2] for s, n in zip(region, shape, strict=True)]
        if all(start < stop for start, stop in ends):
            return tuple(slice(*both) for both in ends)
    raise CdalError(
        f"the region {region} holds no pixel of an image of shape {tuple(shape)}",
        "give one slice of rows and one of columns, inside the image and without a step",
    )


def _each_axis(scale: float | tuple[float, ...], axes: int) -> tuple[float, ...]:
    return scale if isinstance(scale, tuple) else (scale,) * axes


def _floor(x: float) -> int:
    return math.floor(round(x, 6))  # 50 pixels at a scale of 0.7 / 0.1 end at 350, not before


def _ceil(x: float) -> int:
    return math.ceil(round(x, 6))


def resample(
    x: Tensor,
    scale: float | tuple[float, ...],
    window: Box | None = None,
    origin: tuple[int, ...] = (0, 0),
) -> Tensor:
    """Resample (C, H, W) by exactly `scale`, anchored at the corner, averaging when it shrinks.

    A triangle filter, per axis. `torch.nn.functional.interpolate` is not used because it silently
    copies where rounding makes both sizes equal, whatever the scale.

    Parameters
    ----------
    x : Tensor
        (C, H, W) floating point; beyond its edges, the edge is repeated.
    scale : float or tuple of float
        Output pixels per input pixel, of both axes or each.
    window : tuple of slice, optional
        Output pixels to compute; by default all that the input touches, ceil(size · scale).
    origin : tuple of int
        Input pixel that `x` starts with: a window of a larger image gives that image's answer.
    """
    scales = _each_axis(scale, x.ndim - 1)
    window = window or tuple(
        slice(0, _ceil(n * s)) for n, s in zip(x.shape[1:], scales, strict=True)
    )
    for axis, (along, start, s) in enumerate(zip(window, origin, scales, strict=True), 1):
        reach = max(1.0, 1 / s)  # input pixels the filter extends from its centre
        centre = (torch.arange(along.start, along.stop, dtype=torch.float64) + 0.5) / s
        first = torch.floor(centre - reach)
        index = first[:, None] + torch.arange(math.ceil(2 * reach) + 1)
        weight = (1 - (index + 0.5 - centre[:, None]).abs() / reach).clamp(min=0)
        weight = (weight / weight.sum(dim=1, keepdim=True)).to(x.dtype)
        index = (index.long() - start).clamp(0, x.shape[axis] - 1)
        if s == 1:  # the filter is one pixel then
            x = x.index_select(axis, index[:, 1])
            continue
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        x = sum(  # type: ignore[assignment]
            x.index_select(axis, i) * w.reshape(shape)
            for i, w in zip(index.unbind(1), weight.unbind(1), strict=True)
        )
    return x


def seen_by(window: Box, scale: tuple[float, ...], shape: tuple[int, ...]) -> Box:
    """Pixels of an image of `shape` that `resample` to a `window` looks at."""
    box = []
    for along, s, n in zip(window, scale, shape, strict=True):
        reach = max(1.0, 1 / s)
        first = math.floor((along.start + 0.5) / s - reach)
        stop = math.floor((along.stop - 0.5) / s - reach) + math.ceil(2 * reach) + 1
        # A window beyond the image sees its last pixels, which are repeated there.
        box.append(slice(min(max(first, 0), n - 1), min(max(stop, 1), n)))
    return tuple(box)


def limits_of(x: Tensor) -> Limits:
    """1st and 99th percentile of all the intensities of an image, or of a volume."""
    return np.asarray(np.percentile(x.numpy(), (1, 99)))


def normalise(x: Tensor, config: ImageConfig, limits: Limits | None = None) -> Tensor:
    """Normalise (..., C, H, W) intensities of a whole image: 0 … 1 for `constant`, any otherwise.

    `limits` are those of the volume that the image is a slice of; None: its own.
    """
    if config.normalisation == "constant":
        shape = (-1, 1, 1)
        mean, std = x.new_tensor(config.mean).view(shape), x.new_tensor(config.std).view(shape)
        normalised: Tensor = (x - mean) / std
        return normalised
    low, high = limits_of(x) if limits is None else limits
    stretched: Tensor = (x - low) * (2 / max(float(high - low), 1e-6)) - 1
    return stretched.clamp(-3, 3)


def prepare(
    image: NDArray[np.generic], config: ImageConfig, largest: float | None = None
) -> Tensor:
    """Check an image and turn it into a (C, H, W) float32 tensor.

    Integers and booleans are divided by their type's maximum where intensities are normalised by
    constants; floats must then lie in 0 … 1 (or 0 … 255, told apart by their maximum). Integers
    of more than 8 bits that reach only to a 16th of their range are refused.

    Parameters
    ----------
    image : ndarray
        (H, W) or (H, W, C) of a boolean, integer or float type; see `volume.with_neighbours`.
    config : ImageConfig
    largest : float, optional
        Of `largest_intensity`, where `image` is a part of a larger one; by default its own.

    Raises
    ------
    CdalError
        For an empty image, another number of channels, NaN or infinity, or values out of range.
    """
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    channels = 1 if image.ndim == 2 else image.shape[2] if image.ndim == 3 else 0
    if channels == 1 and config.neighbours:  # a slice by itself is its own neighbours
        image, channels = np.stack([image] * config.planes, axis=-1), config.planes
    if channels != config.planes:
        kind = {1: "grayscale", 3: "RGB"}
        raise CdalError(
            f"the model takes {kind[config.channels]} images ({config.planes} channels), "
            f"got {kind.get(channels, 'an array')} of shape {image.shape}",
            "choose a model for this kind of image, see `cdal models list`",
        )
    if not image.size:
        raise CdalError(f"the image is empty, shape {image.shape}", "check the file")
    if image.dtype.kind not in "buif":
        raise CdalError(f"pixels of type {image.dtype}", "convert to uint8, uint16 or float32")
    x = torch.from_numpy(np.ascontiguousarray(image, np.float32))
    if not bool(torch.isfinite(x).all()):
        raise CdalError("the image has NaN or infinite pixels", "fill or crop them first")
    if config.normalisation == "constant":
        x = (x / (largest_intensity(image) if largest is None else largest)).clamp(0, 1)
    return x[None] if x.ndim == 2 else x.permute(2, 0, 1).contiguous()


def rgb8(x: Tensor, config: ImageConfig) -> NDArray[np.uint8] | None:
    """Colours (H, W, 3) of a (C, H, W) tensor of `prepare`; None where it holds no colours."""
    if config.channels != 3 or config.normalisation != "constant":
        return None
    pixels = (x * 255).round().to(torch.uint8).permute(1, 2, 0)
    return np.ascontiguousarray(pixels.numpy())


def largest_intensity(image: NDArray[np.generic]) -> float:
    """The value that stands for full intensity in this image's type; nothing is guessed.

    Raises
    ------
    CdalError
        For values that are not of that range.
    """
    low, high = float(image.min()), float(image.max())
    if image.dtype.kind == "b":
        return 1.0
    if image.dtype.kind in "ui":
        largest = float(np.iinfo(image.dtype.name).max)
        if low < 0 or (image.dtype.itemsize > 1 and 0 < high <= largest / 16):
            raise CdalError(
                f"{image.dtype} intensities from {low:g} to {high:g} of {largest:g}: 12-bit data?",
                "rescale them to the full range of 8 or 16 bits first",
            )
        return largest
    if low < -_OVERSHOOT or high > 255 * (1 + _OVERSHOOT):
        raise CdalError(
            f"float intensities from {low:.4g} to {high:.4g}", "rescale them to 0 … 1 first"
        )
    return 1.0 if high <= 1 + _OVERSHOOT else 255.0
