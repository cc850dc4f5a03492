"""What every reader returns: one input, its size and resolution known, its pixels not yet read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..config import MAX_MEGAPIXELS
from ..errors import CdalError

__all__ = ["Source", "believed", "check_size", "decoding", "undecodable"]

_BELIEVED = (0.05, 10.0)  # µm per pixel; beyond it a resolution tag is about paper or screens


@dataclass(frozen=True)
class Source:
    """One input, opened.

    Attributes
    ----------
    path : Path
    kind : str
        `slide` (a scanner's format, or a pyramid) or `image`.
    reader : str
        The library that reads it, and the format it found.
    shape : tuple of int
        (H, W) at full resolution.
    channels : int
        1 (grayscale) or 3 (RGB) of what `read` returns.
    mpp : float or None
        Micrometres per pixel; None if the file does not say.
    mpp_source : str
        Where `mpp` comes from.
    magnification : float or None
        Of the objective, as the file says; never used for `mpp`.
    levels : int
        Resolution levels in the file; the first is read.
    read : callable
        Returns the pixels, (H, W) or (H, W, 3), colours laid over white; raises `CdalError` if
        they cannot be decoded.
    """

    path: Path
    kind: Literal["image", "slide"]
    reader: str
    shape: tuple[int, int]
    channels: int
    mpp: float | None
    mpp_source: str
    magnification: float | None
    levels: int
    read: Callable[[], NDArray[np.generic]]


def believed(mpp: float | None) -> float | None:
    """Return a resolution tag's micrometres per pixel if they can be a microscope's."""
    return mpp if mpp is not None and _BELIEVED[0] <= mpp <= _BELIEVED[1] else None


def check_size(shape: tuple[int, int], path: Path) -> None:
    """Refuse an image without pixels, or with more than fit in memory, before reading it."""
    height, width = shape
    if not height or not width:
        raise CdalError("the image has no pixels", "check the file", path)
    if height * width > MAX_MEGAPIXELS * 1e6:
        raise CdalError(
            f"{width} x {height} pixels are {height * width / 1e6:.0f} megapixels; up to "
            f"{MAX_MEGAPIXELS} are read so far",
            "crop the region of interest into a file of its own",
            path,
        )


def undecodable(error: Exception, path: Path) -> CdalError:
    """What to raise when a decoder failed: in a damaged file it may raise anything."""
    return CdalError(
        f"cannot be decoded, it is damaged, truncated or of an unknown kind: {error}",
        "copy or export the file again",
        path,
    )


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Report whatever a decoder raises as `undecodable`; what is reported already passes."""
    try:
        yield
    except (CdalError, MemoryError):
        raise
    except Exception as error:
        raise undecodable(error, path) from error
