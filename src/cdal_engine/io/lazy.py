"""Levels as dask arrays, in chunks of whole tiles of the file."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .source import Source

__all__ = ["level_array"]

_CHUNK = 1024  # pixels; smaller chunks cost more in dask than they save in decoding


class _LazyLevel:
    """A level that dask slices: only what is asked for is decoded."""

    def __init__(self, source: Source, level: int) -> None:
        colours = (source.channels,) if source.channels > 1 else ()
        self.shape = (*source.levels[level].shape, *colours)
        self.ndim = len(self.shape)
        self.dtype = source.pixels.dtype
        self._source, self._level = source, level
        self._axes = len(source.levels[level].shape)

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[np.generic]:
        """Read the box that holds what is asked for, and cut it out of that."""
        box: list[slice] = []
        inside: list[Any] = []
        sizes = iter(self.shape)
        for part in index:
            if part is None:  # dask merges later indexing, new axes and all, into this
                inside.append(None)
                continue
            n = next(sizes)
            if len(box) == self._axes:  # of colours
                inside.append(part)
                continue
            wanted = np.arange(n)[part]
            start, stop = (int(wanted.min()), int(wanted.max()) + 1) if wanted.size else (0, 1)
            box.append(slice(start, stop))
            # Slices stay slices: with two arrays numpy would pick points.
            relative = slice(None, None, part.step) if isinstance(part, slice) else wanted - start
            inside.append(relative if wanted.size else slice(0, 0))
        box += [slice(0, n) for n in self.shape[len(box) : self._axes]]
        pixels: NDArray[np.generic] = self._source.read(self._level, tuple(box))
        return np.asarray(pixels[tuple(inside)])


def level_array(source: Source, level: int) -> da.Array:
    """Return a level as a lazy array, (H, W), (H, W, 3) or (I, J, K).

    Parameters
    ----------
    source : Source
    level : int
    """
    lazy = _LazyLevel(source, level)
    chunks = [
        min(n, math.ceil(_CHUNK / tile) * tile) if tile < n else n
        for n, tile in zip(lazy.shape, source.pixels.tile(level), strict=False)
    ]
    array: da.Array = da.from_array(  # type: ignore[no-untyped-call]
        lazy,
        chunks=(*chunks, *lazy.shape[len(chunks) :]),
        name=f"level-{_token(source, level)}",
        inline_array=True,
        asarray=False,
        meta=np.empty((0,) * lazy.ndim, lazy.dtype),
    )
    return array


def _token(source: Source, level: int) -> str:
    """The same for the same content: path, size and time of change."""
    try:
        status = source.path.stat()
        facts = (status.st_size, status.st_mtime_ns)
    except OSError:
        facts = (0, 0)
    text = repr((str(source.path), *facts, source.reader, level))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]
