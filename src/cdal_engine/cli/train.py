"""cdal train: from a folder of images and labels to a model."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ..errors import Cancelled, CdalError
from . import options
from .interrupt import deferred
from .progress import console, share_bar
from .threads import use_available_processors

if TYPE_CHECKING:
    from ..config import TrainConfig
    from ..model import Model

_T = TypeVar("_T")
_Report = Callable[[dict[str, float]], None]


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
    folds: Annotated[
        int | None, typer.Option(min=2, help="Cross-validation: parts of the patients.")
    ] = None,
    fold: Annotated[
        int | None, typer.Option(min=1, help="Which of --folds is held out, from 1.")
    ] = None,
    device: options.Device = "auto",
    devices: Annotated[
        int, typer.Option(min=1, help="GPUs, or processes on the CPU, that share each batch.")
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run folder's checkpoint.")
    ] = False,
) -> None:
    """Train or fine-tune a model; the best by validation lies in RUN/best."""
    try:
        from ..training import finetune
        from ..training.loop import Trainer
    except ImportError as error:
        raise CdalError(
            f"training needs {error.name}", "pip install 'napari-cdal[train]'"
        ) from None
    from ..model import Model
    from ..training.dataset import match_files
    from ..training.splits import split

    use_available_processors()
    _check_resume(resume, output, init)
    run = output or Path("cdal-runs") / time.strftime("%Y%m%d-%H%M%S")
    start = Model.load(init) if init else None
    config = run / "config.yaml" if resume and config is None else config
    settings = _changed(_settings(config, start), steps, minutes, folds, fold)
    found, known = match_files(data)
    outcome: finetune.Outcome | None
    if start and not known and finetune.is_leave_one_out(found, settings):
        typer.echo(f"{len(found)} images, each held out in turn; run: {run}")
        outcome = _watched(
            lambda report: finetune.fine_tune(settings, found, run, device, start, report, devices),
            "start again with another -o",
        )
    else:
        pairs = split(found, settings, known)
        typer.echo(f"{len(pairs[0])} training and {len(pairs[1])} validation images; run: {run}")
        trainer = Trainer(settings, pairs, run, device, resume, start, known, devices)
        _watched(trainer.run, f"saved; go on with --resume -o {run}")
        outcome = finetune.outcome_of(run, settings)
    if outcome is not None:
        typer.echo(f"{outcome}")
    _say_best(run / "best", init, outcome is None or outcome.better)


def _say_best(best: Path, init: str | None, learned: bool) -> None:
    """Say what `best` is; a model as it was keeps its card."""
    from ..io.records import write_aside
    from ..weights import find

    if learned:
        typer.echo(f"best model: {best}; use it with --model {best}")
        return
    typer.echo(f"fine-tuning did not make it better: {best} is the model as it was")
    if init is not None and (card := find(init) / "CARD.md").is_file():
        write_aside(best / card.name, card.read_bytes())


def _watched(work: Callable[[_Report], _T], saved: str) -> _T:
    """Run training with its progress shown; Ctrl-C ends it between steps and says `saved`."""
    with deferred(_told) as stop, share_bar("training") as update:

        def report(row: dict[str, float]) -> None:
            text = f"step {row['step']:.0f}, {row['seconds'] / max(row['step'], 1):.2f} s each"
            if "answers" in row:
                text += f", validation: {row['answers']:.0f} answers"
            elif "reconstruction" in row:
                text += f", loss {row['reconstruction']:.3f}"
            update(text, row["progress"])
            if "dice" in row:
                scores = ", ".join(f"{k} {row[k]:.3f}" for k in ("dice", "aji", "pq") if k in row)
                console.print(f"step {row['step']:.0f}, validation: {scores}")
            if stop:
                raise Cancelled

        try:
            return work(report)
        except Cancelled:
            console.print(saved, markup=False, soft_wrap=True)
            raise KeyboardInterrupt from None


def _check_resume(resume: bool, output: Path | None, init: str | None) -> None:
    if resume and output is None:
        raise CdalError("--resume needs the run's folder", "give it with -o")
    if resume and init is not None:
        raise CdalError("--resume goes on from a checkpoint, not from --init", "give one of them")


def _told() -> None:
    console.print("ending after this step or image …")


def _settings(config: Path | None, start: "Model | None") -> "TrainConfig":
    """Read the config over the defaults, or over those of fine-tuning the model to start from."""
    from ..config import TrainConfig
    from ..training import finetune

    base = TrainConfig() if start is None else finetune.defaults(start.config)
    return base if config is None else TrainConfig.from_file(config, base)


def _changed(
    settings: "TrainConfig",
    steps: int | None,
    minutes: float | None,
    folds: int | None,
    fold: int | None,
) -> "TrainConfig":
    """Put what the command line says in place of the config's."""
    from ..config import TrainConfig, validated

    if (folds is None) != (fold is None):
        raise CdalError("--folds K and --fold I belong together", "give both or neither")
    changes = {"steps": steps, "minutes": minutes, "fold": (fold, folds) if folds else None}
    changes = {name: value for name, value in changes.items() if value is not None}
    return validated(TrainConfig, settings.model_dump() | changes)
