"""Slides, volumes and results folders opened in a real viewer, through the manifest."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from napari.layers import Labels, Shapes
from napari.utils.notifications import notification_manager
from PIL import Image

from cdal_engine.cli import app
from cdal_engine.io.discovery import open_source
from cdal_engine.samples import HE_MPP, he_path, mri_path, slide_path
from napari_cdal.open_dialog import open_dialog
from napari_cdal.planes import plane_of
from napari_cdal.readers import get_reader
from napari_cdal.regions import of_shapes
from napari_cdal.sources import ras_affine, volume_placement

pytestmark = pytest.mark.gui


def opened(viewer: Any, path: Path) -> list[Any]:
    return list(viewer.open(str(path), plugin="napari-cdal"))


def messages() -> list[str]:
    return [note.message for note in notification_manager.records]


def test_a_slide_is_lazy_and_in_micrometres(viewer: Any, shared_data: Path) -> None:
    (layer,) = opened(viewer, shared_data / "slides" / "CMU-1-Small-Region.svs")
    assert layer.rgb
    assert hasattr(layer.data, "dask")  # not read yet
    assert layer.data.shape == (2967, 2220, 3)
    np.testing.assert_allclose(layer.scale, (0.499, 0.499))
    assert [str(unit) for unit in layer.units] == ["micrometer"] * 2


def test_a_folder_of_a_dicom_slide(viewer: Any, shared_data: Path) -> None:
    (layer,) = opened(viewer, shared_data / "slides" / "dicom-CMU-1-Small-Region")
    assert layer.rgb
    np.testing.assert_allclose(layer.scale, (0.499, 0.499), rtol=1e-3)


def test_levels_of_the_sample_slide_lie_on_each_other(viewer: Any) -> None:
    (layer,) = viewer.open_sample("napari-cdal", "slide")
    assert layer.multiscale
    assert [level.shape for level in layer.data] == [
        (2048, 1280, 3),
        (1024, 640, 3),
        (512, 320, 3),
    ]
    fine = np.asarray(layer.data[0]).reshape(512, 4, 320, 4, 3).mean(axis=(1, 3))
    coarse = np.asarray(layer.data[2]).astype(float)

    def off(*shift: int) -> float:
        return float(np.abs(fine - np.roll(coarse, shift, (0, 1))).mean())

    assert off(0, 0) < 0.6 * min(off(0, 1), off(0, -1), off(1, 0), off(-1, 0))


def test_voxels_of_a_volume_are_where_the_file_puts_them(viewer: Any) -> None:
    (layer,) = viewer.open_sample("napari-cdal", "mri")
    source = open_source(mri_path())
    voxels, affine = source.read(), source.affine
    assert affine is not None
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    for i, j, k in ((0, 0, 0), (34, 50, 34), (3, 17, 29)):
        right, anterior, superior, _ = affine @ (i, j, k, 1)
        at = layer.world_to_data((superior, -anterior, -right))
        assert layer.data[tuple(np.round(at).astype(int))] == voxels[i, j, k]


def test_a_dicom_series_keeps_its_spacing(viewer: Any, shared_data: Path) -> None:
    folder = shared_data / "dicom" / "Study1_13_HCropVolume"
    (layer,) = opened(viewer, folder)
    source = open_source(folder)
    assert sorted(layer.scale) == pytest.approx(sorted(source.spacing or ()))
    (again,) = opened(viewer, sorted(folder.glob("*.dcm"))[3])  # a file stands for its series
    np.testing.assert_array_equal(again.data, layer.data)


@given(st.permutations(range(3)), st.tuples(*[st.sampled_from((-1, 1))] * 3), st.integers(0, 9))
def test_any_orientation_is_placed_exactly(
    order: list[int], signs: tuple[int, ...], seed: int
) -> None:
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[order] * signs * (0.5, 1.0, 3.0)
    affine[:3, :3] += random.uniform(-0.1, 0.1, (3, 3))  # oblique
    affine[:3, 3] = random.uniform(-50, 50, 3)
    placed, axes = volume_placement(affine)
    index = random.uniform(0, 40, 3)
    matrix = placed["affine"] @ np.diag((*placed["scale"], 1))
    np.testing.assert_allclose(
        ras_affine(matrix) @ (*index[list(axes)], 1), affine @ (*index, 1), atol=1e-9
    )
    assert (np.abs(placed["affine"][:3, :3]).argmax(axis=1) == (0, 1, 2)).all()


@pytest.mark.parametrize("name", ["unreadable.svs", "empty.nii.gz", "text.dcm"])
def test_a_broken_file_is_a_notification_with_the_remedy(
    viewer: Any, shared_data: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if name == "unreadable.svs":
        path = shared_data / "slides" / name
    else:
        path.write_bytes(b"" if name.startswith("empty") else b"not DICOM")
    before = len(messages())
    assert opened(viewer, path) == []
    (message,) = messages()[before:]
    assert name in message
    assert message.endswith(")")  # the remedy


def test_other_files_stay_with_napari(viewer: Any, npe2pm: Any, tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.tif", "a.ome.tif", "a.csv", "a.json"):
        assert not list(npe2pm.iter_compatible_readers(str(tmp_path / name))), name
    shutil.copy(he_path(), tmp_path / "a.png")
    assert get_reader(str(tmp_path)) is None  # a folder of pictures
    assert get_reader([str(tmp_path / "a.svs"), str(tmp_path / "b.svs")]) is None  # a stack


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of `cdal segment` with the shipped model, of the sample tile."""
    from typer.testing import CliRunner

    out = tmp_path_factory.mktemp("run")
    image = out / "tile.png"
    shutil.copy(he_path(), image)
    save = "labels,table,probability,uncertainty,attention"
    options = ["-o", str(out / "out"), "--samples", "2", "--save", save]
    done = CliRunner().invoke(app, ["segment", str(image), *options])
    assert done.exit_code == 0, done.output
    return out / "out" / "tile.png"


