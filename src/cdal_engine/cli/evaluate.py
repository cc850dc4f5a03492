"""cdal evaluate: every metric on a folder of images and labels."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from ..errors import CdalError
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
    from ..io.records import write_aside
    from ..model import Model
    from ..segmenter import Segmenter
    from ..training import validation
    from ..training.dataset import find_pairs
    from ..training.splits import split

    if output is not None and not output.parent.is_dir():
        raise CdalError("no such folder", "make it, or choose another with -o", output.parent)
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
            means[answer] = scores.mean
            report[answer] = {"mean": means[answer], "images": scores.images}
    _show(means)
    if output is not None:
        write_aside(output, (json.dumps(_without_nan(report), indent=2) + "\n").encode())


def _show(means: dict[str, dict[str, float]]) -> None:
    """Print each mean of the sampled answer, and beside it the supervised head's."""
    for name, value in means["sampled"].items():
        beside = means["supervised"].get(name)
        typer.echo(
            f"{name:<18} {value:8.4f}   " + ("" if beside is None else f"supervised {beside:.4f}")
        )


def _without_nan(value: object) -> object:
    """Turn what no number is defined for, NaN, into null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
