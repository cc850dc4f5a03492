"""Labels saved from a real viewer, through the manifest, and read again by others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from napari.layers import Labels
from napari.utils.notifications import notification_manager
from ome_zarr_models.v05 import Image as OmeImage

from cdal_engine.errors import CdalError
from cdal_engine.io.discovery import open_source
from cdal_engine.samples import mri_path
from napari_cdal.measured import measured, renewed
from napari_cdal.readers import read
from napari_cdal.save_dialog import save_dialog
from napari_cdal.writers import write_geojson, write_nifti, write_tiff, write_zarr

pytestmark = pytest.mark.gui
LABELS = np.kron(np.arange(1, 13, dtype=np.int64).reshape(3, 4) * 7, np.ones((40, 50), np.int64))
LABELS[::20] = 0
PLACED = {"scale": (0.5, 0.5), "translate": (30, 7), "units": ("micrometer",) * 2}


def saved(layer: Any, path: Path) -> Path:
    assert layer.save(str(path), plugin="napari-cdal") == [str(path)]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing is left aside
    return path


def test_ome_zarr_keeps_ids_scale_place_and_units(viewer: Any, tmp_path: Path) -> None:
    path = saved(viewer.add_labels(LABELS, **PLACED), tmp_path / "labels.ome.zarr")
    group = zarr.open_group(path, mode="r")
    OmeImage.from_zarr(group)
    multiscale = group.attrs["ome"]["multiscales"][0]
    assert [axis["unit"] for axis in multiscale["axes"]] == ["micrometer"] * 2
    first = multiscale["datasets"][0]
    assert [t[t["type"]] for t in first["coordinateTransformations"]] == [[0.5, 0.5], [30, 7]]
    np.testing.assert_array_equal(group[first["path"]], LABELS)


def test_tiff_keeps_ids_and_resolution(viewer: Any, tmp_path: Path) -> None:
    path = saved(viewer.add_labels(LABELS, **PLACED), tmp_path / "labels.tif")
    np.testing.assert_array_equal(tifffile.imread(path), LABELS)
    assert open_source(path).mpp == pytest.approx(0.5)


def test_nifti_lies_in_the_volumes_own_space(viewer: Any, tmp_path: Path) -> None:
    (image,) = viewer.open_sample("napari-cdal", "mri")
    labels = viewer.add_labels(
        (image.data > 60) * (1 + np.arange(35)[:, None, None] % 2),
        scale=image.scale,
        affine=image.affine,
        units=image.units,
    )
    volume, written = nib.load(mri_path()), nib.load(saved(labels, tmp_path / "labels.nii.gz"))
    assert written.shape == volume.shape
    np.testing.assert_allclose(written.affine, volume.affine, atol=1e-6)
    inside = np.asarray(volume.dataobj) > 60
    np.testing.assert_array_equal(np.asarray(written.dataobj) > 0, inside)
    assert (np.asarray(written.dataobj)[..., 2] == labels.data[2].T).all()


def test_geojson_draws_each_label_in_pixels_of_its_image(viewer: Any, tmp_path: Path) -> None:
    pixel, corner = 2.0, (60, 14)  # two pixels of the image to one of these
    facts = {"cdal": {"source": "slide.svs", "pixel": pixel, "corner": corner}}
    features = {"index": np.unique(LABELS)[1:], "score": np.linspace(0.1, 0.9, 12)}
    layer = viewer.add_labels(LABELS, metadata=facts, features=features, **PLACED)
    collection = json.loads(saved(layer, tmp_path / "labels.geojson").read_text())
    drawn = np.zeros_like(LABELS, np.int32)
    for feature in collection["features"]:
        geometry, measured = feature["geometry"], feature["properties"]["measurements"]
        parts = geometry["coordinates"]
        for polygon in parts if geometry["type"] == "MultiPolygon" else [parts]:
            ring = (np.array(polygon[0]) - corner[::-1]) / pixel
            x0, y0 = np.round(ring.min(axis=0)).astype(int)
            x1, y1 = np.round(ring.max(axis=0)).astype(int) - 1
            cv2.rectangle(drawn, (x0, y0), (x1, y1), measured["label"], -1)
        assert measured["area µm²"] == pytest.approx((measured["label"] == LABELS).sum() * 0.25)
    np.testing.assert_array_equal(drawn, LABELS)
    scores = [f["properties"]["measurements"]["score"] for f in collection["features"]]
    np.testing.assert_allclose(scores, features["score"], atol=1e-3)


def test_labels_drawn_by_hand_get_no_score(viewer: Any, tmp_path: Path) -> None:
    path = saved(viewer.add_labels(LABELS, name="mine"), tmp_path / "labels.geojson")
    measured = json.loads(path.read_text())["features"][0]["properties"]["measurements"]
    assert {"score", "agreement"}.isdisjoint(set(measured))


@pytest.mark.parametrize("kind", ["turned", "stack", "in the way"])
def test_what_cannot_be_saved_is_said_and_nothing_touched(
    viewer: Any, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "labels.ome.zarr"
    layer = viewer.add_labels(
        np.stack([LABELS] * 2) if kind == "stack" else LABELS,
        **({"rotate": 30, **PLACED} if kind == "turned" else {}),
    )
    if kind == "in the way":
        path.mkdir()
        (path / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CdalError, match=r"labels\.ome\.zarr: .*\(.*\)$"):
        layer.save(str(path), plugin="napari-cdal")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", [".ome.zarr", ".nii.gz"])
def test_saved_labels_are_labels_again(viewer: Any, tmp_path: Path, suffix: str) -> None:
    layer = viewer.add_labels(LABELS, **PLACED)
    path = saved(layer, tmp_path / f"labels{suffix}")
    (again,) = viewer.open(str(path), plugin="napari-cdal")
    assert isinstance(again, Labels)
    data = again.data[0] if again.multiscale else again.data
    np.testing.assert_array_equal(np.squeeze(data), LABELS)
    factor = 1000 if suffix == ".nii.gz" else 1  # millimetres
    np.testing.assert_allclose(again.extent.world[:, -2:] * factor, layer.extent.world, rtol=1e-5)


TABLE = {
    **{name: measured(LABELS, 0.5)[name] for name in ("index", "area_um2", "y", "x")},
    "agreement": np.array([np.nan, *np.linspace(0, 1, 11)]),
    "class": np.array(["tumour", "stroma"] * 6),
}


def test_ome_zarr_keeps_the_table(viewer: Any, tmp_path: Path) -> None:
    layer = viewer.add_labels(LABELS, features=TABLE, **PLACED)
    path = saved(layer, tmp_path / "labels.ome.zarr")
    (again,) = viewer.open(str(path), plugin="napari-cdal")
    pd.testing.assert_frame_equal(
        again.features[list(TABLE)], layer.features, check_dtype=False, check_categorical=False
    )
    rows = zarr.open_group(path, mode="r").attrs["ome"]["image-label"]["properties"]
    assert rows[0] == {"label-value": 7, "area_um2": 475.0, "y": 20, "x": 24.5, "class": "tumour"}


def test_what_was_painted_is_saved_with_a_table_of_its_own(viewer: Any, tmp_path: Path) -> None:
    table = TABLE | {"score": np.linspace(0.5, 0.9, 12)}
    layer = viewer.add_labels(LABELS.copy(), features=table, **PLACED)
    first, second, third = table["index"][:3]
    layer.data_setitem(np.nonzero(layer.data == first), 0)
    layer.data_setitem(tuple(at[:1] for at in np.nonzero(layer.data == second)), 0)
    layer.data_setitem(tuple(at[:2] for at in np.nonzero(layer.data == 0)), 4_000_000_000)
    (again,) = viewer.open(str(saved(layer, tmp_path / "l.ome.zarr")), plugin="napari-cdal")
    rows = again.features.set_index("index")
    assert list(rows.index) == sorted([*table["index"][1:], 4_000_000_000])
    assert rows.area_um2[second] == (layer.data == second).sum() / 4
    assert rows.area_um2[4_000_000_000] == 2 / 4
    assert rows.score.isna().tolist() == [True, *[False] * 10, True]
    assert rows.score[third] == table["score"][2]
    assert rows["class"].tolist() == [*table["class"][1:], "object"]
    (tmp_path / "outlines").mkdir()
    path = saved(layer, tmp_path / "outlines" / "l.geojson")
    outlines = json.loads(path.read_text())["features"]
    scored = ["score" in each["properties"]["measurements"] for each in outlines]
    assert scored == [False, *[True] * 10, False]


def test_another_programs_table_stays_as_it_is(viewer: Any, tmp_path: Path) -> None:
    """Its centroids are in micrometres, say: not one row looks like ours."""
    table = TABLE | {"y": TABLE["y"] * 0.5, "score": np.linspace(0.1, 0.9, 12)}
    layer = viewer.add_labels(LABELS.copy(), features=table, **PLACED)
    (again,) = viewer.open(str(saved(layer, tmp_path / "l.ome.zarr")), plugin="napari-cdal")
    assert again.features["score"].tolist() == table["score"].tolist()


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_erased_in_the_middle_is_noticed(count: int) -> None:
    labels = np.zeros((200, 250), np.uint32)
    labels[10:110, 10:110] = 1
    labels[20:61, 150:191] = 2 if count == 2 else 0
    table = pd.DataFrame(measured(labels, 0.5)).assign(score=0.9)
    assert renewed(table, labels, 0.5) is table
    assert renewed(table, labels, 0.7) is table  # the layer's scale was changed
    labels[59:61, 59:61] = 0
    rows = renewed(table, labels, 0.5)
    assert rows["area_px"].tolist()[0] == 9996
    assert rows["score"].isna().tolist() == [True, False][:count]
    beyond = labels.astype(np.int64) * 2**32
    assert renewed(table, beyond, 0.5) is table  # not to be measured


@pytest.mark.parametrize("count", [10_000, 40_000])
def test_a_table_too_large_for_the_metadata_is_left_out(tmp_path: Path, count: int) -> None:
    labels = np.arange(count, dtype=np.int64).reshape(100, -1)
    columns = np.random.default_rng(0).random((9, count - 1))
    table = {"index": np.arange(1, count), **{f"column {n}": c for n, c in enumerate(columns)}}
    write_zarr(str(tmp_path / "labels.zarr"), labels, {"features": table})
    ((data, arguments, kind),) = read(str(tmp_path / "labels.zarr"))
    np.testing.assert_array_equal(data, labels)
    assert (kind, arguments["features"]) == ("labels", {})


@pytest.mark.parametrize(
    "properties",
    [
        3,
        ["a"],
        [{"label-value": "a"}],
        [{"label-value": 10**400}],
        [{"label-value": 1, "area": 10**400}],
        [{"area": 1}],
        [{"label-value": n + 1, f"column {n}": 1} for n in range(1000)],
    ],
    ids=["number", "text", "name", "huge", "huge area", "nameless", "columns"],
)
def test_a_damaged_table_leaves_the_labels(tmp_path: Path, properties: Any) -> None:
    path = tmp_path / "labels.zarr"
    write_zarr(str(path), LABELS, {})
    written = json.loads((path / "zarr.json").read_text())
    written["attributes"]["ome"]["image-label"]["properties"] = properties
    (path / "zarr.json").write_text(json.dumps(written))
    ((data, arguments, kind),) = read(str(path))
    np.testing.assert_array_equal(data, LABELS)
    assert (kind, arguments["features"]) == ("labels", {})


def test_a_name_without_suffix_gets_one(tmp_path: Path) -> None:
    """As typed into napari's dialog, which adds none."""
    for write, suffix in (
        (write_zarr, ".ome.zarr"),
        (write_tiff, ".tif"),
        (write_nifti, ".nii.gz"),
        (write_geojson, ".geojson"),
    ):
        typed = str(tmp_path / "case 1.2")
        assert write(typed, LABELS, {}) == [typed + suffix]
        assert Path(typed + suffix).exists()
        with pytest.raises(CdalError, match="exists already"):  # napari asked about another name
            write(typed, LABELS, {})
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("typed", "kind", "written"),
    [
        ("nuclei", "GeoJSON", "nuclei.geojson"),
        ("nuclei", "OME-Zarr", "nuclei.ome.zarr"),
        ("nuclei", "TIFF", "nuclei.tif"),
        ("nuclei", "NIfTI", "nuclei.nii.gz"),
        ("nuclei.nii.gz", "GeoJSON", "nuclei.nii.gz"),  # a suffix that is typed is meant
        ("Nuclei.TIFF", "GeoJSON", "Nuclei.TIFF"),
    ],
)
def test_the_menu_saves_as_what_was_chosen(
    viewer: Any,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    typed: str,
    kind: str,
    written: str,
) -> None:
    viewer.add_labels(LABELS, **PLACED)
    choose(monkeypatch, tmp_path / typed, kind)
    save_dialog(viewer)
    qtbot.waitUntil(lambda: [path.name for path in tmp_path.iterdir()] == [written])
    kinds = {"tif": "TIFF", "iff": "TIFF", ".gz": "NIfTI", "son": "GeoJSON", "arr": "OME-Zarr"}
    opened = {
        "TIFF": tifffile.imread,
        "NIfTI": nib.load,
        "GeoJSON": lambda path: json.loads(path.read_text()),
        "OME-Zarr": lambda path: zarr.open_group(path, mode="r"),
    }
    opened[kinds[written[-3:].lower()]](tmp_path / written)


