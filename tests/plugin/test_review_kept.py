"""Nothing of a review is lost: killed, damaged, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from napari.utils.notifications import notification_manager

from cdal_engine.batch.lock import LOCK

from .test_review_slides import corrected, docked

pytestmark = pytest.mark.gui


KILLED = """
import os, signal, sys
from pathlib import Path
import napari
from napari_cdal.results_folder import results_layers
from napari_cdal.corrections import picture_of
from napari_cdal.review_widget import ReviewWidget
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication
from napari.layers import Layer

viewer = napari.Viewer(show=False)
for each in results_layers(Path(sys.argv[1])):
    viewer.add_layer(Layer.create(*each))
widget = ReviewWidget(viewer)
viewer.window.add_dock_widget(widget, name="Review")
widget.scope.value = "doubtful"
widget.open_button.native.click()
while widget.review is None:
    QApplication.processEvents()  # the labels are copied
review = widget.review
print(review.current, flush=True)
review.delete()

def look():  # as soon as a version is there
    if review.copy.versions.numbers:
        print("kept", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

timer = QTimer()
timer.timeout.connect(look)
timer.start(50)
napari.run()
"""


@pytest.mark.slow
def test_killed_napari_loses_nothing_that_was_kept(viewer: Any, results: Path) -> None:
    """A version is kept every two seconds without anybody asking."""
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(results)],
        env={**os.environ, "NAPARI_CONFIG": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    gone, kept = died.stdout.split()
    assert kept == "kept"
    widget, _ = docked(viewer, results)
    assert "were recovered" in widget.status.value
    assert int(gone) not in corrected(results)
    record = json.loads((results / "corrected" / "corrections.json").read_text())
    assert record["objects"][gone]["action"] == "deleted"
    widget.close_button.native.click()


def test_a_damaged_version_brings_back_the_one_before(
    viewer: Any, qtbot: Any, results: Path
) -> None:
    widget, _ = docked(viewer, results)
    review = widget.review
    assert review is not None
    first, second = review.queue[:2]
    for number in (1, 2):
        review.delete()
        review.keep()
        qtbot.waitUntil(lambda n=number: n in review.copy.versions.numbers)
    left = results.parent / "left"  # as a killed program leaves it
    shutil.copytree(results / "corrected", left, ignore=shutil.ignore_patterns(LOCK))
    viewer.window.remove_dock_widget(widget.native)
    shutil.rmtree(results / "corrected")
    newest = sorted((left / "versions").glob("*.tif"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    left.rename(results / "corrected")
    viewer.layers.clear()
    again, _ = docked(viewer, results)
    assert "were recovered" in again.status.value
    after = corrected(results)
    assert first not in after
    assert second in after
    again.close_button.native.click()


def test_what_could_not_be_kept_is_said_once_and_tried_again(viewer: Any, results: Path) -> None:
    widget, _ = docked(viewer, results)
    review = widget.review
    assert review is not None
    said: list[str] = []
    notification_manager.notification_ready.connect(lambda event: said.append(event.message))
    versions = results / "corrected" / "versions"
    versions.write_text("in the way")  # as a full disk is
    widget._timer.stop()

    def attempt() -> str:
        """One more try; every second tells how the one before it ended."""
        widget._keep()
        if review._writing is not None:
            wait([review._writing])
        return str(widget.status.value)

    review.delete()
    seen = [attempt() for _ in range(6)]
    assert sum("cannot write" in text for text in seen) > 1
    assert len(said) == 1
    assert "cannot write" in said[0]
    versions.unlink()
    for _ in range(3):
        attempt()
    assert review.copy.versions.numbers
    assert len(said) == 1
    widget.close_button.native.click()
