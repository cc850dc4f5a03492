"""Make the README's screenshot with the real program: python docs/screenshot.py

Opens napari (with a display, or under `xvfb-run`), opens the sample, runs the Segment widget on it
and saves the window as docs/images/napari.png.
"""

from __future__ import annotations

import time
from pathlib import Path

import napari
from qtpy.QtWidgets import QApplication

OUT = Path(__file__).parent / "images" / "napari.png"


def wait(seconds: float) -> None:
    """Let the window work for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def main() -> None:
    viewer = napari.Viewer()
    viewer.window.resize(1500, 920)
    viewer.open_sample("napari-cdal", "he-tile")
    _, widget = viewer.window.add_plugin_dock_widget("napari-cdal", "Segment")
    wait(1)
    widget.run_button.native.click()
    while widget.running:
        wait(0.2)
    viewer.canvas.overlays.scale_bar.visible = True
    viewer.scene.camera.zoom *= 1.5
    wait(2)
    OUT.parent.mkdir(exist_ok=True)
    viewer.screenshot(str(OUT), canvas_only=False, flash=False)
    viewer.close()


if __name__ == "__main__":
    main()
