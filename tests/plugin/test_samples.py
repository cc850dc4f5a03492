"""More samples for a finished result, the steps of each, and what a crop of a large image gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtGui import QAction, QKeySequence

from cdal_engine.model import Model
from cdal_engine.segmenter import Segmenter
from napari_cdal.live import Options, live

from .test_live import cdal_segment
from .test_segment_widget import names, run, wait

pytestmark = pytest.mark.gui


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    return make_napari_viewer()


def rectangle(viewer: Any, corner: tuple[float, float], size: tuple[float, float]) -> Any:
    y, x = corner
    corners = [[y, x], [y, x + size[1]], [y + size[0], x + size[1]], [y + size[0], x]]
    return viewer.add_shapes([np.array(corners)], shape_type="rectangle", name="areas")


@pytest.mark.parametrize("kind", ["rectangle", "ellipse"])
def test_three_samples_and_two_are_five(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8], kind: str
) -> None:
    viewer.add_image(tile, name="tile", rgb=True)
    shapes = rectangle(viewer, (9.5, 19.5), (60, 70))
    shapes.shape_type = kind
    widget = docked(viewer)
    form = widget.form
    form.scope.value, form.seed.value = shapes, 7
    form.wanted["samples"].value = form.wanted["steps"].value = True
    assert not widget.more_button.enabled
    form.samples.value = 3
    run(widget, qtbot)
    form.samples.value = 2
    labels = viewer.layers[-1]
    assert labels.editable
    qtbot.mouseClick(widget.more_button.native, Qt.MouseButton.LeftButton)
    assert not labels.editable  # what is painted now would be lost
    wait(widget, qtbot)
    assert labels.editable
    (more,) = widget._shown.answers.values()
    layers = {layer.name.split(":")[0]: layer for layer in viewer.layers}
    assert len([name for name in names(viewer) if name.startswith("labels")]) == 1
    form.samples.value = 5
    run(widget, qtbot)
    (five,) = widget._shown.answers.values()
    for name in ("mean", "uncertainty", "deviation", "attention", "samples", "steps"):
        a, b = (getattr(found.segmentation, name) for found in (more, five))
        np.testing.assert_allclose(a, b, atol=3e-3, err_msg=name)
    assert (more.segmentation.labels == five.segmentation.labels).mean() > 0.999
    for name, column in five.segmentation.objects.items():
        if column.dtype.kind == "f":
            same = more.segmentation.objects[name]
            np.testing.assert_allclose(same, column, rtol=0.02, atol=0.02, err_msg=name)
    assert more.facts["samples"] == five.facts["samples"] == 5
    assert more.segmentation.counts is not None
    np.testing.assert_array_equal(layers["labels"].data, more.segmentation.labels)
    np.testing.assert_array_equal(layers["probability"].data, more.segmentation.probability[0])
    np.testing.assert_array_equal(layers["samples"].data, more.segmentation.samples)
    assert layers["x_t"].data.shape == (2, 5, *more.segmentation.labels.shape)
    assert viewer.dims.nsteps[:2] == (2, 5)
    assert layers["labels"].metadata["cdal"]["samples"] == 5


def test_more_keep_the_threshold_and_what_was_painted(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True)
    widget = docked(viewer)
    run(widget, qtbot)
    widget.form.threshold.value = 0.4
    qtbot.waitUntil(lambda: not widget.sliders.busy)
    widget.more_button.native.click()
    wait(widget, qtbot)
    assert widget.form.threshold.value == pytest.approx(0.4)
    (answer,) = widget._shown.answers.values()
    assert answer.config.decode.threshold == pytest.approx(0.4)
    assert len(answer.segmentation.samples) == 4
    labels = viewer.layers["labels: tile, tiny"]
    labels.data[:5, :5] = 999
    mine = labels.data.copy()
    widget.more_button.native.click()
    assert not widget.running
    assert "edited" in widget.status.value
    np.testing.assert_array_equal(labels.data, mine)


def test_more_are_offered_only_where_they_can_be(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True)
    widget = docked(viewer)
    widget.form.steps.value = 0
    run(widget, qtbot)
    assert not widget.more_button.enabled
    widget.form.steps.value = 2
    run(widget, qtbot)
    widget._shown.answers[0].facts["samples"] = 63
    widget.more_button.native.click()
    assert not widget.running
    assert "64 are the most" in widget.status.value


def test_a_cancel_leaves_the_samples_that_were_there(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(np.tile(tile, (4, 4, 1)), name="tile", rgb=True)
    widget = docked(viewer)
    run(widget, qtbot)
    before = viewer.layers["labels: tile, tiny"].data.copy()
    widget.form.samples.value = 20
    widget.more_button.native.click()
    widget.cancel_button.native.click()
    wait(widget, qtbot)
    np.testing.assert_array_equal(viewer.layers["labels: tile, tiny"].data, before)
    assert widget._shown.answers[0].facts["samples"] == 2


def test_steps_have_sliders_that_the_samples_share(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8], skewed: dict[str, Any]
) -> None:
    source = viewer.add_image(tile, name="tile", rgb=True, **skewed)
    widget = docked(viewer)
    widget.form.wanted["samples"].value = widget.form.wanted["steps"].value = True
    camera = viewer.scene.camera
    camera.center, camera.zoom = source.data_to_world((30, 40)), 5
    run(widget, qtbot)
    assert camera.zoom == 5
    np.testing.assert_allclose(camera.center[-2:], source.data_to_world((30, 40)))
    x_0 = viewer.layers["x̂0: tile, tiny"]
    samples = viewer.layers["samples: tile, tiny"]
    assert x_0.data.shape == (2, 2, *tile.shape[:2])
    assert x_0.axis_labels[:2] == ("step", "sample")
    assert samples.axis_labels[0] == "sample"
    assert viewer.dims.ndim == 4
    np.testing.assert_allclose(
        x_0.data_to_world((1, 1, 9, 7))[2:], source.data_to_world((9, 7)), atol=1e-12
    )


def test_steps_beyond_memory_are_refused(viewer: Any, docked: Any, tile: NDArray[np.uint8]) -> None:
    viewer.add_image(np.broadcast_to(tile[:1, :1], (5000, 5000, 3)), name="large", rgb=True)
    widget = docked(viewer)
    widget.form.samples.value = 5
    assert "limit" not in widget.status.value
    widget.form.wanted["steps"].value = True
    assert "untick Each step" in widget.status.value
    widget.run_button.native.click()
    assert not widget.running
    assert names(viewer) == ["large"]


def test_live_tables_have_colours(tiny_model: Path, tile: NDArray[np.uint8]) -> None:
    segmenter = Segmenter(Model.load(tiny_model), "cpu", tile=32)
    box = (slice(0, 96), slice(0, 100))
    options = Options(mpp=None, samples=2, steps=2, seed=0)
    found = list(live(segmenter, tile, box, options, lambda d, n: True, tile[box]))
    whole = segmenter.segment(tile, region=box, samples=2)
    for each, _ in found:
        assert set(each.objects) == set(whole.objects)
    np.testing.assert_allclose(found[-1][0].objects["red"], whole.objects["red"], rtol=1e-4)


@pytest.mark.parametrize("mpp", [0.25, 0.4])
def test_a_crop_of_a_large_image_is_the_command_lines(
    viewer: Any,
    docked: Any,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Path,
    tmp_path: Path,
    tile: NDArray[np.uint8],
    mpp: float,
) -> None:
    """Of a large image only what a region needs is read; noise and grid stay the image's."""
    monkeypatch.setattr("napari_cdal.reading._ALL", 0)  # every image is large
    large = np.tile(tile, (8, 7, 1))
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, large, photometric="rgb")
    options = ("--mpp", str(mpp), "--save", "labels,probability")
    results = cdal_segment(path, tiny_model, tmp_path / "out", *options)
    maps = np.asarray(zarr.open_group(results / "maps.ome.zarr", mode="r")["s0"])
    viewer.add_image(large, name="large", rgb=True, scale=(mpp,) * 2, units=("um",) * 2)
    shapes = rectangle(viewer, (510.5 * mpp, 599.5 * mpp), (90 * mpp, 100 * mpp))
    shapes.units = ("um",) * 2
    widget = docked(viewer)
    widget.form.scope.value, widget.form.seed.value = shapes, 7
    run(widget, qtbot)
    layer = viewer.layers["probability: large, region 1, tiny"]
    top, left = (round(at) for at in layer.metadata["cdal"]["corner"])
    height, width = layer.data.shape
    expected = maps[0, top : top + height, left : left + width]
    inner = (slice(1, -1), slice(1, -1))  # pixels on the region's edge are in or out by rounding
    np.testing.assert_allclose(layer.data[inner], expected[inner], atol=1e-3)


