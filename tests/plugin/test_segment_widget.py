"""The Segment widget in a real viewer, with real runs of the engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from npe2 import PluginManifest
from numpy.typing import NDArray
from qtpy.QtCore import Qt, QThreadPool, QTimer

from cdal_engine.samples import HE_MPP
from cdal_engine.weights import available
from napari_cdal.segment_widget import SegmentWidget

from .test_manifest import MANIFEST

pytestmark = pytest.mark.gui

PATIENCE = 120_000  # milliseconds, on a busy machine


def run(widget: SegmentWidget, qtbot: Any) -> str:
    widget.run_button.native.click()
    wait(widget, qtbot)
    return str(widget.status.value)


def wait(widget: SegmentWidget, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: not widget.running)


def names(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers]


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    return make_napari_viewer()


def test_a_run_adds_labels_and_maps_where_the_image_is(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8], skewed: dict[str, Any]
) -> None:
    source = viewer.add_image(tile, name="tile", rgb=True, **skewed)
    widget = docked(viewer)
    assert widget.form.image.value is source
    status = run(widget, qtbot)
    assert " in " in status
    assert names(viewer)[1:] == [
        f"{what}: tile, tiny" for what in ("attention", "uncertainty", "probability", "labels")
    ]
    for layer in list(viewer.layers)[1:]:
        assert layer.data.shape == tile.shape[:2]
        for part in ("scale", "translate", "rotate", "shear"):
            np.testing.assert_array_equal(getattr(layer, part), getattr(source, part))
        np.testing.assert_array_equal(layer.affine.affine_matrix, source.affine.affine_matrix)
        assert (layer.units, layer.axis_labels) == (source.units, source.axis_labels)
    labels = viewer.layers[-1]
    assert status.startswith(f"{len(labels.features)} object")
    assert set(labels.features["index"]) == set(np.unique(labels.data)) - {0}
    assert {"area_um2", "y", "x", "score", "agreement"} <= set(labels.features)
    assert labels.metadata["cdal"]["samples"] == 2
    assert [layer.name for layer in widget.form.image.choices] == ["tile"]


def test_runs_are_told_apart_and_overwrite_nothing(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True)
    widget = docked(viewer)
    for box in widget.form.wanted.values():
        box.value = False
    run(widget, qtbot)
    first = viewer.layers[-1]
    first.data = np.zeros_like(first.data)  # the user's own work on it
    run(widget, qtbot)
    assert names(viewer) == ["tile", "labels: tile, tiny", "labels: tile, tiny #2"]
    assert not first.data.any()
    assert viewer.layers[-1].data.any()


def test_results_stay_with_the_image_they_are_of(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    source = viewer.add_image(tile, name="tile", rgb=True, scale=(2, 2))
    other = viewer.add_image(tile[:50, :60], name="other", rgb=True, scale=(9, 9))
    widget = docked(viewer)
    widget.form.image.value = source
    widget.run_button.native.click()
    assert widget.running
    assert widget.status.value == "Loading the model and the image…"
    widget.form.image.value = other
    viewer.layers.selection.active = other
    source.name = "renamed"
    source.translate = (100, 0)
    wait(widget, qtbot)
    labels = viewer.layers[-1]
    assert labels.name == "labels: renamed, tiny"
    assert labels.data.shape == tile.shape[:2]
    np.testing.assert_array_equal(labels.scale, (2, 2))
    np.testing.assert_array_equal(labels.translate, (100, 0))


def test_what_is_shown_follows_an_image_that_is_moved(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    """The preview's layers, too, which are there already; not those that the user moved."""
    source = viewer.add_image(np.tile(tile, (6, 5, 1)), name="a", rgb=True)
    widget = docked(viewer)
    widget.form.samples.value = 20  # so that much is still to come when the preview is shown
    widget.run_button.native.click()
    qtbot.waitUntil(lambda: "uncertainty: a, tiny" in names(viewer))
    assert widget.running
    source.translate, source.rotate, source.scale = (100, 5), 20, (2, 3)
    wait(widget, qtbot)
    for name in ("labels: a, tiny", "uncertainty: a, tiny", "probability: a, tiny"):
        for what in ("translate", "rotate", "scale"):
            np.testing.assert_allclose(getattr(viewer.layers[name], what), getattr(source, what))
    labels = viewer.layers["labels: a, tiny"]
    labels.translate = (7, 8)
    widget.form.threshold.value = 0.3
    qtbot.waitUntil(lambda: not widget.sliders.busy)
    np.testing.assert_array_equal(labels.translate, (7, 8))


