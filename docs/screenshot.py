"""Make the pictures of the window with the real program: python docs/screenshot.py

Opens napari (with a display, or under `xvfb-run -s "-screen 0 1600x1000x24"`), does what the pages
describe with the samples and the shipped models, and saves docs/images/napari*.png.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

OUT = Path(__file__).parent / "images"
SIZE = (1500, 920)


def wait(seconds: float) -> None:
    """Let the window work for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def until(done: Callable[[], bool]) -> None:
    while not done():
        wait(0.1)


def run(widget: Any) -> None:
    widget.run_button.native.click()
    until(lambda: not widget.running)


def save(viewer: napari.Viewer, name: str) -> None:
    wait(1)
    OUT.mkdir(exist_ok=True)
    viewer.screenshot(str(OUT / f"{name}.png"), canvas_only=False, flash=False)


def opened(sample: str) -> tuple[napari.Viewer, Any]:
    """A viewer with a sample and the Segment form."""
    viewer = napari.Viewer()
    viewer.window.resize(*SIZE)
    viewer.open_sample("napari-cdal", sample)
    _, widget = viewer.window.add_plugin_dock_widget("napari-cdal", "Segment")
    wait(1)
    return viewer, widget


def he_tile() -> None:
    """The first ten minutes: a run under way, its result, its table."""
    viewer, widget = opened("he-tile")
    viewer.canvas.overlays.scale_bar.visible = True
    widget.run_button.native.click()
    until(lambda: len(viewer.layers) > 1)  # the preview
    save(viewer, "napari-live")
    until(lambda: not widget.running)
    viewer.scene.camera.zoom *= 1.5
    save(viewer, "napari")
    widget.objects_button.native.click()
    wait(1)
    table = widget._objects.table
    table.sortByColumn(1, Qt.SortOrder.DescendingOrder)
    table.selectRow(12)
    save(viewer, "napari-objects")
    viewer.close()


def regions() -> None:
    """Shapes on a slide, with the steps of each sample."""
    viewer, widget = opened("slide")
    slide = viewer.layers[0]
    pixel = slide.scale[-1]
    centre = np.array(slide.extent.world).mean(axis=0)
    square = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * 90 * pixel
    shapes = viewer.add_shapes(
        [square + centre + np.array(shift) * pixel for shift in ((20, -150), (-165, -50))],
        shape_type=["rectangle", "ellipse"],
        name="areas",
        face_color="transparent",
        edge_color="black",
        edge_width=3 * pixel,
        units=slide.units,
    )
    widget.form.scope.value = shapes
    widget.form.samples.value = 2
    widget.form.wanted["steps"].value = True
    viewer.scene.camera.center = tuple(centre - np.array((70, 100)) * pixel)
    viewer.scene.camera.zoom = 1.6 / pixel
    run(widget)
    save(viewer, "napari-regions")
    for layer in viewer.layers:
        layer.visible = layer is slide or layer.name.startswith("x_t")
    viewer.dims.set_current_step(0, 2)
    save(viewer, "napari-steps")
    viewer.close()


def mri() -> None:
    """A volume, its slices along a slider."""
    viewer, widget = opened("mri")
    widget.form.model.value = "hippocampus-mri"
    widget.form.samples.value = 3
    run(widget)
    viewer.dims.set_current_step(0, int(viewer.dims.nsteps[0]) // 2)
    save(viewer, "napari-mri")
    viewer.close()


def main() -> None:
    he_tile()
    regions()
    mri()


if __name__ == "__main__":
    main()
