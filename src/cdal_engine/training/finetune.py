"""Fine-tuning to a few images: gentle defaults, and a judgement on images that were held out.

From five patients on, a fifth is held out; of fewer, each in turn, and if that shows that
fine-tuning helps, it is done once more with all of them. What did not get better is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import ModelConfig, TrainConfig
from ..errors import CdalError
from ..model import Model
from .curves import read_rows
from .dataset import Pair
from .loop import Report, Trainer, deciding_score
from .splits import HELD_OUT
from .validation import Scores

__all__ = ["Outcome", "defaults", "fine_tune", "is_leave_one_out", "outcome_of"]

_FEW = 5  # patients; fewer are held out one by one


def defaults(model: ModelConfig) -> TrainConfig:
    """What fine-tuning does to a model of this config unless the user says otherwise.

    Raises
    ------
    CdalError
        If it is of the published architecture.
    """
    if model.network.architecture != "amortized":
        raise CdalError("an imported model cannot be fine-tuned", "start from one of our own")
    return TrainConfig(
        model=model,
        steps=200,
        learning_rate=1e-4,
        discriminator_learning_rate=4e-5,
        warmup=20,
        ema_decay=0.98,
        frozen=0.5,
        decoding="kept",
    )


@dataclass(frozen=True)
class Outcome:
    """What fine-tuning did for images it did not learn from.

    Attributes
    ----------
    before, after : dict
        Mean scores of the model as it was, and of the best of the run.
    score : str
        Name of the one that decides.
    """

    before: Scores
    after: Scores
    score: str

    @property
    def better(self) -> bool:
        """Whether the fine-tuned model is to be kept."""
        return self.after[self.score] > self.before[self.score]

    def __str__(self) -> str:
        names = dict.fromkeys((self.score, "dice", "aji", "pq"))
        changes = (
            f"{name}{' (which decides)' * (name == self.score)} "
            f"{self.before[name]:.4f} -> {self.after[name]:.4f}"
            for name in names
            if name in self.before and name in self.after
        )
        return f"held-out images, before -> after: {', '.join(changes)}"


def outcome_of(run: Path, config: TrainConfig) -> Outcome | None:
    """Read what a run has come to; None if it did not start from a model."""
    before, *later = read_rows(run / "metrics.csv")
    if before["step"] > 0:
        return None
    score = deciding_score(config)
    return Outcome(before, max(later, key=lambda row: row[score]), score)


def is_leave_one_out(pairs: list[Pair], config: TrainConfig) -> bool:
    """Whether so few patients are held out one by one, as the config does not name any."""
    chosen = config.validation or config.fold
    return not chosen and len({pair.patient for pair in pairs}) < _FEW


def fine_tune(
    config: TrainConfig,
    pairs: list[Pair],
    run: Path,
    device: str,
    init: Model,
    report: Report | None = None,
    devices: int = 1,
) -> Outcome:
    """Fine-tune to the few `pairs`, each patient held out in turn; RUN/best is what to use.

    The folder holds `held-out/` with a run for each patient, `all/` if it helped, and `best/`.
    Parameters and errors as `Trainer`.
    """
    patients = sorted({pair.patient for pair in pairs})
    if len(patients) < 2:
        raise CdalError(
            "one image cannot be both learned from and held out",
            "add one, or cut it into two files",
        )
    if run.is_dir() and any(run.iterdir()):
        raise CdalError("the run folder is not empty", "choose another with -o", run)
    outcomes: list[Outcome] = []
    for patient in patients:
        sides = (
            [pair for pair in pairs if pair.patient != patient],
            [pair for pair in pairs if pair.patient == patient],
        )
        out = config.model_copy(update={"validation": tuple(pair.stem for pair in sides[1])})
        folder = run / HELD_OUT / patient
        Trainer(out, sides, folder, device, init=init, devices=devices).run(report)
        outcomes += filter(None, [outcome_of(folder, config)])
    outcome = Outcome(
        _mean([each.before for each in outcomes]),
        _mean([each.after for each in outcomes]),
        deciding_score(config),
    )
    if outcome.better:
        every = Trainer(config, (pairs, []), run / "all", device, init=init, devices=devices)
        best = Model.load(every.run(report))
    else:
        best = init
    Model.save(run / "best", best.config, best.networks)
    return outcome


def _mean(rows: list[Scores]) -> Scores:
    names = set.intersection(*(set(row) for row in rows))
    return {name: float(np.mean([row[name] for row in rows])) for name in names}