def test_the_menu_says_what_was_saved_and_what_not(
    viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    notification_manager.notification_ready.connect(lambda event: said.append(event.message))
    choose(monkeypatch, tmp_path / "nuclei", "TIFF")
    viewer.add_image(np.zeros((5, 5)))
    save_dialog(viewer)
    assert "No labels are selected" in said[-1]
    labels = viewer.add_labels(LABELS.copy())
    save_dialog(viewer)
    labels.data[:] = 0  # what is painted meanwhile is not in it
    qtbot.waitUntil(lambda: said[-1] == f"Saved nuclei.tif in {tmp_path}")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "nuclei.tif"), LABELS)
    save_dialog(viewer)
    qtbot.waitUntil(lambda: "Not saved" in said[-1])
    assert "exists already (choose another name)" in said[-1]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "nuclei.tif"), LABELS)


def choose(monkeypatch: pytest.MonkeyPatch, path: Path, kind: str) -> None:
    """Have the user choose a name and one of the kinds that are offered."""

    def answer(_: object, title: str, __: str, kinds: str) -> tuple[str, str]:
        assert title
        return str(path), next(each for each in kinds.split(";;") if each.startswith(kind))

    monkeypatch.setattr("napari_cdal.save_dialog.QFileDialog.getSaveFileName", answer)
