"""What a model's probabilities are made right with, from its answers on the validation images.

Networks are surer of themselves on images they were not trained on than they are right. One number
mends most of that, and changes hardly any label: temperature scaling, Guo et al. (2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from .. import metrics

__all__ = ["best_threshold", "fit_temperature", "tempered_mean"]

_RANGE = (0.5, 4.0)
_BINS = 100
_FLOOR = 1e-4  # of probabilities: nothing is certain

Samples = NDArray[np.floating]  # (S, N) probability of any object in each sample
Truth = NDArray[np.bool_]  # (N,)


def tempered_mean(samples: Samples, temperature: float) -> NDArray[np.float64]:
    """Mean probability (N,) of samples whose log-odds are divided by `temperature`."""
    p = samples.astype(np.float64).clip(_FLOOR, 1 - _FLOOR)
    return np.asarray((1 / (1 + (1 / p - 1) ** (1 / temperature))).mean(axis=0))


def fit_temperature(samples: Sequence[Samples], truths: Sequence[Truth]) -> float:
    """The temperature with the highest likelihood of the truth of all images together."""
    every, truth = np.concatenate(samples, axis=1), np.concatenate(truths)

    def loss(log_temperature: float) -> float:
        p = tempered_mean(every, float(np.exp(log_temperature)))
        return float(-np.log(np.where(truth, p, 1 - p)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_RANGE), method="bounded").x))


def best_threshold(
    samples: Sequence[Samples], truths: Sequence[Truth], temperature: float
) -> tuple[float, float]:
    """The cut of the tempered mean with the highest mean Dice over the images, and that Dice."""
    tables = [
        metrics.calibration_table(tempered_mean(s, temperature), t, _BINS)
        for s, t in zip(samples, truths, strict=True)
    ]
    dice = np.mean([metrics.dice_by_threshold(table) for table in tables], axis=0)
    return float(dice.argmax() / _BINS), float(dice.max())
