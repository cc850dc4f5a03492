"""OME-Zarr 0.4 and 0.5 as input, by zarr."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import CdalError
from ..tiling import seen_from
from .levels import Level, belongs
from .source import Box, Source, believed, decoding
from .zarr_arrays import largest_file, open_array

__all__ = ["check_metadata", "level_arrays", "open_zarr"]

_MICROMETRES = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4}
_METADATA = {"zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata"}
_LARGEST_METADATA = 2**22  # bytes; a hundred times as many once read
_MOST_LEVELS = 32
_AT_ONCE = 2**23  # bytes; zarr unpacks smaller chunks side by side
_RGB = ("FF0000", "00FF00", "0000FF")


def open_zarr(path: Path) -> Source:
    """Open the image in an OME-Zarr folder.

    Raises
    ------
    CdalError
        If it is no OME-Zarr image, holds several or a stack, or is damaged.
    """
    with decoding(path):
        check_metadata(path)
        try:
            group = zarr.open_group(path, mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise CdalError(
                f"is no OME-Zarr image: {error}", "give the folder that holds `multiscales`"
            ) from None
        inner, metadata = _image(group)
        return _source(path, inner, metadata)


def _image(group: zarr.Group) -> tuple[str, dict[str, Any]]:
    """Where the image lies in the store, and its metadata."""
    metadata = _metadata(group)
    inner = ""
    if "bioformats2raw.layout" in metadata:
        series = [key for key in sorted(group.group_keys()) if key.isdigit()]
        if series != ["0"]:
            raise CdalError(
                f"holds {len(series)} images", "give the folder of one of them, such as 0"
            )
        inner, metadata = "0", _metadata(group["0"])
    if "plate" in metadata or "well" in metadata:
        raise CdalError("holds a plate of many images", "give the folder of one of them")
    if not metadata.get("multiscales"):
        raise CdalError("is no OME-Zarr image: no `multiscales`", "give the folder that holds them")
    if "image-label" in metadata:
        raise CdalError("holds labels, not an image", "give the image they are of")
    return inner, metadata


def _metadata(group: Any) -> dict[str, Any]:
    """Version 0.5 keeps all under `ome`."""
    attributes = dict(group.attrs)
    return dict(attributes.get("ome", attributes))


def _source(path: Path, inner: str, metadata: dict[str, Any]) -> Source:
    multiscale = metadata["multiscales"][0]
    names = [f"{inner}/{d['path']}" if inner else str(d["path"]) for d in multiscale["datasets"]]
    arrays = level_arrays(path, names)
    axes = [a if isinstance(a, dict) else {"name": a} for a in multiscale["axes"]]
    order = "".join(str(a["name"]) for a in axes)
    channels = _channels(order, arrays[0], metadata)
    scales = [_scale(d, multiscale, order) for d in multiscale["datasets"]]
    y, x = order.index("y"), order.index("x")
    mpp = _mpp(axes, scales[0], y, x)
    first = (int(arrays[0].shape[y]), int(arrays[0].shape[x]))
    levels, kept = [], []
    for name, array, scale in zip(names, arrays, scales, strict=True):
        shape = (int(array.shape[y]), int(array.shape[x]))
        step = (scale[y] / scales[0][y], scale[x] / scales[0][x])
        if belongs(first, shape) and array.dtype == arrays[0].dtype:
            coarse = None if mpp is None else mpp * sum(step) / 2
            levels.append(Level(shape, step, coarse))
            kept.append(name)
    version = metadata.get("version") or multiscale.get("version", "unknown")
    return Source(
        path=path,
        kind="slide" if len(levels) > 1 else "image",
        reader=f"zarr, OME-Zarr {version}, axes {order}",
        levels=tuple(levels),
        channels=channels,
        pixels=_ZarrPixels(path, kept, order, arrays[0].dtype),
        mpp=mpp,
        mpp_source="OME-Zarr scale" if mpp else "not in the file",
    )


def level_arrays(path: Path, names: list[str]) -> list[Any]:
    """Open the levels of these names, which must lie in the folder.

    Raises
    ------
    CdalError
        If one does not, or takes more than it should.
    """
    if len(names) > _MOST_LEVELS:
        raise CdalError(f"claims {len(names)} levels", "correct its metadata")
    if any(".." in name.split("/") for name in names):
        raise CdalError("its levels lie outside of the folder", "correct its metadata")
    # Not by the group, which may describe them otherwise than they do.
    arrays: list[Any] = [open_array(path / name) for name in names]
    for name, array in zip(names, arrays, strict=True):
        _check_files(path, path / name, array)
    return arrays


def check_metadata(path: Path) -> None:
    """Refuse metadata too large to be any, before they are read."""
    for parent, _, names in os.walk(path):
        for name in _METADATA.intersection(names):
            if (Path(parent) / name).stat().st_size > _LARGEST_METADATA:
                raise CdalError(
                    f"its metadata take more than {_LARGEST_METADATA >> 20} MB",
                    "save it again",
                    Path(parent) / name,
                )


def _check_files(path: Path, folder: Path, array: Any) -> None:
    """Refuse links out of the store, and files larger than a chunk can be."""
    root, most = path.resolve(), largest_file(array)
    for file in (folder, *folder.rglob("*")):
        if not file.resolve().is_relative_to(root):
            raise CdalError("holds a link that leads out of it", "copy what it leads to", file)
        if file.is_file() and file.stat().st_size > most and not file.name.startswith((".", "z")):
            raise CdalError("a chunk is larger than its array says", "save it again", file)


def _channels(order: str, array: Any, metadata: dict[str, Any]) -> int:
    """1 or 3; refuses stacks, and channels that are not known to be colours."""
    sizes = dict(zip(order, array.shape, strict=True))
    stack = {axis: n for axis, n in sizes.items() if axis not in "yxc" and n > 1}
    if stack or not {"y", "x"} <= sizes.keys():
        text = " x ".join(f"{n} {axis}" for axis, n in sizes.items())
        raise CdalError(f"holds a stack ({text}); one 2-D image is read", "save one plane")
    if array.dtype.kind not in "buif":
        raise CdalError(f"pixels of type {array.dtype}", "convert to uint8, uint16 or float32")
    count = int(sizes.get("c", 1))
    if count == 1:
        return 1
    described = (metadata.get("omero") or {}).get("channels") or []
    colours = tuple(str(c.get("color", "")).upper().removeprefix("#") for c in described)
    # Three channels of 8 bits of which nothing is said are RGB; fluorescence names its channels.
    if count == 3 and (colours == _RGB or (not described and array.dtype == np.uint8)):
        return 3
    raise CdalError(
        f"{count} channels that are not known to be grayscale or RGB",
        "save it as RGB (colours FF0000, 00FF00, 0000FF), or one channel as grayscale",
    )


def _scale(dataset: dict[str, Any], multiscale: dict[str, Any], order: str) -> list[float]:
    """Size of a level's pixel along each axis."""
    scale = [1.0] * len(order)
    for holder in (dataset, multiscale):
        for transformation in holder.get("coordinateTransformations") or []:
            if transformation.get("type") == "scale":
                scale = [a * float(b) for a, b in zip(scale, transformation["scale"], strict=True)]
    if not all(math.isfinite(s) and s > 0 for s in scale):
        raise CdalError(f"its scale is {scale}", "correct its metadata")
    return scale


