"""The Segment form: what it offers follows the viewer, and what it says stays true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QSlider

from cdal_engine.io.results import write_plane
from napari_cdal.review_widget import ReviewWidget
from napari_cdal.segment_widget import SegmentWidget

pytestmark = pytest.mark.gui

SQUARE = np.array([[10, 10], [10, 60], [50, 60], [50, 10]], float)


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    return make_napari_viewer(show=True)  # a window that is not drawn shows nothing


def test_what_is_renamed_stays_chosen(viewer: Any, docked: Any, tile: NDArray[np.uint8]) -> None:
    viewer.add_image(tile, name="first", rgb=True)
    second = viewer.add_image(tile[:50], name="second", rgb=True)
    shapes = viewer.add_shapes([SQUARE], name="areas")
    widget = docked(viewer)
    widget.form.image.value, widget.form.scope.value = second, shapes
    second.name, shapes.name = "biopsy", "tumour"
    assert widget.form.image.value is second
    assert widget.form.image.native.currentText() == "biopsy"
    assert widget.form.scope.value is shapes
    viewer.layers.remove(second)
    assert widget.form.image.value is viewer.layers["first"]


def test_labels_that_are_renamed_stay_chosen_for_review(viewer: Any) -> None:
    viewer.add_labels(np.eye(40, dtype=np.int32), name="first")
    second = viewer.add_labels(np.eye(60, dtype=np.int32), name="second")
    widget = ReviewWidget(viewer)
    viewer.window.add_dock_widget(widget)
    widget.source.value = second
    second.name = "biopsy"
    assert widget.source.value is second


def test_a_volume_is_offered_first_and_has_no_attention(
    viewer: Any, qtbot: Any, tiny_model: Path, tiny_volume_model: Path
) -> None:
    viewer.add_image(np.zeros((5, 40, 50), np.float32), name="stack")
    widget = SegmentWidget(viewer, {"tiny": tiny_model, "mri": tiny_volume_model})
    viewer.window.add_dock_widget(widget)
    form, attention = widget.form, widget.form.wanted["attention"]
    assert list(form.scope.choices) == ["whole image", "current view"]
    form.model.value = "mri"
    assert list(form.scope.choices) == ["whole volume", "whole image", "current view"]
    assert (form.scope.value, attention.enabled) == ("whole volume", False)
    form.scope.value = "whole image"
    assert attention.enabled
    viewer.dims.ndisplay = 3
    widget.run_button.native.click()
    assert "the viewer shows a volume" in widget.status.value.lower()
    viewer.dims.ndisplay = 2
    qtbot.waitUntil(lambda: "50 × 40 pixels" in widget.status.value)


def test_the_hint_follows_shapes_and_window(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True, scale=(0.25, 0.25), units=("um", "um"))
    shapes = viewer.add_shapes(name="areas", ndim=2, scale=(0.25, 0.25), units=("um", "um"))
    widget = docked(viewer)
    widget.form.scope.value = shapes
    assert "no region of 'areas'" in widget.status.value.lower()
    shapes.add_rectangles(SQUARE)
    qtbot.waitUntil(lambda: widget.status.value == "51 × 41 pixels.")
    viewer.scene.camera.zoom = 1
    widget.form.scope.value = "current view"
    assert widget.status.value == "120 × 96 pixels."
    viewer.scene.camera.zoom = 200
    qtbot.waitUntil(lambda: widget.status.value != "120 × 96 pixels.")
    widget.status.value = "what a run has found"
    viewer.scene.camera.zoom = 50
    qtbot.wait(400)
    assert widget.status.value == "what a run has found"


def test_regions_do_not_hide_what_they_are_drawn_on(
    viewer: Any, docked: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True)
    plain = viewer.add_shapes([SQUARE], name="plain")
    red = viewer.add_shapes([SQUARE], name="red", face_color="red")
    empty = viewer.add_shapes(name="empty", ndim=2)
    widget = docked(viewer)
    for shapes in (plain, red, empty):
        widget.form.scope.value = shapes
    plain.add_rectangles(SQUARE + 5)
    empty.add_rectangles(SQUARE)
    for shapes in (plain, empty):
        assert (shapes.face_color[:, 3] < 0.2).all()
        assert (shapes.edge_color == (0, 0, 0, 1)).all()
    np.testing.assert_array_equal(red.face_color, [(1, 0, 0, 1)])


def test_the_view_of_a_pyramid_is_what_the_window_shows(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    """And not the part that is loaded, which stays as large when the window goes nearer."""
    image = np.tile(tile, (12, 10, 1))
    levels = [image, image[::2, ::2]]
    layer = viewer.add_image(levels, name="slide", rgb=True, multiscale=True)
    widget = docked(viewer)
    camera = viewer.scene.camera
    camera.center, camera.zoom = (500, 600), 4
    qtbot.waitUntil(lambda: layer.data_level == 0)
    camera.zoom = 20
    qtbot.wait(300)
    height, width = viewer.canvas.size
    widget.form.scope.value = "current view"
    ((rows, columns),) = (region.box for region in widget._chosen.job().regions)
    assert rows.start == np.floor(500 - height / 40)
    assert columns.stop == np.ceil(600 + width / 40) + 1


def test_a_click_beside_the_handle_moves_a_slider(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True)
    form = docked(viewer).form
    for slider, moved in ((form.threshold, 0.1), (form.min_area, 5.0)):
        slider.enabled = True
        before = slider.value
        (groove,) = slider.native.findChildren(QSlider)
        at = QPoint(groove.width() - 3, groove.height() // 2)
        qtbot.mouseClick(groove, Qt.MouseButton.LeftButton, pos=at)
        assert slider.value == pytest.approx(before + moved)


def test_where_there_is_room_the_form_does_not_scroll(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.window.resize(1400, 1000)
    viewer.add_image(tile, name="tile", rgb=True)
    form = docked(viewer).form
    qtbot.wait(200)
    assert form.native.height() < 800
    assert not form.native.verticalScrollBar().isVisible()


def test_the_layers_resolution_is_taken_as_it_is_where_the_field_rounds_it(
    viewer: Any, docked: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True, scale=(0.22734,) * 2, units=("um",) * 2)
    widget = docked(viewer)
    assert widget.form.mpp.value == 0.2273
    assert widget._chosen.job().mpp == pytest.approx(0.22734, rel=1e-9)
    widget.form.mpp.value = 0.23
    assert widget._chosen.job().mpp == 0.23


def test_where_the_pixels_size_comes_from_is_said(
    viewer: Any, docked: Any, tile: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_plane(tmp_path / "tile.tif", tile, 0.4, rgb=True)
    (known,) = viewer.open(tmp_path / "tile.tif", plugin="napari")  # which keeps no size
    widget = docked(viewer)
    assert widget.form.mpp.value == pytest.approx(0.4, abs=1e-4)
    assert "taken from the file: 0.4 µm" in widget.status.value
    assert widget._chosen.job().mpp == pytest.approx(0.4, rel=1e-6)
    for entered in (0.3, 0.25, 0.4001):
        widget.form.mpp.value = entered
        assert "size" not in widget.status.value
    known.data = known.data[::2, ::2]  # no more the file's
    widget.form.mpp.value = 0.25
    assert "size is unknown" in widget.status.value
    known.scale, known.units = (0.2, 0.2), ("um", "um")
    assert widget.form.mpp.value == 0.2
    assert "size" not in widget.status.value
    widget.form.mpp.value = 0
    assert "size is unknown: the model's 0.25 µm is assumed" in widget.status.value
    viewer.layers.clear()
    viewer.add_image(tile, rgb=True)
    assert widget.form.mpp.value == 0.25
    assert "size is unknown: the model's 0.25 µm is assumed" in widget.status.value


def test_a_shape_on_the_edges_of_pixels_takes_no_more(
    viewer: Any, docked: Any, tile: NDArray[np.uint8]
) -> None:
    placed = {"scale": (0.499,) * 2, "units": ("um",) * 2}
    image = viewer.add_image(
        np.tile(tile, (6, 6, 1)), rgb=True, name="a", translate=(20_000.0,) * 2, **placed
    )
    corners = np.array([[100, 130], [100, 530], [500, 530], [500, 130]]) - 0.5
    world = [image.data_to_world(corner) for corner in corners]  # napari keeps 24 bits of them
    widget = docked(viewer)
    widget.form.scope.value = viewer.add_shapes(
        [world], shape_type="rectangle", units=placed["units"]
    )
    assert widget.status.value.startswith("400 × 400 pixels")


def test_a_shape_smaller_than_a_pixel_of_the_models_is_one(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    large = np.ascontiguousarray(np.tile(tile, (8, 8, 1)))
    levels = [large, large[::2, ::2], large[::4, ::4]]
    placed = {"scale": (0.0625,) * 2, "units": ("um",) * 2}
    viewer.add_image(levels, rgb=True, name="slide", multiscale=True, **placed)
    small, good = SQUARE * 0.006 + 8, SQUARE * 4
    areas = viewer.add_shapes([small, good], name="areas", **placed)
    widget = docked(viewer)
    widget.form.scope.value = areas
    widget.run_button.native.click()
    qtbot.waitUntil(lambda: not widget.running)
    assert "Region 2" in widget.status.value
    assert "empty" not in widget.status.value
