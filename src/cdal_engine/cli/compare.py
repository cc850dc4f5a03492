"""cdal compare: several models side by side on one folder of labelled images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CdalError
from . import options
from .progress import bars, console
from .scoring import as_json, held_out
from .threads import use_available_processors

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..training.comparison import Answer
    from ..training.dataset import Pair

FILES = ("compare.json", "compare.csv", "compare.png")

# What the table shows, of the figures an answer has.
ROWS = {
    "dice": "Dice",
    "iou": "IoU",
    "aji": "AJI",
    "pq": "PQ",
    "ece": "ECE by image",
    "ece_pooled": "ECE, all pixels",
    "error_auroc": "error AUROC",
    "dice_one_sample": "Dice, one sample",
    "dice_best_sample": "Dice, best sample",
    "pairwise_dice": "Dice, pairs of samples",
    "seconds_per_image": "s per image",
    "seconds_per_megapixel": "s per megapixel",
    "peak_memory_mb": "peak memory, MB",
}


def compare(
    data: Annotated[Path, typer.Argument(help="Folder with images/ and labels/ (or masks/).")],
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="A model's name or folder; once for each to compare.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=f"Folder for {', '.join(FILES)}."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Only the validation images this training config names.")
    ] = None,
    samples: options.Samples = 5,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    tile_mode: options.TileMode = "overlap",
    mpp: options.Mpp = None,
) -> None:
    """Score models side by side, and the supervised head of each that has one: what they cost, too.

    An image that not every model takes is left out for all of them.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise CdalError(
            f"the plot needs {error.name}", "pip install 'napari-cdal[train]'"
        ) from None
    from ..training import comparison
    from ..training.dataset import find_pairs

    configs = _configs(model)
    comparison.check_comparable(configs)
    pairs = find_pairs(data)
    if config is not None:
        pairs, trained_at = held_out(pairs, config)
        mpp = mpp or trained_at
    pairs, left_out = comparison.usable(configs, pairs, mpp)
    _check_output(output)
    for problem in left_out:
        console.print(f"left out: {problem}", markup=False, soft_wrap=True)
    settings = {"samples": samples, "seed": seed, "tile_mode": tile_mode}
    compared, where = _compared(configs, pairs, device, {"mpp": mpp, **settings})
    _show(compared, configs)
    if output is not None:
        _write(output, compared, {"device": where, **settings}, left_out)
    raise typer.Exit(1 if left_out else 0)


def _compared(
    configs: "dict[str, ModelConfig]", pairs: "list[Pair]", device: str, settings: dict[str, Any]
) -> "tuple[list[Answer], str]":
    """Every answer of every model, one model after the other, and the device they ran on."""
    from ..model import Model
    from ..segmenter import Segmenter
    from ..training.comparison import answers

    use_available_processors()
    instances = any(each.target == "nuclei" for each in configs.values())
    compared: list[Answer] = []
    where = ""
    with bars(sum(1 + each.network.has_head for each in configs.values()) * len(pairs)) as shown:

        def on_image(stem: str) -> None:
            shown.start(stem)
            shown.finish()

        for name in configs:
            segmenter = Segmenter(Model.load(name), device)
            compared += answers(
                name, segmenter, pairs, instances=instances, on_image=on_image, **settings
            )
            where = str(segmenter.device)
            del segmenter  # its memory would be counted as the next one's
    return compared, where


def _check_output(output: Path | None) -> None:
    """Make the folder; refuse one that cannot be used, or holds a comparison already."""
    if output is None:
        return
    there = [name for name in FILES if (output / name).exists()]
    if there:
        raise CdalError(f"{', '.join(there)} is there already", "choose another with -o", output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made a folder: {error.strerror}"
        raise CdalError(reason, "choose another with -o", output) from None


def _configs(models: Sequence[str]) -> "dict[str, ModelConfig]":
    """Configs of the models by the name given; each model is loaded later, when it is its turn."""
    from ..config import read_model_config
    from ..weights import find

    if len(set(models)) < len(models):
        raise CdalError("a model is given twice", "give each to compare once")
    return {name: read_model_config(find(name) / "config.json") for name in models}


def _show(compared: "Sequence[Answer]", configs: "dict[str, ModelConfig]") -> None:
    """Print a column for each answer, and a line for each figure that any of them has."""
    from rich.console import Console
    from rich.table import Table

    from ..training.comparison import titles

    classes = {name for each in configs.values() for name in each.classes}
    figures = [answer.figures for answer in compared]
    labels = ROWS | {f"dice_{name}": f"Dice, {name}" for name in sorted(classes)}
    table = Table("", *titles(compared))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, label in labels.items():
        if any(name in row for row in figures):
            table.add_row(label, *(_text(name, row.get(name)) for row in figures))
    Console(highlight=False).print(table)


def _text(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if name == "peak_memory_mb" else f"{value:.4f}"


def _write(
    output: Path,
    compared: "Sequence[Answer]",
    settings: dict[str, object],
    left_out: Sequence[CdalError],
) -> None:
    from ..io.records import write_aside, writing
    from ..training.comparison import as_csv, draw

    report = settings | {
        "left_out": [str(problem) for problem in left_out],
        "answers": [
            {
                "model": {"name": answer.model, "digest": answer.digest},
                "answer": answer.kind,
                "steps": answer.steps,
                "mean": answer.figures,
                "images": answer.evaluation.images,
            }
            for answer in compared
        ],
    }
    with writing(output):
        for name, content in zip(
            FILES, (as_json(report), as_csv(compared), draw(compared)), strict=True
        ):
            write_aside(output / name, content)
