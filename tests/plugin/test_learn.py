"""Fine-tuning on corrections, from the reviewed region to a model in the Segment form's list."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.utils.notifications import notification_manager
from skimage.draw import disk

from cdal_engine.config import DiffusionConfig, ModelConfig, NetworkConfig
from cdal_engine.model import Model, Networks
from cdal_engine.training.dataset import find_pairs
from cdal_engine.weights import available, user_folder
from napari_cdal.review_widget import ReviewWidget
from napari_cdal.segment_widget import SegmentWidget

pytestmark = pytest.mark.gui


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    return make_napari_viewer()


@pytest.fixture
def own(tiny_network: NetworkConfig) -> str:
    """A model of the user's that has learned nothing yet."""
    import torch

    config = ModelConfig(target="binary", network=tiny_network, diffusion=DiffusionConfig(steps=1))
    torch.manual_seed(0)
    Model.save(user_folder() / "mine", config, Networks(config))
    return "mine"


def reviewed(viewer: Any, model: str, regions: int = 2, all_one: bool = False) -> ReviewWidget:
    """Regions of an image of disks marked as reviewed: right, or the first as one object."""
    rng = np.random.default_rng(0)
    labels = np.zeros((96, 96 * regions), np.uint32)
    for number in range(1, 8 * regions):
        place = rng.uniform((0, 0), labels.shape)
        labels[disk(place, rng.uniform(7, 11), shape=labels.shape)] = number
    noise = rng.normal(0, 6, (*labels.shape, 3))
    image = (np.where(labels[..., None] > 0, (90, 50, 130), (230, 190, 215)) + noise).clip(0, 255)
    viewer.add_image(image.astype(np.uint8), name="tile", rgb=True)
    viewer.add_labels(
        labels,
        name=f"labels: tile, {model}",
        metadata={"cdal": {"what": "labels", "source": "tile", "model": model}},
    )
    boxes = [
        [[0, 96 * n], [0, 96 * (n + 1) - 1], [95, 96 * (n + 1) - 1], [95, 96 * n]]
        for n in range(regions)
    ]
    shapes = viewer.add_shapes(boxes, shape_type="rectangle", name="regions")
    widget = ReviewWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Review")
    widget.scope.value = shapes
    for number in range(regions):
        widget.open_button.native.click()
        assert widget.review is not None, widget.status.value
        if all_one and number == 0:
            layer = widget.review.layer
            layer.data_setitem(np.nonzero(layer.data != 1), 1)
        widget.reviewed_button.native.click()
    return widget


def finished(widget: ReviewWidget, qtbot: Any) -> str:
    qtbot.waitUntil(lambda: not widget.learning.running)
    return str(widget.learning.status.text())


def exported(widget: ReviewWidget, folder: Path, qtbot: Any) -> str:
    status = widget.learning.status
    widget.learning.export(folder)
    qtbot.waitUntil(lambda: status.text() != "Exporting…")
    return str(status.text())


def test_only_reviewed_regions_are_taught(
    viewer: Any, qtbot: Any, own: str, tmp_path: Path
) -> None:
    widget = reviewed(viewer, own, 3)
    assert widget.copy is not None
    assert len(widget.copy.regions(reviewed=True)) == 3
    widget.scope.value = "all"
    widget.open_button.native.click()
    widget.close_button.native.click()  # opened, and not reviewed
    exported(widget, tmp_path / "data", qtbot)
    pairs = find_pairs(tmp_path / "data")
    assert [pair.stem for pair in pairs] == ["region-1-1", "region-2-1", "region-3-1"]
    whole = viewer.layers["tile"].data
    for number, pair in enumerate(pairs):
        columns = slice(96 * number, 96 * (number + 1))
        np.testing.assert_array_equal(tifffile.imread(pair.image), whole[:, columns])
        labels = tifffile.imread(pair.label)
        np.testing.assert_array_equal(
            labels, viewer.layers[f"labels: tile, {own}"].data[:, columns]
        )
    assert "not empty" in exported(widget, tmp_path / "data", qtbot)