def test_shortcuts_are_shown_and_nobody_elses(
    make_napari_viewer: Callable[..., Any], docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    from napari.settings import get_settings

    viewer = make_napari_viewer(show=True)
    taken = {
        QKeySequence(str(key)).toString()
        for keys in get_settings().shortcuts.shortcuts.values()
        for key in keys
    }
    actions = viewer.window._qt_window.findChildren(QAction)
    taken |= {each.toString() for action in actions for each in action.shortcuts()}
    viewer.add_image(np.tile(tile, (12, 12, 1)), name="tile", rgb=True)
    widget = docked(viewer)
    for button in (widget.run_button, widget.cancel_button, widget.more_button):
        shortcut = button.native.shortcut()
        assert shortcut.toString() not in taken
        assert shortcut.toString(QKeySequence.SequenceFormat.NativeText) in button.text
    window = viewer.window._qt_window
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    canvas = viewer.window._qt_viewer.canvas.native
    canvas.setFocus()
    qtbot.waitUntil(lambda: canvas.hasFocus() and widget.run_button.native.isVisible())
    qtbot.keyClick(canvas, Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier)
    qtbot.waitUntil(lambda: widget.running)  # the button is seen going down first
    worker = widget._worker
    qtbot.keyClick(canvas, Qt.Key.Key_Period, Qt.KeyboardModifier.ControlModifier)
    qtbot.waitUntil(lambda: worker.abort_requested)
    wait(widget, qtbot)
