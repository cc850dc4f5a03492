"""cdal evaluate: every metric on a folder of images and labels."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .progress import bars


def evaluate(
    data: Annotated[Path, typer.Argument(help="Folder with images/ and labels/ (or masks/).")],
    model: options.Model = "nuclei-he",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for all figures.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Only the validation images this training config names.")
    ] = None,
    samples: options.Samples = 5,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    tile: options.Tile = None,
    mpp: options.Mpp = None,
) -> None:
    """Score a model on labelled images, beside its own deterministic answer (--steps 0)."""
    from ..config import TrainConfig
    from ..model import Model
    from ..segmenter import Segmenter
    from ..training import validation
    from ..training.dataset import find_pairs, split

    pairs = find_pairs(data)
    if config is not None:
        pairs = split(pairs, TrainConfig.from_file(config))[1]
    segmenter = Segmenter(Model.load(model), device, tile)
    segmenter.check_options(samples, steps)
    report: dict[str, object] = {
        "model": {"name": segmenter.model.name, "digest": segmenter.model.digest},
        "samples": samples,
        "steps": steps,
        "seed": seed,
    }
    means = {}

    def on_image(stem: str, _: dict[str, float]) -> None:
        shown.start(stem)
        shown.finish()

    with bars(2 * len(pairs)) as shown:
        for answer, n in (("sampled", steps), ("supervised", 0)):
            scores = validation.evaluate(
                segmenter,
                pairs,
                mpp=mpp,
                samples=samples,
                steps=n,
                seed=seed,
                on_image=on_image,
            )
            means[answer] = validation.mean_of(scores)
            report[answer] = {"mean": means[answer], "images": scores}
    for name, value in means["sampled"].items():
        beside = means["supervised"].get(name)
        typer.echo(f"{name:<18} {value:8.4f}   " + (f"supervised {beside:.4f}" if beside else ""))
    if output is not None:
        aside = output.with_name(output.name + ".tmp")
        aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        os.replace(aside, output)