def _mpp(axes: list[dict[str, Any]], scale: list[float], y: int, x: int) -> float | None:
    units = [_MICROMETRES.get(str(axes[i].get("unit", ""))) for i in (y, x)]
    if units[0] is None or units[1] is None:
        return None
    return believed((scale[y] * units[0] * scale[x] * units[1]) ** 0.5)


class _ZarrPixels:
    """Regions of the arrays; a store can be pickled and keeps no file open."""

    def __init__(self, path: Path, names: list[str], order: str, dtype: Any) -> None:
        self.dtype: np.dtype[np.generic] = np.dtype(dtype)
        self._path, self._names, self._order = path, names, order

    def tile(self, level: int) -> tuple[int, ...]:
        return self._tile(open_array(self._path / self._names[level]))

    def _tile(self, array: Any) -> tuple[int, ...]:
        return tuple(array.chunks[self._order.index(axis)] for axis in "yx")

    def read(self, level: int, box: Box) -> NDArray[np.generic]:
        array = open_array(self._path / self._names[level])
        if math.prod(array.chunks) * array.dtype.itemsize <= _AT_ONCE:
            return self._part(array, box)
        out = np.empty(0)
        for piece in _pieces(box, self._tile(array)):
            part = self._part(array, piece)
            if not out.size:
                out = np.empty((*(s.stop - s.start for s in box), *part.shape[2:]), part.dtype)
            out[seen_from(tuple(s.start for s in box), piece)] = part
        return out

    def _part(self, array: Any, box: Box) -> NDArray[np.generic]:
        part = dict(zip("yx", box, strict=True)) | {"c": slice(None)}
        pixels = np.asarray(array[tuple(part.get(axis, 0) for axis in self._order)])
        axes = [axis for axis in self._order if axis in part]
        order = [axes.index(axis) for axis in "yxc" if axis in axes]
        pixels = pixels.transpose(order)
        return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _pieces(box: Box, tile: tuple[int, ...]) -> Iterator[Box]:
    """Parts of a box, each in one chunk."""
    edges = [
        [s.start, *range((s.start // n + 1) * n, s.stop, n), s.stop]
        for s, n in zip(box, tile, strict=True)
    ]
    for piece in product(*(pairwise(each) for each in edges)):
        yield tuple(slice(*ends) for ends in piece)
