"""The corrected copy of an answer's labels: edited region by region, never lost, never replaced.

A folder holds `labels.tif` or `labels.ome.zarr`, `corrections.json` (which objects a person
touched, when, and from which model's answer), `versions/` of the region at work, `regions/` with
pictures of the reviewed ones, and `answer.parquet`, the model's table.

A region is first kept as a version and then written into the labels; corrections.json says which
version was written last. What a killed program had not written is written when the copy is opened
again, so that labels and provenance always belong together.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tifffile
import zarr
from numpy.typing import NDArray

from .. import __version__
from ..batch.lock import alone
from ..errors import CdalError
from ..io.ome_zarr import update_labels, write_labels
from ..io.records import write_json, writing
from ..io.results import LARGE, write_plane
from ..io.source import decoding
from ..tiling import Box, surround
from .answer import Answer
from .edits import Touched, now
from .versions import Edit, Versions

__all__ = ["CORRECTED", "RECORD", "CorrectedCopy", "changed_objects"]

CORRECTED = "corrected"  # the folder beside the originals
RECORD = "corrections.json"
_GONE = ("deleted", "merged")
_LARGEST = 2**28  # bytes of a record: an object takes a hundred
_STEP = 256  # pixels that are looked at further and further around a region


class CorrectedCopy:
    """A corrected copy, held by one program at a time.

    Parameters
    ----------
    folder : Path
        Made from `answer` if it is not there yet.
    answer : Answer

    Raises
    ------
    CdalError
        If another program holds it, it is of labels of another size, damaged, or cannot be written.

    Attributes
    ----------
    folder : Path
    recovered : Edit or None
        What a killed program had not written; it is written now.
    """

    def __init__(self, folder: Path, answer: Answer) -> None:
        self.folder = folder
        self._held = ExitStack()
        self._whole: NDArray[np.uint32] | None = None  # labels of a TIFF, once they are read
        try:
            self._hold()
            with writing(folder):
                if not (folder / RECORD).is_file():
                    self._make(answer)
            self._record = _read_record(folder)
            self.versions = Versions(folder / "versions")
            self._check(answer)
            self.recovered = self._recover()
        except BaseException:
            self._held.close()
            raise

    def _hold(self) -> None:
        if not self._held.enter_context(alone(self.folder)):
            raise CdalError(
                "somebody is correcting these results in another viewer",
                "close the review there first",
                self.folder,
            )

    def close(self) -> None:
        """Let others have it."""
        self._held.close()

    def __enter__(self) -> CorrectedCopy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the folder -------------------------------------------------------------------------------

    def _make(self, answer: Answer) -> None:
        """Copy the labels; corrections.json comes last."""
        large = isinstance(answer.labels, Path) or answer.labels.size > LARGE
        target = self.folder / ("labels.ome.zarr" if large else "labels.tif")
        aside = self.folder / f".{target.name}"
        shutil.rmtree(aside, ignore_errors=True)
        if target.exists():  # of a killed program that had not come to corrections.json
            shutil.rmtree(target) if large else target.unlink()
        if isinstance(answer.labels, Path):
            shutil.copytree(answer.labels, aside)
        elif large:
            write_labels(aside, answer.labels, answer.spacing, answer.offset)
        else:
            write_plane(aside, answer.labels, answer.spacing)
        os.replace(aside, target)
        pq.write_table(answer.objects, self.folder / "answer.parquet")
        record = {
            "version": __version__,
            "answer": answer.facts,
            "kind": answer.kind,
            "mpp": answer.mpp,
            "shape": list(answer.shape),
            "pixel": answer.pixel,
            "corner": list(answer.corner),
            "started": now(),
            "written": 0,
            "next_label": self._largest(target) + 1,
            "objects": {},
            "regions": [],
        }
        write_json(self.folder / RECORD, record)

    def _check(self, answer: Answer) -> None:
        if isinstance(answer.labels, Path):
            there: Any = zarr.open_group(answer.labels, mode="r")["s0"]
            shape = there.shape
        else:
            shape = answer.labels.shape
        if tuple(shape) != self.shape:
            raise CdalError(
                f"the corrections are of labels of {self.shape}, these are {tuple(shape)}",
                "move the folder away to start anew",
                self.folder,
            )

    def is_of(self, answer: Answer) -> bool:
        """Whether it was started from this answer, not from one that was there before."""
        return bool(self._record["answer"] == answer.facts)

    # -- labels -----------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """Class of what a person draws."""
        return str(self._record.get("kind", "object"))  # older ones do not say it

    @property
    def labels_path(self) -> Path:
        """The file, or OME-Zarr, of the corrected labels."""
        pyramid = self.folder / "labels.ome.zarr"
        return pyramid if pyramid.is_dir() else self.folder / "labels.tif"

    @property
    def labels(self) -> Any:
        """The labels (H, W), to be sliced, not changed; an OME-Zarr's are read when they are."""
        if self.labels_path.suffix == ".zarr":
            return zarr.open_group(self.labels_path, mode="r")["s0"]
        if self._whole is None:
            with decoding(self.labels_path):
                self._whole = tifffile.imread(self.labels_path)
        return self._whole

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the labels."""
        height, width = self.labels.shape
        return int(height), int(width)

    def read(self, box: Box) -> NDArray[np.uint32]:
        """Labels of a box, to be edited."""
        return np.array(self.labels[box], np.uint32)

    def around(self, box: Box, ids: NDArray[np.integer]) -> tuple[Box, NDArray[np.uint32]]:
        """A box about another that holds all of these objects, and its labels."""
        margin = 0
        while True:  # further out, until none of them reaches the edge
            margin += _STEP
            larger = surround(box, margin, self.shape)
            labels = self.read(larger)
            sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
            limits = [(s.start > 0, s.stop < n) for s, n in zip(larger, self.shape, strict=True)]
            inner = [side for side, more in zip(sides, np.ravel(limits), strict=True) if more]
            if not any(np.isin(ids, side).any() for side in inner):
                return larger, labels

    def _largest(self, path: Path) -> int:
        if path.suffix != ".zarr":
            return int(tifffile.imread(path).max(initial=0))
        array: Any = zarr.open_group(path, mode="r")["s0"]
        rows = array.chunks[0]
        return int(max(array[y : y + rows].max() for y in range(0, array.shape[0], rows)))

    # -- edits ------------------------------------------------------------------------------------

    def keep(self, edit: Edit) -> int:
        """Keep a version of the region at work, and return its number."""
        number = int(max(self._record["written"], *self.versions.numbers, 0)) + 1
        self.versions.keep(edit, number)
        return number

    def write(self, edit: Edit) -> None:
        """Write a region into the corrected labels, and what was done into the record.

        An object that goes on beyond the region keeps its part outside, and its number. Deleted or
        merged, it is so outside, too.

        Raises
        ------
        CdalError
            If it cannot be written; it is when the copy is opened again.
        """
        self._apply(edit, self.keep(edit))

    def _recover(self) -> Edit | None:
        """Write the newest version that was not written yet; a damaged one is passed over."""
        waiting = [n for n in self.versions.numbers if n > self._record["written"]]
        for number in reversed(waiting):
            try:
                edit = self.versions.read(number)
            except CdalError:
                continue
            self._apply(edit, number)
            return edit
        return None

    def _apply(self, edit: Edit, number: int) -> None:
        with writing(self.folder):
            for box, labels in [*self._outside(edit), (edit.box, edit.labels)]:
                if self.labels_path.suffix == ".zarr":
                    update_labels(self.labels_path, box, labels)
                else:
                    whole = np.array(self.labels)
                    whole[box] = labels
                    aside = self.folder / ".labels.tif"
                    write_plane(aside, whole, self.spacing)
                    os.replace(aside, self.labels_path)
                    self._whole = whole
            record = self._record
            record["objects"] |= {str(label): each for label, each in edit.touched.items()}
            regions = [r for r in record["regions"] if _box(r["box"]) != edit.box]
            region = {"box": [[s.start, s.stop] for s in edit.box], "reviewed": edit.reviewed}
            record["regions"] = [*regions, {**region, "when": now()}]
            largest = max(int(edit.labels.max(initial=0)), *edit.touched, 0)
            record["next_label"] = max(record["next_label"], largest + 1)
            record["written"] = number
            write_json(self.folder / RECORD, record)

    def _outside(self, edit: Edit) -> list[tuple[Box, NDArray[np.uint32]]]:
        """What of deleted and merged objects lies outside the region, as it is to be."""
        stored = self.read(edit.box)
        rim = np.concatenate([stored[0], stored[-1], stored[:, 0], stored[:, -1]])
        present = set(np.unique(edit.labels).tolist())
        gone = {
            label: int(each.get("into", 0))
            for label, each in edit.touched.items()
            if each["action"] in _GONE and label in rim and label not in present
        }
        if not gone:
            return []
        box, around = self.around(edit.box, np.array(list(gone)))
        for label, into in gone.items():
            around[around == label] = into
        return [(box, around)]

    # -- what was done ----------------------------------------------------------------------------

    @property
    def spacing(self) -> float | None:
        """Micrometres per pixel of the labels."""
        mpp = self._record["mpp"]
        return None if mpp is None else float(mpp * self._record["pixel"])

    @property
    def record(self) -> dict[str, Any]:
        """What corrections.json says."""
        return self._record

    @property
    def changed(self) -> set[int]:
        """Labels of the objects that a person gave other pixels."""
        return _changed(self._record["objects"])

    @property
    def touched(self) -> Touched:
        """What was done to which objects."""
        return {int(label): each for label, each in self._record["objects"].items()}

    @property
    def next_label(self) -> int:
        """A number that no object has, nor any above it."""
        return int(self._record["next_label"])

    def regions(self, reviewed: bool | None = None) -> list[Box]:
        """Boxes that were corrected; only those that are right now, or only the others."""
        every = self._record["regions"]
        return [_box(r["box"]) for r in every if reviewed is None or r["reviewed"] == reviewed]

    def picture_path(self, box: Box) -> Path:
        """Where the picture of a region lies, for what learns from it."""
        name = "-".join(f"{n}" for s in box for n in (s.start, s.stop))
        return self.folder / "regions" / f"{name}.tif"

    def keep_picture(self, box: Box, picture: NDArray[np.generic]) -> None:
        """Keep the pixels (h, w) or (h, w, 3) of a region, on the grid of the labels."""
        path = self.picture_path(box)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            aside = path.with_name(f".{path.name}")
            write_plane(aside, picture, self.spacing, rgb=picture.ndim == 3)
            os.replace(aside, path)


def changed_objects(folder: Path) -> set[int]:
    """Labels of the objects that a person gave other pixels, in a copy that need not be held.

    Raises
    ------
    CdalError
        If its record is damaged.
    """
    objects = _read_record(folder)["objects"]
    try:
        return _changed(objects)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from None


def _changed(objects: dict[Any, dict[str, Any]]) -> set[int]:
    return {int(label) for label, each in objects.items() if each["action"] != "accepted"}


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes")
        record = json.loads(path.read_text("utf-8"))
        return dict(record) if record["objects"] is not None else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, error) from None


def _damaged(folder: Path, error: Exception) -> CdalError:
    return CdalError(
        f"the record of corrections is damaged: {error}",
        f"move {folder.name} away to start anew",
        folder / RECORD,
    )


def _box(spans: list[list[int]]) -> Box:
    return tuple(slice(start, stop) for start, stop in spans)
