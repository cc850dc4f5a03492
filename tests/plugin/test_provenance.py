"""What labels are of, and how large their pixels were taken to be, stays with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from napari.layers import Labels
from numpy.typing import NDArray

from cdal_engine.corrections.answer import kind_of_results
from cdal_engine.corrections.corrected import CorrectedCopy
from cdal_engine.corrections.export import export
from cdal_engine.corrections.versions import Edit
from napari_cdal.corrections import answer_of
from napari_cdal.measured import layer_table
from napari_cdal.provenance import to_json, trusted
from napari_cdal.readers import read
from napari_cdal.results import METADATA_KEY
from napari_cdal.writers import write_geojson, write_zarr

from .test_segment_widget import run

pytestmark = pytest.mark.gui
MICROMETRES = {"units": ("micrometer",) * 2}
BOX = np.array([[20.0, 30.0], [20.0, 99.0], [79.0, 99.0], [79.0, 30.0]])


def outlines(layer: Labels, path: Path) -> dict[int, dict[str, Any]]:
    """Features by label, as QuPath would read them."""
    write_geojson(str(path), *layer.as_layer_data_tuple()[:2])
    features = json.loads(path.read_text())["features"]
    return {each["properties"]["measurements"]["label"]: each for each in features}


def measurement(feature: dict[str, Any], name: str) -> float:
    return float(feature["properties"]["measurements"][name])


@pytest.mark.parametrize("placed", [{}, {"scale": (1.0, 1.0), **MICROMETRES}])
def test_all_sizes_are_those_that_the_run_was_told(
    viewer: Any,
    docked: Any,
    qtbot: Any,
    tile: NDArray[np.uint8],
    tmp_path: Path,
    placed: dict[str, Any],
) -> None:
    """Whether the layer says none or another one."""
    viewer.add_image(tile, name="tile", rgb=True, **placed)
    widget = docked(viewer)
    widget.form.mpp.value = 0.25
    run(widget, qtbot)
    layer = viewer.layers["labels: tile, tiny"]
    table = layer.features.set_index("index")
    found = outlines(layer, tmp_path / "a.geojson")
    assert set(found) == set(table.index)
    for label, feature in found.items():
        assert measurement(feature, "area µm²") == pytest.approx(table.area_um2[label], abs=1e-4)
        assert measurement(feature, "haematoxylin OD") == pytest.approx(
            table.haematoxylin[label], abs=1e-4
        )
    drawn = int(table.index.max()) + 1
    corner = np.nonzero(layer.data == 0)
    layer.data_setitem(tuple(at[:50] for at in corner), drawn)
    renewed = layer_table(layer, layer.features, layer.data).set_index("index")
    assert renewed.area_um2[drawn] == 50 / 16
    assert renewed.area_um2[renewed.index != drawn].equals(table.area_um2)
    assert measurement(outlines(layer, tmp_path / "b.geojson")[drawn], "area µm²") == 50 / 16
    layer.scale, layer.units = (2.0, 2.0), ("micrometer",) * 2  # the user knows better now
    assert measurement(outlines(layer, tmp_path / "c.geojson")[drawn], "area µm²") == 200


def test_labels_of_a_region_keep_their_place_in_the_image_when_saved(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8], tmp_path: Path
) -> None:
    placed: dict[str, Any] = {"scale": (0.5, 0.5), "translate": (7.0, 9.0), **MICROMETRES}
    viewer.add_image(tile, name="tile", rgb=True, **placed)
    shapes = viewer.add_shapes([BOX], shape_type="rectangle", **placed)
    widget = docked(viewer)
    widget.form.scope.value = shapes
    run(widget, qtbot)
    layer = viewer.layers["labels: tile, region 1, tiny"]
    before = outlines(layer, tmp_path / "before.geojson")
    write_zarr(str(tmp_path / "l.ome.zarr"), *layer.as_layer_data_tuple()[:2])
    (again,) = viewer.open(tmp_path / "l.ome.zarr", plugin="napari-cdal")
    after = outlines(again, tmp_path / "after.geojson")
    assert [each["geometry"] for each in after.values()] == [
        each["geometry"] for each in before.values()
    ]
    corners = np.concatenate(
        [np.ravel(each["geometry"]["coordinates"][0]) for each in after.values()]
    )
    assert corners.min() >= 20
    assert {each["properties"]["classification"]["name"] for each in after.values()} == {"nucleus"}
    np.testing.assert_allclose(again.extent.world, layer.extent.world)
    kept = again.metadata[METADATA_KEY]
    assert all(layer.metadata[METADATA_KEY][name] == value for name, value in kept.items())
    assert {"source", "model", "digest", "seed", "corner", "mpp"} <= set(kept)


@pytest.mark.parametrize(
    "said",
    [
        7,
        [],
        {"source": 3},
        {"source": "a" * 10_000},
        {"pixel": -1},
        {"pixel": 10**400},
        {"pixel": 1e300},
        {"corner": [1e308, 1e308]},
        {"corner": [-1e9, 0]},
        {"pixel": "1"},
        {"corner": [1]},
        {"corner": [float("nan"), 1]},
        {"classes": "nucleus"},
        {"samples": 1.5},
        {"mpp": 0},
        {"spacing": [1, -1]},
    ],
)
def test_what_a_file_says_of_its_run_is_not_believed_unread(tmp_path: Path, said: Any) -> None:
    path = tmp_path / "labels.zarr"
    write_zarr(str(path), np.eye(4, dtype=np.uint32), {})
    written = json.loads((path / "zarr.json").read_text())
    written["attributes"][METADATA_KEY] = said
    (path / "zarr.json").write_text(json.dumps(written))
    ((data, arguments, kind),) = read(str(path))
    np.testing.assert_array_equal(data, np.eye(4))
    assert kind == "labels"
    assert "metadata" not in arguments


def test_facts_come_back_as_they_were() -> None:
    facts = {
        "source": "a",
        "classes": ("nucleus",),
        "corner": (1.0, 2.5),
        "pixel": 2.0,
        "mpp": None,
        "seed": 2**62 - 1,  # the largest that a run takes
        "steps": None,  # as many as the model has
    }
    assert trusted(json.loads(json.dumps(to_json({**facts, "device": "cpu"})))) == facts


def test_outlines_of_a_turned_layer_are_in_pixels_of_its_image(viewer: Any, tmp_path: Path) -> None:
    data = np.zeros((40, 50), np.uint32)
    data[10:20, 5:30] = 3
    straight = viewer.add_labels(data, scale=(0.5, 0.5), **MICROMETRES)
    turned = viewer.add_labels(data, scale=(0.5, 0.5), rotate=30, **MICROMETRES)
    one, other = (
        outlines(layer, tmp_path / f"{i}.geojson")[3] for i, layer in enumerate((straight, turned))
    )
    assert other["geometry"] == one["geometry"]
    assert measurement(other, "area µm²") == pytest.approx(250 * 0.25)


@pytest.mark.parametrize(
    ("target", "found", "kind"),
    [
        ("nuclei", ["nucleus"], "nucleus"),
        ("classes", ["tumour"], "object"),  # it knows others, too
        ("nuclei", [], "object"),
    ],
)
def test_what_a_person_draws_is_of_the_only_class(target: str, found: list[str], kind: str) -> None:
    assert kind_of_results({"target": target}, found) == kind


def test_what_was_drawn_before_it_was_saved_is_of_the_models_class(
    viewer: Any, tmp_path: Path
) -> None:
    data = np.zeros((60, 60), np.uint32)
    data[10:20, 10:20], data[40:45, 40:50] = 3, 9
    facts = {"what": "labels", "source": "a", "classes": ("nucleus",)}
    layer = viewer.add_labels(data, metadata={METADATA_KEY: facts})
    answer = answer_of(layer)
    assert answer.kind == "nucleus"
    with CorrectedCopy(tmp_path / "copy", answer) as copy:
        drawn = data.copy()
        drawn[0:3, 0:4] = 12
        copy.write(Edit((slice(0, 60), slice(0, 60)), drawn, {12: {"action": "drawn", "when": ""}}))
        export(copy, tmp_path / "exported")
    table = pq.read_table(tmp_path / "exported" / "objects.parquet").to_pydict()
    assert dict(zip(table["label"], table["class"], strict=True)) == dict.fromkeys(
        (3, 9, 12), "nucleus"
    )


def test_a_table_of_words_in_columns_of_colour_is_left_out(viewer: Any, tmp_path: Path) -> None:
    table = {"index": [1], "red": ["yes"], "green": [0.5]}
    layer = viewer.add_labels(np.ones((5, 5), np.uint32), features=table)
    (feature,) = outlines(layer, tmp_path / "a.geojson").values()
    assert measurement(feature, "green") == 0.5
    assert "red" not in feature["properties"]["measurements"]
