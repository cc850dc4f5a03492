"""Volumes: read in their own space and order, and labels written so that they overlay exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdal_engine.errors import CdalError
from cdal_engine.io.describe import describe
from cdal_engine.io.dicom import dicom_inputs
from cdal_engine.io.discovery import find_sources, open_source
from cdal_engine.io.volumes import write_volume_labels

SHAPE = (7, 11, 5)
VOXELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
LABELS = (VOXELS % 7).astype(np.uint32)


def oblique() -> np.ndarray:
    """Asymmetric spacing, rotated about two axes, left-handed."""
    a, b = 0.3, -0.7
    about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_z = [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(about_x) @ about_z @ np.diag([-0.8, 1.1, 3.0])
    affine[:3, 3] = 12.5, -40.25, 7
    return affine


def write_nifti(path: Path, kind: type = nib.Nifti1Image, voxels: np.ndarray = VOXELS) -> Path:
    image = kind(voxels, oblique())
    image.set_qform(oblique(), code=1)
    shifted = oblique()
    shifted[:3, 3] += 5  # the scanner's and the aligned space may differ
    image.set_sform(shifted, code=2)
    image.header["descrip"] = b"MR of Jane Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a b ü.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_an_oblique_nifti_and_its_labels(tmp_path: Path, name: str, kind: type) -> None:
    path = write_nifti(tmp_path / name, kind)
    source = open_source(path)
    assert (source.kind, source.shape, source.channels) == ("volume", SHAPE, 1)
    assert source.spacing == pytest.approx((0.8, 1.1, 3.0))
    assert source.mpp is None
    assert np.array_equal(source.read(), VOXELS)
    write_volume_labels(tmp_path / "labels.nii.gz", LABELS, source)
    before, after = nib.load(path), nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asarray(after.dataobj), LABELS)
    assert np.array_equal(after.affine, before.affine)
    assert np.array_equal(source.affine, before.affine)
    for form in ("get_qform", "get_sform"):
        matrices, codes = zip(*(getattr(i, form)(coded=True) for i in (before, after)), strict=True)
        assert np.array_equal(*matrices)
        assert codes[0] == codes[1]
    assert type(after) is type(before)
    if kind is nib.Nifti1Image:  # another reader, which takes no NIfTI-2, overlays them, too
        images = [sitk.ReadImage(str(p)) for p in (tmp_path / "labels.nii.gz", path)]
        for name in ("GetOrigin", "GetDirection", "GetSpacing"):
            assert len({getattr(image, name)() for image in images}) == 1
    content = nib.load(tmp_path / "labels.nii.gz").header
    assert b"Jane" not in content.binaryblock
    assert not content.extensions


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["a.nii", "a.nii.gz"]))
def test_regions_of_a_volume(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    source = open_source(path if path.exists() else write_nifti(path))
    starts = [data.draw(st.integers(0, n - 1)) for n in SHAPE]
    box = tuple(
        slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, SHAPE, strict=True)
    )
    assert np.array_equal(source.read(0, box), VOXELS[box])
    assert np.array_equal(source.level_array()[box].compute(), VOXELS[box])


def test_scaled_intensities(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii")
    source = open_source(tmp_path / "a.nii")
    assert source.pixels.dtype == source.read().dtype
    assert np.array_equal(source.read(), nib.load(tmp_path / "a.nii").get_fdata())
    write_volume_labels(tmp_path / "labels.nii", LABELS, source)
    assert np.array_equal(np.asarray(nib.load(tmp_path / "labels.nii").dataobj), LABELS)


def test_real_volumes(shared_data: Path) -> None:
    for path in sorted((shared_data / "hippocampus" / "images").glob("*.nii.gz"))[:5]:
        source, own = open_source(path), nib.load(path)
        assert np.array_equal(source.read(), np.asarray(own.dataobj))
        assert np.array_equal(source.affine, own.affine)
        assert source.thumbnail(20).shape[0] <= 20


def test_labels_of_another_shape_are_refused(tmp_path: Path) -> None:
    source = open_source(write_nifti(tmp_path / "a.nii"))
    with pytest.raises(CdalError, match="do not fit"):
        write_volume_labels(tmp_path / "b.nii", LABELS.T, source)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_damaged_nifti(tmp_path: Path, name: str) -> None:
    content = write_nifti(tmp_path / name).read_bytes()
    for length in (20, 200, 400, len(content) // 2, len(content) - 30):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(CdalError) as caught:
            open_source(tmp_path / name).read()
        assert caught.value.remedy
    (tmp_path / name).write_text("no volume at all")
    with pytest.raises(CdalError, match="is named"):
        open_source(tmp_path / name)


def test_absurd_headers_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    for size, message in ((3000, "megapixels"), (600, "truncated")):
        content[42:48] = np.array([size] * 3, "<i2").tobytes()
        path.write_bytes(content)
        with pytest.raises(CdalError, match=message):
            open_source(path)


def test_what_is_no_single_volume(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.uint8), np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.complex64), np.eye(4)), tmp_path / "b.nii")
    for name, message in (("a.nii", "2 volumes"), ("b.nii", "complex64")):
        with pytest.raises(CdalError, match=message):
            open_source(tmp_path / name)
    nib.save(nib.Nifti1Image(VOXELS[..., None], np.eye(4)), tmp_path / "c.nii")
    assert np.array_equal(open_source(tmp_path / "c.nii").read(), VOXELS)


@pytest.fixture
def series(shared_data: Path, tmp_path: Path) -> Path:
    """A real series, made oblique; names and numbers in an order that means nothing."""
    folder = tmp_path / "série 13"
    folder.mkdir()
    names = np.random.default_rng(3).permutation(32)
    x, y = oblique()[:3, 0] / 0.8, oblique()[:3, 1] / 1.1
    normal = np.cross(x, y)
    files = sorted((shared_data / "dicom" / "Study1_13_HCropVolume").glob("*.dcm"))
    for name, file in zip(names, files, strict=True):
        dataset = pydicom.dcmread(file)
        position = 2.5 * (dataset.InstanceNumber - 1) * normal + (10, 20, 30)
        dataset.ImagePositionPatient = [f"{value:.8f}" for value in position]
        dataset.ImageOrientationPatient = [f"{value:.8f}" for value in (*x, *y)]
        dataset.PixelSpacing = [1.1, 0.8]
        dataset.InstanceNumber = int(name) + 1
        dataset.save_as(folder / f"{name}.dcm")
    return folder


def ordered(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (x, y, z) and positions, by position, as pydicom reads them."""
    slices = [pydicom.dcmread(file) for file in folder.iterdir()]
    x, y = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    slices.sort(key=lambda s: np.array(s.ImagePositionPatient, float) @ np.cross(x, y))
    pixels = np.stack([s.pixel_array.T for s in slices], axis=-1)
    return pixels, np.array([s.ImagePositionPatient for s in slices], float)


