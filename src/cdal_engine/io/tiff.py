"""TIFF, OME-TIFF and the scanners' formats built on TIFF, by tifffile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..errors import CdalError
from .colour import from_cmyk, from_palette, inverted, over_white
from .source import Source, believed, check_size, decoding

__all__ = ["open_tiff"]

_SCANNERS = {"svs": "Aperio SVS", "ndpi": "Hamamatsu NDPI", "scn": "Leica SCN", "bif": "BIF"}
_MICROMETRES = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0, "micrometer": 1.0}
_MICROMETRES |= {"\\u00b5m": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4, "inch": 25400.0}


def open_tiff(path: Path) -> Source:
    """Open the first image of a TIFF file, at its full resolution.

    Raises
    ------
    CdalError
        If the file is damaged, truncated or too large, or holds no single 2-D image.
    """
    with decoding(path), tifffile.TiffFile(path) as tiff:
        return _source(tiff, path)


def _source(tiff: tifffile.TiffFile, path: Path) -> Source:
    series = _first_series(tiff, path)
    page = series.keyframe
    scanner = _scanner(tiff)
    axes = _squeezed(series)
    channels = 3 if page.photometric == tifffile.PHOTOMETRIC.PALETTE else _channels(series, axes)
    shape = tuple(series.shape[series.axes.index(axis)] for axis in "YX")
    check_size((shape[0], shape[1]), path)
    mpp, mpp_source = _resolution(tiff, page)
    kind = scanner or ("OME-TIFF" if tiff.is_ome else "TIFF")
    levels = len(series.levels)
    return Source(
        path=path,
        kind="slide" if scanner or levels > 1 else "image",
        reader=f"tifffile, {kind}, compression {_name(page.compression)}, axes {axes}",
        shape=(shape[0], shape[1]),
        channels=channels,
        mpp=mpp,
        mpp_source=mpp_source,
        magnification=_magnification(tiff, page),
        levels=levels,
        read=lambda: _read(path),
    )


def _first_series(tiff: tifffile.TiffFile, path: Path) -> Any:
    """Return the first image, checked: tifffile itself opens some truncated files as empty."""
    damaged = CdalError(
        "the file is damaged or truncated: it holds no whole image",
        "copy or export it again",
        path,
    )
    if not len(tiff.pages) or not tiff.series or not tiff.series[0].shape:
        raise damaged
    series = tiff.series[0]
    others = [s for s in tiff.series[1:] if not s.keyframe.is_reduced]
    if others and _scanner(tiff) is None:
        sizes = ", ".join(" x ".join(map(str, s.shape)) for s in [series, *others][:5])
        raise CdalError(
            f"holds {1 + len(others)} images ({sizes})", "save each as a file of its own", path
        )
    size = tiff.filehandle.size
    for page in series.levels[0].pages:
        if page is None:
            raise damaged
        ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if not ends or max(ends) > size:
            raise damaged
    return series


def _scanner(tiff: tifffile.TiffFile) -> str | None:
    """Name of the scanner's format, if it is one."""
    return next((name for key, name in _SCANNERS.items() if getattr(tiff, f"is_{key}")), None)


def _name(tag: Any) -> str:
    """Name of a TIFF code; the number itself where tifffile knows none."""
    return str(getattr(tag, "name", tag))


def _channels(series: Any, axes: str) -> int:
    """1 or 3, of what `_read` returns; refuses channels that are not known to be colours."""
    page = series.keyframe
    count = int(np.prod([n for a, n in zip(series.axes, series.shape, strict=True) if a in "SC"]))
    alpha = _alpha(page)
    colours = count - (alpha is not None)
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


def _alpha(page: Any) -> tifffile.EXTRASAMPLE | None:
    """The kind of alpha in the last channel, if it is alpha."""
    kinds = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
    return next((e for e in page.extrasamples if e in kinds), None)


