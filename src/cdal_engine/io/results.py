"""The results folder of one input: written aside, then moved into place, run.json last."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..errors import CdalError
from ..instances import solidity
from .records import RUN, forget_failure, read_run, write_json, writing
from .source import Source

if TYPE_CHECKING:
    from ..segmenter import Segmentation

__all__ = ["LARGE", "ResultsFolder", "chosen_maps", "discard_unfinished", "write_plane"]

LARGE = 64e6  # pixels; larger labels are written in pieces, as OME-Zarr
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
        "tissue.png",
    }
)


class ResultsFolder:
    """Where the results of one input go.

    Parameters
    ----------
    folder : Path
        Made if needed. Files in it that are not from an earlier run of ours are never replaced.
    aside : Path, optional
        Empty folder on the same disk to write in first; by default one of its own.

    Raises
    ------
    CdalError
        If it cannot be made.
    """

    def __init__(self, folder: Path, aside: Path | None = None) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            discard_unfinished(folder)
            self.aside = aside or Path(tempfile.mkdtemp(prefix=_ASIDE, dir=folder))

    def write(
        self,
        source: Source,
        image: NDArray[np.generic],
        result: Segmentation,
        mpp: float | None,
        save: tuple[str, ...],
    ) -> None:
        """Write what is asked for aside.

        Parameters
        ----------
        source : Source
        image : ndarray
            The pixels that were segmented.
        result : Segmentation
        mpp : float or None
            Micrometres per pixel of the source.
        save : tuple of str
            Any of labels, probability, uncertainty, attention, samples, table, solidity (a column
            of the table), geojson, overview;
            of a volume only the labels are written, in its own space.

        Raises
        ------
        CdalError
            If the disk is full or not to be written on.
        """
        folder = self.aside
        with writing(self.folder):
            if source.kind == "volume":
                from .volumes import write_volume_labels

                write_volume_labels(folder / "labels.nii.gz", result.labels, source)
                return
            spacing = result.mpp
            offset = ((mpp or 1.0) * (result.pixel - 1)) / 2
            if "labels" in save:
                if result.labels.size > LARGE:
                    from .ome_zarr import write_labels

                    write_labels(folder / "labels.ome.zarr", result.labels, spacing, offset)
                else:
                    write_plane(folder / "labels.tif", result.labels, spacing)
            maps = chosen_maps(_maps(result), save)
            if maps:
                from .ome_zarr import maps_pyramid

                shape = result.labels.shape
                pyramid = maps_pyramid(folder / "maps.ome.zarr", list(maps), shape)
                pyramid.write(tuple(slice(0, n) for n in shape), np.stack(list(maps.values())))
                pyramid.finish(spacing, offset)
            if "table" in save:
                from .tables import TableWriter, object_table

                objects = dict(result.objects)
                if "solidity" in save:
                    objects["solidity"] = solidity(result.labels, objects["label"])
                with TableWriter(folder) as table:
                    table.add(object_table(objects, result.pixel, mpp, source.shape))
            if "geojson" in save:
                from .geojson import GeoJsonWriter

                with GeoJsonWriter(
                    folder / "objects.geojson", source.path.name, mpp, source.shape, result.pixel
                ) as outlines:
                    outlines.add(result.labels, result.objects)
            if "overview" in save:
                from .overview import write_overview

                path = folder / "overview.png"
                write_overview(path, image, result.labels, result.objects, mpp)

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
        names = sorted(path.name for path in self.aside.iterdir())
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
                os.replace(self.aside / name, self.folder / name)
            write_json(self.folder / RUN, done)
            forget_failure(self.folder)
        return done

    def __enter__(self) -> ResultsFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def _discard(self) -> None:
        shutil.rmtree(self.aside, ignore_errors=True)


def discard_unfinished(folder: Path) -> None:
    """Remove what a killed run was writing; the caller is the only run at work in `folder`."""
    for old in folder.glob(f"{_ASIDE}*"):
        shutil.rmtree(old, ignore_errors=True)


def chosen_maps(
    maps: Mapping[str, NDArray[Any]], save: tuple[str, ...]
) -> dict[str, NDArray[np.floating]]:
    """Return the float maps (H, W) asked for, each with its channel's name.

    Parameters
    ----------
    maps : mapping
        `probability` (C, H, W), `uncertainty`, `deviation` and `attention` (1, H, W) and `samples`
        (S, H, W), those that there are.
    save : tuple of str
        What was asked for.
    """
    chosen: dict[str, NDArray[np.floating]] = {}
    if "probability" in save:
        many = len(maps["probability"]) > 1
        for i, probability in enumerate(maps["probability"], 1):
            chosen[f"probability {i}" if many else "probability"] = probability
    if "uncertainty" in save:
        chosen |= {name: maps[name][0] for name in ("uncertainty", "deviation")}
    if "attention" in save and "attention" in maps:
        chosen["attention"] = maps["attention"][0]
    if "samples" in save and "samples" in maps:
        chosen |= {f"sample {i}": sample for i, sample in enumerate(maps["samples"], 1)}
    return chosen


def _maps(result: Segmentation) -> dict[str, NDArray[Any]]:
    """What there is for `chosen_maps`."""
    single = {
        "uncertainty": result.uncertainty,
        "deviation": result.deviation,
        "attention": result.attention,
    }
    maps: dict[str, NDArray[Any]] = {"probability": result.probability}
    maps |= {name: each[None] for name, each in single.items() if each is not None}
    return maps if result.samples is None else maps | {"samples": result.samples}


def write_plane(
    path: Path, pixels: NDArray[np.generic], mpp: float | None, rgb: bool = False
) -> None:
    """Write labels or a picture as a compressed TIFF, with its resolution where it is known."""
    tifffile.imwrite(
        path,
        pixels,
        compression="zlib",
        photometric="rgb" if rgb else "minisblack",
        resolution=None if mpp is None else (1e4 / mpp, 1e4 / mpp),
        resolutionunit=None if mpp is None else tifffile.RESUNIT.CENTIMETER,
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
