"""Labels and maps as OME-Zarr 0.5, with a pyramid, scale and translation in micrometres."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from ome_zarr.writer import write_multiscales_metadata

from ..tiling import Box

__all__ = ["Pyramid", "labels_pyramid", "maps_pyramid", "update_labels", "write_labels"]

_CHUNK = 1024
_SMALLEST = 512  # pixels; the pyramid ends at the first level this small
_MOST_PROPERTIES = 2**21  # bytes, half of what `zarr_images.check_metadata` lets pass
_LIMITS = {"attention": 2.0}
Shrink = Callable[[NDArray[Any]], NDArray[Any]]


class Pyramid:
    """An OME-Zarr image, its first level written part by part; the others follow at the end.

    Made by `labels_pyramid` and `maps_pyramid`.

    Attributes
    ----------
    levels : list of zarr.Array
        From the finest on, each half the one before.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: type,
        halved: Shrink,
        attributes: dict[str, Any],
    ) -> None:
        self._group = zarr.open_group(path, mode="w-", zarr_format=3)
        self._name = path.name.split(".")[0]
        self._halved, self._attributes = halved, attributes
        self._axes = "cyx"[-len(shape) :]
        self._written: set[tuple[int, int]] = set()  # chunks of the first level
        self.levels: list[Any] = []
        while not self.levels or max(self.levels[-1].shape[-2:]) > _SMALLEST:
            level = self._group.create_array(
                f"s{len(self.levels)}",
                shape=shape,
                chunks=(1,) * (len(shape) - 2) + tuple(min(n, _CHUNK) for n in shape[-2:]),
                dtype=dtype,
                dimension_names=tuple(self._axes),
            )
            self.levels.append(level)
            shape = (*shape[:-2], *(-(-n // 2) for n in shape[-2:]))

    def write(self, box: Box, pixels: NDArray[Any]) -> None:
        """Write rows and columns of the first level; what is never written is 0."""
        self.levels[0][(..., *box)] = pixels
        rows, columns = (range(s.start // _CHUNK, -(-s.stop // _CHUNK)) for s in box)
        self._written.update(product(rows, columns))

    def finish(self, spacing: float | None, offset: float | tuple[float, float]) -> None:
        """Make the other levels, and describe all.

        Parameters
        ----------
        spacing : float or None
            Micrometres per pixel.
        offset : float or tuple of float
            Of the first pixel's centre from that of the image's, in micrometres along y and x.
        """
        written = self._written
        for fine, coarse in pairwise(self.levels):
            written = {(row // 2, column // 2) for row, column in written}
            for y, x in sorted((row * _CHUNK, column * _CHUNK) for row, column in written):
                part = fine[..., 2 * y : 2 * (y + _CHUNK), 2 * x : 2 * (x + _CHUNK)]
                coarse[..., y : y + _CHUNK, x : x + _CHUNK] = self._halved(part)
        datasets, step = [], spacing or 1.0
        place = np.array([0.0, *np.broadcast_to(offset, 2)])[-len(self._axes) :]
        further = np.array([axis != "c" for axis in self._axes]) * (self._halved is _averaged)
        for level in self.levels:
            scale = [1.0 if axis == "c" else step for axis in self._axes]
            placed = [{"type": "scale", "scale": scale}]
            placed += [{"type": "translation", "translation": place.tolist()}]
            datasets.append({"path": level.basename, "coordinateTransformations": placed})
            # An averaged pixel's centre lies half a finer pixel further.
            place, step = place + further * step / 2, 2 * step
        space = {"type": "space"} | ({} if spacing is None else {"unit": "micrometer"})
        axes = [
            {"name": axis, **({"type": "channel"} if axis == "c" else space)} for axis in self._axes
        ]
        write_multiscales_metadata(self._group, datasets, axes=axes, name=self._name)
        described: Any = self._group.attrs["ome"]
        self._group.attrs["ome"] = {**described, **self._attributes}


def write_labels(
    path: Path,
    labels: NDArray[np.uint32],
    spacing: float | None,
    offset: float | tuple[float, float],
    properties: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write (H, W) labels at once; `spacing` and `offset` as of `Pyramid.finish`.

    Parameters
    ----------
    properties : sequence of dict
        What is known of each object, by `label-value`, as the format's `image-label` takes it. It
        is left out where it would make the metadata larger than readers of ours take.
    """
    fit = len(json.dumps(properties, indent=2)) < _MOST_PROPERTIES
    pyramid = labels_pyramid(path, labels.shape, properties if fit else ())
    pyramid.write(tuple(slice(0, n) for n in labels.shape), labels)
    pyramid.finish(spacing, offset)


def labels_pyramid(
    path: Path, shape: tuple[int, ...], properties: Sequence[Mapping[str, Any]] = ()
) -> Pyramid:
    """An image of (H, W) labels at `path`, where nothing may be; levels take every 2nd pixel."""
    described = {"version": "0.5"} | ({"properties": list(properties)} if properties else {})
    return Pyramid(path, shape, np.uint32, _every_second, {"image-label": described})


def update_labels(path: Path, box: Box, labels: NDArray[np.uint32]) -> None:
    """Replace a box of (H, W) labels at `path`, in every level of their pyramid."""
    group: Any = zarr.open_group(path, mode="r+")
    datasets = group.attrs["ome"]["multiscales"][0]["datasets"]
    levels = [group[str(each["path"])] for each in datasets]
    levels[0][box] = labels
    for fine, coarse in pairwise(levels):
        box = tuple(slice(s.start // 2, -(-s.stop // 2)) for s in box)
        coarse[box] = _every_second(fine[tuple(slice(2 * s.start, 2 * s.stop) for s in box)])


def maps_pyramid(path: Path, names: Sequence[str], shape: tuple[int, ...]) -> Pyramid:
    """An image of float maps (H, W), a channel each; levels average 2 x 2 pixels."""
    channels = []
    for name in names:
        end = _LIMITS.get(name, 1.0)
        window = {"start": 0.0, "end": end, "min": 0.0, "max": end}
        channels.append({"label": name, "color": "FFFFFF", "active": True, "window": window})
    attributes = {"omero": {"channels": channels}}
    return Pyramid(path, (len(names), *shape), np.float32, _averaged, attributes)


def _every_second(labels: NDArray[Any]) -> NDArray[Any]:
    return labels[::2, ::2]


def _averaged(x: NDArray[Any]) -> NDArray[Any]:
    """Average 2 x 2 pixels; an odd last row or column is repeated."""
    x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2)), mode="edge")
    quarters = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2)
    return np.asarray(quarters.mean(axis=(2, 4)), np.float32)
