"""cdal evaluate: every metric on a folder of images and labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..errors import CdalError
from . import options
from .progress import Bars, bars, console
from .scoring import as_json, held_out
from .threads import use_available_processors

if TYPE_CHECKING:
    from ..segmenter import Segmenter
    from ..training.dataset import Pair
    from ..training.validation import Evaluation

Means = dict[str, dict[str, float]]  # of each answer, each metric


def evaluate(
    data: Annotated[Path, typer.Argument(help="Folder with images/ and labels/ (or masks/).")],
    model: options.Model = "nuclei-he",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for all figures.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Only the validation images this training config names.")
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="A training run, instead of --model: its best model on what it held out. Given "
            "once for each fold: mean and standard deviation over them."
        ),
    ] = None,
    samples: options.Samples = 5,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    tile: options.Tile = None,
    tile_mode: options.TileMode = "overlap",
    mpp: options.Mpp = None,
) -> None:
    """Score a model on labelled images, beside its own deterministic answer if it has one.

    An image that cannot be scored is named and left out; the exit code is 1 then.
    """
    from ..io.records import write_aside
    from ..model import Model
    from ..segmenter import Segmenter
    from ..training import validation

    if output is not None:
        _check_output(output)
    use_available_processors()
    jobs = _jobs(data, model, config, run or [])
    segmenters = [Segmenter(Model.load(job.model), device, tile) for job in jobs]
    for segmenter in segmenters:
        segmenter.check_options(samples, steps, tile_mode)
    answers = [validation.answers_of(segmenter.model.config, steps) for segmenter in segmenters]
    settings = {"samples": samples, "seed": seed, "tile_mode": tile_mode}
    reports: dict[str, dict[str, object]] = {}
    means: dict[str, Means] = {}
    left_out: list[CdalError] = []
    total = sum(len(each) * len(job.pairs) for each, job in zip(answers, jobs, strict=True))
    with bars(total) as shown:
        for job, segmenter, each in zip(jobs, segmenters, answers, strict=True):
            given = settings | {"mpp": mpp or job.mpp}
            scored, problems = _scored(job.pairs, segmenter, each, given, shown)
            left_out += problems
            if scored:
                means[job.name] = {answer: scores.mean for answer, scores in scored.items()}
            reports[job.name] = _report(segmenter, {"steps": steps} | settings, scored, problems)
    if not means:
        raise CdalError(f"no image can be scored ({len(left_out)} tried), the first: {left_out[0]}")
    over = _over(means)
    _show(over)
    if output is not None:
        write_aside(output, as_json({"runs": reports, **over} if run else reports[model]))
    raise typer.Exit(1 if left_out else 0)


def _check_output(output: Path) -> None:
    """Refuse a file that could not be written, before hours of work."""
    if not output.parent.is_dir():
        raise CdalError("no such folder", "make it, or choose another with -o", output.parent)
    if output.is_dir():
        raise CdalError("is a folder, not a file", "name a file with -o", output)


def _report(
    segmenter: "Segmenter",
    settings: dict[str, Any],
    scored: "dict[str, Evaluation]",
    left_out: list[CdalError],
) -> dict[str, object]:
    """What is written of a model and each of its answers."""
    figures = {
        answer: {"mean": each.mean, "images": each.images, "calibration": each.calibration}
        for answer, each in scored.items()
    }
    model = {"name": segmenter.model.name, "digest": segmenter.model.digest}
    problems = [str(problem) for problem in left_out]
    return {"model": model, **settings, "left_out": problems, **figures}


def _scored(
    pairs: "list[Pair]",
    segmenter: "Segmenter",
    answers: "dict[str, int | None]",
    settings: dict[str, Any],
    shown: Bars,
) -> "tuple[dict[str, Evaluation], list[CdalError]]":
    """Each answer's scores, none if no pair has any, and why pairs are left out: said at once."""
    from ..training.validation import evaluate_each

    left_out: list[CdalError] = []

    def on_image(stem: str) -> None:
        shown.start(stem)
        shown.finish()

    def on_failure(problem: CdalError) -> None:
        left_out.append(problem)
        console.print(f"left out: {problem}", markup=False, soft_wrap=True)

    evaluations = evaluate_each(
        segmenter,
        pairs,
        list(answers.values()),
        on_image=on_image,
        on_failure=on_failure,
        **settings,
    )
    scored = dict(zip(answers, evaluations, strict=True)) if len(left_out) < len(pairs) else {}
    return scored, left_out


class _Job(NamedTuple):
    """A model, the pairs it is scored on, and the µm per pixel that it was trained with."""

    name: str
    model: str | Path
    pairs: "list[Pair]"
    mpp: float | None


def _jobs(data: Path, model: str, config: Path | None, runs: list[Path]) -> list[_Job]:
    """What is scored; a fine-tuning that held out one after the other is a run for each."""
    from ..training.dataset import find_pairs
    from ..training.splits import held_out_runs

    pairs = find_pairs(data)
    if not runs and config is None:
        return [_Job(model, model, pairs, None)]
    if runs and config is not None:
        raise CdalError("--run says what is held out itself", "leave --config out")
    chosen: list[tuple[str, str | Path, Path]] = [
        (str(run), run / "best", run / "config.yaml")
        for given in runs
        for run in held_out_runs(given) or [given]
    ]
    if config is not None:
        chosen = [(model, model, config)]
    jobs = []
    for name, path, file in chosen:
        jobs.append(_Job(name, path, *held_out(pairs, file)))
    return jobs


def _over(means: dict[str, Means]) -> dict[str, Means]:
    """Mean, and standard deviation (n - 1) from two on, of each metric over the models."""
    import numpy as np

    result: dict[str, Means] = {"mean": {}, "sd": {}}
    for answer in set.intersection(*(set(each) for each in means.values())):
        rows = [each[answer] for each in means.values()]
        columns = {n: [row[n] for row in rows if n in row] for n in rows[0]}
        result["mean"][answer] = {n: float(np.mean(column)) for n, column in columns.items()}
        result["sd"][answer] = {
            n: float(np.std(column, ddof=1)) for n, column in columns.items() if len(column) > 1
        }
    return result


def _show(over: dict[str, Means]) -> None:
    """Print each metric of the sampled answer, and beside it the supervised head's."""

    def text(answer: str, name: str) -> str:
        spread = over["sd"][answer].get(name)
        return f"{over['mean'][answer][name]:.4f}" + (f" ± {spread:.4f}" if spread else "")

    for name in over["mean"]["sampled"]:
        both = name in over["mean"].get("supervised", {})
        beside = f"supervised {text('supervised', name)}" if both else ""
        typer.echo(f"{name:<20} {text('sampled', name):>8}   {beside}")
