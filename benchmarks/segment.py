"""Seconds and peak memory for one image, through the Segmenter and through the command line.

    python benchmarks/segment.py [--model nuclei-he] [--image FILE] [--size 1000] [--device auto]

Each row runs in a process of its own, so that its peak memory is its own: one run to warm up, then
the median of five. The networks and decoding are timed, not loading the model and the image.
Then whole commands, from their start to their end, each the median of five. Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS = ((5, None), (1, None), (1, 0))  # samples, steps (None: the model's)
REPEATS = 5


def measure(options: argparse.Namespace) -> dict[str, object]:
    """One row, in this process."""
    import torch

    from cdal_engine.io.discovery import open_source
    from cdal_engine.samples import he_path
    from cdal_engine.segmenter import Segmenter

    pixels = open_source(options.image or he_path()).read()
    times = [-(-options.size // n) for n in pixels.shape[:2]]
    image = np.tile(pixels, (*times, 1))[: options.size, : options.size]
    segmenter = Segmenter.from_pretrained(options.model, options.device)
    loaded = peak_megabytes()
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        result = segmenter.segment(
            image, samples=options.samples, steps=options.steps, attention=False
        )
        if segmenter.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds[1:]),
        "spread": max(seconds[1:]) - min(seconds[1:]),
        "loaded": loaded,
        "peak": peak_megabytes(),
        "objects": len(result.objects["label"]),
        "device": str(segmenter.device),
        "steps": segmenter.model.config.diffusion.steps if options.steps is None else options.steps,
    }


def peak_megabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def command_seconds(*command: str) -> float:
    """Median seconds of a command, its output dropped."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def commands(options: argparse.Namespace) -> None:
    """Print the time of whole commands."""
    from PIL import Image

    from cdal_engine.samples import he_path

    cdal = ("-c", "from cdal_engine.cli import main; main()")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        pixels = np.asarray(Image.open(options.image or he_path()).convert("RGB"))
        times = [-(-options.size // n) for n in pixels.shape[:2]]
        Image.fromarray(np.tile(pixels, (*times, 1))[: options.size, : options.size]).save(path)
        segment = (*cdal, "segment", str(path), "--restart", "--model", options.model)
        segment += ("--device", options.device, "-o", str(Path(folder) / "out"))
        print("| command | seconds |\n|---|---|")
        for name, command in {
            f"cdal segment, {options.size}x{options.size}": segment,
            "the same, --steps 0": (*segment, "--steps", "0"),
            "cdal --help": (*cdal, "--help"),
            "import napari_cdal": ("-c", "import napari_cdal"),
        }.items():
            print(f"| {name} | {command_seconds(*command):.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nuclei-he")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    if options.samples is not None:
        print(json.dumps(measure(options)))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print("| samples x steps | seconds | spread | peak memory MB | of it before | objects |")
    print("|---|---|---|---|---|---|")
    for samples, steps in ROWS:
        more = ["--samples", str(samples)] + ([] if steps is None else ["--steps", str(steps)])
        ended = subprocess.run(
            [sys.executable, *sys.argv, *more], check=True, stdout=subprocess.PIPE, text=True
        )
        row = json.loads(ended.stdout)
        print(
            f"| {samples} x {row['steps']} on {row['device']} | {row['seconds']:.2f} "
            f"| {row['spread']:.2f} | {row['peak']:.0f} | {row['loaded']:.0f} | {row['objects']} |",
            flush=True,
        )
    commands(options)


if __name__ == "__main__":
    main()
