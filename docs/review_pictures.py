"""Make the pictures of docs/review.md with the real program: python docs/review_pictures.py FOLDER

FOLDER holds results of a slide, as `cdal segment SLIDE -o OUT` writes them (OUT/SLIDE). They are
copied first. Opens napari (with a display, or under `xvfb-run`), reviews a region and fine-tunes
on it for `--minutes`, and saves the window at each step in docs/images/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import napari
from screenshot import wait

from napari_cdal.review_widget import ReviewWidget

IMAGES = Path(__file__).parent / "images"


def save(viewer: napari.Viewer, name: str) -> None:
    wait(1.5)
    viewer.screenshot(str(IMAGES / f"{name}.png"), canvas_only=False, flash=False)


def review(viewer: napari.Viewer, widget: ReviewWidget) -> None:
    """A few objects by the keys' own functions, with a picture of the first."""
    widget.scope.value = "doubtful"
    widget.open_button.native.click()
    wait(1)
    save(viewer, "review-object")
    for name in ("accept", "delete", "accept", "accept", "delete"):
        widget.actions[name].native.click()
        wait(0.2)
    widget.colours.value = "agreement"
    assert widget.review is not None
    viewer.fit_to_view(layers=[widget.review.layer])
    save(viewer, "review-colours")
    widget.colours.value = "object"
    widget.reviewed_button.native.click()


def learn(viewer: napari.Viewer, widget: Any, minutes: int) -> None:
    widget.tabs.setCurrentIndex(1)
    page = widget.learning
    page.minutes.value = minutes
    page.learn_button.native.click()
    while page.running:
        wait(0.5)
    save(viewer, "review-learn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=int, default=8)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    folder = shutil.copytree(options.folder, work / options.folder.name)
    shutil.rmtree(folder / "corrected", ignore_errors=True)
    os.environ["CDAL_MODELS"] = str(work / "models")  # the new model is of nobody
    viewer = napari.Viewer()
    viewer.window.resize(1500, 920)
    viewer.open(str(folder), plugin="napari-cdal")
    _, widget = viewer.window.add_plugin_dock_widget("napari-cdal", "Review")
    wait(1)
    review(viewer, widget)
    review(viewer, widget)
    learn(viewer, widget, options.minutes)
    viewer.close()
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
