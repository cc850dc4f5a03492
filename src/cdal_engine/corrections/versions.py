"""Numbered versions of the region being corrected: what is not lost when the program is killed.

A version is one TIFF, which any viewer shows: the region's labels, and in its description where it
lies and what was done to its objects.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..io.records import writing
from ..io.source import decoding
from ..tiling import Box
from .edits import Touched

__all__ = ["Edit", "Versions"]

_KEPT = 20


@dataclass(frozen=True)
class Edit:
    """A region as a person has left it.

    Attributes
    ----------
    box : tuple of slice
        Rows and columns of the grid that labels lie on.
    labels : ndarray
        (h, w) uint32.
    touched : dict
        What was done to which objects.
    reviewed : bool
        Whether all of the region is right now, background included.
    """

    box: Box
    labels: NDArray[np.uint32]
    touched: Touched = field(default_factory=dict)
    reviewed: bool = False


class Versions:
    """The newest versions in a folder, numbered from 1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def numbers(self) -> list[int]:
        """Of the versions that there are, ascending."""
        paths = self._folder.glob("[0-9]*.tif")
        return sorted(int(path.stem) for path in paths if path.stem.isdecimal())

    def keep(self, edit: Edit, number: int) -> None:
        """Write a version whole; the oldest beyond 20 go.

        Raises
        ------
        CdalError
            If the disk is full or not to be written on.
        """
        facts = {
            "box": [[s.start, s.stop] for s in edit.box],
            "touched": {str(label): each for label, each in edit.touched.items()},
            "reviewed": edit.reviewed,
        }
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            aside = self._folder / f".{number:06}.tmp"
            tifffile.imwrite(
                aside, edit.labels, compression="zlib", description=json.dumps(facts), metadata=None
            )
            os.replace(aside, self._path(number))
            for old in self.numbers[:-_KEPT]:
                self._path(old).unlink(missing_ok=True)

    def read(self, number: int) -> Edit:
        """Read a version.

        Raises
        ------
        CdalError
            If it is damaged.
        """
        path = self._path(number)
        with decoding(path), tifffile.TiffFile(path) as file:
            facts: dict[str, Any] = json.loads(file.pages[0].description)  # type: ignore[union-attr]
            labels = file.asarray()
            box = tuple(slice(start, stop) for start, stop in facts["box"])
            touched = {int(label): each for label, each in facts["touched"].items()}
        return Edit(box, labels, touched, bool(facts["reviewed"]))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06}.tif"
