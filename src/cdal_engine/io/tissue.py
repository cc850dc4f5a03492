"""Where the tissue of a slide is, found on a small picture of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage as ndi
from skimage.filters import threshold_otsu

__all__ = ["find_tissue", "write_tissue"]

_COLOUR = (0.03, 0.12)  # least and most colour that may tell tissue from glass
_SPECK = 20.0  # µm: edge of the smallest piece and of the smallest hole
_MARGIN = 30.0  # µm kept around the tissue


def find_tissue(picture: NDArray[np.generic], mpp: float) -> NDArray[np.bool_]:
    """Tell tissue from glass by its colour, with a margin.

    The colour of a pixel is how far its channels' optical densities are apart: 0 for glass of any
    brightness, shadows, dust and black ink. Otsu's threshold of it is taken within bounds, so that
    an empty slide has no tissue, and one that is full of it has no glass.

    Parameters
    ----------
    picture : ndarray
        (H, W, 3) integers, of which the largest of their type is white.
    mpp : float
        Micrometres per pixel of `picture`.

    Returns
    -------
    ndarray
        (H, W), True on tissue.
    """
    white = float(np.iinfo(picture.dtype.name).max)
    smooth = ndi.gaussian_filter(picture.astype(np.float32), (1, 1, 0), mode="nearest")
    density = -np.log10((smooth + 1) / (white + 1))
    colour = density.max(axis=2) - density.min(axis=2)
    found = colour > np.clip(threshold_otsu(colour), *_COLOUR)
    pixels = (_SPECK / mpp) ** 2
    found = _without_small(found, pixels)
    found = ~_without_small(~found, pixels)
    margin = max(round(_MARGIN / mpp), 1)
    distance = ndi.distance_transform_edt(~found) if found.any() else np.full(found.shape, np.inf)
    return np.asarray(distance <= margin)


def _without_small(mask: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """Drop connected pieces of fewer pixels."""
    pieces = ndi.label(mask)[0]
    large = np.bincount(pieces.ravel()) >= pixels
    large[0] = False
    return np.asarray(large[pieces])


def write_tissue(path: Path, tissue: NDArray[np.bool_]) -> None:
    """Save the mask as a PNG of black and white."""
    Image.fromarray(tissue.astype(np.uint8) * 255).save(path)
