"""How long the window takes to answer while it segments: python benchmarks/gui.py

Needs a display (or `xvfb-run`). Opens the sample slide, segments a region of it with the shipped
model, and asks the event loop for its turn every 10 ms; prints how late those turns came, apart
for while PyTorch and the model are loaded. Then the engine alone does the same, to compare.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import napari
import numpy as np
from qtpy.QtCore import QEventLoop, QTimer
from qtpy.QtTest import QTest

EVERY = 10  # milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=512, help="edge of the region in pixels")
    parser.add_argument("--samples", type=int, default=5)
    chosen = parser.parse_args()
    viewer = napari.Viewer()
    (slide,) = viewer.open_sample("napari-cdal", "slide")
    edge = chosen.edge * slide.scale[-1]
    corners = np.array([[0, 0], [0, edge], [edge, edge], [edge, 0]]) + 300 * slide.scale[-1]
    shapes = viewer.add_shapes([corners], shape_type="rectangle", units=slide.units)
    _, widget = viewer.window.add_plugin_dock_widget("napari-cdal", "Segment")
    widget.form.scope.value = shapes
    widget.form.samples.value = chosen.samples
    QTest.qWait(2000)  # the window's first picture is no part of the run
    turns = [(time.perf_counter(), True)]
    timer = QTimer()
    timer.timeout.connect(
        lambda: turns.append((time.perf_counter(), widget.status.value.startswith("Loading")))
    )
    timer.start(EVERY)
    widget.run_button.native.click()
    loop = QEventLoop()
    timer.timeout.connect(lambda: None if widget.running else loop.quit())
    loop.exec()
    timer.stop()
    moments = np.array([moment for moment, _ in turns])
    loading = np.array([still for _, still in turns[:-1]])
    late = np.maximum(np.diff(moments) * 1000 - EVERY, 0)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors")
    print(f"{widget.status.value} ({moments[-1] - moments[0]:.1f} s in all)")
    for what, each in (("loading", late[loading]), ("segmenting", late[~loading])):
        print(
            f"{what}: turns late by: median {np.median(each):.1f} ms, 99 % within "
            f"{np.percentile(each, 99):.0f} ms, at most {each.max():.0f} ms; above 100 ms: "
            f"{(each > 100).sum()} of {len(each)}"
        )
    viewer.close()
    taken = engine_seconds(np.asarray(slide.data[0]), chosen.edge, slide.scale[-1], chosen.samples)
    print(f"the engine alone: preview {taken[0]:.1f} s, {chosen.samples} samples {taken[1]:.1f} s")


def engine_seconds(image: np.ndarray, edge: int, mpp: float, samples: int) -> list[float]:
    """Seconds of the supervised head's answer and of the sampled one, after the run's warm-up."""
    from cdal_engine.segmenter import Segmenter  # loads torch: not before the run is measured

    segmenter, region = Segmenter.from_pretrained("nuclei-he"), (slice(300, 300 + edge),) * 2
    return [
        segmenter.segment(
            image, region=region, mpp=mpp, samples=samples, steps=steps, keep_samples=steps is None
        ).seconds
        for steps in (0, None)
    ]


if __name__ == "__main__":
    main()
