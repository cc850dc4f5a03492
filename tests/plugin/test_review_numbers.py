"""Numbers of objects that come and go under review, and reviews that end otherwise than planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from napari.utils.notifications import notification_manager

from cdal_engine.errors import CdalError
from napari_cdal.review import Review
from napari_cdal.review_widget import ReviewWidget
from napari_cdal.writers import write_geojson

from .test_review import PLACES, add_labels, docked, ids, opened

pytestmark = pytest.mark.gui

LEFT = np.array([[0, 0], [0, 99.4], [99, 99.4], [99, 0]])
ELSEWHERE = (50, 260)  # in object 2


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    return make_napari_viewer(show=True)


def left_half(viewer: Any) -> tuple[ReviewWidget, Review]:
    """A region whose edge cuts object 1; object 2 lies elsewhere."""
    labels = np.zeros((100, 300), np.uint32)
    labels[40:60, 80:120], labels[40:60, 250:270] = 1, 2
    known = {"index": [1, 2], "area_px": [800.0, 400.0], "y": 49.5, "x": [99.5, 259.5]}
    scores = {"score": [0.9, 0.8], "agreement": [1.0, 1.0]}
    source = viewer.add_labels(labels, name="labels: half, tiny", features=known | scores)
    shapes = viewer.add_shapes([LEFT], shape_type="rectangle")
    widget = docked(viewer)
    widget.source.value, widget.scope.value = source, shapes
    widget.open_button.native.click()
    assert widget.review is not None, widget.status.value
    return widget, widget.review


def draw(review: Review, rows: slice, columns: slice) -> int:
    """Paint an object with the number that napari's M gives."""
    number = int(review.layer.data.max()) + 1
    mask = np.zeros(review.layer.data.shape, bool)
    mask[rows, columns] = True
    review.layer.data_setitem(np.nonzero(mask), number)
    return number


def test_an_object_merged_into_a_drawn_one_goes_on_beyond_the_region(viewer: Any) -> None:
    widget, review = left_half(viewer)
    assert draw(review, slice(40, 60), slice(60, 80)) == 2  # the number of the one elsewhere
    review.select(2)
    review.merge(1)
    widget.close_button.native.click()
    data = viewer.layers["corrected: half, tiny"].data
    assert data[50, 70] == data[50, 90] == data[50, 110] > 2
    assert data[ELSEWHERE] == 2
    assert widget.copy is not None
    assert 2 not in widget.copy.touched


def test_a_drawn_object_that_is_gone_again_leaves_no_trace(viewer: Any) -> None:
    widget, review = left_half(viewer)
    assert draw(review, slice(40, 60), slice(70, 80)) == 2
    review.select(1)
    review.merge(2)
    widget.close_button.native.click()
    shown = viewer.layers["corrected: half, tiny"]
    assert widget.copy is not None
    assert set(widget.copy.touched) == {1}
    assert list(shown.features["index"]) == [1, 2]
    assert shown.features.set_index("index").score[2] == 0.8


@pytest.mark.parametrize("then", ["delete", "merge back", "merge with it, then delete"])
def test_a_part_that_is_gone_again_leaves_no_trace(viewer: Any, qtbot: Any, then: str) -> None:
    source = add_labels(viewer)
    source.data = np.where(source.data == 5, 2, source.data)
    widget = opened(viewer, qtbot)
    review = widget.review
    assert review is not None
    review.select(2)
    review.split(PLACES[1], PLACES[4])
    new = int(review.layer.data[PLACES[4]])
    review.select(new if "delete" in then else 2)
    if then == "merge back":
        review.merge(new)
    else:
        if "merge" in then:
            review.merge(3)
        review.delete()
    left = ids(review.layer.data)
    widget.close_button.native.click()
    assert widget.review is None
    assert ids(viewer.layers["corrected: tile, tiny"].data) == left
    assert widget.copy is not None
    assert new not in widget.copy.touched
    if "merge with" in then:
        assert widget.copy.touched[3]["action"] == "deleted"
    assert widget.open_button.enabled


