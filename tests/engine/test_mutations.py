"""Damaged files are read or refused: no crash, no hang, and no more than 3 GB."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr.writer import write_multiscale
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux'")
KINDS = [
    "png",
    "jpg",
    "strips.tif",
    "tiles.tif",
    "lzw.tif",
    "jpeg.tif",
    "ome.tif",
    "svs",
    "zarr2",
    "zarr3",
    "nii",
    "nii.gz",
    "dicom slide",
    "dicom series",
]


def write(kind: str, folder: Path, shared_data: Path) -> Path:
    """A small file of a kind."""
    y, x = np.mgrid[:90, :110]
    pixels = np.stack([y, x, (y * x) % 251], -1).astype(np.uint8)
    path = folder / f"a.{kind}"
    match kind:
        case "png" | "jpg":
            Image.fromarray(pixels).save(path)
        case "strips.tif":
            tifffile.imwrite(path, pixels, rowsperstrip=16, photometric="rgb")
        case "tiles.tif":
            tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb", compression="zlib")
        case "lzw.tif":
            tifffile.imwrite(path, pixels[..., 0].astype(np.uint16), compression="lzw")
        case "jpeg.tif":
            tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb", compression="jpeg")
        case "ome.tif":
            with tifffile.TiffWriter(path, ome=True) as tiff:
                tiff.write(pixels, subifds=1, tile=(32, 32), photometric="rgb")
                tiff.write(pixels[::2, ::2], subfiletype=1, tile=(32, 32), photometric="rgb")
        case "svs":
            return shared_data / "slides" / "small.svs"
        case "zarr2" | "zarr3":
            path = folder / "a.zarr"
            group = zarr.open_group(path, mode="w", zarr_format=int(kind[-1]))
            write_multiscale([np.moveaxis(pixels, -1, 0)], group, axes="cyx")
        case "nii" | "nii.gz":
            nib.save(nib.Nifti1Image(pixels[..., :2].astype(np.int16), np.eye(4)), path)
        case "dicom slide":
            return shared_data / "slides" / "dicom-CMU-1-Small-Region"
        case "dicom series":
            return shared_data / "dicom" / "Study1_13_HCropVolume"
    return path


@pytest.fixture
def survives(tmp_path: Path, shared_data: Path) -> Callable[[str, int, int], None]:
    """Read mutated copies of a kind in a process of its own."""

    def run(kind: str, first: int, count: int) -> None:
        made, folder = tmp_path / "made", tmp_path / "mutated"
        made.mkdir()
        folder.mkdir()
        script = Path(__file__).with_name("mutate.py")
        path = write(kind, made, shared_data)
        command = [sys.executable, "-W", "ignore", script, path, str(first), str(count), folder]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=1000, check=False)
        lines = ended.stdout.splitlines()
        assert (ended.returncode, lines[-1:]) == (0, ["end"]), (lines[-1:], ended.stderr[-2000:])
        assert [line for line in lines if line.startswith("wrong")] == []

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(kind: str, survives: Callable) -> None:
    survives(kind, 0, 30)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutated_files_are_read_or_refused(kind: str, survives: Callable) -> None:
    survives(kind, 1000, 300)
