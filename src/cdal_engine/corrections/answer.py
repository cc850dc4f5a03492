"""A model's answer that a person corrects: from a results folder, or from a run just shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from numpy.typing import NDArray

from ..errors import CdalError
from ..io.records import read_run
from ..io.source import decoding

__all__ = ["Answer", "kind_of_results", "of_results"]

_FACTS = ("samples", "steps", "seed")


@dataclass(frozen=True)
class Answer:
    """What corrections start from.

    Attributes
    ----------
    labels : ndarray or Path
        (H, W) ids, or the OME-Zarr that holds them.
    objects : pyarrow.Table
        `label`, `class`, `score` and `agreement` of each object.
    facts : dict
        For provenance: `source`, name of the image; `model` and its `digest`; `samples`, `steps`,
        `seed`.
    mpp : float or None
        Micrometres per pixel of the image.
    shape : tuple of int
        (H, W) of the image.
    pixel : float
        Pixels of the image to one of the labels.
    corner : tuple of float
        (y, x) in pixels of the image where the labels start.
    kind : str
        Class of what a person draws: the model's, if it knows only one.
    """

    labels: NDArray[np.uint32] | Path
    objects: pa.Table
    facts: dict[str, Any]
    mpp: float | None
    shape: tuple[int, int]
    pixel: float = 1.0
    corner: tuple[float, float] = (0.0, 0.0)
    kind: str = "object"

    @property
    def spacing(self) -> float | None:
        """Micrometres per pixel of the labels."""
        return None if self.mpp is None else self.mpp * self.pixel

    @property
    def offset(self) -> tuple[float, float]:
        """Centre of the first pixel of the labels from that of the image's, in micrometres."""
        y, x = ((self.mpp or 1.0) * (at + (self.pixel - 1) / 2) for at in self.corner)
        return y, x


def of_results(folder: Path) -> Answer:
    """Read the answer that a results folder holds; a slide's labels stay in their file.

    Raises
    ------
    CdalError
        If there is none, or of a volume.
    """
    record = read_run(folder)
    if record is None:
        raise CdalError("holds no finished results", "run cdal first, then correct them", folder)
    pyramid, tiff, table = (
        folder / n for n in ("labels.ome.zarr", "labels.tif", "objects.parquet")
    )
    if not table.is_file() or not (pyramid.is_dir() or tiff.is_file()):
        raise CdalError(
            "holds no labels of an image or slide with their table",
            "run again with --save labels,table",
            folder,
        )
    parameters = record["parameters"]
    with decoding(folder):
        labels = pyramid if pyramid.is_dir() else tifffile.imread(tiff)
        objects = pq.read_table(table, columns=["label", "class", "score", "agreement"])
    facts = {"source": Path(str(record["input"]["path"])).name}
    facts |= {"model": record["model"]["name"], "digest": record["model"]["digest"]}
    facts |= {name: parameters[name] for name in _FACTS}
    height, width = record["input"]["shape"][:2]
    pixel = _pixel(record, pyramid)
    kind = kind_of_results(record["model"], objects["class"].unique().to_pylist())
    return Answer(labels, objects, facts, record["mpp"], (height, width), pixel, kind=kind)


def kind_of_results(model: Mapping[str, Any], found: Sequence[str]) -> str:
    """The only class that a model knows, as far as its results say; otherwise `object`."""
    return found[0] if len(found) == 1 and model.get("target", "classes") != "classes" else "object"


def _pixel(record: dict[str, Any], pyramid: Path) -> float:
    """Pixels of the image to one of the labels."""
    if not pyramid.is_dir():
        return float(record["input"].get("downsample", 1.0))
    import zarr

    attributes: Any = zarr.open_group(pyramid, mode="r").attrs["ome"]
    finest = attributes["multiscales"][0]["datasets"][0]
    return float(finest["coordinateTransformations"][0]["scale"][-1]) / (record["mpp"] or 1.0)
