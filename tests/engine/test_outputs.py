"""Results out: exact outlines, grids and units, and folders in which nothing is lost or mixed."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05 import Image as OmeImage
from PIL import Image

from cdal_engine.counts import SampleCounts, counted
from cdal_engine.errors import CdalError
from cdal_engine.io.discovery import open_source
from cdal_engine.io.ome_zarr import labels_pyramid, maps_pyramid
from cdal_engine.io.records import (
    FAILED,
    RUN,
    read_run,
    write_failure,
    write_json,
    write_summary,
)
from cdal_engine.io.results import ResultsFolder
from cdal_engine.io.source import Source
from cdal_engine.model import Model
from cdal_engine.samples import he_path
from cdal_engine.segmenter import Segmentation, Segmenter

IMAGE = np.asarray(Image.open(he_path()))[200:270, 250:340]
ALL = ("labels", "probability", "uncertainty", "attention", "samples", "table", "geojson")
ALL += ("overview",)


def shoelace(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    return abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2


@pytest.fixture(scope="module")
def result(tiny_model: Path) -> Segmentation:
    segmenter = Segmenter(Model.load(tiny_model), "cpu")
    return segmenter.segment(IMAGE, samples=2, keep_samples=True)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "in.png"
    Image.fromarray(IMAGE).save(path)
    return replace(open_source(path), mpp=0.25, mpp_source="test")


def record(**more: object) -> dict:
    return {
        "input": {"path": "in.png"},
        "model": {"name": "tiny"},
        "mpp": 0.25,
        "mpp_source": "test",
        "counts": counted(3, 800, SampleCounts(np.array([2, 4]), np.array([700, 900])), 0.25, 0.5),
        "seconds": {"read": 1.0, "model": 2.0},
    } | more


def publish(folder: Path, source: Source, result: Segmentation, save: tuple[str, ...]) -> None:
    with ResultsFolder(folder) as results:
        results.write(source, IMAGE, result, 0.25, save)
        results.publish(record())


def summary(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_of_an_image(tmp_path: Path, source: Source, result: Segmentation) -> None:
    folder = tmp_path / "out"
    publish(folder, source, result, ALL)
    names = {"labels.tif", "maps.ome.zarr", "objects.parquet", "objects.csv", "objects.geojson"}
    assert {p.name for p in folder.iterdir()} == names | {"overview.png", RUN}
    with tifffile.TiffFile(folder / "labels.tif") as tiff:
        assert np.array_equal(tiff.asarray(), result.labels)
        assert tiff.pages[0].resolution == pytest.approx((40000, 40000))
    maps = OmeImage.from_zarr(zarr.open_group(folder / "maps.ome.zarr", mode="r"))
    channels = [c["label"] for c in maps.attributes.ome.omero["channels"]]
    assert channels[:4] == ["probability", "uncertainty", "deviation", "attention"]
    data = zarr.open_group(folder / "maps.ome.zarr", mode="r")["s0"][:]
    assert data.shape == (6, 70, 90)
    assert np.array_equal(data[0], result.probability[0])
    with Image.open(folder / "overview.png") as picture:
        assert picture.size[0] >= 90


def test_table_and_outlines_tell_the_same(
    tmp_path: Path, source: Source, result: Segmentation
) -> None:
    publish(tmp_path / "out", source, result, ("table", "geojson"))
    table = pq.read_table(tmp_path / "out" / "objects.parquet").to_pydict()
    features = json.loads((tmp_path / "out" / "objects.geojson").read_text())["features"]
    assert len(table["label"]) == len(features) > 3
    with (tmp_path / "out" / "objects.csv").open() as file:
        assert [int(row["label"]) for row in csv.DictReader(file)] == table["label"]
    for i, feature in enumerate(features):
        shape = feature["geometry"]["coordinates"]
        polygons = [shape] if feature["geometry"]["type"] == "Polygon" else shape
        area = sum(shoelace(rings[0]) - sum(map(shoelace, rings[1:])) for rings in polygons)
        assert area == table["area_px"][i]
        assert table["area_um2"][i] == pytest.approx(area * 0.25**2)
        points = np.concatenate([np.array(rings[0]) for rings in polygons])
        box = [table[name][i] for name in ("x0", "y0", "x1", "y1")]
        assert [*points.min(0), *points.max(0)] == box
        assert box[0] <= table["x"][i] <= box[2]
        assert table["x_um"][i] == pytest.approx(table["x"][i] * 0.25)
    assert len({feature["id"] for feature in features}) == len(features)


def _transformations(group: zarr.Group) -> list[list[list[float]]]:
    datasets = group.attrs["ome"]["multiscales"][0]["datasets"]
    return [[t[t["type"]] for t in dataset["coordinateTransformations"]] for dataset in datasets]


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(1, 2999))
@settings(max_examples=10)
def test_pyramids_keep_ids_and_place(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, middle: int
) -> None:
    middle = min(middle, height)
    folder = tmp_path_factory.mktemp("pyramid")
    labels = np.arange(height * width, dtype=np.uint32).reshape(height, width) + 2**31
    rows = np.mgrid[:height, :width][0].astype(np.float32)
    pyramids = (
        (labels_pyramid(folder / "labels", labels.shape), labels),
        (maps_pyramid(folder / "maps", ["y"], labels.shape), rows[None]),
    )
    for pyramid, pixels in pyramids:
        for start in (middle, 0):  # in parts, in any order
            part = slice(start, height if start == middle else middle), slice(0, width)
            pyramid.write(part, pixels[..., *part])
        pyramid.finish(0.25, 0.0)
    for name in ("labels", "maps"):
        group = zarr.open_group(folder / name, mode="r")
        OmeImage.from_zarr(group)
        for level, (scale, translation) in enumerate(_transformations(group)):
            data = group[f"s{level}"][:]
            row = min(1, data.shape[-2] - 1)
            y = row * scale[-2] + translation[-2]  # where the metadata put this row, in µm
            if name == "labels":
                assert data[row, 0] == labels[round(y / 0.25), 0]
            elif (row + 1) * 2**level <= height:
                assert data[0, row, 0] * 0.25 == pytest.approx(y)


def test_the_empty_part_of_a_pyramid_costs_nothing(tmp_path: Path) -> None:
    """A tera pixel, of which a little is written: levels are made of that, none of the rest."""
    pyramid = labels_pyramid(tmp_path / "labels.ome.zarr", (1_000_000, 1_000_000))
    boxes = [(slice(2000, 2100), slice(5100, 5300)), (slice(999_900, 1_000_000), slice(0, 7))]
    for i, box in enumerate(boxes, 1):
        shape = [s.stop - s.start for s in box]
        pyramid.write(box, np.full(shape, i, np.uint32))
    pyramid.finish(0.25, 0.0)
    for n, level in enumerate(pyramid.levels[:4]):
        for i, box in enumerate(boxes, 1):
            inside = tuple(slice(-(-s.start // 2**n), -(-s.stop // 2**n)) for s in box)
            around = tuple(slice(max(s.start - 5, 0), s.stop + 5) for s in inside)
            labels = level[around]
            assert (level[inside] == i).all()
            assert (labels > 0).sum() == level[inside].size


def test_earlier_files_of_ours_go_and_the_users_stay(
    tmp_path: Path, source: Source, result: Segmentation
) -> None:
    folder = tmp_path / "out"
    publish(folder, source, result, ALL)
    (folder / "notes.txt").write_text("mine")
    publish(folder, source, result, ("table",))
    names = {"objects.parquet", "objects.csv", "notes.txt", RUN}
    assert {p.name for p in folder.iterdir()} == names
    assert read_run(folder)["files"] == ["objects.csv", "objects.parquet"]


@pytest.mark.parametrize("name", ["labels.tif", RUN])
def test_a_users_file_is_never_replaced(
    tmp_path: Path, source: Source, result: Segmentation, name: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(CdalError, match=rf"{name}.*did not write"):
        publish(folder, source, result, ALL)
    assert {p.name: p.read_text() for p in folder.iterdir()} == {name: "mine"}


def test_results_that_were_being_moved_do_not_count(
    tmp_path: Path, source: Source, result: Segmentation
) -> None:
    folder = tmp_path / "out"
    publish(folder, source, result, ("table",))
    interrupted = json.loads((folder / RUN).read_text()) | {"finished": False}
    write_json(folder / RUN, interrupted)
    assert read_run(folder) is None
    write_summary(tmp_path)
    assert "interrupted" in (tmp_path / "summary.csv").read_text()
    publish(folder, source, result, ("labels",))  # and the next run takes them over
    assert {p.name for p in folder.iterdir()} == {"labels.tif", RUN}


def test_what_was_not_published_leaves_nothing(
    tmp_path: Path, source: Source, result: Segmentation
) -> None:
    with ResultsFolder(tmp_path / "out") as results:
        results.write(source, IMAGE, result, 0.25, ALL)
    assert list((tmp_path / "out").iterdir()) == []


def test_failures_stand_in_the_summary_until_they_are_mended(
    tmp_path: Path, source: Source, result: Segmentation
) -> None:
    write_failure(tmp_path / "out", source.path, CdalError("bad, really", "mend it"))
    write_summary(tmp_path)
    (row,) = summary(tmp_path)
    assert (row["results"], row["status"]) == ("out", "failed")
    assert (row["error"], row["remedy"]) == ("bad, really", "mend it")
    publish(tmp_path / "out", source, result, ("table",))
    assert not (tmp_path / "out" / FAILED).exists()
    write_summary(tmp_path)
    (row,) = summary(tmp_path)
    assert (row["status"], row["objects"], row["objects_per_mm2"]) == ("done", "3", "6")
    assert (row["objects_least"], row["objects_most"]) == ("2", "4")
    assert (row["objects_per_mm2_least"], row["objects_per_mm2_most"]) == ("4", "8")
    assert (row["area_um2"], row["area_um2_least"], row["area_um2_most"]) == (
        "50",
        "43.75",
        "56.25",
    )


def test_one_sample_has_no_agreement(tmp_path: Path, source: Source, tiny_model: Path) -> None:
    one = Segmenter(Model.load(tiny_model), "cpu").segment(IMAGE, samples=1)
    publish(tmp_path / "out", source, one, ALL)
    table = pq.read_table(tmp_path / "out" / "objects.parquet")
    assert table["agreement"].null_count == table.num_rows > 0
    text = (tmp_path / "out" / "objects.geojson").read_bytes()
    assert "agreement" not in orjson.loads(text)["features"][0]["properties"]["measurements"]


def test_nothing_found_is_a_result(tmp_path: Path, source: Source, result: Segmentation) -> None:
    nothing = replace(
        result,
        labels=np.zeros_like(result.labels),
        objects={name: column[:0] for name, column in result.objects.items()},
    )
    publish(tmp_path / "out", source, nothing, ALL)
    assert orjson.loads((tmp_path / "out" / "objects.geojson").read_bytes())["features"] == []
    assert pq.read_table(tmp_path / "out" / "objects.parquet").num_rows == 0


def test_an_edited_record_cannot_remove_other_files(
    tmp_path: Path, source: Source, result: Segmentation
) -> None:
    publish(tmp_path / "out", source, result, ("table",))
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    edited = json.loads((tmp_path / "out" / RUN).read_text())
    write_json(tmp_path / "out" / RUN, edited | {"files": ["../victim", str(victim), "mine.txt"]})
    (tmp_path / "out" / "objects.csv").unlink()
    (tmp_path / "out" / "objects.parquet").unlink()
    publish(tmp_path / "out", source, result, ("table",))
    assert victim.is_dir()
    assert (tmp_path / "out" / "mine.txt").exists()


def test_a_damaged_record_does_not_cost_the_summary(
    tmp_path: Path, source: Source, result: Segmentation
) -> None:
    publish(tmp_path / "a", source, result, ("table",))
    (tmp_path / "b").mkdir()
    write_json(tmp_path / "b" / RUN, {"finished": True})
    write_summary(tmp_path)
    assert {r["results"]: r["status"] for r in summary(tmp_path)} == {"a": "done", "b": "unknown"}


def test_a_foreign_summary_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text("name,grade\n")
    with pytest.raises(CdalError, match="did not write"):
        write_summary(tmp_path)
    assert (tmp_path / "summary.csv").read_text() == "name,grade\n"
