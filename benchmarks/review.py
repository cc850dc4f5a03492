"""How long the window is busy with a region under review: python benchmarks/review.py

Needs a display (or `xvfb-run`). Opens a square region full of objects, accepts one, deletes one and
closes the region; prints the seconds from each click until the window has been drawn again.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import napari
import numpy as np
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_cdal.review_widget import ReviewWidget

EVERY, RADIUS = 24, 8  # pixels between objects, and of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=3200, help="edge of the region in pixels")
    edge = parser.parse_args().edge
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CDAL_MODELS"] = str(Path(folder) / "models")  # corrections are kept beside it
        viewer = napari.Viewer()
        widget = reviewed(viewer, edge)
        steps: dict[str, Callable[[], object]] = {
            "opening": widget.open_button.native.click,
            "accepting": widget.actions["accept"].native.click,
            "deleting": widget.actions["delete"].native.click,
            "closing": widget.reviewed_button.native.click,
        }
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors")
        for name, click in steps.items():
            QTest.qWait(3000)  # a version is kept in another thread meanwhile
            begun = time.perf_counter()
            click()
            QApplication.processEvents()
            print(f"{name}: {time.perf_counter() - begun:.2f} s")
        viewer.close()


def reviewed(viewer: napari.Viewer, edge: int) -> ReviewWidget:
    """An image of round objects, their labels and table, and the widget over them."""
    at = np.arange(edge) % EVERY - EVERY // 2
    inside = at[:, None] ** 2 + at**2 <= RADIUS**2
    row, column = np.indices((edge, edge)) // EVERY
    number = row * (edge // EVERY + 1) + column + 1
    labels = np.where(inside, number, 0).astype(np.uint32)
    ids = np.unique(labels)[1:]
    image = np.where(inside[..., None], (90, 50, 130), (230, 190, 215)).astype(np.uint8)
    random = np.random.default_rng(0)
    table = {"index": ids, "agreement": random.random(len(ids)), "score": random.random(len(ids))}
    viewer.add_image(image, name="tile", rgb=True)
    facts = {"what": "labels", "source": "tile", "model": "none", "digest": ""}
    viewer.add_labels(labels, name="labels: tile", features=table, metadata={"cdal": facts})
    widget = ReviewWidget(viewer)
    viewer.window.add_dock_widget(widget)
    widget.scope.value = "all"
    print(f"{edge} x {edge} pixels, {len(ids)} objects")
    return widget


if __name__ == "__main__":
    main()