def _squeezed(series: Any) -> str:
    """Axes longer than one; refuses all but one grayscale or colour plane."""
    axes = "".join(
        axis
        for axis, length in zip(series.axes, series.shape, strict=True)
        if length > 1 or axis in "YX"
    )
    if axes in ("YX", "YXS", "SYX", "CYX") and axes.count("Y") == 1:
        return axes
    sizes = " x ".join(f"{n} {a}" for a, n in zip(series.axes, series.shape, strict=True))
    raise CdalError(
        f"holds a stack ({sizes}); one 2-D image is read so far", "save one plane as a file"
    )


def _read(path: Path) -> NDArray[np.generic]:
    with decoding(path), tifffile.TiffFile(path) as tiff:
        series = _first_series(tiff, path)
        axes = _squeezed(series)
        pixels: NDArray[np.generic] = np.asarray(series.levels[0].asarray())
        pixels = pixels.reshape([series.shape[series.axes.index(axis)] for axis in axes])
        if axes in ("SYX", "CYX"):
            pixels = np.moveaxis(pixels, 0, -1)
        return _to_rgb(pixels, series.keyframe)


def _to_rgb(pixels: NDArray[np.generic], page: Any) -> NDArray[np.generic]:
    """Resolve palette, ink, inverted and transparent pixels."""
    photometric = page.photometric
    if photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        return from_palette(pixels, page.colormap)
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        return inverted(pixels)
    if photometric == tifffile.PHOTOMETRIC.SEPARATED:
        return from_cmyk(pixels)
    alpha = _alpha(page)
    if alpha is None:
        return pixels
    return over_white(pixels, premultiplied=alpha == tifffile.EXTRASAMPLE.ASSOCALPHA)


def _resolution(tiff: tifffile.TiffFile, page: Any) -> tuple[float | None, str]:
    """Micrometres per pixel and where they stand."""
    for value, source in (
        (_aperio(tiff, page).get("MPP"), "Aperio MPP"),
        (_ome(tiff), "OME PhysicalSize"),
        (_imagej(tiff, page), "ImageJ calibration"),
        (_tag(page), "resolution tag"),
    ):
        mpp = believed(value if isinstance(value, int | float) else None)
        if mpp is not None:
            return float(mpp), source
    return None, "not in the file"


def _aperio(tiff: tifffile.TiffFile, page: Any) -> dict[str, Any]:
    if not tiff.is_svs:
        return {}
    found = re.findall(r"\|\s*(\w+)\s*=\s*([\d.]+)", page.description)
    return {key: float(value) for key, value in found if value.count(".") <= 1 and value != "."}


def _magnification(tiff: tifffile.TiffFile, page: Any) -> float | None:
    power = _aperio(tiff, page).get("AppMag")
    if power is None and tiff.is_ndpi:
        tag = page.tags.get(65421)  # SourceLens
        power = None if tag is None else float(tag.value)
    return power or None


def _ome(tiff: tifffile.TiffFile) -> float | None:
    if not tiff.ome_metadata:
        return None
    pixels = ElementTree.fromstring(tiff.ome_metadata).find(".//{*}Pixels")
    sizes = []
    for axis in "XY":
        size = None if pixels is None else pixels.get(f"PhysicalSize{axis}")
        unit = "µm" if pixels is None else pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if size is None or unit not in _MICROMETRES:
            return None
        sizes.append(float(size) * _MICROMETRES[unit])
    return float((sizes[0] * sizes[1]) ** 0.5)


def _imagej(tiff: tifffile.TiffFile, page: Any) -> float | None:
    unit = str((tiff.imagej_metadata or {}).get("unit", "")).lower()
    x, y = page.resolution
    return _MICROMETRES[unit] / (x * y) ** 0.5 if unit in _MICROMETRES and x > 0 and y > 0 else None


def _tag(page: Any) -> float | None:
    unit = {tifffile.RESUNIT.INCH: "inch", tifffile.RESUNIT.CENTIMETER: "cm"}.get(
        page.resolutionunit
    )
    x, y = page.resolution
    return _MICROMETRES[unit] / (x * y) ** 0.5 if unit and x > 0 and y > 0 else None
