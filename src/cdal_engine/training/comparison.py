"""Several models on the same labelled images: what each answers, what it costs, and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from ..config import ModelConfig
from ..device import peak_memory
from ..errors import CdalError
from ..preparation import prepare
from ..segmenter import Segmenter
from .dataset import Pair, read_pair
from .validation import Evaluation, Scores, answers_of, evaluate_each

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Answer", "answers", "as_csv", "check_comparable", "draw", "titles", "usable"]

_TITLE = 32  # letters of a model's name beside others


@dataclass(frozen=True)
class Answer:
    """One way to answer, on all images: a model's samples, or its supervised head.

    Attributes
    ----------
    model, digest : str
    kind : str
        `sampled` or `supervised`.
    steps : int
        T; 0 for the head.
    evaluation : Evaluation
    peak_memory_mb : float or None
        See `device.peak_memory`; of a process, all of it is in there, Python and torch included.
    """

    model: str
    digest: str
    kind: str
    steps: int
    evaluation: Evaluation
    peak_memory_mb: float | None

    @property
    def figures(self) -> Scores:
        """Mean scores, then what it cost; of the seconds the median, as the first image warms up.

        Figures that are not known are left out.
        """
        seconds = np.array(self.evaluation.seconds)
        costs = {
            "seconds_per_image": float(np.median(seconds)),
            "seconds_per_megapixel": float(np.median(seconds / self.evaluation.megapixels)),
        }
        if self.peak_memory_mb is not None:
            costs["peak_memory_mb"] = self.peak_memory_mb
        return self.evaluation.mean | costs


def titles(compared: Sequence[Answer]) -> list[str]:
    """What to call each beside the others: short, as models given by their folders have long names.

    Folders of one name are told apart by the ends of their paths.
    """
    models = {answer.model for answer in compared}
    short = {model: PurePath(model).name or model for model in models}
    if len(set(short.values())) < len(models):
        short = {model: model for model in models}
    cut = {
        model: name if len(name) <= _TITLE else f"…{name[1 - _TITLE :]}"
        for model, name in short.items()
    }
    return [
        cut[answer.model] + ("" if answer.kind == "sampled" else ", head") for answer in compared
    ]


def check_comparable(configs: Mapping[str, ModelConfig]) -> None:
    """Raise `CdalError` unless the models find the same: objects, or the same classes."""
    (first, one), *others = configs.items()
    for name, other in others:
        if _finds(one) != _finds(other):
            raise CdalError(
                f"{first} finds {_finds(one)}, {name} finds {_finds(other)}",
                "compare models of one kind",
            )


def _finds(config: ModelConfig) -> str:
    # Of one class, names do not matter: a published model may call a nucleus `class 1`.
    return ", ".join(config.classes) if config.target == "classes" else "objects of one class"


def usable(
    configs: Mapping[str, ModelConfig], pairs: Sequence[Pair], mpp: float | None
) -> tuple[list[Pair], list[CdalError]]:
    """Pairs that every model takes, and why the others are left out.

    Raises
    ------
    CdalError
        If none is left.
    """
    resolutions = sorted({config.image.mpp for config in configs.values() if config.image.mpp})
    taken, problems = [], []
    for pair in pairs:
        try:
            known = [_check(name, config, pair, mpp) for name, config in configs.items()]
            if len(resolutions) > 1 and None in known:
                # each model would take it to be at its own
                at = " and ".join(f"{resolution:.4g}" for resolution in resolutions)
                raise CdalError(
                    f"the file says no resolution, and the models are for {at} µm per pixel",
                    "give --mpp",
                    pair.image,
                )
        except CdalError as error:
            problems.append(error)
        else:
            taken.append(pair)
    if not taken:
        raise CdalError(f"no image can be compared ({len(pairs)} tried), the first: {problems[0]}")
    return taken, problems


def _check(name: str, config: ModelConfig, pair: Pair, mpp: float | None) -> float | None:
    """Read a pair as a model does, and return the micrometres per pixel of the image."""
    try:
        image, _, own = read_pair(pair, config, mpp)
        if not pair.is_volume:
            prepare(image, config.image)
        return own
    except CdalError as error:
        if error.path is not None:  # a file that no model can read
            raise
        raise CdalError(f"{name}: {error.reason}", error.remedy, pair.image) from None


def answers(
    name: str,
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    *,
    instances: bool,
    mpp: float | None = None,
    samples: int = 5,
    seed: int = 0,
    tile_mode: str = "overlap",
    on_image: Callable[[str], None] | None = None,
) -> Iterator[Answer]:
    """Score every answer of one model; options as `validation.evaluate_each`.

    `tile_mode` is for imported models, others have one answer. Load no other model meanwhile:
    its memory would be counted.
    """
    model = segmenter.model
    mode = tile_mode if model.config.network.fixed_tile else "overlap"
    for kind, steps in answers_of(model.config).items():
        with peak_memory(segmenter.device) as peak:
            (evaluation,) = evaluate_each(
                segmenter,
                pairs,
                (steps,),
                mpp=mpp,
                samples=samples,
                seed=seed,
                tile_mode=mode,
                instances=instances,
                on_image=on_image,
            )
            megabytes = peak()
        trained = model.config.diffusion.steps
        yield Answer(
            name, model.digest, kind, trained if steps is None else steps, evaluation, megabytes
        )


def as_csv(compared: Sequence[Answer]) -> bytes:
    """One row an answer, one column a figure."""
    figures = [answer.figures for answer in compared]
    names = list(dict.fromkeys(name for row in figures for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["model", "answer", "steps", *names], lineterminator="\n")
    writer.writeheader()
    for answer, row in zip(compared, figures, strict=True):
        what = {"model": answer.model, "answer": answer.kind, "steps": answer.steps}
        writer.writerow(what | {name: f"{value:.6g}" for name, value in row.items()})
    return text.getvalue().encode()


def draw(compared: Sequence[Answer]) -> bytes:
    """Draw Dice of each image, calibration and seconds a megapixel, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    dice, calibration, cost = figure.subplots(1, 3)
    _draw_dice(dice, compared)
    _draw_calibration(calibration, compared)
    names = titles(compared)
    seconds = [answer.figures["seconds_per_megapixel"] for answer in compared]
    bars = cost.barh(names, seconds, color=[f"C{i}" for i in range(len(names))])
    cost.bar_label(bars, fmt="%.3g", padding=3)
    cost.set(title="Seconds a megapixel", xscale="log", xlim=(min(seconds) / 3, max(seconds) * 4))
    cost.tick_params(axis="x", which="both", bottom=False, labelbottom=False)  # the bars say it
    cost.invert_yaxis()
    png = io.BytesIO()
    figure.savefig(png, dpi=110, format="png")
    return png.getvalue()


def _draw_dice(axes: Axes, compared: Sequence[Answer]) -> None:
    for i, answer in enumerate(compared):
        scores = [row["dice"] for row in answer.evaluation.images.values()]
        axes.plot(np.linspace(i - 0.2, i + 0.2, len(scores)), scores, "o", ms=4, alpha=0.6)
        axes.hlines(float(np.mean(scores)), i - 0.35, i + 0.35, color="black")
    axes.set_xticks(range(len(compared)), titles(compared), rotation=20, ha="right")
    axes.set(title="Dice: each image, and their mean")
    axes.grid(axis="y", alpha=0.3)


def _draw_calibration(axes: Axes, compared: Sequence[Answer]) -> None:
    axes.plot([0, 1], [0, 1], color="gray", lw=1)
    for title, answer in zip(titles(compared), compared, strict=True):
        shown, error = answer.evaluation.calibration, answer.evaluation.mean["ece_pooled"]
        label = f"{title}: {error:.3f}"
        axes.plot(shown["probability"], shown["true"], "o-", ms=3, label=label)
    axes.set(
        title="Calibration, and its error over all pixels",
        xlabel="probability said",
        ylabel="share that is true",
    )
    axes.grid(alpha=0.3)
    axes.legend()
