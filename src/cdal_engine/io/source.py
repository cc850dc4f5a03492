"""What every reader returns: one input, its size and resolution known, its pixels not yet read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import MAX_MEGAPIXELS
from ..errors import CdalError
from .levels import Level

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["Box", "Pixels", "Source", "believed", "check_size", "decoding", "sides", "undecodable"]

_BELIEVED = (0.05, 10.0)  # µm per pixel; beyond it a resolution tag is about paper or screens

Box = tuple[slice, ...]


class Pixels(Protocol):
    """Reads an input's pixels; can be pickled, and opens the file in each process anew."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of what `read` returns."""

    def tile(self, level: int) -> tuple[int, ...]:
        """Shape of the pieces that the file decodes at once."""

    def read(self, level: int, box: Box) -> NDArray[np.generic]:
        """Decode a box of a level, its slices inside it; from any thread."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One input, opened.

    Attributes
    ----------
    path : Path
    kind : str
        `slide` (a scanner's format, or a pyramid), `image`, or `volume`.
    reader : str
        The library that reads it, and the format it found.
    levels : tuple of Level
        From the finest on; of one shape only where the file has one.
    channels : int
        1 (grayscale) or 3 (RGB) of what `read` returns.
    pixels : Pixels
    mpp : float or None
        Micrometres per pixel of the first level; None if the file does not say.
    mpp_source : str
        Where `mpp` comes from.
    magnification : float or None
        Of the objective, as the file says; a suggestion to people, never used for `mpp`.
    bounds : tuple of slice or None
        Rows and columns of the first level that hold what was scanned, where the format says.
    affine : ndarray or None
        (4, 4), of a volume: from voxel indices to millimetres right, anterior, superior.
    """

    path: Path
    kind: Literal["image", "slide", "volume"]
    reader: str
    levels: tuple[Level, ...]
    channels: int
    pixels: Pixels
    mpp: float | None = None
    mpp_source: str = "not in the file"
    magnification: float | None = None
    bounds: Box | None = None
    affine: NDArray[np.float64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) of the first level; (I, J, K) of a volume, in its own order of axes."""
        return self.levels[0].shape

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimetres between voxels along each axis of a volume."""
        if self.affine is None:
            return None
        return tuple(float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))

    def read(self, level: int = 0, box: Box | None = None) -> NDArray[np.generic]:
        """Read a level, or a box of it.

        Parameters
        ----------
        level : int
        box : tuple of slice, optional
            Rows and columns (and slices) of that level, inside it and without a step.

        Returns
        -------
        ndarray
            (H, W) or (H, W, 3), colours laid over white; (I, J, K) of a volume.

        Raises
        ------
        CdalError
            If the pixels cannot be decoded, or are more than fit in memory.
        """
        shape = self.levels[level].shape
        if box is None:
            box = tuple(slice(0, n) for n in shape)
        else:
            box = tuple(slice(*s.indices(n)) for s, n in zip(box, shape, strict=True))
        check_size(tuple(s.stop - s.start for s in box), self.path)
        with decoding(self.path):
            return self.pixels.read(level, box)

    def level_array(self, level: int = 0) -> da.Array:
        """Return a level as a lazy dask array: computing a part decodes that part's tiles only."""
        from .lazy import level_array

        return level_array(self, level)

    def thumbnail(self, max_edge: int = 1024) -> NDArray[np.generic]:
        """Return the picture at most `max_edge` pixels long; the middle slice of a volume.

        Made from the levels: a thumbnail, label or macro image of the file is never opened.
        """
        from .thumbnail import thumbnail

        return thumbnail(self, max_edge)


def believed(mpp: float | None) -> float | None:
    """Return a resolution tag's micrometres per pixel if they can be a microscope's."""
    return mpp if mpp is not None and _BELIEVED[0] <= mpp <= _BELIEVED[1] else None


def sides(shape: tuple[int, ...]) -> str:
    """Width x height of (H, W), as people say it; I x J x K of a volume."""
    return " x ".join(map(str, shape[::-1] if len(shape) == 2 else shape))


def check_size(shape: tuple[int, ...], path: Path) -> None:
    """Refuse an image without pixels, or with more than fit in memory, before reading it."""
    count = int(np.prod(shape, dtype=object))
    if count <= 0:
        raise CdalError("the image has no pixels", "check the file", path)
    if count > MAX_MEGAPIXELS * 1e6:
        raise CdalError(
            f"{sides(shape)} pixels are {count / 1e6:.0f} megapixels; up to {MAX_MEGAPIXELS} are "
            "read so far",
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
    except CdalError as error:
        raise error.at(path) from error.__cause__
    except MemoryError:
        raise
    except Exception as error:
        raise undecodable(error, path) from error
