"""Other colour models to RGB or grayscale, and any image to what can be looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_rgb8", "from_cmyk", "from_palette", "inverted", "over_white"]

Pixels = NDArray[Any]


def _largest(pixels: Pixels) -> float:
    """Full intensity: the type's largest value; for floats 1, or 255 where any is above 1."""
    if pixels.dtype.kind in "ui":
        return float(np.iinfo(pixels.dtype.name).max)
    return 255.0 if pixels.size and pixels.max() > 1 else 1.0


def _as_type(values: NDArray[Any], pixels: Pixels) -> Pixels:
    return (np.rint(values) if pixels.dtype.kind in "ui" else values).astype(pixels.dtype)


def over_white(pixels: Pixels, premultiplied: bool = False) -> Pixels:
    """Lay pixels with alpha as their last channel over white.

    Parameters
    ----------
    pixels : ndarray
        (H, W, 4) or (H, W, 2).
    premultiplied : bool
        Whether the colours were multiplied by alpha already.

    Returns
    -------
    ndarray
        (H, W, 3) or (H, W), of the same type.
    """
    full = _largest(pixels)
    colour, alpha = pixels[..., :-1].astype(np.float32), pixels[..., -1:].astype(np.float32)
    laid = colour + full - alpha if premultiplied else full + (colour - full) * (alpha / full)
    laid = laid.clip(0, full)
    return _as_type(laid if laid.shape[-1] > 1 else laid[..., 0], pixels)


def from_palette(indices: Pixels, palette: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Look (H, W) indices up in a TIFF palette (3, 2**bits) of 16-bit values; (H, W, 3)."""
    colours = (palette >> 8).astype(np.uint8).T
    return colours[np.minimum(indices.astype(np.int64), len(colours) - 1)]


def from_cmyk(pixels: Pixels) -> Pixels:
    """(H, W, 4) inks to (H, W, 3) light, without a colour profile."""
    full = _largest(pixels)
    light = 1 - pixels.astype(np.float32) / full
    return _as_type(light[..., :3] * light[..., 3:] * full, pixels)


def inverted(pixels: Pixels) -> Pixels:
    """Turn intensities where 0 is white into those where 0 is black."""
    if pixels.dtype.kind == "b":
        return ~pixels
    return _as_type(_largest(pixels) - pixels.astype(np.float32), pixels)


def as_rgb8(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Any image as (H, W, 3) uint8: 8-bit as it is, else its 1st to 99th percentile."""
    if image.dtype == np.uint8:
        pixels = np.asarray(image, np.uint8)
    else:
        values = image.astype(np.float32)
        low, high = np.percentile(values, (1, 99))
        values = (values - low) * (255 / max(float(high - low), 1e-6))
        pixels = values.clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1))
