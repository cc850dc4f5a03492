"""The objects' table and outlines, written block by block."""

import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from skimage.data import binary_blobs
from skimage.measure import label

from cdal_engine import instances
from cdal_engine.io.geojson import GeoJsonWriter
from cdal_engine.io.tables import TableWriter, object_table

Objects = dict[str, np.ndarray]


def measured(labels: np.ndarray) -> Objects:
    objects = instances.measure(labels, np.full(labels.shape, 0.75, np.float32))
    count = len(objects["label"])
    return objects | {"class": np.full(count, "nucleus"), "agreement": np.full(count, 0.8)}


def some(objects: Objects, rows: Any) -> Objects:
    return {name: column[rows] for name, column in objects.items()}


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Objects that touch, enclose others and come in pieces."""
    ids = label(binary_blobs(160, 0.06, volume_fraction=0.6, rng=3)[:130], connectivity=1)
    ids = ids % 50 * 4 + np.arange(160) // 40 * (ids > 0)
    return ids.astype(np.uint32)


def drawn(features: list[dict], shape: tuple[int, ...], pixel: float) -> np.ndarray:
    """Labels out of GeoJSON, by the crossings of each ring on each row of pixel centres."""
    labels = np.zeros(shape, np.uint32)
    for feature in features:
        shapes = feature["geometry"]["coordinates"]
        polygons = [shapes] if feature["geometry"]["type"] == "Polygon" else shapes
        crossed = np.zeros((shape[0], shape[1] + 1), int)
        for ring in (ring for polygon in polygons for ring in polygon):
            for (x, y), (_, to_y) in pairwise((np.array(ring) / pixel).round(6).tolist()):
                low, high = sorted((round(y), round(to_y)))
                crossed[low:high, round(x)] += 1
        area = crossed[:, :-1].cumsum(axis=1) % 2 == 1
        assert not labels[area].any()
        labels[area] = feature["properties"]["measurements"]["label"]
    return labels


def written(path: Path, blocks: list[tuple], pixel: float = 1.0, mpp: float | None = None) -> dict:
    with GeoJsonWriter(path, "a.svs", mpp, (4000, 4000), pixel) as file:
        for block in blocks:
            file.add(*block)
    return orjson.loads(path.read_bytes())


@pytest.mark.parametrize("pixel", [1.0, 0.5, 2.004])
def test_labels_come_back_from_their_outlines(
    tmp_path: Path, labels: np.ndarray, pixel: float
) -> None:
    collection = written(tmp_path / "o.geojson", [(labels, measured(labels))], pixel)
    assert collection["type"] == "FeatureCollection"
    kinds = {feature["geometry"]["type"] for feature in collection["features"]}
    assert kinds == {"Polygon", "MultiPolygon"}
    assert np.array_equal(drawn(collection["features"], labels.shape, pixel), labels)


def test_blocks_give_the_features_of_the_whole(tmp_path: Path, labels: np.ndarray) -> None:
    """Each block writes what it owns, from a patch in which it sees others' objects too."""
    objects = measured(labels)
    whole = written(tmp_path / "whole.geojson", [(labels, objects)])["features"]
    blocks = []
    for left in (True, False):
        own = some(objects, (objects["x"] < 80) == left)
        from_ = 0 if left else int(own["x0"].min())
        blocks.append((labels[:, from_ : int(own["x1"].max())], own, (0, from_)))
    parts = written(tmp_path / "parts.geojson", blocks)["features"]
    assert len(parts) == len(whole)
    key = lambda feature: feature["id"]  # noqa: E731
    assert sorted(parts, key=key) == sorted(whole, key=key)


def test_qupath_finds_its_ids_and_measurements(tmp_path: Path, labels: np.ndarray) -> None:
    objects = measured(labels)
    collection = written(tmp_path / "o.geojson", [(labels, objects)], pixel=2.0, mpp=0.25)
    for i, feature in enumerate(collection["features"]):
        number = int(objects["label"][i])
        assert uuid.UUID(feature["id"]) == uuid.uuid5(uuid.NAMESPACE_URL, f"a.svs#{number}")
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["classification"]["name"] == "nucleus"
        found = feature["properties"]["measurements"]
        assert found["label"] == number
        assert found["area px²"] == objects["area_px"][i] * 4
        assert found["area µm²"] == pytest.approx(objects["area_px"][i] * 0.25)
        assert (found["score"], found["agreement"]) == (0.75, 0.8)


def test_an_object_outside_its_patch_is_a_mistake(tmp_path: Path, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not in the patch"):
        written(tmp_path / "o.geojson", [(labels[:20], measured(labels))])


def test_no_object_at_all_is_a_collection_still(tmp_path: Path) -> None:
    assert written(tmp_path / "o.geojson", [])["features"] == []


def test_a_row_group_a_block_and_the_same_bytes_again(tmp_path: Path, labels: np.ndarray) -> None:
    objects = measured(labels)
    cuts = [slice(0, 10), slice(10, 10), slice(10, 60), slice(60, None)]
    tables = [object_table(some(objects, cut), 1.0, 0.25, (4000, 4000)) for cut in cuts]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        with TableWriter(tmp_path / name) as writer:
            for table in tables:
                writer.add(table)
    for file in ("objects.parquet", "objects.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    parquet = pq.ParquetFile(tmp_path / "one" / "objects.parquet")
    assert parquet.num_row_groups == len(cuts)
    for i, table in enumerate(tables):
        assert parquet.read_row_group(i).equals(table)
    text = pyarrow.csv.read_csv(tmp_path / "one" / "objects.csv")
    assert text["label"].to_pylist() == objects["label"].tolist()
    assert text["area_um2"].to_pylist() == pytest.approx((objects["area_px"] / 16).tolist())


@pytest.mark.parametrize(("rows", "opens"), [(99_999, True), (100_000, False)])
def test_a_text_file_only_where_it_can_be_opened(
    tmp_path: Path, labels: np.ndarray, rows: int, opens: bool
) -> None:
    objects = some(measured(labels), np.zeros(rows, int))
    with TableWriter(tmp_path) as writer:
        for part in (slice(0, 70_000), slice(70_000, None)):
            writer.add(object_table(some(objects, part), 1.0, None, (4000, 4000)))
    assert pq.read_metadata(tmp_path / "objects.parquet").num_rows == rows
    assert (tmp_path / "objects.csv").exists() == opens
