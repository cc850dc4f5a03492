"""Review in a real viewer, by keys and clicks, on real results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Labels
from numpy.typing import NDArray
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QWidget
from skimage.draw import disk

from cdal_engine.errors import CdalError
from napari_cdal.corrected_table import CorrectedTable
from napari_cdal.corrections import answer_of, colours_of, copy_folder, picture_of
from napari_cdal.review_form import ACTIONS
from napari_cdal.review_widget import ReviewWidget

from .test_learn import exported

pytestmark = pytest.mark.gui

PLACES = [(30, 30), (30, 80), (80, 30), (80, 80), (30, 95)]  # the last touches the second
AGREEMENT = [1.0, 0.4, 0.8, 0.4, 0.6]
SCORE = [0.9, 0.8, 0.7, 0.6, 0.5]
ORDER = [4, 2, 5, 3, 1]  # lowest agreement, then lowest score


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    return make_napari_viewer(show=True)


def add_labels(viewer: Any, **placement: Any) -> Any:
    """An image with five disks, and labels with a table as a run adds them."""
    labels = np.zeros((120, 130), np.uint32)
    for number, place in enumerate(PLACES, 1):
        labels[disk(place, 9, shape=labels.shape)] = number
    image = np.where(labels[..., None] > 0, (90, 50, 130), (230, 190, 215)).astype(np.uint8)
    viewer.add_image(image, name="tile", rgb=True, **placement)
    facts = {"what": "labels", "source": "tile", "model": "tiny", "digest": "abc", "samples": 5}
    return viewer.add_labels(
        labels,
        name="labels: tile, tiny",
        features={"index": range(1, 6), "agreement": AGREEMENT, "score": SCORE},
        metadata={"cdal": facts},
        **placement,
    )


def docked(viewer: Any) -> ReviewWidget:
    widget = ReviewWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Review")
    return widget


def opened(viewer: Any, qtbot: Any) -> ReviewWidget:
    """A review of all of the labels."""
    widget = docked(viewer)
    widget.open_button.native.click()
    assert widget.review is not None, widget.status.value
    qtbot.wait(50)
    return widget


def canvas(viewer: Any) -> QWidget:
    """The window's part that is drawn on."""
    for child in viewer.window._qt_window.findChildren(QWidget):
        if type(child).__name__ == "CanvasBackendDesktop":
            return child
    raise AssertionError("no canvas")


def press(viewer: Any, qtbot: Any, key: str) -> None:
    """Press a key with the canvas in focus, as its text on a button has it."""
    parts = key.split("-")
    held = {
        "Shift": Qt.KeyboardModifier.ShiftModifier,
        "Control": Qt.KeyboardModifier.ControlModifier,
    }
    modifier = held[parts[0]] if len(parts) > 1 else Qt.KeyboardModifier.NoModifier
    code = Qt.Key.Key_Escape if parts[-1] == "Escape" else getattr(Qt.Key, f"Key_{parts[-1]}")
    qtbot.keyClick(canvas(viewer), code, modifier)


