"""The results folder of one input: written aside, then moved into place, run.json last."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..errors import CdalError
from .records import RUN, forget_failure, read_run, write_json, writing
from .source import Source

if TYPE_CHECKING:
    from ..segmenter import Segmentation

__all__ = ["ResultsFolder", "discard_unfinished"]

_LARGE = 64e6  # pixels; larger labels are written in pieces, as OME-Zarr
_ASIDE = ".cdal-writing-"
_NAMES = frozenset(
    {
        "labels.nii.gz",
        "labels.tif",
        "labels.ome.zarr",
        "maps.ome.zarr",
        "objects.parquet",
        "objects.csv",
        "objects.geojson",
        "overview.png",
    }
)


class ResultsFolder:
    """Where the results of one input go.

    Parameters
    ----------
    folder : Path
        Made if needed. Files in it that are not from an earlier run of ours are never replaced.

    Raises
    ------
    CdalError
        If it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            discard_unfinished(folder)
            self._aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=folder))

    def write(
        self,
        source: Source,
        image: NDArray[np.generic],
        result: Segmentation,
        mpp: float | None,
        save: tuple[str, ...],
        downsample: float = 1.0,
    ) -> None:
        """Write what is asked for aside.

        Parameters
        ----------
        source : Source
        image : ndarray
            The pixels that were segmented.
        result : Segmentation
        mpp : float or None
            Micrometres per pixel of the source's first level.
        save : tuple of str
            Any of labels, probability, uncertainty, attention, samples, table, geojson, overview;
            of a volume only the labels are written, in its own space.
        downsample : float
            Pixels of the first level to one of `image`.

        Raises
        ------
        CdalError
            If the disk is full or not to be written on.
        """
        folder = self._aside
        with writing(self.folder):
            if source.kind == "volume":
                from .volumes import write_volume_labels

                write_volume_labels(folder / "labels.nii.gz", result.labels, source)
                return
            spacing = result.mpp
            offset = ((mpp or 1.0) * (result.pixel - 1)) / 2
            if "labels" in save:
                if source.kind == "slide" or result.labels.size > _LARGE:
                    from .ome_zarr import write_labels

                    write_labels(folder / "labels.ome.zarr", result.labels, spacing, offset)
                else:
                    _write_tiff(folder / "labels.tif", result.labels, spacing)
            maps = _maps(result, save)
            if maps:
                from .ome_zarr import write_maps

                write_maps(folder / "maps.ome.zarr", maps, spacing, offset)
            if "table" in save:
                from .tables import object_table, write_table

                write_table(folder, object_table(result, mpp, source.shape))
            if "geojson" in save:
                from .geojson import write_geojson

                write_geojson(
                    folder / "objects.geojson", result, source.path.name, mpp, source.shape
                )
            if "overview" in save:
                from .overview import write_overview

                image_mpp = None if mpp is None else mpp * downsample
                write_overview(folder / "overview.png", image, result, image_mpp)

    def publish(self, record: dict[str, Any], keep: bool = False) -> dict[str, Any]:
        """Move what was written into place and write run.json; return what it records.

        Parameters
        ----------
        record : dict
            What run.json is to say.
        keep : bool
            Keep files of the earlier run that this one did not write: they are of the same answer.

        Raises
        ------
        CdalError
            If a file that is not ours is in the way, or the disk does not take it.
        """
        names = sorted(path.name for path in self._aside.iterdir())
        before = read_run(self.folder, finished=False)
        # Names only, and only ours: run.json may have been edited.
        ours = set() if before is None else {RUN} | (_NAMES & set(before.get("files", ())))
        foreign = [n for n in [*names, RUN] if (self.folder / n).exists() and n not in ours]
        if foreign:
            raise CdalError(
                f"the results folder holds {', '.join(foreign)}, which cdal did not write",
                "move it away, or choose another folder with -o",
                self.folder,
            )
        both = sorted((ours - {RUN}) | set(names))
        done = record | {"files": both if keep else names, "finished": True}
        with writing(self.folder):
            # From here to the end run.json says that the files do not belong together yet.
            write_json(self.folder / RUN, record | {"files": both, "finished": False})
            for name in names if keep else both:
                _remove(self.folder / name)
            for name in names:
                os.replace(self._aside / name, self.folder / name)
            write_json(self.folder / RUN, done)
            forget_failure(self.folder)
        return done

    def __enter__(self) -> ResultsFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def _discard(self) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)


def discard_unfinished(folder: Path) -> None:
    """Remove what a killed run was writing; the caller is the only run at work in `folder`."""
    for old in folder.glob(f"{_ASIDE}*"):
        shutil.rmtree(old, ignore_errors=True)


def _maps(result: Segmentation, save: tuple[str, ...]) -> dict[str, NDArray[np.floating]]:
    """The float maps asked for, each with its channel's name."""
    maps: dict[str, NDArray[np.floating]] = {}
    if "probability" in save:
        many = len(result.probability) > 1
        for i, probability in enumerate(result.probability, 1):
            maps[f"probability {i}" if many else "probability"] = probability
    if "uncertainty" in save:
        maps |= {"uncertainty": result.uncertainty, "deviation": result.deviation}
    if "attention" in save and result.attention is not None:
        maps["attention"] = result.attention
    if "samples" in save and result.samples is not None:
        maps |= {f"sample {i}": sample for i, sample in enumerate(result.samples, 1)}
    return maps


def _write_tiff(path: Path, labels: NDArray[np.uint32], mpp: float | None) -> None:
    """Write labels as a compressed TIFF, with their resolution where it is known."""
    resolution = None if mpp is None else (1e4 / mpp, 1e4 / mpp)
    unit = None if mpp is None else tifffile.RESUNIT.CENTIMETER
    tifffile.imwrite(path, labels, compression="zlib", resolution=resolution, resolutionunit=unit)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
