"""Regions of a slide: opened, corrected, written beside the results, and never lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from npe2 import PluginManifest
from qtpy.QtTest import QTest

from cdal_engine.corrections.answer import of_results
from cdal_engine.corrections.corrected import CorrectedCopy
from cdal_engine.instances import measure
from napari_cdal.corrections import picture_of
from napari_cdal.review_widget import ReviewWidget

from .slide_results import PIXEL, write_results
from .test_manifest import MANIFEST
from .test_review import click, press

pytestmark = pytest.mark.gui


def docked(viewer: Any, folder: Path, scope: str = "doubtful") -> tuple[ReviewWidget, Any]:
    """Results opened as a dropped folder is, and a region of them under review."""
    layers = viewer.open(str(folder), plugin="napari-cdal")
    labels = next(layer for layer in layers if layer.name.startswith("labels: "))
    widget = ReviewWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Review")
    widget.scope.value = scope
    open_region(widget)
    return widget, labels


def open_region(widget: ReviewWidget) -> None:
    widget.open_button.native.click()
    while widget.review is None and not widget.open_button.enabled:
        QTest.qWait(20)  # the labels are copied


def corrected(folder: Path) -> Any:
    return zarr.open_group(folder / "corrected" / "labels.ome.zarr", mode="r")["s0"][:]


def test_a_region_is_a_crop_that_lies_where_it_was(viewer: Any, results: Path) -> None:
    widget, source = docked(viewer, results)
    review = widget.review
    assert review is not None, widget.status.value
    assert review.layer.data.shape == (512, 512)
    assert not review.layer.multiscale
    whole = np.asarray(source.data[0])
    np.testing.assert_array_equal(review.layer.data, whole[review.box])
    for y, x in ((0, 0), (511, 511), (100, 7)):
        there = (review.box[0].start + y, review.box[1].start + x)
        np.testing.assert_allclose(
            review.layer.data_to_world((y, x)), source.data_to_world(there), atol=1e-9
        )
    image = viewer.layers[0]
    assert review.picture is not None
    assert review.picture.shape == (512, 512, 3)
    level = np.asarray(image.data[1])  # whose pixels are as large as the labels'
    np.testing.assert_array_equal(review.picture, level[review.box])
    image.translate = np.asarray(image.translate) + (0.25 * PIXEL * np.asarray(image.scale))
    moved = picture_of(viewer, source, review.box)  # by a quarter of a pixel of the labels
    assert moved is not None
    rows = np.arange(review.box[0].start + 1, review.box[0].stop - 1)
    columns = np.arange(review.box[1].start + 1, review.box[1].stop - 1)
    near = level.astype(float)
    expected = sum(
        wy * wx * near[rows - dy][:, columns - dx]
        for dy, wy in ((0, 0.75), (1, 0.25))
        for dx, wx in ((0, 0.75), (1, 0.25))
    )
    np.testing.assert_allclose(moved[1:-1, 1:-1], expected, atol=1.01)
    widget.close_button.native.click()


def test_a_region_at_the_slides_edge_is_written_into_every_level(
    viewer: Any, results: Path
) -> None:
    widget, source = docked(viewer, results, "all")
    review = widget.review
    assert review is not None, widget.status.value
    whole = np.asarray(source.data[0])
    before = review.layer.data.copy()
    last = int(before[-40:, -40:].max()) or int(before.max())
    review.select(last)
    review.delete()
    review.layer.selected_label = review.copy.next_label
    review.layer.paint((before.shape[0] - 1, before.shape[1] - 1), review.copy.next_label)
    widget.reviewed_button.native.click()
    after = corrected(results)
    assert after[-1, -1] > whole.max()
    assert last not in after
    group = zarr.open_group(results / "corrected" / "labels.ome.zarr", mode="r")
    for name, array in group.arrays():
        step = 2 ** int(name[1:])
        np.testing.assert_array_equal(array[:], after[::step, ::step])
    np.testing.assert_array_equal(np.asarray(source.data[0]), whole)
    shown = next(layer for layer in viewer.layers if layer.name.startswith("corrected: "))
    assert shown.multiscale
    np.testing.assert_array_equal(np.asarray(shown.data[0]), after)


def test_a_new_run_leaves_corrections_alone_and_is_told(viewer: Any, results: Path) -> None:
    widget, _ = docked(viewer, results)
    assert widget.review is not None
    gone = widget.review.current
    widget.review.delete()
    widget.reviewed_button.native.click()
    before = corrected(results)
    assert gone not in before
    viewer.window.remove_dock_widget(widget.native)
    write_results(results, 1)
    np.testing.assert_array_equal(corrected(results), before)
    viewer.layers.clear()
    again, labels = docked(viewer, results)
    shown = [layer for layer in viewer.layers if layer.name.startswith("corrected: ")]
    assert len(shown) == 1
    np.testing.assert_array_equal(np.asarray(shown[0].data[0]), before)
    assert not labels.visible
    assert "are of the earlier answer" in again.status.value
    again.close_button.native.click()


def test_a_second_viewer_is_told(
    viewer: Any, results: Path, make_napari_viewer: Callable[..., Any]
) -> None:
    first, _ = docked(viewer, results)
    assert first.review is not None
    other = make_napari_viewer()
    second, _ = docked(other, results)
    assert second.review is None
    assert "another viewer" in second.status.value
    first.close_button.native.click()
    viewer.window.remove_dock_widget(first.native)
    second.open_button.native.click()
    assert second.review is not None, second.status.value
    second.close_button.native.click()


def test_an_object_across_two_regions_stays_one(
    npe2pm: Any, make_napari_viewer: Callable[..., Any], qtbot: Any, results: Path
) -> None:
    """By keys and clicks: what is done to it in either region is done to all of it."""
    npe2pm.register(PluginManifest.from_file(MANIFEST))
    viewer = make_napari_viewer(show=True)
    layers = viewer.open(str(results), plugin="napari-cdal")
    source = next(layer for layer in layers if layer.name.startswith("labels: "))
    before = np.asarray(source.data[0])
    gone, kept, merged = 43, 45, 17  # all lie on both sides of column 468
    for label in (gone, kept, merged):
        assert (before[:, :468] == label).any()
        assert (before[:, 468:] == label).any()
    corners = [[[0, 268], [479, 467]], [[0, 468], [479, 639]]]
    place = {"scale": source.scale, "translate": source.translate, "units": source.units}
    boxes = [[[y, x], [y, x1], [y1, x1], [y1, x]] for (y, x), (y1, x1) in corners]
    shapes = viewer.add_shapes(boxes, shape_type="rectangle", name="halves", **place)
    shapes.visible = False
    widget = ReviewWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Review")
    widget.scope.value = shapes

    open_region(widget)
    review = widget.review
    assert review is not None, widget.status.value
    assert review.box == (slice(0, 480), slice(268, 468))
    review.select(gone)
    press(viewer, qtbot, "D")
    review.select(kept)
    press(viewer, qtbot, "A")
    widget.reviewed_button.native.click()
    after = corrected(results)
    assert gone not in after  # nor on the other side, which was not open
    np.testing.assert_array_equal(after == kept, before == kept)

    widget.open_button.native.click()
    review = widget.review
    assert review is not None, widget.status.value
    assert review.box == (slice(0, 480), slice(468, 640))
    assert gone not in review.queue
    assert review.is_reviewed(kept)
    review.select(kept)
    viewer.scene.camera.zoom = 5 / source.scale[-1]  # so near that a click hits a pixel
    qtbot.wait(50)
    press(viewer, qtbot, "G")
    places = np.argwhere(review.layer.data == merged)
    click(viewer, qtbot, widget, *places[len(places) // 2])
    widget.reviewed_button.native.click()
    after = corrected(results)
    np.testing.assert_array_equal(after == kept, np.isin(before, (kept, merged)))
    record = json.loads((results / "corrected" / "corrections.json").read_text())
    done = {label: each["action"] for label, each in record["objects"].items()}
    assert done == {str(gone): "deleted", str(kept): "merged", str(merged): "merged"}
    viewer.layers.clear()
    again = {
        layer.name.split(":")[0]: layer for layer in viewer.open(results, plugin="napari-cdal")
    }
    table = again["corrected"].features
    assert set(again["labels"].features["index"]) - set(table["index"]) == {gone, kept, merged}


def test_export_says_what_was_corrected(viewer: Any, qtbot: Any, results: Path) -> None:
    import pyarrow.parquet as pq

    widget, _ = docked(viewer, results)
    review = widget.review
    assert review is not None
    deleted, accepted = review.queue[:2]
    review.delete()
    review.accept()
    widget.reviewed_button.native.click()
    out = results.parent / "exported"
    widget.export(out)
    qtbot.waitUntil(lambda: "Exported" in widget.status.value)
    table = pq.read_table(out / "objects.parquet").to_pydict()
    before = pq.read_table(results / "objects.parquet").to_pydict()
    assert set(table["label"]) == set(before["label"]) - {deleted}
    at = table["label"].index(accepted)
    assert table["corrected"][at] == "accepted"
    was = before["label"].index(accepted)
    for name in ("x", "y", "area_px", "score", "agreement", "eccentricity", "area_um2"):
        np.testing.assert_allclose(table[name][at], before[name][was], rtol=1e-5, err_msg=name)
    after = corrected(results)
    level = np.asarray(viewer.layers[0].data[1])  # whose pixels are as large as the labels'
    coloured = measure(after, np.ones(after.shape, np.float32), level)
    rows = [table["label"].index(label) for label in coloured["label"]]
    for name in ("red", "green", "blue", "haematoxylin"):
        exported = np.array(table[name])[rows]
        np.testing.assert_allclose(exported, coloured[name], rtol=1e-5, err_msg=name)
    outlines = json.loads((out / "objects.geojson").read_text())["features"]
    assert len(outlines) == len(table["label"])
    assert of_results(results).facts["model"] == "tiny"
    widget.export(out)
    qtbot.waitUntil(lambda: "exist already" in widget.status.value)
    with pytest.raises(Exception, match="another viewer"):
        CorrectedCopy(results / "corrected", of_results(results))