def click(
    viewer: Any, qtbot: Any, widget: ReviewWidget, y: float, x: float, moved: int = 0
) -> None:
    """Click the pixel of the region's layer; `moved` before the button is released."""
    assert widget.review is not None
    world = np.asarray(widget.review.layer.data_to_world((y, x)))[-2:]
    camera, area = viewer.scene.camera, canvas(viewer)
    before = camera.center
    offset = (world - np.asarray(before)[-2:]) * camera.zoom
    at = QPoint(round(area.width() / 2 + offset[1]), round(area.height() / 2 + offset[0]))
    qtbot.mouseMove(area, at)
    qtbot.mousePress(area, Qt.MouseButton.LeftButton, pos=at)
    for part in (0, 1, 2) if moved else ():
        qtbot.wait(30)  # moves in quick succession are passed over
        qtbot.mouseMove(area, at + QPoint(moved * part // 2, 0))
    qtbot.mouseRelease(area, Qt.MouseButton.LeftButton, pos=at + QPoint(moved, 0))
    qtbot.wait(20)
    if moved:  # napari knows where the image has gone once it is drawn
        qtbot.waitUntil(lambda: camera.center != before)


def ids(labels: NDArray[np.integer]) -> list[int]:
    return [int(n) for n in np.unique(labels) if n]


def test_objects_come_in_order_of_disagreement(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer, scale=(0.25, 0.25), units=("micrometer", "micrometer"), translate=(5, 7))
    widget = opened(viewer, qtbot)
    review = widget.review
    assert review is not None
    assert review.queue == ORDER
    for label in [*ORDER, ORDER[0]]:
        assert (review.current, review.layer.selected_label) == (label, label)
        y, x = np.asarray(review.layer.data_to_world(PLACES[label - 1]))
        np.testing.assert_allclose(viewer.scene.camera.center[-2:], (y, x), atol=0.3)
        outline = viewer.layers["under review"]
        middle = np.mean([outline.data_to_world(p) for p in outline.data[0]], axis=0)
        np.testing.assert_allclose(middle, (y, x), atol=0.3)
        press(viewer, qtbot, "N")
    press(viewer, qtbot, "Shift-N")
    assert review.current == ORDER[0]
    widget.order.value = "score"
    assert review.queue == [5, 4, 3, 2, 1]
    widget.order.value = "position"
    assert review.queue == [1, 2, 5, 3, 4]


def test_accept_and_delete_count_and_undo_takes_them_back(viewer: Any, qtbot: Any) -> None:
    source = add_labels(viewer)
    widget = opened(viewer, qtbot)
    review = widget.review
    assert review is not None
    before = review.layer.data.copy()
    press(viewer, qtbot, "A")
    assert (review.current, review.progress) == (ORDER[1], (1, 5))
    press(viewer, qtbot, "D")
    assert ids(review.layer.data) == [1, 3, 4, 5]
    assert "2 of 5 reviewed" in widget.status.value
    assert (widget.progress.value, widget.progress.max) == (2, 5)
    press(viewer, qtbot, "U")
    np.testing.assert_array_equal(review.layer.data, before)
    assert (review.current, review.progress) == (2, (1, 5))
    press(viewer, qtbot, "Control-Z")
    assert review.progress == (0, 5)
    press(viewer, qtbot, "U")  # nothing is left to be undone
    review.redo()
    review.redo()
    assert ids(review.layer.data) == [1, 3, 4, 5]
    assert review.progress == (2, 5)
    np.testing.assert_array_equal(source.data, before)


def test_merge_by_a_click_on_the_other(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer)
    widget = opened(viewer, qtbot)
    review = widget.review
    assert review is not None
    review.select(2)
    press(viewer, qtbot, "G")
    press(viewer, qtbot, "Escape")
    click(viewer, qtbot, widget, *PLACES[4])  # selects only, the merge was called off
    assert review.current == 5
    assert ids(review.layer.data) == [1, 2, 3, 4, 5]
    review.select(2)
    press(viewer, qtbot, "G")
    click(viewer, qtbot, widget, *PLACES[4])
    assert ids(review.layer.data) == [1, 2, 3, 4]
    assert review.layer.data[PLACES[4]] == 2
    press(viewer, qtbot, "G")
    click(viewer, qtbot, widget, 60, 60)
    assert "no other object" in widget.status.value
    press(viewer, qtbot, "U")
    assert review.layer.data[PLACES[4]] == 5


def test_split_by_two_clicks_gives_a_new_number(viewer: Any, qtbot: Any) -> None:
    source = add_labels(viewer)
    source.data[source.data == 5] = 2  # one object of two disks
    source.data = source.data
    widget = opened(viewer, qtbot)
    review = widget.review
    assert review is not None
    review.select(2)
    press(viewer, qtbot, "S")
    click(viewer, qtbot, widget, *PLACES[1], moved=3)  # as a hand does
    click(viewer, qtbot, widget, 45, 90, moved=40)  # a drag, which moves the image
    click(viewer, qtbot, widget, *PLACES[4])
    assert review.layer.data[PLACES[1]] == 2
    assert review.layer.data[PLACES[4]] == 5  # the next free one
    assert 5 in review.queue
    press(viewer, qtbot, "U")
    assert review.layer.data[PLACES[4]] == 2


def test_redraw_paints_with_the_object_and_over_background_only(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer)
    widget = opened(viewer, qtbot)
    review = widget.review
    assert review is not None
    review.select(2)
    press(viewer, qtbot, "R")
    assert review.layer.mode == "paint"
    review.layer.brush_size = 9
    click(viewer, qtbot, widget, 45, 80)
    click(viewer, qtbot, widget, *PLACES[4])  # another object: not painted over
    assert review.layer.data[45, 80] == 2
    assert review.layer.data[PLACES[4]] == 5
    assert review.edit().touched[2]["action"] == "redrawn"
    press(viewer, qtbot, "U")
    assert review.layer.data[45, 80] == 0
    assert review.edit().touched == {}


def test_keys_are_shown_and_are_none_of_naparis(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer)
    widget = opened(viewer, qtbot)
    assert widget.review is not None
    taken = {str(key) for kind in (Labels, type(viewer)) for key in kind.class_keymap}
    for name, _, key, _ in ACTIONS:
        assert f"[{key}]" in widget.actions[name].text
        assert key.replace("-", "+") not in taken, key
    assert {"P", "E", "M"} <= taken


def test_colours_follow_agreement_and_review(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer)
    widget = opened(viewer, qtbot)
    review = widget.review
    assert review is not None

    def colour(label: int) -> tuple[float, ...]:
        return tuple(np.round(review.layer.get_color(label), 3))

    widget.colours.value = "agreement"
    assert colour(4) == colour(2) != colour(3)
    widget.colours.value = "score"
    assert len({colour(n) for n in range(1, 6)}) == 5
    widget.colours.value = "reviewed"
    before = colour(4)
    press(viewer, qtbot, "A")
    assert colour(4) != before
    assert colour(2) == before


def test_corrections_are_written_beside_and_kept(viewer: Any, qtbot: Any) -> None:
    source = add_labels(viewer)
    before = source.data.copy()
    widget = opened(viewer, qtbot)
    press(viewer, qtbot, "A")  # 4
    press(viewer, qtbot, "D")  # 2
    widget.reviewed_button.native.click()
    assert widget.review is None
    assert widget.copy is not None
    shown = viewer.layers["corrected: tile, tiny"]
    assert ids(shown.data) == [1, 3, 4, 5]
    assert not source.visible
    np.testing.assert_array_equal(source.data, before)
    record = json.loads((widget.copy.folder / "corrections.json").read_text())
    assert {k: v["action"] for k, v in record["objects"].items()} == {
        "4": "accepted",
        "2": "deleted",
    }
    assert record["answer"]["model"] == "tiny"
    assert widget.copy.regions(reviewed=True) == [(slice(0, 120), slice(0, 130))]
    widget.scope.value = "all"
    widget.open_button.native.click()  # again: what was done is known
    assert widget.review is not None
    assert widget.review.progress == (1, 4)
    assert widget.review.current == 5


def test_the_table_of_corrected_labels_is_of_them(viewer: Any, qtbot: Any) -> None:
    source = add_labels(viewer, scale=(0.5, 0.5), units=("um", "um"))
    areas = np.bincount(source.data.ravel())[1:] * 0.25
    source.features = source.features.assign(area_um2=areas, y=0.0, x=0.0)
    widget = opened(viewer, qtbot)
    assert widget.review is not None
    press(viewer, qtbot, "D")  # 4
    press(viewer, qtbot, "R")  # 2
    layer = widget.review.layer
    layer.data_setitem((np.array([0, 0]), np.array([0, 1])), 2)
    press(viewer, qtbot, "6")
    widget.close_button.native.click()
    shown = viewer.layers["corrected: tile, tiny"]
    table = shown.features.set_index("index")
    assert list(table.index) == [1, 2, 3, 5] == ids(shown.data)
    assert table.area_um2[2] == (shown.data == 2).sum() * 0.25 == areas[1] + 0.5
    assert np.isnan(table.score[2])
    assert table.score[1] == SCORE[0]
    assert table.y[2] == np.nonzero(shown.data == 2)[0].mean()
    assert list(source.features["index"]) == [1, 2, 3, 4, 5]


def test_regions_closed_one_by_one_give_the_table_of_all_at_once(viewer: Any) -> None:
    labels = np.zeros((60, 1800), np.uint32)
    columns = range(30, 1800, 60)
    for number, x in enumerate(columns, 1):
        labels[disk((30, x), 12)] = number
    known = {"index": range(1, 31), "area_px": 440.0, "y": 29.5, "x": list(columns)}
    source = viewer.add_labels(labels, name="labels: strip, tiny", features=known)
    boxes = [[[5, x], [5, x + 150], [55, x + 150], [55, x]] for x in (0, 800, 1500, 60)]
    shapes = viewer.add_shapes(boxes, shape_type="rectangle", name="regions")
    widget = docked(viewer)
    widget.source.value, widget.scope.value = source, shapes
    assert (shapes.face_color[:, 3] < 0.2).all()  # what lies below is seen
    for region in range(4):
        widget.open_button.native.click()
        review = widget.review
        assert review is not None, widget.status.value
        there = ids(review.layer.data)
        gone = np.nonzero(review.layer.data == there[0])
        review.layer.data_setitem(gone, there[1])  # the last takes a half of the first
        review.layer.data_setitem((np.array([region]), np.array([0])), there[1])
        widget.reviewed_button.native.click()
        shown = viewer.layers["corrected: strip, tiny"]
        assert list(shown.features["index"]) == ids(shown.data)
    assert widget.copy is not None
    at_once = CorrectedTable(source.features, widget.copy).after((slice(0, 1), slice(0, 1)))
    for name, column in at_once.items():
        np.testing.assert_array_equal(shown.features[name], column)
    changed = sorted(widget.copy.changed & set(ids(shown.data)))
    table = shown.features.set_index("index")
    assert len(changed) >= 4
    assert [table.area_px[n] for n in changed] == [(shown.data == n).sum() for n in changed]


def test_a_reviewed_region_stays_reviewed_until_it_is_changed(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer)
    widget = opened(viewer, qtbot)
    widget.reviewed_button.native.click()
    assert widget.copy is not None
    for change, count in ((lambda: None, 1), (lambda: press(viewer, qtbot, "D"), 0)):
        widget.open_button.native.click()
        qtbot.wait(50)
        change()
        widget.close_button.native.click()
        assert len(widget.copy.regions(reviewed=True)) == count


def test_a_restart_learns_and_exports_without_a_region_open(
    viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    add_labels(viewer)
    widget = docked(viewer)
    assert "Nothing was corrected" in exported(widget, tmp_path, qtbot)
    widget.open_button.native.click()
    widget.reviewed_button.native.click()
    viewer.window.remove_dock_widget(widget.native)
    other = docked(viewer)
    assert other.copy is None
    assert "images with labels in" in exported(other, tmp_path / "data", qtbot)
    assert other.copy is not None
    other.export(tmp_path / "results")
    qtbot.waitUntil(lambda: (tmp_path / "results" / "objects.csv").exists())


def test_what_was_chosen_to_learn_from_stays(viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    layer = add_labels(viewer)
    layer.metadata["cdal"]["model"] = "nuclei-he"
    widget = docked(viewer)
    page = widget.learning
    assert (page.model.value, page.name.value) == ("nuclei-he", "nuclei-he-corrected")
    page.name.value = "second"
    widget.open_button.native.click()
    widget.reviewed_button.native.click()
    exported(widget, tmp_path / "data", qtbot)
    assert page.name.value == "second"


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.uint32, np.float16, np.float64])
def test_the_picture_of_a_region_is_of_its_own_image(viewer: Any, dtype: Any) -> None:
    layer = add_labels(viewer, scale=(0.5, 0.5))
    box = (slice(10, 60), slice(20, 90))
    image, right = viewer.layers["tile"], viewer.layers["tile"].data[box]
    values = (np.random.default_rng(0).random((120, 130)) * 200).astype(dtype)
    viewer.layers.remove(image)
    other = viewer.add_image(values, name="other", scale=(0.5, 0.5))
    assert picture_of(viewer, layer, box) is None
    other.name = "tile"
    np.testing.assert_array_equal(picture_of(viewer, layer, box), values[box])
    other.translate = (40, 0)
    assert picture_of(viewer, layer, box) is None
    viewer.layers.remove(other)
    viewer.add_layer(image)
    np.testing.assert_array_equal(picture_of(viewer, layer, box), right)
    assert colours_of(viewer, layer) is not None
    image.translate = (500, 500)
    with pytest.raises(CdalError, match="does not lie below"):
        colours_of(viewer, layer)(box)  # type: ignore[misc]


def test_results_that_must_not_be_written_to_are_corrected_elsewhere(
    viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = add_labels(viewer)
    answer = answer_of(layer)
    layer.metadata["cdal"]["folder"] = str(tmp_path)
    assert copy_folder(layer, answer) == tmp_path / "corrected"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    elsewhere = copy_folder(layer, answer)
    assert tmp_path not in elsewhere.parents
    assert elsewhere == copy_folder(layer, answer)  # found again
    (tmp_path / "corrected").mkdir()  # begun when it could be written to
    assert copy_folder(layer, answer) == tmp_path / "corrected"


def test_a_removed_layer_and_a_closed_widget_lose_nothing(viewer: Any, qtbot: Any) -> None:
    add_labels(viewer)
    widget = opened(viewer, qtbot)
    assert widget.review is not None
    press(viewer, qtbot, "D")
    viewer.layers.remove(widget.review.layer)
    qtbot.waitUntil(lambda: widget.review is None)
    assert "under review" not in viewer.layers
    folder = widget.copy.folder if widget.copy else Path()
    widget.open_button.native.click()
    press(viewer, qtbot, "D")
    viewer.window.remove_dock_widget(widget.native)
    assert ids(viewer.layers["corrected: tile, tiny"].data) == [1, 3, 5]
    other = docked(viewer)
    other.open_button.native.click()
    assert other.review is not None, other.status.value
    assert other.copy is not None
    assert other.copy.folder == folder
    assert ids(other.review.layer.data) == [1, 3, 5]
