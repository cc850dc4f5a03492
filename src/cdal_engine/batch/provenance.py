"""What run.json records of an input's run, and when an earlier record makes a run needless."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..device import peak_memory_mb
from ..errors import CdalError
from ..io.discovery import files_of
from ..io.records import read_run
from ..io.source import Source
from ..segmenter import Segmentation, Segmenter

__all__ = [
    "MAPS",
    "Input",
    "Parameters",
    "Resolution",
    "identity_of",
    "is_finished",
    "record_of",
    "same",
    "what_to_save",
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


@dataclass(frozen=True)
class Parameters:
    """What, with the model, decides an input's results; recorded in its run.json."""

    samples: int = 5
    steps: int | None = None  # None: what the model was trained with
    seed: int = 0
    mpp: float | None = None  # overrides what the input says
    tile_mode: str = "overlap"
    save: tuple[str, ...] = ("labels", "table", "geojson", "overview")


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
    return {key: value for key, value in asdict(parameters).items() if key != "save"}


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


def what_to_save(
    before: Record | None, item: Input, segmenter: Segmenter, parameters: Parameters
) -> tuple[set[str], bool]:
    """What to write so that the folder holds one answer, and whether the rest of it stays.

    `before` is of `same`. Its files stay if nothing that decides their bits changed and none is
    missing; the maps lie in one file, so that all of them are written if one is.
    """
    asked = set(parameters.save)
    if before is None:
        return asked, False
    had = set(before["parameters"].get("save", ()))
    now = _circumstances(segmenter)
    stays = all(before.get(key) == value for key, value in now.items()) and all(
        (item.folder / name).exists() for name in before.get("files", ())
    )
    if not stays:
        return asked | had, False
    return asked | (had & MAPS if asked & MAPS else set()), True


def _circumstances(segmenter: Segmenter) -> Record:
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
    result: Segmentation,
    before: Record | None,
) -> Record:
    """What run.json says, the seconds left out; `before` is of `same`."""
    model, (height, width) = segmenter.model, source.shape[:2]
    mpp = resolution.mpp
    saved = set(parameters.save) | set(before["parameters"].get("save", ()) if before else ())
    facts = {"reader": source.reader, "kind": source.kind, "shape": list(source.shape)}
    return {
        **_circumstances(segmenter),
        "input": identity_of(item.path) | facts,
        "model": {"name": model.name, "digest": model.digest, "target": model.config.target},
        "parameters": _answer(parameters) | {"save": sorted(saved)},
        "mpp": mpp,
        "mpp_source": resolution.source,
        "counts": {
            "objects": None if source.kind == "volume" else len(result.objects["label"]),
            "area_mm2": None if mpp is None else height * width * (mpp / 1000) ** 2,
        }
        | _volumes(source, result),
        "peak_memory_mb": peak_memory_mb(),
        "versions": {
            "napari-cdal": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
    }


def _volumes(source: Source, result: Segmentation) -> Record:
    """Cubic millimetres of each class, of a volume."""
    if source.affine is None:
        return {}
    voxel = abs(float(np.linalg.det(source.affine[:3, :3])))
    sizes = zip(result.objects["class"], result.objects["area"], strict=True)
    return {"volume_mm3": {str(name): float(count) * voxel for name, count in sizes}}
