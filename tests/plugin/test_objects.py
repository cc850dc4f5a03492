"""The Objects widget: table, histograms, and a selection that table and image share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QApplication

from napari_cdal import following
from napari_cdal.histograms import Histograms
from napari_cdal.measured import layer_table
from napari_cdal.objects_table import ObjectsModel
from napari_cdal.objects_widget import ObjectsWidget

from .test_segment_widget import run

pytestmark = pytest.mark.gui

SPOTS = {3: (20, 30), 7: (60, 80), 9: (100, 40)}


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    return make_napari_viewer(show=True)


def spots(viewer: Any, **placement: Any) -> Any:
    """Three squares with a table, their labels not the numbers of its rows."""
    data = np.zeros((120, 120), np.uint32)
    for label, (y, x) in SPOTS.items():
        data[y - 6 : y + 7, x - 6 : x + 7] = label
    y, x = np.array(list(SPOTS.values())).T
    table = {"index": list(SPOTS), "score": [0.7, np.nan, 0.9], "y": y, "x": x}
    return viewer.add_labels(data, features=table, name="spots", **placement)


def docked_objects(viewer: Any) -> ObjectsWidget:
    widget = ObjectsWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Objects")
    return widget


def click_row(widget: ObjectsWidget, qtbot: Any, row: int) -> None:
    table = widget.table
    at = table.visualRect(widget.model.index(row, 0)).center()
    qtbot.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=at)


def test_a_row_selects_its_object_and_brings_it_to_the_middle(viewer: Any, qtbot: Any) -> None:
    layer = spots(viewer, scale=(0.5, 0.5), translate=(7, -3))
    viewer.add_image(np.zeros((2, 120, 120)))  # a slider more than the labels have
    widget = docked_objects(viewer)
    click_row(widget, qtbot, 1)
    assert layer.selected_label == 7
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], layer.data_to_world(SPOTS[7]))
    qtbot.keyClick(widget.table, Qt.Key.Key_Down)
    assert layer.selected_label == 9
    assert layer.show_selected_label  # alone, for a moment
    qtbot.waitUntil(lambda: not layer.show_selected_label)
    layer.show_selected_label = True  # as the user wants it
    qtbot.keyClick(widget.table, Qt.Key.Key_Up)
    qtbot.wait(700)
    assert layer.show_selected_label


def test_no_layer_is_left_with_one_object_shown(viewer: Any, qtbot: Any) -> None:
    layer, _ = spots(viewer), spots(viewer)
    widget = docked_objects(viewer)
    for left in (
        lambda: viewer.layers.selection.select_only(layer),
        lambda: viewer.window.remove_dock_widget(widget.native),
    ):
        shown = widget.layer
        click_row(widget, qtbot, 1)
        assert shown is not None
        assert shown.show_selected_label
        left()
        assert not shown.show_selected_label


def test_a_click_in_the_image_selects_the_row(viewer: Any, qtbot: Any) -> None:
    layer = spots(viewer)
    viewer.reset_view()
    widget = docked_objects(viewer)
    widget.table.sortByColumn(1, Qt.SortOrder.DescendingOrder)
    viewer.scene.camera.center = SPOTS[9]
    qtbot.wait(100)
    centre = viewer.scene.camera.center
    canvas = viewer.window._qt_viewer.canvas.native
    middle = QPoint(canvas.width() // 2, canvas.height() // 2)
    qtbot.mouseMove(canvas, middle)
    qtbot.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=middle)
    qtbot.waitUntil(lambda: layer.selected_label == 9)
    assert widget.table.currentIndex().row() == widget.model.row(9) == 0
    np.testing.assert_allclose(viewer.scene.camera.center, centre)  # the image stays where it is


def test_a_hand_that_moves_a_little_still_clicks_and_a_drag_selects_nothing(
    viewer: Any, qtbot: Any
) -> None:
    layer = spots(viewer)
    viewer.reset_view()
    docked_objects(viewer)
    canvas = viewer.window._qt_viewer.canvas.native
    for moved, selected in ((QPoint(60, 0), 3), (QPoint(2, 1), 9)):
        viewer.scene.camera.center = SPOTS[9]
        layer.selected_label = 3
        qtbot.wait(QApplication.doubleClickInterval() + 100)
        middle = QPoint(canvas.width() // 2, canvas.height() // 2)
        qtbot.mouseMove(canvas, middle)
        qtbot.mousePress(canvas, Qt.MouseButton.LeftButton, pos=middle)
        qtbot.mouseMove(canvas, middle + moved)
        qtbot.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=middle + moved)
        qtbot.wait(50)
        assert layer.selected_label == selected


def test_the_selected_object_is_found_again_under_its_new_number(viewer: Any, qtbot: Any) -> None:
    layer = spots(viewer)
    widget = docked_objects(viewer)
    click_row(widget, qtbot, 1)
    features = layer.features.copy()
    layer.data = np.where(layer.data > 0, layer.data + 2, 0)  # what was 9 is 11, 7 is 9 now
    features["index"] += 2
    layer.features = features
    assert layer.selected_label == 9
    (row,) = widget.table.selectionModel().selectedRows()
    assert widget.model.label(row.row()) == 9
    gone = layer.data == 9
    layer.data = np.where(gone, 0, layer.data)
    layer.features = features[features["index"] != 9]
    assert not widget.table.selectionModel().selectedRows()


def test_a_table_that_is_replaced_while_it_is_measured_stays(
    viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = spots(viewer)
    layer.metadata["cdal"] = {"what": "labels"}
    widget = docked_objects(viewer)
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return layer_table(*arguments)

    monkeypatch.setattr(following, "layer_table", slowly)
    layer.data_setitem(np.nonzero(layer.data == 3), 0)
    qtbot.waitUntil(begun.is_set)
    layer.features = layer.features.assign(score=0.25)
    go_on.set()
    qtbot.waitUntil(lambda: widget._follower._worker is None)  # the table came back, too late
    assert layer.features["score"].tolist() == [0.25] * 3
    monkeypatch.setattr(following, "layer_table", layer_table)
    layer.data_setitem((np.array([53]), np.array([80])), 7)  # and the newer one is followed
    qtbot.waitUntil(lambda: 3 not in set(layer.features["index"]))
    assert layer.features.set_index("index").score[9] == 0.25
    assert widget.model.row(3) is None


def test_the_table_follows_what_is_painted(viewer: Any, qtbot: Any) -> None:
    layer = spots(viewer, scale=(0.5, 0.5), units=("um", "um"))
    layer.metadata["cdal"] = {"what": "labels"}
    table = layer.features.assign(area_um2=169 * 0.25)
    layer.features = table
    widget = docked_objects(viewer)
    layer.data_setitem(np.nonzero(layer.data == 3), 0)  # erased
    layer.selected_label, layer.brush_size = 20, 9
    layer.paint((100, 100), 20)  # drawn
    layer.data_setitem((np.array([53]), np.array([80])), 7)  # redrawn
    qtbot.waitUntil(lambda: set(layer.features["index"]) == {7, 9, 20})
    now = layer.features.set_index("index")
    assert now.area_um2[20] == (layer.data == 20).sum() * 0.25
    assert now.area_um2[7] == 170 * 0.25
    assert now.score.isna().tolist() == [True, False, True]
    assert now.loc[9].tolist() == table.set_index("index").loc[9].tolist()
    assert widget.model.row(20) is not None
    for _ in range(3):
        layer.undo()
    qtbot.waitUntil(lambda: set(layer.features["index"]) == set(SPOTS))
    assert layer.features["area_um2"].tolist() == [169 * 0.25] * 3
    pd.testing.assert_frame_equal(layer.features, table, check_dtype=False)  # scores, too


def test_voxels_are_counted_as_they_are_painted(viewer: Any, qtbot: Any) -> None:
    data = np.zeros((5, 40, 40), np.uint32)
    data[1:3, 5:15, 5:15], data[2, 30:, 30:] = 1, 2
    table = {"index": [1, 2], "class": ["anterior", "posterior"], "voxels": [200, 100]}
    layer = viewer.add_labels(data, features=table)
    docked_objects(viewer)
    layer.data_setitem(np.nonzero(layer.data == 2), 1)
    qtbot.waitUntil(lambda: layer.features["voxels"].tolist() == [300, 0])
    layer.undo()
    qtbot.waitUntil(lambda: layer.features["voxels"].tolist() == [200, 100])


def test_the_brush_keeps_its_label_while_the_table_follows(viewer: Any, qtbot: Any) -> None:
    layer = spots(viewer)
    layer.metadata["cdal"] = {"what": "labels"}
    widget = docked_objects(viewer)
    layer.mode, layer.selected_label, layer.brush_size = "paint", 7, 15
    layer.data_setitem(np.nonzero(layer.data == 7), 9)  # where it was is another's now
    layer.paint((20, 100), 7)
    qtbot.waitUntil(lambda: np.isnan(layer.features.set_index("index").score[9]))
    assert layer.selected_label == 7
    (row,) = widget.table.selectionModel().selectedRows()
    assert widget.model.label(row.row()) == 7


def test_what_was_painted_before_it_was_looked_at_is_measured(viewer: Any, qtbot: Any) -> None:
    layer, other = spots(viewer), spots(viewer)
    for each in (layer, other):
        each.metadata["cdal"] = {"what": "labels"}
    layer.data_setitem(np.nonzero(layer.data == 3), 0)
    docked_objects(viewer)
    viewer.layers.selection.active = other
    other.data_setitem(np.nonzero(other.data == 9), 0)
    viewer.layers.selection.active = layer  # before the brush has rested
    qtbot.waitUntil(lambda: set(layer.features["index"]) == {7, 9})
    viewer.layers.selection.active = other
    qtbot.waitUntil(lambda: set(other.features["index"]) == {3, 7})


def test_places_that_are_no_numbers_are_not_gone_to(viewer: Any, qtbot: Any) -> None:
    layer = spots(viewer)
    widget = docked_objects(viewer)
    for nowhere in ([np.nan] * 3, ["a", "b", "c"]):
        layer.features = layer.features.assign(y=nowhere)
        centre = viewer.scene.camera.center
        click_row(widget, qtbot, 1)
        click_row(widget, qtbot, 2)
        assert viewer.scene.camera.center == centre
        assert layer.selected_label == 9


def test_a_narrow_dock_has_the_histograms_below(viewer: Any, qtbot: Any) -> None:
    spots(viewer)
    widget = ObjectsWidget(viewer)
    dock = viewer.window.add_dock_widget(widget, name="Objects", area="right")
    viewer.window.resize(900, 950)
    qtbot.waitUntil(lambda: widget.histograms.pos().y() > widget.table.height() // 2)
    viewer.window._qt_window.addDockWidget(Qt.DockWidgetArea.BottomDockWidgetArea, dock)
    qtbot.waitUntil(lambda: widget.histograms.pos().x() > widget.table.width() // 2)


def test_tables_of_others_are_shown_or_left(viewer: Any) -> None:
    layer = spots(viewer)
    layer.features = layer.features.assign(grade=["b", None, "a"])
    widget = docked_objects(viewer)
    widget.table.sortByColumn(list(layer.features).index("grade"), Qt.SortOrder.AscendingOrder)
    assert [widget.model.label(row) for row in range(3)] == [9, 3, 7]
    for index in ([3, np.nan, 9], ["a", "b", "c"]):
        layer.features = pd.DataFrame({"index": index})
        assert widget.table.isHidden()


def test_rows_are_sorted_and_what_is_unknown_comes_last(viewer: Any) -> None:
    spots(viewer)
    widget = docked_objects(viewer)
    for order, labels in (("Ascending", [3, 9, 7]), ("Descending", [9, 3, 7])):
        widget.table.sortByColumn(1, getattr(Qt.SortOrder, f"{order}Order"))
        assert [widget.model.label(row) for row in range(3)] == labels
        assert [widget.model.row(label) for label in labels] == [0, 1, 2]


def test_it_follows_the_layers(viewer: Any, qtbot: Any) -> None:
    widget = docked_objects(viewer)
    assert "No table" in widget.title.value
    layer = spots(viewer)
    assert widget.title.value == "3 objects in spots"
    layer.features = layer.features.iloc[:2]
    assert widget.model.rowCount() == 2
    other = viewer.add_labels(np.eye(9, dtype=int), features={"index": [1]}, name="other")
    assert widget.layer is other
    viewer.layers.remove(other)
    assert widget.layer is layer
    bare = viewer.add_labels(np.eye(9, dtype=int), name="bare")
    assert "No table" in widget.title.value
    bare.features = {"index": [1]}  # a table that comes later
    assert widget.title.value == "1 object in bare"
    viewer.layers.remove(bare)
    viewer.layers.clear()
    assert widget.layer is None
    viewer.window.remove_dock_widget(widget.native)
    late = spots(viewer)
    assert widget._on_press not in late.mouse_drag_callbacks  # a closed widget listens no more


def test_a_hundred_thousand_rows(viewer: Any, qtbot: Any) -> None:
    """What is asked of the model does not grow with the rows: only those in sight are text."""
    count = 100_000
    random = np.random.default_rng(0)
    asked: list[int] = []

    class Watched(ObjectsModel):
        def data(self, index: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
            asked.append(index.row())
            return super().data(index, role)

    model = Watched()
    spots(viewer)
    widget = docked_objects(viewer)
    widget.table.setModel(model)
    model.show(pd.DataFrame({"index": np.arange(1, count + 1), "score": random.random(count)}))
    widget.table.sortByColumn(1, Qt.SortOrder.AscendingOrder)
    row = model.row(70_000)
    assert row is not None
    assert model.label(row) == 70_000
    widget.table.scrollTo(model.index(row, 0))
    qtbot.wait(200)
    assert row in asked
    assert len(set(asked)) < 500


def test_a_runs_objects_and_their_histograms(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True, scale=(0.25, 0.25), units=("um", "um"))
    segment = docked(viewer)
    run(segment, qtbot)
    qtbot.mouseClick(segment.objects_button.native, Qt.MouseButton.LeftButton)
    widget = segment._objects
    labels = viewer.layers["labels: tile, tiny"]
    assert widget.layer is labels
    assert widget.model.rowCount() == len(labels.features)
    assert {"area_um2", "score", "agreement", "haematoxylin"} <= set(labels.features)
    axes = lambda: widget.histograms.figure.axes  # noqa: E731
    qtbot.waitUntil(lambda: len(axes()) == 2)
    assert [a.get_xlabel() for a in axes()] == ["area (µm²)", "score"]
    for a in axes():
        assert sum(bar.get_height() for bar in a.patches) == len(labels.features)
        assert all(float(tick).is_integer() for tick in a.get_yticks())
    segment._dock.hide()
    segment.objects_button.native.click()
    assert segment._objects is widget  # one table is enough
    assert segment._dock.isVisible()
    segment._dock.destroyOnClose()
    segment.objects_button.native.click()
    assert segment._objects is not widget
    assert segment._objects.layer is labels


def test_an_area_is_drawn_once(qtbot: Any) -> None:
    """Results have it in µm² and in pixels."""
    histograms = Histograms("white")
    qtbot.addWidget(histograms)
    values = np.arange(5.0)
    histograms.show_features(pd.DataFrame(dict.fromkeys(("area_px", "area_um2", "score"), values)))
    qtbot.waitUntil(lambda: bool(histograms.figure.axes))
    assert [a.get_xlabel() for a in histograms.figure.axes] == ["area (µm²)", "score"]
