"""PNG and JPEG, by Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import CdalError
from .colour import over_white
from .source import Source, believed, check_size, undecodable

__all__ = ["open_image"]

_AS_THEY_ARE = {"1", "L", "I", "I;16", "I;16B", "I;16L", "F", "RGB"}
_WITH_ALPHA = {"LA", "RGBA"}


def open_image(path: Path) -> Source:
    """Open a PNG or JPEG.

    Raises
    ------
    CdalError
        If it cannot be opened or is too large.
    """
    try:
        with _opened(path) as image:
            size, kind, dpi = image.size, image.format, image.info.get("dpi")
    except CdalError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise undecodable(error, path) from error
    shape = (size[1], size[0])
    check_size(shape, path)
    mpp = _mpp(dpi)
    return Source(
        path=path,
        kind="image",
        reader=f"Pillow, {kind}",
        shape=shape,
        mpp=mpp,
        mpp_source="resolution tag" if mpp else "not in the file",
        magnification=None,
        levels=1,
        read=lambda: _read(path),
    )


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
    try:
        with _opened(path) as image:
            mode = image.mode
            if mode in _WITH_ALPHA:
                return over_white(np.asarray(image))
            if "transparency" in image.info or mode in ("PA", "La", "RGBa"):
                return over_white(np.asarray(image.convert("RGBA")))
            return np.asarray(image if mode in _AS_THEY_ARE else image.convert("RGB"))
    except CdalError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise undecodable(error, path) from error


def _mpp(dpi: tuple[float, float] | None) -> float | None:
    """Micrometres per pixel of dots per inch."""
    if dpi is None or not all(d > 0 for d in dpi):
        return None
    return believed(25400 / float(dpi[0] * dpi[1]) ** 0.5)
