"""PNG and JPEG, by Pillow."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import CdalError
from .colour import over_white
from .levels import levels_of
from .source import Box, Source, believed, check_size, decoding

__all__ = ["open_image"]

_GRAYSCALE = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"}
_AS_THEY_ARE = _GRAYSCALE - {"LA", "La"}  # a gray level that stands for transparency is kept
_WITH_ALPHA = {"RGBA", "RGBa", "La", "PA"}


def open_image(path: Path) -> Source:
    """Open a PNG or JPEG.

    Raises
    ------
    CdalError
        If it cannot be opened or is too large.
    """
    with decoding(path), _opened(path) as image:
        size, kind, dpi = image.size, image.format, image.info.get("dpi")
        gray, dtype = image.mode in _GRAYSCALE, _dtype(image.mode)
    shape = (size[1], size[0])
    check_size(shape, path)
    mpp = _mpp(dpi)
    return Source(
        path=path,
        kind="image",
        reader=f"Pillow, {kind}",
        levels=levels_of([shape], mpp),
        channels=1 if gray else 3,
        pixels=_ImagePixels(path, shape, dtype),
        mpp=mpp,
        mpp_source="resolution tag" if mpp else "not in the file",
    )


@dataclass(frozen=True)
class _ImagePixels:
    """PNG and JPEG are decoded whole, whatever part is asked for."""

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[np.generic]

    def tile(self, level: int) -> tuple[int, int]:
        return self.shape

    def read(self, level: int, box: Box) -> NDArray[np.generic]:
        return _read(self.path)[box]


def _dtype(mode: str) -> np.dtype[np.generic]:
    """Type of what `_read` returns for a mode of Pillow."""
    wide = {"1": np.bool_, "I": np.int32, "F": np.float32}
    return np.dtype(wide.get(mode, np.uint16 if mode.startswith("I;16") else np.uint8))


def _opened(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # `check_size` takes the place of Pillow's warning of large images.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(path)
        except Image.DecompressionBombError as error:
            raise CdalError(
                f"more pixels than PNG and JPEG are read with: {error}",
                "convert it to a tiled TIFF",
                path,
            ) from None


def _read(path: Path) -> NDArray[np.generic]:
    with decoding(path), _opened(path) as image:
        if image.mode in _AS_THEY_ARE or (image.mode == "RGB" and "transparency" not in image.info):
            return np.asarray(image)
        if image.mode == "LA":
            return over_white(np.asarray(image))
        if image.mode in _WITH_ALPHA or "transparency" in image.info:
            return over_white(np.asarray(image.convert("RGBA")))
        return np.asarray(image.convert("RGB"))


def _mpp(dpi: tuple[float, float] | None) -> float | None:
    """Micrometres per pixel of dots per inch."""
    if dpi is None or not all(d > 0 for d in dpi):
        return None
    return believed(25400 / float(dpi[0] * dpi[1]) ** 0.5)
