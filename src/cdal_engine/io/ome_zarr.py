"""Labels and maps as OME-Zarr 0.5, with a pyramid, scale and translation in micrometres."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from ome_zarr.writer import write_multiscale

__all__ = ["write_labels", "write_maps"]

_CHUNK = 1024
_SMALLEST = 512  # pixels; the pyramid ends at the first level this small
_LIMITS = {"attention": 2.0}


def write_labels(
    path: Path,
    labels: NDArray[np.integer],
    spacing: float | None,
    offset: float | tuple[float, float],
) -> None:
    """Write (H, W) labels as an OME-Zarr image of labels; each level takes every 2nd pixel.

    Parameters
    ----------
    path : Path
        Must not exist.
    labels : ndarray
    spacing : float or None
        Micrometres per pixel.
    offset : float or tuple of float
        Of the first pixel's centre from that of the image's, in micrometres along y and x.
    """
    pyramid: list[NDArray[Any]] = [labels]
    while max(pyramid[-1].shape) > _SMALLEST:
        pyramid.append(pyramid[-1][::2, ::2])
    more = {"image-label": {"version": "0.5"}}
    _write(path, pyramid, "yx", spacing, [offset] * len(pyramid), more)


def write_maps(
    path: Path, maps: dict[str, NDArray[np.floating]], spacing: float | None, offset: float
) -> None:
    """Write (H, W) float maps as the channels of an OME-Zarr image; see `write_labels`."""
    pyramid: list[NDArray[Any]] = [
        np.stack([m.astype(np.float32, copy=False) for m in maps.values()])
    ]
    offsets = [offset]
    while max(pyramid[-1].shape[1:]) > _SMALLEST:
        # An averaged pixel's centre lies half a finer pixel further.
        offsets.append(offsets[-1] + (spacing or 1.0) * 2 ** (len(pyramid) - 1) / 2)
        pyramid.append(_halved(pyramid[-1]))
    channels = []
    for name in maps:
        end = _LIMITS.get(name, 1.0)
        window = {"start": 0.0, "end": end, "min": 0.0, "max": end}
        channels.append({"label": name, "color": "FFFFFF", "active": True, "window": window})
    _write(path, pyramid, "cyx", spacing, offsets, {"omero": {"channels": channels}})


def _halved(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average 2 x 2 pixels; an odd last row or column is repeated."""
    x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2)), mode="edge")
    quarters = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2)
    return np.asarray(quarters.mean(axis=(2, 4)), np.float32)


def _write(
    path: Path,
    pyramid: list[NDArray[Any]],
    axes: str,
    spacing: float | None,
    offsets: Sequence[float | tuple[float, float]],
    more: dict[str, Any],
) -> None:
    """Write a pyramid, each level half the one before, and `more` into its `ome` attributes."""
    group = zarr.open_group(path, mode="w-", zarr_format=3)
    write_multiscale(
        list(pyramid),
        group,
        axes=axes,
        axes_units={} if spacing is None else dict.fromkeys("yx", "micrometer"),
        storage_options=[
            {"chunks": (1,) * (level.ndim - 2) + tuple(min(n, _CHUNK) for n in level.shape[-2:])}
            for level in pyramid
        ],
        name=path.name.split(".")[0],
    )
    attributes: Any = group.attrs["ome"]
    # The writer knows no translation and derives scales from rounded shapes.
    for level, (dataset, offset) in enumerate(
        zip(attributes["multiscales"][0]["datasets"], offsets, strict=True)
    ):
        step = (spacing or 1.0) * 2**level
        shift = [0.0] * (len(axes) - 2) + np.broadcast_to(offset, 2).tolist()
        dataset["coordinateTransformations"] = [
            {"type": "scale", "scale": [1.0 if a == "c" else step for a in axes]},
            {"type": "translation", "translation": shift},
        ]
    group.attrs["ome"] = {**attributes, **more}