def test_a_series_is_ordered_by_position(series: Path, tmp_path: Path) -> None:
    pixels, positions = ordered(series)
    source = open_source(series)
    assert (source.kind, source.shape) == ("volume", (35, 51, 32))
    assert np.array_equal(source.read(), pixels)
    assert np.array_equal(source.read(0, np.s_[3:9, 4:30, 5:8]), pixels[3:9, 4:30, 5:8])
    assert np.array_equal(source.level_array()[..., 4].compute(), pixels[..., 4])
    assert source.spacing == pytest.approx((0.8, 1.1, 2.5), rel=1e-5)
    assert source.affine is not None
    for index, position in enumerate(positions):
        left_posterior = (source.affine @ (0, 0, index, 1))[:3] * (-1, -1, 1)
        np.testing.assert_allclose(left_posterior, position, atol=1e-5)
    labels = (pixels % 5).astype(np.uint8)
    write_volume_labels(tmp_path / "labels.nii.gz", labels, source)
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), labels)
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    original = sitk.ReadImage(
        [str(series / f"{n}.dcm") for n in _by_position(series)], sitk.sitkInt16
    )
    overlay = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    for voxel in ((0, 0, 0), (34, 0, 5), (3, 50, 31)):  # the same place in the scanner
        there = original.TransformIndexToPhysicalPoint(voxel)
        assert overlay.TransformPhysicalPointToIndex(there) == voxel


