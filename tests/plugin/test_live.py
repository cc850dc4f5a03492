"""Regions, tiles one after the other, and the sliders: real runs in a real viewer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
from napari.layers import Image as Layer
from napari.utils.notifications import notification_manager
from nibabel.orientations import axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from PIL import Image
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QSlider
from typer.testing import CliRunner

from cdal_engine import targets
from cdal_engine.cli import app
from cdal_engine.errors import Cancelled
from cdal_engine.instances import measure
from cdal_engine.io.discovery import open_source
from cdal_engine.model import Model
from cdal_engine.samples import he_path, mri_path
from cdal_engine.segmenter import Segmentation, Segmenter
from napari_cdal.jobs import Job
from napari_cdal.live import Options, live
from napari_cdal.planes import plane_of
from napari_cdal.regions import whole
from napari_cdal.results_folder import results_layers
from napari_cdal.review_widget import ReviewWidget
from napari_cdal.segment_widget import SegmentWidget
from napari_cdal.volumes import Turn
from napari_cdal.worker import Run
from napari_cdal.writers import write_nifti

from .test_segment_widget import names, run, wait

pytestmark = pytest.mark.gui


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    return make_napari_viewer()


@pytest.fixture
def he() -> NDArray[np.uint8]:
    with Image.open(he_path()) as image:
        return np.asarray(image.convert("RGB"))


def cdal_segment(path: Path, model: Path, out: Path, *more: str) -> Path:
    options = ["-o", str(out), "--model", str(model), "--samples", "2", "--seed", "7", *more]
    done = CliRunner().invoke(app, ["segment", str(path), *options])
    assert done.exit_code == 0, done.output
    return out / path.name


def test_the_same_seed_gives_what_the_command_line_gives(
    viewer: Any, docked: Any, qtbot: Any, tiny_model: Path, tmp_path: Path, he: NDArray[np.uint8]
) -> None:
    results = cdal_segment(he_path(), tiny_model, tmp_path)
    viewer.add_image(he, rgb=True, scale=(0.499, 0.499), units=("um", "um"))
    widget = docked(viewer)
    widget.form.seed.value = 7
    run(widget, qtbot)
    labels = viewer.layers[-1]
    np.testing.assert_array_equal(labels.data, tifffile.imread(results / "labels.tif"))
    table = pq.read_table(results / "objects.parquet").to_pandas()
    for name in ("score", "agreement"):
        np.testing.assert_array_equal(labels.features[name], table[name])


def test_tile_by_tile_ends_where_one_run_does(tiny_model: Path, he: NDArray[np.uint8]) -> None:
    segmenter = Segmenter(Model.load(tiny_model), "cpu", tile=128)
    box = (slice(0, 300), slice(40, 333))
    options = Options(mpp=0.4, samples=3, steps=2, seed=5)
    seen: list[float] = []
    answers = list(live(segmenter, he, box, options, lambda d, n: seen.append(d / n) or True))
    whole = segmenter.segment(he, region=box, mpp=0.4, samples=3, steps=2, seed=5)
    assert answers[0][1] == "preview"
    assert "of 16 tiles" in answers[1][1]
    last, so_far = answers[-1]
    assert so_far == ""
    np.testing.assert_allclose(last.mean, whole.mean, atol=1e-5)
    assert (last.labels == whole.labels).mean() > 0.999
    for found, _ in answers:  # labels and table agree at any time
        assert set(found.objects["label"]) == set(np.unique(found.labels)) - {0}
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_a_region_of_a_tile_takes_one(tiny_model: Path, he: NDArray[np.uint8]) -> None:
    """Wherever it lies, so that it costs what it costs in the engine."""
    segmenter = Segmenter(Model.load(tiny_model), "cpu", tile=128)
    box = (slice(70, 198), slice(101, 229))
    options = Options(mpp=0.25, samples=2, steps=2, seed=0)
    (_, preview), (last, so_far) = live(segmenter, he, box, options, lambda d, n: True)
    assert (preview, so_far) == ("preview", "")
    whole = segmenter.segment(he, region=box, mpp=0.25, samples=2, steps=2, keep_samples=True)
    np.testing.assert_array_equal(last.mean, whole.mean)
    np.testing.assert_array_equal(last.labels, whole.labels)


def test_what_is_finished_survives_a_cancel(tiny_model: Path, he: NDArray[np.uint8]) -> None:
    segmenter = Segmenter(Model.load(tiny_model), "cpu", tile=128)
    options = Options(mpp=0.25, samples=2, steps=2, seed=0)
    answers = []
    image = he[:256, :256]
    so_long = live(
        segmenter, image, (slice(0, 256), slice(0, 256)), options, lambda d, n: d < 0.7 * n
    )
    with pytest.raises(Cancelled):
        answers.extend(so_long)
    last, so_far = answers[-1]
    assert so_far == "2 of 4 tiles"
    full = segmenter.segment(image, mpp=0.25, samples=2, steps=2)
    np.testing.assert_allclose(last.probability[:, :128], full.probability[:, :128], atol=0.05)
    preview = answers[0][0]
    np.testing.assert_array_equal(last.probability[:, 128:], preview.probability[:, 128:])


def test_the_current_view_is_part_of_the_whole(
    make_napari_viewer: Callable[..., Any], docked: Any, qtbot: Any, he: NDArray[np.uint8]
) -> None:
    viewer = make_napari_viewer(show=True)  # a window that is not drawn shows nothing
    layer = viewer.add_image(he, name="he", rgb=True, scale=(0.25, 0.25), units=("um", "um"))
    widget = docked(viewer)
    run(widget, qtbot)
    whole = viewer.layers["probability: he, tiny"].data
    viewer.scene.camera.center, viewer.scene.camera.zoom = (40, 60), 12
    qtbot.waitUntil(lambda: layer.corner_pixels[0, 0] > 0)
    widget.form.scope.value = "current view"
    run(widget, qtbot)
    part = viewer.layers["probability: he, tiny #2"]
    assert part.data.shape < whole.shape
    y, x = np.round(layer.world_to_data(part.data_to_world((0, 0)))).astype(int)
    (top, left), _ = layer.corner_pixels
    assert (y, x) == (top, left)
    height, width = part.data.shape
    np.testing.assert_allclose(part.data, whole[y : y + height, x : x + width], atol=1e-3)


def drag(qtbot: Any, viewer: Any, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Draw with the mouse on the canvas, from and to positions in its pixels."""
    canvas = viewer.window._qt_viewer.canvas.native
    qtbot.mousePress(canvas, Qt.MouseButton.LeftButton, pos=QPoint(*start))
    for part in (0.3, 0.7, 1):
        at = [round(a + (b - a) * part) for a, b in zip(start, end, strict=True)]
        qtbot.mouseMove(canvas, QPoint(*at))
        qtbot.wait(20)
    qtbot.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=QPoint(*end))


