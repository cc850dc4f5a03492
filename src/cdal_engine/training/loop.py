"""The training loop: generator, supervised head and discriminator, resumable at any checkpoint."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from ..config import ModelConfig, TrainConfig
from ..device import memory_reported
from ..errors import Cancelled, CdalError
from ..model import Model
from ..segmenter import Segmenter
from .board import add_to_board
from .calibration import decoding_fitted
from .checks import load_checked
from .curves import append_row, draw_curves, read_rows
from .dataset import Pair
from .examples import draw_examples
from .learner import Learner
from .team import Team
from .validation import Scores, evaluate

__all__ = ["Trainer", "deciding_score"]

Report = Callable[[dict[str, float]], None]
CHECKPOINT = "checkpoint.pt"


class Trainer:
    """One training run in one folder.

    The folder holds config.yaml, metrics.csv, curves.png, checkpoint.pt, the models `last/` and
    `best/`, and `examples/`: validation images with the best one's answer drawn over. The best has
    the highest validation Dice of the sampled mean, cut where that is highest unless
    `config.decoding` is kept. With `init`, that model is the first to beat; without validation
    pairs, the last is the best.

    Parameters
    ----------
    config : TrainConfig
    pairs : tuple of list of Pair
        Training and validation.
    run : Path
        The run's folder.
    device : str
        See `select_device`.
    resume : bool
        Go on from the folder's checkpoint.
    init : Model, optional
        Start from its weights: fine-tuning.
    known : list of CdalError
        Problems of the data found already, to be named with those of `load_checked`.
    devices : int
        How many of `device` share each batch.

    Raises
    ------
    CdalError
        If the folder holds another run and `resume` is False, or nothing to resume from, or the
        data do not fit the config, or the batch not the devices.
    """

    def __init__(
        self,
        config: TrainConfig,
        pairs: tuple[list[Pair], list[Pair]],
        run: Path,
        device: str = "auto",
        resume: bool = False,
        init: Model | None = None,
        known: Sequence[CdalError] = (),
        devices: int = 1,
    ) -> None:
        self.config, self.run_folder, self.pairs = config, run, pairs
        self.init, self.resume = init, resume
        network = config.model.network
        if network.architecture == "amortized" and network.spatial_dims != 2:
            raise CdalError("spatial_dims 3: training is 2-D so far", "use spatial_dims: 2")
        if config.batch_size % devices:
            reason = f"{devices} devices cannot share a batch of {config.batch_size} evenly"
            raise CdalError(reason, "make batch_size a multiple of --devices")
        self.team = Team(device, devices)
        self._check_folder(resume)
        self.learner = Learner(config, load_checked(pairs, config, known), self.team, init)
        self.seconds, self.best = 0.0, -math.inf
        self.in_vain = 0  # validations since the best
        if resume:
            self._restore()
        else:
            self._write_config()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.learner.step

    def _check_folder(self, resume: bool) -> None:
        """Refuse another run's folder; one that ended before its first checkpoint is used again."""
        folder = self.run_folder
        if resume:
            if not (folder / CHECKPOINT).is_file():
                raise CdalError("no checkpoint to resume from", "start without --resume", folder)
            return
        if folder.is_dir() and {path.name for path in folder.iterdir()} - {"config.yaml"}:
            raise CdalError(
                "the run folder is not empty", "choose another with -o, or --resume", folder
            )

    def _write_config(self) -> None:
        """Make the run's folder, now that nothing is wrong with the data."""
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        try:
            self.run_folder.mkdir(parents=True, exist_ok=True)
            (self.run_folder / "config.yaml").write_text(text)
        except OSError as error:
            reason = f"cannot be used as run folder: {error.strerror}"
            raise CdalError(reason, "choose another with -o", self.run_folder) from None

    # -- the loop ---------------------------------------------------------------------------------

    def run(self, report: Report | None = None) -> Path:
        """Train to the end and return the folder of the best model.

        Parameters
        ----------
        report : callable, optional
            Called after every step with `progress` in 0 … 1 and the losses, in validation with
            `answers`, how many are scored, and after it with its metrics. If it raises `Cancelled`,
            the run is saved and can be resumed.

        Raises
        ------
        Cancelled
            If `report` did.
        CdalError
            If training diverges, and the last checkpoint and the best model are of before; if
            memory does not suffice; or if one of several devices fails.
        """
        report = report or (lambda row: None)
        followed = self.config, self.pairs, self.resume and self.run_folder / CHECKPOINT, self.init
        try:
            with self.team.together(_follow, *followed):
                self._run(report)
        except Cancelled:
            self._save()  # raised between two steps or in validation: nothing is half done
            raise
        return self.run_folder / "best"

    def _run(self, report: Report) -> None:
        start = time.perf_counter() - self.seconds
        validated = saved = self.seconds
        losses: dict[str, list[float]] = defaultdict(list)
        if self.init is not None and self.step == 0 and self.pairs[1]:
            self._score(losses, report)
            start = time.perf_counter()
        batches = self.learner.batches()
        while (progress := self.team.agreed(self._progress())) < 1:
            with memory_reported("lower batch_size or crop, or close other programs"):
                learned = self.learner.learn(*next(batches), progress)
            for name, value in learned.items():
                losses[name].append(value)
            self.seconds = time.perf_counter() - start
            row = {"step": float(self.step), "seconds": self.seconds}
            report(row | {"progress": self._progress()} | {k: v[-1] for k, v in losses.items()})
            if self._progress() >= 1 or self.seconds - saved >= 60 * self.config.checkpoint_every:
                self._save()
                saved = self.seconds
            if self._progress() < 1 and (
                self.seconds - validated >= 60 * self.config.validate_every
            ):
                self._score(losses, report)
                self.seconds = time.perf_counter() - start
                validated = saved = self.seconds
        rows = read_rows(self.run_folder / "metrics.csv")
        if not rows or rows[-1]["step"] != self.step:  # not so if a finished run is resumed
            self._score(losses, report)

    def _score(self, losses: dict[str, list[float]], report: Report) -> None:
        """Validate, save, and add a row to metrics.csv, the curves and TensorBoard."""
        row = {"step": float(self.step), "seconds": self.seconds}
        answers = itertools.count(1)

        def scored(_: str) -> None:
            so_far = {"progress": self._progress(), "answers": float(next(answers))}
            report({"step": row["step"], "seconds": row["seconds"]} | so_far)

        row |= {name: float(np.mean(values)) for name, values in losses.items()}
        row |= self._validate(scored)
        losses.clear()
        self._save()  # with the best score, which `best/` now holds
        append_row(self.run_folder / "metrics.csv", row)
        draw_curves(read_rows(self.run_folder / "metrics.csv"), self.run_folder / "curves.png")
        improved = self.in_vain == 0 and self.pairs[1]
        add_to_board(self.run_folder, row, self._draw_best() if improved else [])
        report(row | {"progress": self._progress()})

    def _progress(self) -> float:
        """Share of the run that is done, 1 or more at its end."""
        if self.config.patience is not None and self.in_vain >= self.config.patience:
            return 1.0
        by_steps = self.step / self.config.steps
        if self.config.minutes is None:
            return by_steps
        return max(by_steps, self.seconds / (60 * self.config.minutes))

    # -- results ----------------------------------------------------------------------------------

    def _validate(self, scored: Callable[[str], None]) -> dict[str, float]:
        """Score the averaged model as users will run it, and keep it if it is the best so far."""
        if self.step == 0 and self.init is not None:
            _, scores = self._judged(self.init, scored)
            config, networks = self.init.config, self.init.networks  # best/ is the model as it was
        else:
            last, networks = self.run_folder / "last", self.learner.average
            Model.save(last, self.config.model, networks)
            config, scores = self._judged(Model.load(last), scored)
            Model.save(last, config, networks)
        score = scores.get(deciding_score(self.config), math.inf)
        self.in_vain += 1
        if score > self.best or not scores:
            self.best, self.in_vain = score, 0
            Model.save(self.run_folder / "best", config, networks)
        return scores

    def _draw_best(self) -> list[Path]:
        """Draw what the best model answers for a few validation images."""
        best = Segmenter(Model.load(self.run_folder / "best"), str(self.team.device))
        folder = self.run_folder / "examples"
        return draw_examples(best, self.pairs[1], folder, self.config.mpp)

    def _judged(self, model: Model, scored: Callable[[str], None]) -> tuple[ModelConfig, Scores]:
        """The model's config with the decoding that is due, and its scores if it has images."""
        pairs, device, mpp = self.pairs[1], str(self.team.device), self.config.mpp
        if not pairs:
            return model.config, {}
        if self.config.decoding == "fitted":
            return decoding_fitted(model, pairs, device, mpp, scored)
        segmenter = Segmenter(model, device)
        return model.config, evaluate(segmenter, pairs, mpp=mpp, on_image=scored).mean

    def _save(self) -> None:
        state = self.learner.state() | {
            "config": self.config.model_dump_json(),
            "seconds": self.seconds,
            "best": self.best,
            "in_vain": self.in_vain,
        }
        aside = self.run_folder / f".{CHECKPOINT}.tmp"
        torch.save(state, aside)
        os.replace(aside, self.run_folder / CHECKPOINT)

    def _restore(self) -> None:
        path = self.run_folder / CHECKPOINT
        state = _read_checkpoint(path, self.team)
        saved = TrainConfig.model_validate_json(state["config"])
        free = {"minutes", "steps", "cache_mb"}  # a run may be made longer or shorter
        if saved.model_dump(exclude=free) != self.config.model_dump(exclude=free):
            raise CdalError(
                "the checkpoint is of another config", "resume with the run's config.yaml", path
            )
        self.learner.restore(state)
        self.seconds, self.best = state["seconds"], state["best"]
        self.in_vain = state.get("in_vain", 0)  # none in checkpoints before `patience`


def _read_checkpoint(path: Path, team: Team) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=team.device, weights_only=True)
        TrainConfig.model_validate_json(state["config"])
    except Exception as error:  # a damaged file may raise anything
        raise CdalError(
            "the checkpoint is damaged", "start anew in another folder with -o", path
        ) from error
    return state


def _follow(
    team: Team,
    config: TrainConfig,
    pairs: tuple[list[Pair], list[Pair]],
    checkpoint: Path | Literal[False],
    init: Model | None,
) -> Callable[[], None]:
    """What a device that does not lead has to do: the steps, as long as the leader says so."""
    learner = Learner(config, load_checked((pairs[0], []), config), team, init)
    if checkpoint:
        learner.restore(_read_checkpoint(checkpoint, team))

    def work() -> None:
        batches = learner.batches()
        while (progress := team.agreed(0.0)) < 1:
            learner.learn(*next(batches), progress)

    return work


def deciding_score(config: TrainConfig) -> str:
    """Name of the validation score that the best model is the best by."""
    return "fitted_dice" if config.decoding == "fitted" else "dice"