@pytest.mark.parametrize("dropped", ["folder", "run.json"])
def test_results_open_with_their_image_table_and_maps(
    viewer: Any, results: Path, dropped: str
) -> None:
    layers = opened(viewer, results if dropped == "folder" else results / "run.json")
    assert [layer.name.split(":")[0] for layer in layers] == [
        "tile.png", "attention", "deviation", "uncertainty", "probability", "labels",
    ]  # fmt: skip
    image, *maps, labels = layers
    assert not any(layer.visible for layer in maps)
    for layer in layers:
        np.testing.assert_allclose(layer.scale, (HE_MPP, HE_MPP), rtol=1e-6)
        np.testing.assert_allclose(layer.extent.world, image.extent.world, rtol=1e-6)
    assert set(labels.features["index"]) == set(np.unique(labels.data)) - {0}
    assert {"score", "agreement", "area_um2"} <= set(labels.features)
    assert 0 <= np.asarray(maps[-1].data).min() <= np.asarray(maps[-1].data).max() <= 1


def test_results_open_without_their_image(viewer: Any, results: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(results, moved)
    record = json.loads((moved / "run.json").read_text())
    record["input"]["path"] = str(tmp_path / "gone.png")
    (moved / "run.json").write_text(json.dumps(record))
    before = len(messages())
    assert [layer.name for layer in opened(viewer, moved)][-1] == "labels: gone.png, nuclei-he"
    assert "without their image" in messages()[before]


def test_maps_that_unpack_to_more_than_memory_holds_are_refused(
    viewer: Any, results: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(results, spoilt)
    finest = spoilt / "maps.ome.zarr" / "s0"
    shape = zarr.open_array(finest, mode="r").shape
    zarr.create_array(
        finest, shape=shape, chunks=(1, 2**17, 2**17), dtype="float32", overwrite=True
    )
    before = len(messages())
    assert opened(viewer, spoilt) == []
    assert "a chunk of it has the shape (1, 131072, 131072)" in messages()[before]


def test_metadata_without_end_are_refused(viewer: Any, tmp_path: Path) -> None:
    path = tmp_path / "labels.zarr"
    zarr.open_group(path, mode="w", attributes={"ome": {"image-label": {}, "more": "." * 2**23}})
    before = len(messages())
    assert opened(viewer, path) == []
    assert "its metadata take more than" in messages()[before]


def test_results_of_a_slide_lie_on_it(viewer: Any, tiny_model: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    options = ["-o", str(tmp_path), "--samples", "1", "--steps", "0", "--model", str(tiny_model)]
    ring = [[100, 100], [400, 100], [400, 400], [100, 400], [100, 100]]
    (tmp_path / "part.geojson").write_text(
        json.dumps({"type": "Polygon", "coordinates": [ring]}), encoding="utf-8"
    )
    options += ["--save", "labels,probability", "--regions", str(tmp_path / "part.geojson")]
    done = CliRunner().invoke(app, ["segment", str(slide_path()), *options])
    assert done.exit_code == 0, done.output
    image, *_, labels = opened(viewer, tmp_path / slide_path().name)
    assert labels.multiscale
    np.testing.assert_allclose(
        labels.extent.world, image.extent.world, atol=1
    )  # µm: their pixels differ in size


def segmented(image: Path, model: Path, *options: str) -> Path:
    """Results of the command line for a small plain image, which is made."""
    from typer.testing import CliRunner

    Image.fromarray(np.full((60, 80, 3), 200, np.uint8)).save(image)
    arguments = ["segment", image, "-o", image.parent / "out", "--model", model, "--steps", 0]
    done = CliRunner().invoke(app, [str(each) for each in (*arguments, *options)])
    assert done.exit_code == 0, done.output
    return image.parent / "out" / image.name


def test_results_lie_on_an_image_whose_resolution_was_given(
    viewer: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """With --mpp, which the file does not know."""
    options = ("--mpp", "0.5", "--save", "labels,probability")
    layers = opened(viewer, segmented(tmp_path / "tile.png", tiny_model, *options))
    assert len(layers) == 3
    for layer in layers:
        np.testing.assert_allclose(layer.extent.world, layers[0].extent.world)
        assert [str(unit) for unit in layer.units] == ["micrometer"] * 2
        np.testing.assert_allclose(layer.scale, (0.5, 0.5))


def test_the_menu_opens_a_pyramid_in_a_tiff(viewer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ([str(slide_path())], "")
    monkeypatch.setattr("napari_cdal.open_dialog.QFileDialog.getOpenFileNames", lambda *_: chosen)
    open_dialog(viewer)
    (layer,) = viewer.layers
    assert layer.multiscale


def test_the_menu_opens_a_dicom_series_once(
    viewer: Any, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_data / "dicom" / "Study1_13_HCropVolume"
    files = sorted(map(str, folder.iterdir()))
    assert len(files) > 1
    monkeypatch.setattr(
        "napari_cdal.open_dialog.QFileDialog.getOpenFileNames",
        lambda *_: ([*files, str(slide_path())], ""),
    )
    open_dialog(viewer)
    assert sorted(layer.ndim for layer in viewer.layers) == [2, 3]


def test_files_of_a_dicom_series_that_are_dropped_together_are_one(
    viewer: Any, shared_data: Path
) -> None:
    folder = shared_data / "dicom" / "Study1_13_HCropVolume"
    files = sorted(map(str, folder.glob("*.dcm")))
    assert len(files) > 1
    viewer.open(files, stack=False, plugin="napari-cdal")  # as a drop does
    (layer,) = viewer.layers
    assert layer.data.size == np.prod(open_source(folder).shape)
    time.sleep(1.1)
    viewer.open(files[1], plugin="napari-cdal")  # wanted once more
    assert len(viewer.layers) == 2


def test_annotations_lie_on_the_image(viewer: Any, tmp_path: Path) -> None:
    image = viewer.add_image(np.zeros((60, 80, 3), np.uint8), scale=(0.5, 0.5), translate=(7, 3))
    viewer.add_image(np.zeros((5, 60, 80)), name="a stack")
    ring = [[10, 20], [30, 20], [30, 50], [10, 50], [10, 20]]
    hole = [[12, 22], [14, 22], [14, 24], [12, 22]]
    path = tmp_path / "areas.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring, hole]}))
    (shapes,) = opened(viewer, path)
    assert any("holes are left out" in message for message in messages())
    assert isinstance(shapes, Shapes)
    (region,) = of_shapes(plane_of(image, viewer.dims.point), shapes)
    assert region.box == (slice(20, 50), slice(10, 30))
    path.write_text(json.dumps([{"type": "Polygon", "coordinates": [ring]}] * 5001))
    before = len(viewer.layers)
    opened(viewer, path)
    assert "5001 outlines" in messages()[-1]
    assert "open the labels" in messages()[-1]
    assert len(viewer.layers) == before


def test_a_folder_that_the_command_line_names_is_opened_or_explained(
    viewer: Any, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name, count in (("a.png", 2), ("b.png", 0)):
        segmented(tmp_path / name, tiny_model)
        assert len(opened(viewer, out)) == count
    assert "holds the results of 2 inputs" in messages()[-1]
    assert "a.png" in messages()[-1]
    (out / "a.png" / "run.json").write_text("{")
    assert not opened(viewer, out / "a.png")
    assert "no finished results" in messages()[-1]


def test_folders_of_other_programs_are_left_to_other_readers(tmp_path: Path) -> None:
    for name in ("run.json", "summary.csv"):
        (tmp_path / name).write_text("{}")
        assert get_reader(str(tmp_path)) is None
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "run.json").write_text("{}")
    assert get_reader(str(tmp_path)) is None


def test_what_is_damaged_in_results_hides_nothing_else(
    viewer: Any, tiny_model: Path, tmp_path: Path
) -> None:
    folder = segmented(tmp_path / "a.png", tiny_model)
    (folder / "objects.parquet").write_bytes(b"no table")
    assert len(opened(viewer, folder)) == 2
    assert "objects.parquet" in messages()[-1]
    labels = (folder / "labels.tif").read_bytes()
    (folder / "labels.tif").write_bytes(labels[:100])
    assert not opened(viewer, folder)
    assert "labels.tif" in messages()[-1]
    (folder / "labels.tif").unlink()
    assert len(opened(viewer, folder)) == 1
    assert "has lost its labels" in messages()[-1]


def test_the_menu_opens_labels_of_a_tiff_with_their_scale(
    viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.arange(600, dtype=np.int64).reshape(20, 30) * 1000
    place = {"scale": (0.25, 0.25), "units": ("um", "um")}
    path = tmp_path / "labels.tif"
    viewer.add_labels(ids, **place).save(str(path), plugin="napari-cdal")
    chosen = ([str(path)], "")
    monkeypatch.setattr("napari_cdal.open_dialog.QFileDialog.getOpenFileNames", lambda *_: chosen)
    open_dialog(viewer)
    again = viewer.layers[-1]
    assert isinstance(again, Labels)
    np.testing.assert_array_equal(again.data, ids)
    np.testing.assert_allclose(again.scale, (0.25, 0.25))
    again.paint((3, 3), 7)
    assert again.data[3, 3] == 7


def test_a_volumes_contrast_is_not_that_of_its_brightest_voxels(viewer: Any) -> None:
    (layer,) = viewer.open(str(mri_path()), plugin="napari-cdal")
    low, high = layer.contrast_limits
    assert layer.data.min() <= low < high < layer.data.max()
