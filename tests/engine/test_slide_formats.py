"""Formats: one input is one slide; what is damaged, absurd or no image is refused in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from ome_zarr.writer import write_multiscale

from cdal_engine.errors import CdalError
from cdal_engine.io import dicom, dicom_slides
from cdal_engine.io.describe import describe
from cdal_engine.io.discovery import open_source
from cdal_engine.io.levels import Level
from cdal_engine.io.source import Source


@pytest.mark.parametrize("name", ["dicom", "dicom by openslide"])
def test_a_dicom_slide_is_the_slide_it_was_made_from(
    opened: Callable[[str], Source], scan: NDArray, name: str
) -> None:
    source = opened(name)
    assert source.mpp == pytest.approx(0.499)
    assert (source.shape, source.kind) == (scan.shape[:2], "slide")
    assert np.abs(source.read().astype(int) - scan).mean() < 4


def test_a_dicom_slide_by_one_of_its_files(shared_data: Path, opened: Callable) -> None:
    files = dicom.dicom_files(shared_data / "slides" / "dicom-CMU-1-Small-Region")
    assert len(files) == 4
    for file in files:  # its label and overview, too, stand for the slide and are not shown
        assert np.array_equal(open_source(file).read(), opened("dicom").read())
    names = " ".join(map(str, files[0].parents))
    assert "LABEL" not in names


def test_a_pyramid_without_resolution_says_so(
    tmp_path: Path, scan: NDArray, tiff_pyramid: Callable
) -> None:
    tiff_pyramid(tmp_path / "a.tif", scan, [(2967, 2220), (1483, 1110)], mpp=None)
    source = open_source(tmp_path / "a.tif")
    assert (source.kind, source.mpp, source.mpp_source) == ("slide", None, "not in the file")
    assert {level.mpp for level in source.levels} == {None}
    assert "--mpp" in dict(describe(tmp_path / "a.tif"))["would read"]


def test_label_and_macro_beside_the_scan_are_no_levels(tmp_path: Path, scan: NDArray) -> None:
    tile = {"tile": (256, 256), "photometric": "rgb"}
    label = np.zeros((300, 600, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(scan, **tile)
        tiff.write(scan[::2, ::2], subfiletype=1, **tile)
        tiff.write(label, subfiletype=1, **tile)
    assert [level.shape for level in open_source(tmp_path / "a.tif").levels] == [
        (2967, 2220),
        (1484, 1110),
    ]
    with tifffile.TiffWriter(tmp_path / "b.ome.tif", ome=True) as tiff:
        for name, pixels in (("scan", scan), ("label image", label)):
            tiff.write(pixels, metadata={"axes": "YXS", "Name": name}, **tile)
    assert np.array_equal(open_source(tmp_path / "b.ome.tif").read(), scan)
    with tifffile.TiffWriter(tmp_path / "c.ome.tif", ome=True) as tiff:
        for name, pixels in (("macro image", label), ("scan", scan)):
            tiff.write(pixels, metadata={"axes": "YXS", "Name": name}, **tile)
    with pytest.raises(CdalError, match="label or macro"):
        open_source(tmp_path / "c.ome.tif")


def test_a_truncated_pyramid_is_damaged(opened: Callable[[str], Source], tmp_path: Path) -> None:
    content = opened("tif").path.read_bytes()
    for part in (0.2, 0.6, 0.9, 0.97):
        (tmp_path / "cut.tif").write_bytes(content[: int(part * len(content))])
        with pytest.raises(CdalError) as caught:
            open_source(tmp_path / "cut.tif").read()
        assert caught.value.remedy


def test_a_tile_too_large_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), tile=(64, 64), metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        for tag in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
            tiff.pages[0].tags[tag].overwrite(64_000)
    with pytest.raises(CdalError, match="at once"):
        open_source(tmp_path / "a.tif")


def test_a_large_level_is_refused_when_read_not_when_opened(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), tile=(64, 64))
    source = open_source(tmp_path / "a.tif")
    huge = Source(
        path=source.path,
        kind="slide",
        reader="",
        levels=(Level((100_000, 100_000)),),
        channels=1,
        pixels=source.pixels,
    )
    with pytest.raises(CdalError, match="10000 megapixels"):
        huge.read()
    assert huge.read(0, (slice(0, 3), slice(5, 9))).shape == (3, 4)
    assert huge.level_array().shape == (100_000, 100_000)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no `multiscales`"),
        ({"plate": {}}, "plate"),
        ({"multiscales": [{}], "image-label": {}}, "labels"),
        ({"bioformats2raw.layout": 3}, "holds 0 images"),
    ],
)
def test_zarr_that_is_no_image(tmp_path: Path, metadata: dict, message: str) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.attrs["ome"] = metadata
    with pytest.raises(CdalError, match=message) as caught:
        open_source(tmp_path / "a.zarr")
    assert caught.value.remedy
    assert caught.value.path == tmp_path / "a.zarr"


def test_zarr_stacks_and_fluorescence_are_refused(tmp_path: Path) -> None:
    for name, axes, shape in (
        ("stack", "zyx", (5, 20, 30)),
        ("four", "cyx", (4, 20, 30)),
        ("wide", "cyx", (3, 20, 30)),
    ):
        group = zarr.open_group(tmp_path / f"{name}.zarr", mode="w", zarr_format=3)
        write_multiscale([np.zeros(shape, np.uint16)], group, axes=axes)
        with pytest.raises(CdalError, match=r"stack|not known"):
            open_source(tmp_path / f"{name}.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(CdalError, match="no OME-Zarr"):
        open_source(tmp_path / "empty.zarr")


def test_a_damaged_chunk_is_named(opened: Callable[[str], Source], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(opened("zarr 0.4").path, tmp_path / "a.zarr")
    chunk = max(
        (f for f in (tmp_path / "a.zarr").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    chunk.write_bytes(chunk.read_bytes()[:1000])
    source = open_source(tmp_path / "a.zarr")
    with pytest.raises(CdalError, match="damaged"):
        source.read()
    assert describe(tmp_path / "a.zarr")[-1][1].startswith("level 0: cannot be decoded")


def test_without_wsidicom_openslide_reads(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    source = open_source(shared_data / "slides" / "dicom-CMU-1-Small-Region")
    assert source.reader == "OpenSlide, dicom"
    assert (source.shape, source.mpp) == ((2967, 2220), pytest.approx(0.499))


def test_several_slides_in_a_folder(shared_data: Path, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    for file in dicom.dicom_files(shared_data / "slides" / "dicom-CMU-1-Small-Region"):
        dataset = pydicom.dcmread(file)
        dataset.save_as(tmp_path / f"a {file.name}")
        dataset.SeriesInstanceUID = "1.2.3"
        dataset.save_as(tmp_path / f"b {file.name}")
    with pytest.raises(CdalError, match="2 slides"):
        open_source(tmp_path)
    inputs = dicom.dicom_inputs(tmp_path)
    assert [path.name[0] for path in inputs] == ["a", "b"]
    assert open_source(inputs[0]).shape == (2967, 2220)
    scans = dicom_slides._scan_of(inputs[0], [], pydicom)
    assert [path.name[0] for path in scans] == ["a"]


def test_formats_that_openslide_reads_better_go_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NDPI, SCN and BIF: in SCN the macro image may come first."""
    from cdal_engine.io import slides

    tifffile.imwrite(tmp_path / "a.scn", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    wanted = SimpleNamespace(reader="OpenSlide")
    monkeypatch.setattr(slides, "open_slide", lambda path: wanted)
    for name in ("ndpi", "scn", "bif", "philips"):
        with monkeypatch.context() as patch:
            patch.setattr(tifffile.TiffFile, f"is_{name}", True, raising=False)
            assert open_source(tmp_path / "a.scn") is wanted
    assert open_source(tmp_path / "a.scn") is not wanted


def test_images_need_neither_dask_nor_zarr(tmp_path: Path) -> None:
    """What import-linter is told to overlook: training reads PNG and TIFF without them."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8))
    code = (
        "import sys, pathlib, cdal_engine.training.dataset\n"
        "from cdal_engine.io.discovery import open_source\n"
        "open_source(pathlib.Path(sys.argv[1])).read()\n"
        "print(sorted({'dask', 'zarr', 'SimpleITK', 'nibabel', 'openslide'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, tmp_path / "a.tif"]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ended.stdout.strip() == "[]"