def test_shapes_are_segmented_each_by_itself(
    viewer: Any, docked: Any, qtbot: Any, he: NDArray[np.uint8]
) -> None:
    viewer.add_image(he, name="he", rgb=True, scale=(0.25, 0.25), units=("um", "um"))
    shapes = viewer.add_shapes(name="areas")
    widget = docked(viewer)
    widget.form.scope.value = shapes
    assert "no region of 'areas'" in widget.status.value.lower()
    canvas = viewer.window._qt_viewer.canvas.native
    centre = (canvas.width() // 2, canvas.height() // 2)
    for mode, shift in (("add_rectangle", -60), ("add_ellipse", 40)):
        shapes.mode = mode
        drag(
            qtbot, viewer, (centre[0] + shift, centre[1]), (centre[0] + shift + 50, centre[1] + 40)
        )
    assert list(shapes.shape_type) == ["rectangle", "ellipse"]
    status = run(widget, qtbot)
    assert "Region 1: " in status
    assert "\nRegion 2: " in status
    assert "per mm²" in status
    for number in (1, 2):
        labels = viewer.layers[f"labels: he, region {number}, tiny"]
        rows, columns = np.nonzero(labels.data)
        assert len(rows)
        world = np.array([labels.data_to_world(p) for p in zip(rows, columns, strict=True)])
        corners = np.array([shapes.data_to_world(c) for c in shapes.data[number - 1]])
        margin = 0.25
        assert (world >= corners.min(axis=0) - margin).all()
        assert (world <= corners.max(axis=0) + margin).all()
        if number == 2:
            middle, half = corners.mean(axis=0), np.ptp(corners, axis=0) / 2 + margin
            assert ((((world - middle) / half) ** 2).sum(axis=1) <= 1).all()


def test_a_region_of_a_slide_is_read_at_the_models_resolution(
    viewer: Any, docked: Any, qtbot: Any, he: NDArray[np.uint8]
) -> None:
    """Of a slide four times as fine as the model, its third level is read, and no other."""
    read: list[int] = []

    class Watched:
        def __init__(self, step: int) -> None:
            self.pixels = he.repeat(4, 0).repeat(4, 1)[::step, ::step]
            self.shape, self.dtype, self.ndim, self.step = self.pixels.shape, he.dtype, 3, step

        def __getitem__(self, key: Any) -> NDArray[np.uint8]:
            read.append(self.step)
            return self.pixels[key]

    def level(step: int) -> da.Array:
        return da.from_array(Watched(step), chunks=(256, 256, 3))

    layer = viewer.add_image(
        [level(1), level(2), level(4)],
        name="slide", rgb=True, multiscale=True, scale=(0.0625,) * 2, units=("um",) * 2,
        contrast_limits=(0, 255),
    )  # fmt: skip
    corners = np.array([[400, 800], [400, 1600], [1200, 1600], [1200, 800]]) * 0.0625
    shapes = viewer.add_shapes([corners], shape_type="rectangle", name="areas", units=("um",) * 2)
    widget = docked(viewer)
    widget.form.scope.value = shapes
    read.clear()
    run(widget, qtbot)
    labels = viewer.layers["labels: slide, region 1, tiny"]
    assert labels.data.shape == (200, 200)
    np.testing.assert_allclose(labels.scale, (0.25, 0.25))
    # The corner of its first pixel is the region's.
    at = layer.world_to_data(labels.data_to_world((-0.5, -0.5)))
    np.testing.assert_allclose(at, (399.5, 799.5), atol=1e-6)
    assert labels.metadata["cdal"]["corner"] == (400, 800)
    whole = Segmenter(Model.load(widget._chosen._folders["tiny"])).segment(
        he, mpp=0.25, samples=2, steps=2, region=(slice(100, 300), slice(200, 400))
    )
    np.testing.assert_array_equal(labels.data, whole.labels)


def test_the_sliders_act_on_the_kept_map(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True, scale=(0.25, 0.25), units=("um", "um"))
    widget = docked(viewer)
    form = widget.form
    assert not form.threshold.enabled
    run(widget, qtbot)
    labels = viewer.layers["labels: tile, tiny"]
    before = len(labels.features)
    assert form.threshold.value == pytest.approx(0.5)
    handle = form.threshold.native.findChild(QSlider)
    handle.setFocus()
    for _ in range(5):
        qtbot.keyClick(handle, Qt.Key.Key_Left)
    qtbot.waitUntil(lambda: not widget.sliders.busy)
    assert form.threshold.value < 0.5
    answer = widget._shown.answers[0]
    config = answer.config.with_decoding(threshold=form.threshold.value)
    expected = targets.decode(answer.segmentation.mean, config, 0.25)
    np.testing.assert_array_equal(labels.data, expected)
    form.min_area.value = 50
    qtbot.waitUntil(lambda: not widget.sliders.busy)
    assert (labels.features["area_um2"] >= 50).all()
    assert len(labels.features) < before
    labels.data[:20, :20] = 999  # the user's own work
    mine = labels.data.copy()
    form.threshold.value = 0.8
    qtbot.waitUntil(lambda: not widget.sliders.busy)
    assert "edited" in widget.status.value
    assert form.threshold.value == pytest.approx(config.decode.threshold)  # what they are made with
    np.testing.assert_array_equal(labels.data, mine)


def test_corrected_labels_are_not_cut_anew(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(tile, name="tile", rgb=True)
    widget = docked(viewer)
    run(widget, qtbot)
    labels = viewer.layers["labels: tile, tiny"]
    review = ReviewWidget(viewer)
    viewer.window.add_dock_widget(review, name="Review")
    review.open_button.native.click()
    assert review.review is not None, review.status.value
    first = labels.data
    widget.form.threshold.value += 0.05  # while a region is open
    assert "edited" in widget.status.value
    review.close_button.native.click()  # nothing was done
    widget.form.threshold.value += 0.05
    qtbot.waitUntil(lambda: not widget.sliders.busy)
    assert labels.data is not first
    second = labels.data
    review.open_button.native.click()
    review.reviewed_button.native.click()
    widget.form.threshold.value += 0.05
    assert "edited" in widget.status.value
    assert labels.data is second


def test_what_happens_to_layers_meanwhile_is_said(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    image = viewer.add_image(np.tile(tile, (6, 5, 1)), name="a", rgb=True)
    image.scale, image.units = (0.25, 0.25), ("um", "um")
    shapes = viewer.add_shapes([[[0, 0], [0, 50], [50, 50], [50, 0]]], shape_type="rectangle")
    widget = docked(viewer)
    widget.form.scope.value = shapes
    assert [str(unit) for unit in shapes.units] == ["micrometer"] * 2  # no warning a layer
    widget.form.scope.value = "whole image"
    widget.form.samples.value = 20
    widget.run_button.native.click()
    qtbot.waitUntil(lambda: "uncertainty: a, tiny" in names(viewer))
    image.name, image.scale = "b", (0.5, 0.5)
    wait(widget, qtbot)
    assert "scale was changed" in widget.status.value
    assert not [name for name in names(viewer) if name.endswith(": b, tiny")]
    viewer.layers.remove("labels: a, tiny")
    widget.more_button.native.click()
    assert "labels were removed" in widget.status.value
    assert not widget.running


def test_the_sliders_stay_with_the_result_until_there_is_another(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8], tiny_model: Path
) -> None:
    viewer.add_image(np.tile(tile, (6, 5, 1)), name="tile", rgb=True)
    widget = docked(viewer)
    form = widget.form
    widget.add_model("other", tiny_model)
    run(widget, qtbot)
    first = viewer.layers["labels: tile, tiny"]
    assert viewer.layers.selection.active is first
    form.threshold.value = 0.4
    qtbot.waitUntil(lambda: not widget.sliders.busy)
    form.model.value = "other"
    assert (form.threshold.enabled, form.threshold.value) == (True, 0.4)
    widget.run_button.native.click()
    assert not form.threshold.enabled
    widget.cancel_button.native.click()
    wait(widget, qtbot)
    assert "Nothing was added" in widget.status.value
    form.model.value = "tiny"
    before = first.data
    form.threshold.value = 0.6
    qtbot.waitUntil(lambda: first.data is not before)
    assert "are the model's again" in run(widget, qtbot)
    second = viewer.layers["labels: tile, tiny #2"]
    assert viewer.layers.selection.active is second
    second.mode = "paint"  # who paints goes on painting
    assert "are the model's" not in run(widget, qtbot)
    assert viewer.layers.selection.active is second


@pytest.fixture
def volume_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The MRI sample with its voxels in another order."""
    image = nib.load(mri_path())
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(getattr(request, "param", "RAS")))
    image = nib.as_closest_canonical(image).as_reoriented(turn)
    path = tmp_path / "turned.nii.gz"
    nib.save(image, path)
    return path


@pytest.fixture
def mri(viewer: Any, tiny_volume_model: Path, volume_path: Path) -> SegmentWidget:
    """The widget over the volume."""
    from napari.layers import Layer

    from napari_cdal.sources import source_layers

    ((data, arguments, kind),) = source_layers(open_source(volume_path))
    viewer.add_layer(Layer.create(data, arguments, kind))
    widget = SegmentWidget(viewer, {"mri": tiny_volume_model})
    viewer.window.add_dock_widget(widget, name="Segment")
    widget.form.samples.value, widget.form.seed.value = 2, 7
    return widget


orders = pytest.mark.parametrize("volume_path", ["RAS", "LPS", "AIL", "SRP"], indirect=True)


@orders
def test_a_volume_gives_what_the_command_line_gives(
    viewer: Any,
    mri: SegmentWidget,
    qtbot: Any,
    tiny_volume_model: Path,
    volume_path: Path,
    tmp_path: Path,
) -> None:
    """Whatever the order and direction of its voxels: the model is shown them as in training."""
    results = cdal_segment(volume_path, tiny_volume_model, tmp_path / "out", "--save", "labels")
    written = nib.load(results / "labels.nii.gz")
    assert mri.form.scope.value == "whole volume"
    status = run(mri, qtbot)
    labels = viewer.layers[-1]
    own = np.argsort(viewer.layers[0].metadata["cdal_source"]["axes"])
    np.testing.assert_array_equal(labels.data.transpose(own), np.asarray(written.dataobj))
    np.testing.assert_array_equal(labels.extent.world, viewer.layers[0].extent.world)
    write_nifti(str(tmp_path / "saved.nii.gz"), *labels.as_layer_data_tuple()[:2])
    saved = nib.load(tmp_path / "saved.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), np.asarray(written.dataobj))
    np.testing.assert_allclose(saved.affine, written.affine, atol=1e-5)
    assert "Anterior" in status
    assert "mm³" in status
    assert not mri.form.threshold.enabled  # classes have none
    (*_, (_, reopened, _)) = results_layers(results)
    pd.testing.assert_frame_equal(
        pd.DataFrame(reopened["features"]), labels.features, check_dtype=False
    )


@pytest.mark.filterwarnings("ignore:Contours are not displayed")  # as napari says
def test_a_volume_is_segmented_while_it_is_shown_in_3d(
    viewer: Any, mri: SegmentWidget, qtbot: Any
) -> None:
    """With the mouse at rest on it, where napari does not know what it points at."""
    viewer.dims.ndisplay = 3
    viewer.mouse_over_canvas = True
    said: list[str] = []
    notification_manager.notification_ready.connect(lambda event: said.append(event.message))
    assert "Anterior" in run(mri, qtbot)
    assert said == []
    assert viewer.mouse_over_canvas
    assert [name.split(":")[0] for name in names(viewer)[1:]] == [
        "uncertainty",
        "probability of anterior",
        "probability of posterior",
        "labels",
    ]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("flipped", [(False, False), (True, False), (False, True), (True, True)])
def test_a_turned_slice_comes_back_with_its_table(
    swapped: bool, flipped: tuple[bool, bool]
) -> None:
    labels = np.zeros((30, 41), np.uint32)
    labels[3:9, 5:20], labels[12:25, 30:33], labels[20:28, 1:4] = 1, 2, 3
    probability = np.linspace(0, 1, labels.size, dtype=np.float32).reshape(labels.shape)
    turn = Turn(0, False, flipped, swapped)
    seen, shown = turn.onto_model(labels), turn.onto_model(probability)
    box = slice(3, 9), slice(5, 20)
    np.testing.assert_array_equal(seen[turn.box_onto_model(box, labels.shape)], 1)
    maps = dict.fromkeys(("uncertainty", "deviation"), shown)
    answer = Segmentation(
        labels=seen,
        probability=shown,
        attention=None,
        objects=measure(seen, shown),
        mpp=None,
        seconds=0.0,
        samples=None,
        **maps,
    )
    back = turn.onto_layer(answer)
    np.testing.assert_array_equal(back.labels, labels)
    np.testing.assert_array_equal(back.probability, probability)
    for name, column in measure(labels, probability).items():
        np.testing.assert_allclose(back.objects[name], column, rtol=1e-5, err_msg=name)


@orders
def test_a_slice_is_normalised_by_its_volume(viewer: Any, mri: SegmentWidget, qtbot: Any) -> None:
    run(mri, qtbot)
    volume = viewer.layers[-1].data
    for layer in list(viewer.layers)[1:]:
        viewer.layers.remove(layer)
    viewer.dims.set_current_step(0, 3)
    mri.form.scope.value = "whole image"
    assert "per mm²" not in run(mri, qtbot)  # a class is not counted
    labels = viewer.layers[-1]
    assert labels.data.shape == (1, *volume.shape[1:])
    at = round(viewer.layers[0].world_to_data(viewer.dims.point)[0])
    np.testing.assert_array_equal(labels.data[0], volume[at])


def test_preferences_are_what_the_form_starts_with(
    viewer: Any, npe2pm: Any, plugin_settings: Any, tiny_model: Path, tile: NDArray[np.uint8]
) -> None:
    from napari.settings import get_plugin_settings
    from npe2 import PluginManifest

    from .test_manifest import MANIFEST

    npe2pm.register(PluginManifest.from_file(MANIFEST))
    chosen = get_plugin_settings("napari-cdal").engine
    chosen.device, chosen.samples, chosen.memory_gb = "cpu", 3, 1
    chosen.model_folder, chosen.model = str(tiny_model.parent), "tiny"
    viewer.add_image(np.broadcast_to(tile[:1, :1], (6000, 6000, 3)), name="large", rgb=True)
    widget = SegmentWidget(viewer)
    form = widget.form
    assert (form.device.value, form.samples.value, form.model.value) == ("cpu", 3, "tiny")
    assert "the limit is 1 GB" in widget.status.value
    widget.run_button.native.click()
    assert not widget.running
    assert names(viewer) == ["large"]
    chosen.memory_gb = 100  # as the message says
    assert "the limit is" not in widget._chosen.hint()


def test_a_second_run_waits_for_the_first(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(np.tile(tile, (6, 5, 1)), name="a", rgb=True)
    widget = docked(viewer)
    widget.run_button.native.click()
    first = widget._run
    qtbot.mouseClick(widget.run_button.native, Qt.MouseButton.LeftButton)
    assert widget._run is first
    wait(widget, qtbot)
    assert len([name for name in names(viewer) if name.startswith("labels")]) == 1


def test_what_is_left_is_judged_by_what_was_done_and_does_not_rise() -> None:
    plane = plane_of(Layer(np.zeros((8, 8))), (0, 0))
    job = Job(plane, whole(plane), Path("m"), "cpu", None, 1, 4, 0, frozenset())
    under_way = Run(job)
    assert "Loading" in under_way.text()
    under_way._began = time.monotonic() - 3
    under_way._report(0, 1 / 20)
    said = []
    for _ in range(2):
        left = re.fullmatch(r"5%, about (\d+) s left\.", under_way.text())
        assert left is not None
        said.append(int(left[1]))
        time.sleep(1.1)
    assert said[0] >= 56  # 3 s or more for each of 19 passes, the first of which began just now
    assert said[1] < said[0]


def test_a_removed_result_stays_away(
    viewer: Any, docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    viewer.add_image(np.tile(tile, (12, 20, 1)), name="a", rgb=True)
    widget = docked(viewer)
    widget.run_button.native.click()
    qtbot.waitUntil(lambda: "probability: a, tiny" in names(viewer))
    viewer.layers.remove("probability: a, tiny")
    wait(widget, qtbot)
    assert "probability: a, tiny" not in names(viewer)