def _by_position(folder: Path) -> list[str]:
    _, positions = ordered(folder)
    by_place = {
        tuple(np.array(pydicom.dcmread(f).ImagePositionPatient, float)): f.stem
        for f in folder.iterdir()
    }
    return [by_place[tuple(position)] for position in positions]


def test_a_series_by_one_of_its_files(series: Path) -> None:
    assert np.array_equal(open_source(series / "5.dcm").read(), open_source(series).read())


def test_nothing_of_the_patient_is_shown(series: Path) -> None:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PatientName, dataset.PatientID = "Doe^Jane", "4711"
        dataset.save_as(file)
    source = open_source(series)
    shown = f"{describe(series)} {source!r} {vars(source)}"
    assert "Doe" not in shown
    assert "4711" not in shown


def test_what_is_no_single_series(series: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    shutil.copytree(series, two)
    for file in list(two.iterdir())[:10]:
        dataset = pydicom.dcmread(file)
        dataset.SeriesInstanceUID = "1.2.3"
        dataset.save_as(file)
    with pytest.raises(CdalError, match="2 DICOM series"):
        open_source(two)
    assert len(dicom_inputs(two)) == 2
    shutil.copy(series / "3.dcm", series / "again.dcm")
    with pytest.raises(CdalError, match="one position"):
        open_source(series)
    (series / "again.dcm").unlink()
    middle = _by_position(series)[7]
    (series / f"{middle}.dcm").unlink()
    with pytest.raises(CdalError, match="slices are missing"):
        open_source(series)


def test_a_damaged_slice_is_named(series: Path) -> None:
    (series / "9.dcm").write_bytes((series / "9.dcm").read_bytes()[:3000])
    with pytest.raises(CdalError) as caught:
        open_source(series).read()
    assert caught.value.path in (series, series / "9.dcm")
    assert caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"no DICOM", None])
def test_a_series_is_never_read_without_a_slice(series: Path, content: bytes | None) -> None:
    """The last slice is damaged: nothing in the others tells that it is missing."""
    last = series / f"{_by_position(series)[-1]}.dcm"
    last.write_bytes(last.read_bytes()[:300] if content is None else content)
    with pytest.raises(CdalError, match="damaged") as caught:
        open_source(series)
    assert caught.value.path == last


def test_a_slice_that_promises_more_than_it_has(series: Path) -> None:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.Rows = 60_000
        dataset.save_as(file)
    with pytest.raises(CdalError, match="header promises 4200000 bytes"):
        open_source(series)


def test_each_volume_is_found_once(series: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    (tmp_path / "b.mrxs").write_bytes(b"x")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "Data0001.dat").write_bytes(b"x")
    (tmp_path / "b" / "inside.png").write_bytes(b"x")
    (tmp_path / "c.zarr").mkdir()
    (tmp_path / "c.zarr" / "0.png").write_bytes(b"x")
    found = [path.name for path in find_sources(tmp_path)]
    assert found == ["a.nii.gz", "b.mrxs", "c.zarr", series.name]


def test_without_the_libraries_the_remedy_is_named(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    path = write_nifti(tmp_path / "a.nii")
    for name, file in (("nibabel", path), ("SimpleITK", series)):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(CdalError, match=r"napari-cdal\[volumes\]"):
                open_source(file)