def test_results_are_kept_when_their_image_is_removed(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    source = viewer.add_image(tile, name="tile", rgb=True, scale=(2, 2), translate=(5, 6))
    widget = docked(viewer)
    widget.run_button.native.click()
    viewer.layers.remove(source)
    wait(widget, qtbot)
    assert "is gone" in widget.status.value
    labels = viewer.layers[-1]
    assert labels.name == "labels: tile, tiny"
    np.testing.assert_array_equal(labels.translate, (5, 6))


def test_cancel_keeps_what_is_finished_and_frees_the_form(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    image = np.tile(tile, (12, 20, 1))  # 1152 x 2400: three tiles
    viewer.add_image(image, name="large", rgb=True)
    widget = docked(viewer)
    widget.run_button.native.click()
    assert not widget.run_button.enabled
    qtbot.waitUntil(lambda: "of 3 tiles" in widget.status.value)
    assert names(viewer)[-1] == "labels: large, tiny"  # the preview is there already
    qtbot.mouseClick(widget.cancel_button.native, Qt.MouseButton.LeftButton)
    wait(widget, qtbot)
    done = re.search(r"\(only ([12]) of 3 tiles\)", widget.status.value)
    assert done, widget.status.value
    labels = viewer.layers[-1]
    assert set(labels.features["index"]) == set(np.unique(labels.data)) - {0}
    assert (widget.run_button.enabled, widget.cancel_button.enabled) == (True, False)
    assert labels.editable
    viewer.layers.clear()
    viewer.add_image(tile, rgb=True)
    assert "objects in" in run(widget, qtbot)


def test_cancelled_at_once_nothing_is_added(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(np.tile(tile, (12, 10, 1)), name="large", rgb=True)
    widget = docked(viewer)
    widget.run_button.native.click()
    widget.cancel_button.native.click()
    wait(widget, qtbot)
    assert "Nothing was added" in widget.status.value
    assert names(viewer) == ["large"]


def test_window_stays_usable_while_tiles_are_segmented(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(np.tile(tile, (6, 5, 1)), rgb=True)
    widget = docked(viewer)
    seen: list[int] = []
    timer = QTimer()
    timer.timeout.connect(lambda: widget.running and seen.append(widget.progress.value))
    timer.start(10)
    run(widget, qtbot)
    timer.stop()
    assert sum(done > 0 for done in seen) >= 5  # the event loop ran between the engine's passes
    assert seen == sorted(seen)


def test_closing_the_dock_stops_the_run(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(np.tile(tile, (12, 10, 1)), name="large", rgb=True)
    widget = docked(viewer)
    widget.run_button.native.click()
    qtbot.waitUntil(lambda: widget.progress.value >= 1)
    viewer.window.remove_dock_widget(widget.native)
    assert not widget.running
    assert QThreadPool.globalInstance().waitForDone(PATIENCE)
    qtbot.wait(50)  # a late result would be added now
    assert names(viewer) == ["large"]


def test_closing_the_dock_says_what_the_layers_are(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(np.tile(tile, (12, 20, 1)), name="large", rgb=True)
    widget = docked(viewer)
    widget.run_button.native.click()
    qtbot.waitUntil(lambda: "labels: large, tiny" in viewer.layers)
    viewer.window.remove_dock_widget(widget.native)
    assert "what was finished" in notification_manager.records[-1].message
    labels = viewer.layers["labels: large, tiny"]
    assert labels.editable
    assert set(labels.features["index"]) == set(np.unique(labels.data)) - {0}


def test_closing_the_viewer_stops_the_run(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(np.tile(tile, (12, 10, 1)), rgb=True)
    widget = docked(viewer)
    widget.run_button.native.click()
    qtbot.waitUntil(lambda: widget.progress.value >= 1)
    viewer.close()
    assert QThreadPool.globalInstance().waitForDone(PATIENCE)
    qtbot.wait(50)  # pytest-qt fails the test if a late signal finds the widget gone
    assert not widget.running


def test_grayscale_is_refused_before_and_at_a_run(viewer: Any, docked: Any, qtbot: Any) -> None:
    viewer.add_image(np.zeros((64, 64), np.uint8), name="gray")
    widget = docked(viewer)
    assert "is grayscale" in widget.status.value
    widget.status.value = ""
    widget.run_button.native.click()
    assert not widget.running
    assert "'gray' is grayscale and this model takes RGB" in widget.status.value
    assert names(viewer) == ["gray"]


def test_one_pixel(viewer: Any, docked: Any, qtbot: Any) -> None:
    viewer.add_image(np.full((1, 1, 3), 200, np.uint8), name="pixel", rgb=True)
    assert "objects in" in run(docked(viewer), qtbot)
    assert viewer.layers[-1].data.shape == (1, 1)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # napari's own
def test_an_empty_stack_is_refused(viewer: Any, docked: Any) -> None:
    viewer.add_image(np.zeros((0, 64, 64, 3), np.uint8), name="nothing", rgb=True)
    widget = docked(viewer)
    widget.run_button.native.click()
    assert not widget.running
    assert "'nothing' is empty" in widget.status.value


def test_an_engine_error_is_one_line(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    holes = tile / np.float32(255)
    holes[:5] = np.nan
    viewer.add_image(holes, rgb=True, name="holes")
    status = run(docked(viewer), qtbot)
    assert "NaN" in status
    assert "\n" not in status
    assert "NaN" in notification_manager.records[-1].message
    assert names(viewer) == ["holes"]


def test_no_layer_is_explained(viewer: Any, docked: Any, tile: NDArray[np.uint8]) -> None:
    widget = docked(viewer)
    assert widget.status.value.startswith("No image layer")
    layer = viewer.add_image(tile, rgb=True)
    assert "120 × 96 pixels" in widget.status.value
    viewer.layers.remove(layer)
    assert widget.status.value.startswith("No image layer")
    widget.run_button.native.click()
    assert not widget.running


def test_resolution_follows_the_layer(viewer: Any, docked: Any, tile: NDArray[np.uint8]) -> None:
    layer = viewer.add_image(tile, rgb=True)
    widget = docked(viewer)
    assert widget.form.mpp.value == 0.25  # the model's own
    assert "assumed" in widget.status.value
    layer.scale = (0.5, 0.5)
    assert widget.form.mpp.value == 0.25  # of pixels, not of micrometres
    layer.units = ("um", "um")
    assert widget.form.mpp.value == 0.5
    assert "assumed" not in widget.status.value
    layer.scale = (0.3, 0.3)
    assert widget.form.mpp.value == pytest.approx(0.3)


def test_preview_takes_no_samples(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True)
    widget = docked(viewer)
    assert widget.form.steps.choices == (0, 2)
    assert widget.form.steps.value == 2
    widget.form.steps.value = 0
    assert not widget.form.samples.enabled
    run(widget, qtbot)
    assert names(viewer)[1:] == [
        f"{what}: tile, tiny" for what in ("uncertainty", "probability", "labels")
    ]


def test_samples_get_a_slider(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8], skewed: dict[str, Any]
) -> None:
    source = viewer.add_image(tile, name="tile", rgb=True, **skewed)
    widget = docked(viewer)
    widget.form.wanted["samples"].value = True
    run(widget, qtbot)
    samples = viewer.layers["samples: tile, tiny"]
    assert samples.data.shape == (2, *tile.shape[:2])
    assert viewer.dims.ndim == 3
    np.testing.assert_allclose(
        samples.data_to_world((1, 9, 7))[1:], source.data_to_world((9, 7)), atol=1e-12
    )


@pytest.mark.parametrize("kind", ["dask", "uint16", "float", "rgba", "multiscale", "stack"])
def test_every_kind_of_rgb_layer(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8], kind: str
) -> None:
    alpha = np.full((*tile.shape[:2], 1), 255, np.uint8)
    data = {
        "dask": lambda: da.from_array(tile, chunks=(50, 50, 3)),
        "uint16": lambda: tile.astype(np.uint16) * 257,
        "float": lambda: tile / np.float32(255),
        "rgba": lambda: np.concatenate([tile, alpha], axis=2),
        "multiscale": lambda: [tile, tile[::2, ::2]],
        "stack": lambda: np.stack([tile // 3, tile, tile // 2]),
    }[kind]()
    layer = viewer.add_image(data, name=kind, rgb=True, multiscale=kind == "multiscale")
    if kind == "stack":
        viewer.dims.set_point(0, 1)
    widget = docked(viewer)
    run(widget, qtbot)
    labels = viewer.layers[-1]
    assert labels.data.shape[-2:] == tile.shape[:2]
    np.testing.assert_array_equal(
        labels.data_to_world((0,) * labels.ndim),
        layer.data_to_world((1, 0, 0) if kind == "stack" else (0, 0)),
    )
    viewer.layers.clear()
    viewer.add_image(tile, name="plain", rgb=True)  # the same pixels must give the same answer
    run(widget, qtbot)
    np.testing.assert_array_equal(np.squeeze(labels.data), viewer.layers[-1].data)


def test_through_public_api_only(
    make_napari_viewer_proxy: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    """napari's proxy warns of private access and refuses changes from other threads."""
    viewer = make_napari_viewer_proxy()
    viewer.add_image(tile, name="tile", rgb=True)
    assert "objects in" in run(docked(viewer), qtbot)
    assert "labels: tile, tiny" in names(viewer)


@pytest.mark.skipif(not available(), reason="no model is shipped yet")
def test_sample_and_shipped_model_through_the_manifest(
    npe2pm: Any, make_napari_viewer: Callable[..., Any], qtbot: Any
) -> None:
    npe2pm.register(PluginManifest.from_file(MANIFEST))
    viewer = make_napari_viewer()
    (sample,) = viewer.open_sample("napari-cdal", "he-tile")
    np.testing.assert_array_equal(sample.scale, (HE_MPP, HE_MPP))
    assert sample.rgb
    _, widget = viewer.window.add_plugin_dock_widget("napari-cdal", "Segment")
    assert widget.form.mpp.value == pytest.approx(HE_MPP)
    widget.form.samples.value = 2
    assert "objects in" in run(widget, qtbot)
    labels = viewer.layers[-1]
    assert labels.data.shape == (512, 512)
    np.testing.assert_array_equal(labels.scale, sample.scale)
    area = labels.features["area_um2"]
    assert 50 < len(area) < 1000
    assert 10 < np.median(area) < 120  # nuclei of skin, µm²


def test_a_corrected_resolution_survives_a_rename(
    viewer: Any, docked: Any, tile: NDArray[np.uint8]
) -> None:
    layer = viewer.add_image(tile, name="tile", rgb=True)
    widget = docked(viewer)
    widget.form.mpp.value = 0.4
    layer.name = "renamed"
    viewer.add_image(tile, name="other", rgb=True)
    assert widget.form.image.value is layer
    assert widget.form.mpp.value == 0.4
    layer.scale = (3, 3)
    layer.units = ("micrometer", "micrometer")
    assert widget.form.mpp.value == 3


def test_image_data_replaced_during_a_run_are_noticed(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    layer = viewer.add_image(tile, name="tile", rgb=True)
    widget = docked(viewer)
    widget.run_button.native.click()
    layer.data = tile[:50, :40].copy()
    wait(widget, qtbot)
    assert "data were replaced meanwhile" in widget.status.value


def test_only_what_is_seen_is_segmented(viewer: Any, docked: Any, tile: NDArray[np.uint8]) -> None:
    viewer.add_image(np.stack([tile] * 3), name="stack", rgb=True)
    widget = docked(viewer)
    viewer.dims.roll()
    widget.run_button.native.click()
    assert not widget.running
    assert "other axes than the last two" in widget.status.value


def test_fields_have_names_for_screen_readers(viewer: Any, docked: Any) -> None:
    form = docked(viewer).form
    assert form.mpp.native.accessibleName() == "µm per pixel"
    assert form.image.native.accessibleName() == "Image"


def test_a_layer_that_another_plugin_fails_on_does_not_stop_the_run(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True)
    widget = docked(viewer)

    def fail(event: Any) -> None:
        raise ValueError("another plugin's fault")

    viewer.layers.events.inserted.connect(fail)
    viewer.mouse_over_canvas = True
    said: list[str] = []
    notification_manager.notification_ready.connect(lambda event: said.append(event.message))
    assert "objects in" in run(widget, qtbot)
    assert any("another plugin's fault" in text for text in said)
    kinds = {name.split(":")[0] for name in names(viewer)}
    assert {"labels", "probability", "uncertainty", "attention"} <= kinds
    labels = viewer.layers["labels: tile, tiny"]
    assert viewer.mouse_over_canvas
    assert labels.editable
    viewer.layers.events.inserted.disconnect(fail)
    labels.events.data.connect(fail)
    widget.form.threshold.value += 0.05
    qtbot.waitUntil(lambda: not widget.sliders.busy)
    assert list(labels.features["index"]) == [n for n in np.unique(labels.data) if n]
    labels.events.data.disconnect(fail)
    before = labels.data
    labels.data_setitem((np.arange(5), np.arange(5)), 4000)
    widget.form.threshold.value += 0.05
    qtbot.waitUntil(lambda: not widget.sliders.busy)
    assert "edited" in widget.status.value
    assert labels.data is before
    assert widget.run_button.enabled


def test_the_window_has_its_turn_between_layers(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True)
    widget = docked(viewer)
    turns: list[int] = []

    def between(event: Any) -> None:
        QTimer.singleShot(0, lambda: turns.append(len(viewer.layers)))

    viewer.layers.events.inserted.connect(between)
    run(widget, qtbot)
    assert len(set(turns[:3])) == 3, turns  # added in one turn, all would be counted at once
