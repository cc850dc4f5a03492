"""Which images a run learns from, and which it is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..config import TrainConfig
from ..errors import CdalError, together
from .dataset import Pair

__all__ = ["HELD_OUT", "held_out_runs", "split"]

HELD_OUT = "held-out"  # folder of a run for each patient, where all are held out in turn


def split(
    pairs: list[Pair], config: TrainConfig, known: Sequence[CdalError] = ()
) -> tuple[list[Pair], list[Pair]]:
    """Split into training and validation pairs, never one patient in both.

    `known` problems of the data are named with what prevents the split.

    Raises
    ------
    CdalError
        If a stem in `config.validation` is unknown, a patient would be in both, or one side would
        be empty.
    """
    try:
        held_out = _held_out(pairs, config)
        training = [p for p in pairs if p.patient not in held_out]
        validation = [p for p in pairs if p.patient in held_out]
        if not training or not validation:
            raise CdalError(
                f"{len({p.patient for p in pairs})} patient(s) cannot be split into training and "
                "validation",
                "add images of at least one more patient",
            )
    except CdalError as error:
        raise together([*known, error]) from None
    return training, validation


def _held_out(pairs: list[Pair], config: TrainConfig) -> set[str]:
    """Patients of the validation pairs."""
    if not config.validation:
        patients = sorted({pair.patient for pair in pairs})
        order = np.random.default_rng(config.seed).permutation(patients)
        if config.fold is None:
            return set(order[: max(len(order) // 5, 1)].tolist())
        part, parts = config.fold
        if parts > len(order):
            raise CdalError(f"{len(order)} patient(s) in {parts} folds", "use fewer folds")
        return set(np.array_split(order, parts)[part - 1].tolist())
    unknown = set(config.validation) - {pair.stem for pair in pairs}
    if unknown:
        raise CdalError(f"no images for `validation`: {', '.join(sorted(unknown))}")
    held_out = {p.patient for p in pairs if p.stem in config.validation}
    torn = {p.stem for p in pairs if p.patient in held_out} - set(config.validation)
    if torn:
        raise CdalError(
            f"of the same patients as the validation images: {', '.join(sorted(torn))}",
            "add them to `validation`",
        )
    return held_out


def held_out_runs(run: Path) -> list[Path]:
    """Runs of a fine-tuning that held out one patient after the other; none of any other run."""
    return sorted(path.parent for path in (run / HELD_OUT).glob("*/config.yaml"))
