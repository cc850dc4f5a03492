"""What a TIFF file says about its resolution and the objective."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import tifffile

from .source import believed

__all__ = ["magnification", "resolution"]

_MICROMETRES = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0, "micrometer": 1.0}
_MICROMETRES |= {"\\u00b5m": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4, "inch": 25400.0}


def resolution(tiff: tifffile.TiffFile, page: Any) -> tuple[float | None, str]:
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


def magnification(tiff: tifffile.TiffFile, page: Any) -> float | None:
    """Of the objective, if the file says."""
    return _aperio(tiff, page).get("AppMag") or None


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
