"""Fine-tuning on corrected regions: a run that may be stopped, and a model with a name of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import weights
from ..config import TrainConfig, validated
from ..errors import Cancelled, CdalError
from ..io.records import writing
from ..model import Model
from ..training import finetune
from ..training.dataset import find_pairs
from ..training.loop import Trainer
from ..training.splits import split

__all__ = ["Learned", "held_out", "learn", "publish"]

_VALIDATIONS = 4  # in a run: as many chances for the best so far
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Learned:
    """What came of a run.

    Attributes
    ----------
    best : Path
        Folder of the best model: the old one, if nothing better was found.
    outcome : Outcome
        Scores on the held-out regions before and after.
    stopped : bool
        Whether it was stopped before its end.
    """

    best: Path
    outcome: finetune.Outcome
    stopped: bool


def held_out(stems: Mapping[int, list[str]]) -> list[str]:
    """Choose what is held out: a fifth of the regions, or of the pieces of the only one.

    Parameters
    ----------
    stems : mapping
        Of `training_folder`.

    Raises
    ------
    CdalError
        If there is only one piece.
    """
    groups = list(stems.values())
    if len(groups) == 1:
        groups = [[stem] for stem in groups[0]]
    if len(groups) < 2:
        raise CdalError(
            "one region cannot be both learned from and held out", "review a second one"
        )
    return [stem for group in groups[-max(len(groups) // 5, 1) :] for stem in group]


def learn(
    data: Path,
    run: Path,
    model: Path,
    validation: list[str],
    device: str = "auto",
    minutes: float = 8.0,
    report: Report | None = None,
    config: TrainConfig | None = None,
) -> Learned:
    """Fine-tune a model to a training folder.

    Parameters
    ----------
    data : Path
        Of `training_folder`.
    run : Path
        Run folder, empty or not there.
    model : Path
        Folder of the model to start from.
    validation : list of str
        Stems of the images that are held out.
    device : str
    minutes : float
        At most; validation comes on top.
    report : callable, optional
        As of `Trainer.run`. If it raises `Cancelled`, what has been learned so far is judged, too,
        and the best is kept.
    config : TrainConfig, optional
        By default that of `finetune.defaults`.

    Raises
    ------
    CdalError
        If the data or the model do not do.
    Cancelled
        If it was stopped before the first step.
    """
    init = Model.load(model)
    chosen = config or finetune.defaults(init.config)
    changes = {
        "validation": tuple(validation),
        "minutes": minutes,
        "validate_every": minutes / _VALIDATIONS,
    }
    settings = validated(TrainConfig, chosen.model_dump() | changes)
    sides = split(find_pairs(data), settings)
    trainer = Trainer(settings, sides, run, device, init=init)
    stopped = False
    try:
        trainer.run(report)
    except Cancelled:
        if trainer.step == 0:
            raise
        stopped = True
        # With no step left, a resumed run only judges what there is.
        ended = settings.model_copy(update={"steps": trainer.step})
        Trainer(ended, sides, run, device, resume=True).run()
    outcome = finetune.outcome_of(run, settings)
    assert outcome is not None  # it started from a model
    return Learned(run / "best", outcome, stopped)


def publish(learned: Learned, name: str, card: str, own: Path | None = None) -> Path:
    """Make the best of a run a model of the user's; return its folder.

    Parameters
    ----------
    learned : Learned
    name : str
    card : str
        Text of its CARD.md: what it was learned from.
    own : Path, optional
        Folder of the user's models; by default the engine's.

    Raises
    ------
    CdalError
        If it is no better than the model it started from, the name cannot be one or is taken, or
        it cannot be written.
    """
    if not learned.outcome.better:
        raise CdalError("fine-tuning did not help: the old model stays", "review more regions")
    folder = weights.folder_for(name, own)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".cdal-writing-", dir=folder.parent))
        try:
            shutil.copytree(learned.best, aside / name)
            (aside / name / "CARD.md").write_text(f"# {name}\n\n{card}\n", "utf-8")
            os.replace(aside / name, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder
