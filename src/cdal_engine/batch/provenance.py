"""What run.json records of an input's run, and when an earlier record makes a run needless."""

from __future__ import annotations

import platform
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..counts import counted, counted_classes
from ..device import peak_memory_mb
from ..errors import CdalError
from ..io.discovery import files_of
from ..io.records import read_run
from ..io.regions import Regions
from ..io.source import Source
from ..segmenter import Segmentation, Segmenter

__all__ = [
    "MAPS",
    "Earlier",
    "Input",
    "Parameters",
    "Resolution",
    "circumstances",
    "earlier_run",
    "identity",
    "identity_of",
    "is_finished",
    "record_of",
    "result_counts",
    "same",
]

_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-image",
    "tifffile",
    "imagecodecs",
    "pillow",
    "openslide-python",
    "zarr",
)
Record = dict[str, Any]
MAPS = frozenset({"probability", "uncertainty", "attention", "samples"})
_COLUMNS = frozenset({"solidity"})  # of the table, where asked for


@dataclass(frozen=True)
class Parameters:
    """What, with the model, decides an input's results; recorded in its run.json."""

    samples: int = 5
    steps: int | None = None  # None: what the model was trained with
    seed: int = 0
    mpp: float | None = None  # overrides what the input says
    tile_mode: str = "overlap"
    save: tuple[str, ...] = ("labels", "table", "geojson", "overview")
    tissue: bool = True  # of slides: only where there is tissue, and only inside the regions
    regions: Regions | None = None


@dataclass(frozen=True)
class Input:
    """One file to segment and the folder its results go to."""

    path: Path
    folder: Path


@dataclass(frozen=True)
class Resolution:
    """Micrometres per pixel of an input, where they come from, and the level to read for them."""

    mpp: float | None
    source: str
    level: int = 0


def identity_of(path: Path) -> Record:
    """Path, size and time of change of an input; of a folder, of all its files together.

    Raises
    ------
    CdalError
        If there is no such file.
    """
    try:
        path.stat()
        files = [file.stat() for file in files_of(path)]
    except OSError as error:
        raise CdalError(f"cannot be read: {error.strerror}", "check the path", path) from None
    return {
        "path": str(path),
        "bytes": sum(file.st_size for file in files),
        "modified_ns": max((file.st_mtime_ns for file in files), default=0),
    }


def _answer(parameters: Parameters) -> Record:
    """What decides the answer itself, whatever of it is saved."""
    answer = {f.name: getattr(parameters, f.name) for f in fields(parameters) if f.name != "save"}
    return answer | {"regions": parameters.regions and parameters.regions.digest}


def identity(item: Input, segmenter: Segmenter, parameters: Parameters) -> Record:
    """All that decides the bits of a slide's blocks."""
    kept = (MAPS | _COLUMNS) & set(parameters.save)
    return {
        "input": {key: value for key, value in identity_of(item.path).items() if key != "path"},
        "model": segmenter.model.digest,
        "parameters": _answer(parameters) | {"maps": sorted(kept)},
        **circumstances(segmenter),
    }


def same(item: Input, segmenter: Segmenter, parameters: Parameters) -> Record | None:
    """Return the record of an earlier finished run that gave the same answer, if there is one.

    Same input (size and time of change: it may have been moved), model and parameters.
    """
    record = read_run(item.folder)
    try:
        identity = identity_of(item.path)
        if (
            record is not None
            and record["model"]["digest"] == segmenter.model.digest
            # an option that an earlier version did not have was at its default
            and _answer(Parameters())
            | {k: v for k, v in record["parameters"].items() if k != "save"}
            == _answer(parameters)
            and all(record["input"][key] == identity[key] for key in ("bytes", "modified_ns"))
        ):
            return record
    except (KeyError, TypeError, AttributeError):  # edited by hand: not to be relied on
        pass
    return None


def is_finished(item: Input, segmenter: Segmenter, parameters: Parameters) -> bool:
    """Whether an earlier run left all that this one would write."""
    record = same(item, segmenter, parameters)
    return (
        record is not None
        and set(parameters.save) <= set(record["parameters"].get("save", ()))
        and all((item.folder / name).exists() for name in record.get("files", ()))
    )


@dataclass(frozen=True)
class Earlier:
    """What an earlier run of the same answer left, and what becomes of it.

    Attributes
    ----------
    saved : frozenset of str
        What it saved that stays.
    stays : bool
        Whether files that are not written anew stay.
    """

    saved: frozenset[str] = frozenset()
    stays: bool = False


def earlier_run(
    item: Input, segmenter: Segmenter, parameters: Parameters
) -> tuple[Earlier, set[str]]:
    """What stays of an earlier run, and what to write so that the folder holds one answer.

    Its files stay if nothing that decides their bits changed and none is missing; the maps lie in
    one file, so that all of them are written if one is, and so do the columns of the table.
    """
    before, asked = same(item, segmenter, parameters), set(parameters.save)
    if before is None:
        return Earlier(), asked
    had = set(before["parameters"].get("save", ()))
    now = circumstances(segmenter)
    stays = all(before.get(key) == value for key, value in now.items()) and all(
        (item.folder / name).exists() for name in before.get("files", ())
    )
    if not stays:
        return Earlier(), asked | had
    again = (had & MAPS if asked & MAPS else set()) | (
        had & _COLUMNS if "table" in asked else set()
    )
    return Earlier(frozenset(had), True), asked | again


def circumstances(segmenter: Segmenter) -> Record:
    """What may change an answer's bits, beside what decides the answer."""
    return {
        "version": __version__,
        "device": str(segmenter.device),
        "tile": segmenter.tile,
        "precision": str(segmenter.networks.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def record_of(
    item: Input,
    source: Source,
    resolution: Resolution,
    segmenter: Segmenter,
    parameters: Parameters,
    counts: Record,
    earlier: Earlier,
) -> Record:
    """What run.json says, the seconds left out."""
    model = segmenter.model
    facts = {"reader": source.reader, "kind": source.kind, "shape": list(source.shape)}
    level = {"level": resolution.level, "downsample": source.levels[resolution.level].step}
    return {
        **circumstances(segmenter),
        "input": identity_of(item.path) | facts | level,
        "model": {"name": model.name, "digest": model.digest, "target": model.config.target},
        "parameters": _answer(parameters) | {"save": sorted({*parameters.save, *earlier.saved})},
        "mpp": resolution.mpp,
        "mpp_source": resolution.source,
        "counts": counts,
        "peak_memory_mb": peak_memory_mb(),
        "versions": {
            "napari-cdal": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
    }


def result_counts(
    source: Source, resolution: Resolution, result: Segmentation, target: str
) -> Record:
    """Counts and areas of an image; of a volume, cubic millimetres of each class."""
    (height, width), mpp = source.shape[:2], resolution.mpp
    if source.affine is None:
        area = None if mpp is None else height * width * (mpp / 1000) ** 2
        foreground = int((result.labels > 0).sum())
        if target == "classes":
            kinds = zip(
                result.objects["class"].tolist(), result.objects["area_px"].tolist(), strict=True
            )
            return counted_classes(kinds, result.counts, mpp, area)
        agreement = result.objects["agreement"]
        return counted(len(agreement), foreground, result.counts, mpp, area, agreement)
    voxel = abs(float(np.linalg.det(source.affine[:3, :3])))
    sizes = zip(result.objects["class"], result.objects["area"], strict=True)
    volumes = {str(name): float(count) * voxel for name, count in sizes}
    return counted(None, 0, None, None, None) | {"volume_mm3": volumes}
