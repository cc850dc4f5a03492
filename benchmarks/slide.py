"""A whole slide end to end, on pyramids made from real tissue.

    python benchmarks/slide.py TISSUE [--edge 4096 16384] [--share 0.5] [--steps 0] [--device cpu]

TISSUE is a slide or image of tissue with its resolution. For each edge, a JPEG pyramid of so many
pixels at 0.25 µm is made, `--share` of its rows covered with that tissue, the rest glass. Each is
segmented in a process of its own. Printed are megapixels a second of the slide, end to end; seconds
reading, in the model, decoding and writing, which overlap; the part of the time in which the model
was busy; and the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile

from cdal_engine.io.discovery import open_source

MPP, TILE = 0.25, 512


def tissue_of(path: Path) -> np.ndarray:
    """Pixels of the tissue at 0.25 µm, cut to whole tiles of the pyramid."""
    source = open_source(path)
    zoom = (source.mpp or MPP) / MPP
    pixels = cv2.resize(source.read(), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    height, width = (max(n // TILE, 1) * TILE for n in pixels.shape[:2])
    return np.resize(pixels[:height, :width], (height, width, 3))


def tiles(tissue: np.ndarray, edge: int, share: float, step: int) -> Iterator[np.ndarray]:
    """Tiles of a level, row by row: every `step`th pixel of tissue, repeated, then of glass."""
    glass = np.full((TILE, TILE, 3), 243, np.uint8)
    along = np.arange(TILE)
    for y in range(0, edge, TILE):
        rows = (y + along) * step % tissue.shape[0]
        below = y + along >= share * edge
        for x in range(0, edge, TILE):
            columns = (x + along) * step % tissue.shape[1]
            if below.all():
                yield glass
            else:
                yield np.where(below[:, None, None], glass, tissue[rows[:, None], columns])


def write_pyramid(path: Path, tissue: np.ndarray, edge: int, share: float) -> None:
    """Write a pyramid of levels four times smaller each, down to 1024 pixels."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        step = 1
        while edge // step >= min(edge, 1024):
            size = edge // step
            resolution = (1e4 / (MPP * step),) * 2
            tiff.write(
                tiles(tissue, size, share, step),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="jpeg",
                photometric="rgb",
                subfiletype=min(step - 1, 1),
                resolution=resolution,
                resolutionunit="CENTIMETER",
            )
            step *= 4


def measure(path: Path, options: argparse.Namespace) -> str:
    """Segment one slide in a process of its own; one line of what it took."""
    out = path.parent / "out"
    command = [sys.executable, "-c", "from cdal_engine.cli import main; main()", "segment"]
    command += [str(path), "-o", str(out), "--device", options.device, "--restart"]
    command += ["--model", options.model, "--samples", str(options.samples)]
    command += [] if options.steps is None else ["--steps", str(options.steps)]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    wall = time.perf_counter() - start
    run = json.loads((out / path.name / "run.json").read_text())
    seconds = run["seconds"]
    split = "  ".join(f"{name} {value:6.1f}" for name, value in seconds.items())
    pixels = np.prod(run["input"]["shape"]) / 1e6
    return (
        f"{path.stem:>6}  {pixels / wall:6.2f} MP/s  {wall:7.1f} s  {split}  "
        f"model busy {seconds['model'] / wall:4.0%}  {run['peak_memory_mb']:6.0f} MB  "
        f"{run['counts']['objects']} objects"
    )


def main() -> None:
    """Print one line for each edge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tissue", type=Path)
    parser.add_argument("--edge", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--model", default="nuclei-he")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    tissue = tissue_of(options.tissue)
    with tempfile.TemporaryDirectory() as folder:
        for edge in options.edge:
            path = Path(folder) / f"{edge}.tif"
            write_pyramid(path, tissue, edge, options.share)
            print(measure(path, options), flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
