"""cdal train: from a folder of images and labels to a model."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import Cancelled, CdalError
from . import options
from .interrupt import deferred
from .progress import console, share_bar

if TYPE_CHECKING:
    from ..config import TrainConfig
    from ..model import Model


def train(
    data: Annotated[Path, typer.Argument(help="Folder with images/ and labels/ (or masks/).")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Run folder. [default: cdal-runs/TIME]"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML or JSON with training options.")] = None,
    init: Annotated[str | None, typer.Option(help="Model to start from: fine-tuning.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Stop after so long.")] = None,
    device: options.Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run folder's checkpoint.")
    ] = False,
) -> None:
    """Train or fine-tune a model; the best by validation lies in RUN/best."""
    try:
        from ..training.loop import Trainer
    except ImportError as error:
        raise CdalError(
            f"training needs {error.name}", "pip install 'napari-cdal[train]'"
        ) from None
    from ..model import Model
    from ..training.dataset import match_files
    from ..training.splits import split

    if resume and output is None:
        raise CdalError("--resume needs the run's folder", "give it with -o")
    if resume and init is not None:
        raise CdalError("--resume goes on from a checkpoint, not from --init", "give one of them")
    run = output or Path("cdal-runs") / time.strftime("%Y%m%d-%H%M%S")
    start = Model.load(init) if init else None
    settings = _settings(run / "config.yaml" if resume and config is None else config, start)
    changes = {"steps": steps, "minutes": minutes}
    settings = settings.model_copy(update={k: v for k, v in changes.items() if v is not None})
    found, known = match_files(data)
    pairs = split(found, settings, known)
    typer.echo(f"{len(pairs[0])} training and {len(pairs[1])} validation images; run: {run}")
    trainer = Trainer(settings, pairs, run, device, resume, start, known)
    with deferred(_told) as stop, share_bar("training") as update:

        def report(row: dict[str, float]) -> None:
            loss = row.get("reconstruction", float("nan"))
            rate = row["seconds"] / row["step"]
            text = f"step {row['step']:.0f}, {rate:.2f} s each, loss {loss:.3f}"
            update(text, row["progress"])
            if "dice" in row:
                scores = ", ".join(f"{k} {row[k]:.3f}" for k in ("dice", "aji", "pq") if k in row)
                console.print(f"step {row['step']:.0f}, validation: {scores}")

            if stop:
                raise Cancelled

        try:
            best = trainer.run(report)
        except Cancelled:
            console.print(f"saved; go on with --resume -o {run}", markup=False, soft_wrap=True)
            raise KeyboardInterrupt from None
    typer.echo(f"best model: {best}; use it with --model {best}")


def _told() -> None:
    console.print("ending after this step …")


def _settings(config: Path | None, start: "Model | None") -> "TrainConfig":
    """Read the config, or take the defaults for the model to start from."""
    from ..config import TrainConfig

    if config is not None:
        return TrainConfig.from_file(config)
    return TrainConfig() if start is None else TrainConfig(model=start.config)
