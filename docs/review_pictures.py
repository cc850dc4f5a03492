"""Make the pictures of docs/review.md with the real program: python docs/review_pictures.py DATA

DATA is the MoNuSeg training set, `images/` and `labels/`. Of the image that `nuclei-he` is weakest
on, three quarters are reviewed and learned from, the data set's own labels in the place of a
person, and the fourth is only looked at. Opens napari (with a display, or under `xvfb-run`), goes
through the page's steps, and saves the window, and what the new model finds, in docs/images/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import napari
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from screenshot import run, wait

from cdal_engine import metrics
from cdal_engine.model import Model
from cdal_engine.segmenter import Segmenter
from cdal_engine.training.dataset import find_pairs, read_pair
from cdal_engine.weights import available
from napari_cdal.review import Review
from napari_cdal.review_widget import ReviewWidget

IMAGES = Path(__file__).resolve().parent / "images"
STEM, MPP = "TCGA-50-5931-01Z-00-DX1", 0.25
LOW, HIGH = slice(0, 500), slice(500, 1000)
REVIEWED, UNSEEN = ((LOW, LOW), (LOW, HIGH), (HIGH, LOW)), (HIGH, HIGH)


def save(viewer: napari.Viewer, name: str) -> None:
    wait(1.5)
    window = viewer.screenshot(canvas_only=False, flash=False)
    Image.fromarray(window).convert("RGB").save(IMAGES / f"{name}.jpg", quality=85)


def segmented(viewer: napari.Viewer, pixels: NDArray) -> None:
    """The image as the shipped model sees it, and rectangles for the regions to review."""
    place = {"scale": (MPP, MPP), "units": ("micrometer", "micrometer")}
    viewer.add_image(pixels, name=STEM, rgb=True, **place)
    _, widget = viewer.window.add_plugin_dock_widget("napari-cdal", "Segment")
    wait(1)
    for name in ("probability", "uncertainty", "attention"):
        widget.form.wanted[name].value = False
    run(widget)
    save(viewer, "review-segmented")
    viewer.window.remove_dock_widget(widget.native)
    boxes = [
        [[y.start, x.start], [y.start, x.stop - 1], [y.stop - 1, x.stop - 1], [y.stop - 1, x.start]]
        for y, x in REVIEWED
    ]
    regions = viewer.add_shapes(boxes, name="regions", **place)
    regions.visible = False


def in_the_middle(review: Review) -> bool:
    """Whether the object under review has tissue all around it."""
    middle = np.argwhere(review.layer.data == review.current).mean(axis=0)
    return bool((np.abs(middle - 250) < 120).all())


def review(viewer: napari.Viewer, widget: ReviewWidget, truth: NDArray, pictures: bool) -> None:
    """Open the next region, make it right as the truth has it, and mark it as reviewed."""
    widget.scope.value = viewer.layers["regions"]
    widget.open_button.native.click()
    assert widget.review is not None, widget.status.value
    if pictures:
        widget.actions["next"].native.click()
        while not in_the_middle(widget.review):
            widget.actions["next"].native.click()
        save(viewer, "review-object")
        for name in ("accept", "delete", "accept", "accept", "delete"):
            widget.actions[name].native.click()
            wait(0.2)
        widget.colours.value = "agreement"
        viewer.fit_to_view(layers=[widget.review.layer])
        save(viewer, "review-colours")
        widget.colours.value = "object"
    layer, part = widget.review.layer, truth[widget.review.box]
    drawn = np.where(part > 0, part + widget.review.copy.next_label, 0)
    layer.data_setitem(np.nonzero(drawn != layer.data), drawn[drawn != layer.data])
    widget.reviewed_button.native.click()


def learn(viewer: napari.Viewer, widget: Any, minutes: int) -> None:
    widget.tabs.setCurrentIndex(1)
    page = widget.learning
    page.minutes.value = minutes
    page.learn_button.native.click()
    while page.running:
        wait(0.5)
    viewer.fit_to_view()
    save(viewer, "review-learn")
    assert page.name.value in page.model.choices, page.status.text()  # it helped


def compared(image: NDArray, truth: NDArray, models: dict[str, Path]) -> None:
    """What was never looked at: true outlines beside those of the old and the new model."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, 3)
    answers = {"true": truth[UNSEEN]}
    for name in models:
        segmenter = Segmenter(Model.load(models[name]), "cpu")
        answers[name] = segmenter.segment(image, mpp=MPP, region=UNSEEN).labels
    for panel, (name, found) in zip(axes, answers.items(), strict=True):
        panel.imshow(image[UNSEEN])
        panel.contour(found > 0, [0.5], colors="yellow", linewidths=0.8)
        dice = metrics.dice(found > 0, truth[UNSEEN] > 0)
        pq = metrics.panoptic_quality(found, truth[UNSEEN])["pq"]
        scores = "" if name == "true" else f": Dice {dice:.3f}, PQ {pq:.3f}"
        panel.set(title=f"{name}{scores}", xticks=[], yticks=[])
    figure.savefig(IMAGES / "review-better.jpg", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=int, default=8)
    options = parser.parse_args()
    data, work = options.data.resolve(), Path(tempfile.mkdtemp())
    os.chdir(work)
    os.environ["CDAL_MODELS"] = "models"  # the new model is of nobody, and its path short
    (pair,) = (pair for pair in find_pairs(data) if pair.stem == STEM)
    image, truth, _ = read_pair(pair, Model.load(available()["nuclei-he"]).config, MPP)
    viewer = napari.Viewer()
    viewer.window.resize(1500, 920)
    segmented(viewer, image)
    _, widget = viewer.window.add_plugin_dock_widget("napari-cdal", "Review")
    wait(1)
    for number in range(len(REVIEWED)):
        review(viewer, widget, truth, pictures=number == 0)
    learn(viewer, widget, options.minutes)
    viewer.close()
    models = available()
    compared(image, truth, {name: models[name] for name in ("nuclei-he", "nuclei-he-corrected")})
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
