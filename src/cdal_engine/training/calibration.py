"""What a model's probabilities are made right with, from its answers on the validation images.

Networks are surer of themselves on images they were not trained on than they are right. One number
mends most of that, and changes hardly any label: temperature scaling, Guo et al. (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from .. import metrics
from ..answers import tempered
from ..config import ModelConfig
from ..model import Model
from ..segmenter import Segmenter
from .dataset import Pair
from .validation import Scores, answers_of, evaluate_each

__all__ = ["best_threshold", "decoding_fitted", "fit_temperature", "tempered_mean"]

_RANGE = (0.5, 4.0)
_UNFITTED = {
    "temperature": 1.0,
    "threshold": 0.5,
    "supervised_temperature": 1.0,
    "supervised_threshold": 0.5,
}
_CUTS = slice(5, 96)  # hundredths that a threshold may be

Samples = NDArray[np.floating]  # (S, N) probability of any object in each sample
Truth = NDArray[np.bool_]  # (N,)


def tempered_mean(samples: Samples, temperature: float) -> NDArray[np.float64]:
    """Mean probability (N,) of samples at a temperature."""
    x_0 = torch.from_numpy(samples.astype(np.float32))[:, None] * 2 - 1
    return tempered(x_0, temperature)[:, 0].double().mean(dim=0).numpy()


def fit_temperature(samples: Sequence[Samples], truths: Sequence[Truth]) -> float:
    """The temperature with the highest likelihood of the truth of all images together."""
    every, truth = np.concatenate(samples, axis=1), np.concatenate(truths)

    def loss(log_temperature: float) -> float:
        p = tempered_mean(every, float(np.exp(log_temperature))).clip(1e-7, 1 - 1e-7)
        return float(-np.log(np.where(truth, p, 1 - p)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_RANGE), method="bounded").x))


def best_threshold(
    samples: Sequence[Samples], truths: Sequence[Truth], temperature: float
) -> tuple[float, float]:
    """The cut of the tempered mean with the highest mean Dice over the images, and that Dice."""
    tables = [
        metrics.calibration_table(tempered_mean(s, temperature), t, bins=100)
        for s, t in zip(samples, truths, strict=True)
    ]
    dice = np.mean([metrics.dice_by_threshold(table) for table in tables], axis=0)[_CUTS]
    return (_CUTS.start + int(dice.argmax())) / 100, float(dice.max())


def decoding_fitted(
    model: Model,
    pairs: Sequence[Pair],
    device: str,
    mpp: float | None,
    on_image: Callable[[str], None] | None = None,
) -> tuple[ModelConfig, Scores]:
    """The model's config with temperatures and thresholds that fit `pairs`, and the mean scores.

    The scores are of the model with neither, and with them: `fitted_dice`, the sampled mean's Dice.
    `on_image` as in `evaluate_each`.
    Target `classes` is left with neither: its labels are the likeliest class, without a cut.
    """
    config = model.config.with_decoding(**_UNFITTED)
    segmenter = Segmenter(replace(model, config=config), device)
    scores: Scores = {}
    kinds = dict(reversed(answers_of(config).items()))
    steps = list(kinds.values())
    evaluations = evaluate_each(segmenter, pairs, steps, mpp=mpp, on_image=on_image)
    for answer, evaluation in zip(kinds, evaluations, strict=True):
        prefix = "supervised_" if answer == "supervised" else ""
        answers = evaluation.samples, evaluation.truths
        temperature = fit_temperature(*answers)
        threshold, dice = best_threshold(*answers, temperature)
        fitted = {f"{prefix}temperature": temperature, f"{prefix}threshold": threshold}
        scores |= {f"{prefix}{name}": value for name, value in evaluation.mean.items()}
        scores |= fitted | {f"{prefix}fitted_dice": dice}
        config = config.with_decoding(**fitted)
    if config.target == "classes":
        return config.with_decoding(**_UNFITTED), scores | {"fitted_dice": scores["dice"]}
    return config, scores