@pytest.mark.slow
def test_a_model_that_learned_is_named_and_in_the_list(viewer: Any, qtbot: Any, own: str) -> None:
    segment = SegmentWidget(viewer)
    viewer.window.add_dock_widget(segment, name="Segment")
    widget = reviewed(viewer, own)
    page = widget.learning
    assert (page.model.value, page.name.value) == (own, "mine-corrected")
    page.minutes.value = 60
    page.learn_button.native.click()
    assert page.running
    qtbot.waitUntil(lambda: len(page.curve.losses) > 30 or not page.running)
    page.stop_button.native.click()  # what was learned so far is judged
    said = finished(widget, qtbot)
    assert "the best so far is kept" in said, said
    assert "dice" in said
    assert "->" in said
    assert "mine-corrected" in segment.form.model.choices
    assert "mine-corrected" in page.model.choices
    folder = available()["mine-corrected"]
    assert Model.load(folder).config.target == "binary"
    assert "fine-tuned on corrected regions" in (folder / "CARD.md").read_text()
    segment.form.model.value = "mine-corrected"
    assert len(page.curve.scores) >= 1
    assert page.name.value == "mine-corrected-2"
    page.name.value = "mine-corrected"
    page.learn_button.native.click()
    assert "already" in page.status.text()  # the name is taken, and nothing replaced


@pytest.mark.slow
def test_a_name_that_is_taken_is_not_suggested(
    viewer: Any, own: str, tiny_network: NetworkConfig
) -> None:
    config = ModelConfig(target="binary", network=tiny_network, diffusion=DiffusionConfig(steps=1))
    Model.save(user_folder() / "mine-corrected", config, Networks(config))
    assert reviewed(viewer, own).learning.name.value == "mine-corrected-2"


def test_nothing_is_left_when_napari_is_closed_meanwhile(
    viewer: Any, qtbot: Any, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    page = reviewed(viewer, own).learning
    page.learn_button.native.click()
    qtbot.waitUntil(lambda: len(page.curve.losses) > 3)
    process = page._learning._process._process
    (folder,) = tmp_path.glob("cdal-learning-*")
    assert any(folder.iterdir())
    viewer.close()
    qtbot.waitUntil(lambda: not folder.exists())
    assert process.poll() is not None
    assert "mine-corrected" not in available()


@pytest.mark.slow
def test_napari_exits_in_the_middle(own: str, tmp_path: Path) -> None:
    """In napari's own event loop, which waits for its workers before anything is destroyed."""
    code = """
import sys, time
sys.path.insert(0, sys.argv[1])
import napari
from qtpy.QtCore import QTimer
from tests.plugin.test_learn import reviewed
viewer = napari.Viewer(show=False)
page = reviewed(viewer, sys.argv[2]).learning
page.minutes.value = 60
page.learn_button.native.click()
def look():
    assert page.running, page.status.text()
    if len(page.curve.losses) > 3:
        timer.stop()
        rows.append(page._learning.rows)
        viewer.window._qt_window.close(quit_app=True, confirm_need=False)
rows = []
timer = QTimer()
timer.timeout.connect(look)
timer.start(100)
napari.run(force=True)
assert len(rows[0]) < 30, rows[0]  # of 200 steps: it was ended, not waited for
"""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    before = list(available())
    subprocess.run(
        [sys.executable, "-c", code, root, own], check=True, timeout=120, env=environment
    )
    assert not list(tmp_path.glob("cdal-learning-*"))
    assert list(available()) == before


def test_a_killed_engine_is_said_and_the_next_is_another(
    viewer: Any, qtbot: Any, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    widget = reviewed(viewer, own)
    page = widget.learning
    page.learn_button.native.click()
    qtbot.waitUntil(lambda: len(page.curve.losses) > 3)
    page._learning._process._process.kill()
    said = finished(widget, qtbot)
    assert "the engine's process ended" in said.lower()
    assert "(close other programs, then fine-tune again)" in said
    assert notification_manager.records[-1].message.lower() == said.lower()
    assert not list(tmp_path.glob("cdal-learning-*"))
    page.learn_button.native.click()
    qtbot.waitUntil(lambda: len(page.curve.losses) > 3)
    page.stop_button.native.click()
    assert "held-out images" in finished(widget, qtbot)


def test_what_did_not_help_is_said_and_leaves_the_old(viewer: Any, qtbot: Any, own: str) -> None:
    """Learning that all is object does not find those of the held-out region."""
    widget = reviewed(viewer, own, 2, all_one=True)
    page = widget.learning
    page.learn_button.native.click()
    qtbot.waitUntil(lambda: len(page.curve.losses) > 30 or not page.running)
    page.stop_button.native.click()
    said = finished(widget, qtbot)
    assert said.startswith("It did not help: mine stays"), said
    assert "mine-corrected" not in available()


def test_one_region_cannot_be_held_out(viewer: Any, qtbot: Any, own: str) -> None:
    widget = reviewed(viewer, own, 1)
    widget.learning.learn_button.native.click()
    assert "both learned from and held out" in finished(widget, qtbot)