def test_a_split_without_an_object_is_refused_and_one_of_a_drawn_is_not(
    viewer: Any, qtbot: Any
) -> None:
    add_labels(viewer)
    widget = opened(viewer, qtbot)
    review = widget.review
    assert review is not None
    drawn = draw(review, slice(50, 60), slice(5, 25))
    review.select(drawn)
    review.split((55, 8), (55, 22))
    assert review.layer.data[55, 8] != review.layer.data[55, 22]
    for _ in range(10):
        review.accept()
    assert review.current == 0
    before = review.layer.data.copy()
    with pytest.raises(CdalError, match="no object is chosen"):
        review.split((0, 0), (119, 129))
    np.testing.assert_array_equal(review.layer.data, before)


def test_deleting_what_the_brush_has_erased_is_a_step_of_its_own(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer)
    review = opened(viewer, qtbot).review
    assert review is not None
    review.select(1)
    review.delete()
    review.select(3)
    review.layer.data_setitem(np.nonzero(review.layer.data == 3), 0)
    review.current = 3
    review.delete()
    review.undo()
    assert ids(review.layer.data) == [2, 4, 5]
    review.undo()
    assert ids(review.layer.data) == [2, 3, 4, 5]
    review.undo()
    assert ids(review.layer.data) == [1, 2, 3, 4, 5]


def test_a_review_goes_on_when_its_labels_are_removed(viewer: Any, qtbot: Any) -> None:
    source = add_labels(viewer)
    widget = opened(viewer, qtbot)
    assert widget.review is not None
    assert widget.copy is not None
    folder = widget.copy.folder
    widget.review.select(1)
    widget.review.delete()
    viewer.layers.remove(source)
    assert widget.copy is not None
    widget.close_button.native.click()
    assert widget.review is None
    assert widget.copy is None
    assert '"deleted"' in (folder / "corrections.json").read_text()


def test_what_is_corrected_is_edited_in_regions_alone(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer)
    widget = opened(viewer, qtbot)
    widget.close_button.native.click()
    assert not viewer.layers["corrected: tile, tiny"].editable


def test_other_labels_of_the_same_layer_are_another_copy(viewer: Any, qtbot: Any) -> None:
    """As after a move of the Segment widget's slider."""
    source = add_labels(viewer)
    widget = opened(viewer, qtbot)
    assert widget.copy is not None
    first = widget.copy.folder
    widget.close_button.native.click()
    source.data = np.where(source.data == 3, 0, source.data)
    source.features = source.features[source.features["index"] != 3]
    widget.open_button.native.click()
    assert widget.review is not None
    assert 3 not in widget.review.queue
    assert widget.copy.folder != first
    widget.close_button.native.click()
    widget.open_button.native.click()  # nothing was replaced since
    assert widget.copy.folder != first


def test_the_area_of_a_large_corrected_object_is_all_of_it(viewer: Any) -> None:
    labels = np.zeros((600, 3000), np.uint32)
    labels[100:500, 50:2950] = 1
    known = {"index": [1], "area_px": [float(labels.sum())], "y": [299.5], "x": [1499.5]}
    source = viewer.add_labels(labels, name="labels: large, tiny", features=known)
    box = np.array([[90, 1400], [90, 1500], [300, 1500], [300, 1400]])
    shapes = viewer.add_shapes([box], shape_type="rectangle")
    widget = docked(viewer)
    widget.source.value, widget.scope.value = source, shapes
    widget.open_button.native.click()
    assert widget.review is not None
    widget.review.layer.data_setitem((np.array([5]), np.array([5])), 1)
    widget.close_button.native.click()
    shown = viewer.layers["corrected: large, tiny"]
    assert shown.features["area_px"][0] == (shown.data == 1).sum() == 400 * 2900 + 1


def test_tables_of_others_and_any_labels_are_reviewed_or_refused(viewer: Any, qtbot: Any) -> None:
    layer = add_labels(viewer)
    layer.features = {"index": [1, np.nan, 3], "score": ["a", "0.5", None], "y": [1.0, 2.0, np.nan]}
    widget = opened(viewer, qtbot)
    assert widget.review is not None
    assert widget.review.queue == [1, 2, 3, 4, 5]
    widget.close_button.native.click()
    for number in (-1, 2**32 - 1, 2**32 + 1):
        layer.data = np.where(layer.data == 2, number, layer.data.astype(np.int64))
        widget.open_button.native.click()
        assert "renumber them first" in widget.status.value
        assert widget.review is None


