"""TIFF, OME-TIFF and the scanners' formats built on TIFF, by tifffile or OpenSlide."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import tifffile

from ..config import MAX_MEGAPIXELS
from ..errors import CdalError
from .levels import belongs, levels_of
from .source import Source, decoding
from .tiff_pixels import TiffPixels, alpha_of, candidates, plain_axes
from .tiff_resolution import magnification, resolution

__all__ = ["open_tiff"]

# The macro image may come first in SCN, tiles overlap in BIF, levels are padded in Philips' files,
# and NDPI may hold focal planes: OpenSlide knows all that.
_BETTER_BY_OPENSLIDE = ("ndpi", "scn", "bif", "philips")
_BESIDE = re.compile(r"\b(label|macro|thumbnail|overview)\b", re.IGNORECASE)
_EXPORT = "export the slide's scan alone"
_MOST_PAGES = 10_000  # a page takes memory before it is known what it holds


def open_tiff(path: Path) -> Source:
    """Open the first image of a TIFF file, with the levels of its pyramid.

    Raises
    ------
    CdalError
        If the file is damaged or truncated, or holds no single 2-D image.
    """
    with decoding(path), tifffile.TiffFile(path) as tiff:
        _check_pages(tiff)
        if any(getattr(tiff, f"is_{name}") for name in _BETTER_BY_OPENSLIDE):
            return _by_openslide(path)
        try:
            source, sparse = _source(tiff, path)
        except CdalError:
            # Trestle's and other old formats are several images to tifffile.
            if _is_other_scanners(path):
                return _by_openslide(path)
            raise
        if (
            sparse and source.channels == 3
        ):  # OpenSlide fills missing tiles; here they would be black
            with suppress(CdalError):
                return _by_openslide(path)
        return source


def _check_pages(tiff: tifffile.TiffFile) -> None:
    """Refuse a file with more pages than any image has, without looking at them all."""
    try:
        tiff.pages[_MOST_PAGES]
    except IndexError:
        return
    raise CdalError(f"has more than {_MOST_PAGES} pages", "save one plane as a file")


def _is_other_scanners(path: Path) -> bool:
    """Whether OpenSlide knows a scanner's format that tifffile does not."""
    from .slides import vendor

    return vendor(path) not in (None, "aperio", "generic-tiff")


def _by_openslide(path: Path) -> Source:
    from .slides import open_slide

    return open_slide(path)


def _source(tiff: tifffile.TiffFile, path: Path) -> tuple[Source, bool]:
    """The file by tifffile, and whether tiles are missing."""
    pages, axes = _pyramid(tiff, path)
    page = pages[0].keyframe
    palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
    channels = 3 if palette else _channels(tiff.series[0], axes)
    if len(tiff.series[0].levels[0].pages) > 1:
        raise CdalError(f"its {channels} channels are planes of their own", "save it as RGB")
    mpp, mpp_source = resolution(tiff, page)
    kind = "Aperio SVS" if tiff.is_svs else "OME-TIFF" if tiff.is_ome else "TIFF"
    shapes = [(int(p.shaped[2]), int(p.shaped[3])) for p in pages]
    source = Source(
        path=path,
        kind="slide" if tiff.is_svs or len(pages) > 1 else "image",
        reader=f"tifffile, {kind}, compression {_name(page.compression)}, axes {axes}",
        levels=levels_of(shapes, mpp),
        channels=channels,
        pixels=TiffPixels(path, page, shapes),
        mpp=mpp,
        mpp_source=mpp_source,
        magnification=magnification(tiff, page),
    )
    return source, any(0 in p.databytecounts for p in pages)


def _pyramid(tiff: tifffile.TiffFile, path: Path) -> tuple[list[Any], str]:
    """Pages of the first image's levels, checked, and its axes."""
    series = _first_series(tiff, path)
    axes = plain_axes(series)
    pages = candidates(tiff)
    first = pages[0].keyframe
    alike = [
        p
        for p in pages
        if p.keyframe.dtype == first.dtype
        and p.keyframe.photometric == first.photometric
        and (p.shaped[0], *p.shaped[4:]) == (first.shaped[0], *first.shaped[4:])
        and belongs(first.shaped[2:4], p.shaped[2:4])
    ]
    for page in alike:
        _check_whole(page, tiff, path)
    return alike, axes


def _first_series(tiff: tifffile.TiffFile, path: Path) -> Any:
    """Return the first image: tifffile itself opens some truncated files as empty."""
    if not len(tiff.pages) or not tiff.series or not tiff.series[0].shape:
        raise _damaged(path)
    series = tiff.series[0]
    if _BESIDE.search(series.name):
        raise CdalError("its first image is no tissue but a label or macro image", _EXPORT, path)
    others = [s for s in tiff.series[1:] if not s.keyframe.is_reduced]
    others = [s for s in others if not _BESIDE.search(s.name)]
    if others and not tiff.is_svs:
        sizes = ", ".join(" x ".join(map(str, s.shape)) for s in [series, *others][:5])
        raise CdalError(
            f"holds {1 + len(others)} images ({sizes})", "save each as a file of its own", path
        )
    if any(page is None for level in series.levels for page in level.pages):
        raise _damaged(path)
    return series


def _damaged(path: Path) -> CdalError:
    return CdalError(
        "the file is damaged or truncated: it holds no whole image", "copy or export it again", path
    )


def _check_whole(page: Any, tiff: tifffile.TiffFile, path: Path) -> None:
    """Refuse a page whose tiles are not all in the file, or too large to be decoded."""
    keyframe = page.keyframe
    ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)]
    missing = len(ends) < math.prod(keyframe.chunked)
    if page.parent is tiff:
        missing |= max(ends, default=0) > tiff.filehandle.size
    elif not _lies_beside(Path(page.parent.filehandle.path), path):  # OME-TIFF spans several files
        raise CdalError("names pixels in another folder", "put its files together into one")
    if missing:
        raise _damaged(path)
    pixels = math.prod(keyframe.chunks)
    if pixels > 4 * MAX_MEGAPIXELS * 1e6:
        raise CdalError(
            f"a single tile of it has {pixels / 1e6:.0f} million values; up to "
            f"{4 * MAX_MEGAPIXELS} can be decoded at once ({MAX_MEGAPIXELS} megapixels)",
            "check the file, or save it with tiles",
            path,
        )
    if keyframe.compression == 1 and keyframe.is_tiled:
        promised = pixels * keyframe.bitspersample // 8
        if any(0 < n < promised for n in page.databytecounts):
            raise _damaged(path)


def _lies_beside(other: Path, path: Path) -> bool:
    """Whether a file that `path` names lies in its folder, or below."""
    return other.resolve().is_relative_to(path.resolve().parent)


def _name(tag: Any) -> str:
    """Name of a TIFF code; the number itself where tifffile knows none."""
    return str(getattr(tag, "name", tag))


def _channels(series: Any, axes: str) -> int:
    """1 or 3, of what is read; refuses channels that are not known to be colours."""
    page = series.keyframe
    count = math.prod(n for a, n in zip(series.axes, series.shape, strict=True) if a in "SC")
    colours = count - (alpha_of(page) is not None)
    ink = page.photometric == tifffile.PHOTOMETRIC.SEPARATED and count == 4
    rgb = page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    if ink or (colours == 3 and rgb):
        return 3
    if colours == 1:
        return 1
    raise CdalError(
        f"{count} channels ({_name(page.photometric)}, axes {axes}) that are not known to be "
        "grayscale or RGB",
        "save it as RGB, or one channel as grayscale",
    )
