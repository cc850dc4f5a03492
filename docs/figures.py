"""Make the pictures of the pages with the real program: python docs/figures.py [RUN]

Segments the sample that comes with the package and writes to docs/images:
overview.jpg, as `cdal demo` does, and maps.png, a part of it with what the pages explain. Of RUN,
the folder of a `cdal train`, come curves.png, and examples.png from its pictures.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cdal_engine.samples import HE_MPP, he_path
from cdal_engine.segmenter import Segmenter

OUT = Path(__file__).parent / "images"
PART = (slice(40, 240), slice(160, 360))  # rows and columns shown in maps.png


def overview() -> None:
    """The overview that `cdal demo` writes."""
    with tempfile.TemporaryDirectory() as folder:
        code = "from cdal_engine.cli import main; main()"
        subprocess.run([sys.executable, "-c", code, "demo", "-o", folder], check=True)
        (made,) = Path(folder).rglob("overview.png")
        Image.open(made).convert("RGB").save(OUT / "overview.jpg", quality=85)


def maps() -> None:
    """A part of the sample, and its probability, uncertainty and attention."""
    image = np.asarray(Image.open(he_path()).convert("RGB"))
    result = Segmenter.from_pretrained("nuclei-he", "cpu").segment(image, mpp=HE_MPP, region=PART)
    assert result.attention is not None
    figure = Figure(figsize=(12, 3.3), layout="constrained")
    panels = (
        ("image and outlines", image[PART], {}),
        ("probability", result.probability[0], {"vmin": 0, "vmax": 1, "cmap": "viridis"}),
        ("uncertainty", result.uncertainty, {"vmin": 0, "vmax": 1, "cmap": "magma"}),
        ("attention", result.attention, {"vmin": 0, "vmax": 2, "cmap": "gray"}),
    )
    for axes, (title, pixels, options) in zip(figure.subplots(1, 4), panels, strict=True):
        shown = axes.imshow(pixels, **options)
        axes.set(title=title, xticks=[], yticks=[])
        if options:
            figure.colorbar(shown, shrink=0.8)
        else:
            axes.contour(result.labels > 0, [0.5], colors="yellow", linewidths=0.8)
    figure.savefig(OUT / "maps.png", dpi=90)


def training(run: Path) -> None:
    """The curves of a training run, and its validation pictures side by side."""
    shutil.copy(run / "curves.png", OUT / "curves.png")
    pictures = [Image.open(path) for path in sorted((run / "examples").glob("*.png"))]
    height, gap = max(picture.height for picture in pictures), 8
    row = Image.new("RGB", (sum(p.width + gap for p in pictures) - gap, height), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    row.save(OUT / "examples.png")


if __name__ == "__main__":
    overview()
    maps()
    if len(sys.argv) > 1:
        training(Path(sys.argv[1]))