def test_large_numbers_are_corrected_and_exported(viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    layer = add_labels(viewer)
    layer.data = np.where(layer.data == 2, 4_000_000_000, layer.data.astype(np.int64))
    widget = opened(viewer, qtbot)
    review = widget.review
    assert review is not None
    new = draw(review, slice(100, 110), slice(100, 110))
    widget.close_button.native.click()
    widget.export(tmp_path / "out")
    assert not widget.open_button.enabled  # what it writes must not change meanwhile
    widget.open_button.native.click()
    assert widget.review is None
    qtbot.waitUntil(lambda: widget.open_button.enabled)
    table = pd.read_csv(tmp_path / "out" / "objects.csv").set_index("label")
    assert list(table.index) == [1, 3, 4, 5, 4_000_000_000, new]
    assert table.area_px[new] == 100


def test_a_layer_of_the_same_name_is_not_taken_for_the_corrections(viewer: Any, qtbot: Any) -> None:
    layer = add_labels(viewer)
    mine = viewer.add_image(np.zeros((120, 130)), name="corrected: tile, tiny")
    widget = opened(viewer, qtbot)
    assert widget.review is not None
    widget.review.delete()
    widget.close_button.native.click()
    assert not mine.data.any()
    shown = viewer.layers["corrected: tile, tiny [1]"]
    assert len(ids(shown.data)) == len(ids(layer.data)) - 1


def test_a_table_that_is_cut_anew_meanwhile_is_not_that_of_the_region(
    viewer: Any, qtbot: Any
) -> None:
    layer = add_labels(viewer)
    widget = opened(viewer, qtbot)
    assert widget.review is not None
    widget.review.delete()
    layer.features = {"index": [2], "score": [0.1]}
    widget.close_button.native.click()
    features = viewer.layers["corrected: tile, tiny"].features
    assert len(features) == 4
    assert 0.1 not in features["score"].tolist()


def test_what_is_painted_on_the_source_is_said_not_to_be_reviewed(viewer: Any, qtbot: Any) -> None:
    layer = add_labels(viewer)
    widget = opened(viewer, qtbot)
    widget.close_button.native.click()
    layer.data_setitem((np.array([0]), np.array([0])), 9)
    widget.open_button.native.click()
    assert "is not under review" in notification_manager.records[-1].message
    widget.close_button.native.click()


def test_all_layers_are_removed_with_a_region_open(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer)
    widget = opened(viewer, qtbot)
    assert widget.review is not None
    widget.review.delete()
    viewer.layers.select_all()
    viewer.layers.remove_selected()
    qtbot.waitUntil(lambda: widget.review is None)
    assert not viewer.layers
    assert widget.copy is None


def test_a_number_that_is_given_once_more_is_recorded_as_drawn(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer)
    widget = opened(viewer, qtbot)
    review = widget.review
    assert review is not None
    review.select(4)
    review.split((80, 76), (80, 84))
    review.merge(6)  # the part that was split off
    assert draw(review, slice(100, 110), slice(20, 30)) == 6
    review.select(3)
    review.delete()
    review.layer.data_setitem((np.array([5, 5]), np.array([5, 6])), 3)
    widget.close_button.native.click()
    assert widget.copy is not None
    done = {label: each["action"] for label, each in widget.copy.touched.items()}
    assert done == {3: "redrawn", 4: "merged", 6: "drawn"}


def test_the_outlines_of_a_region_are_saved_where_they_are_in_the_image(
    viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    layer = add_labels(viewer)
    widget = docked(viewer)
    widget.scope.value = viewer.add_shapes(
        [[[60, 60], [60, 99], [99, 99], [99, 60]]], shape_type="rectangle"
    )
    widget.open_button.native.click()
    review = widget.review
    assert review is not None, widget.status.value
    for each, name in ((review.layer, "region"), (layer, "whole")):
        write_geojson(str(tmp_path / f"{name}.geojson"), *each.as_layer_data_tuple()[:2])
    region, whole = (
        json.loads((tmp_path / f"{name}.geojson").read_text())["features"]
        for name in ("region", "whole")
    )
    fourth = {f["properties"]["measurements"]["label"]: f["geometry"] for f in whole}[4]
    assert [f["geometry"] for f in region] == [fourth]
    widget.close_button.native.click()
