"""Validation as users run it: whole images and volumes, every metric of `metrics`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..config import ModelConfig
from ..errors import CdalError
from ..segmenter import Segmentation, Segmenter
from ..volume import segment_volume
from .dataset import Pair, read_pair

__all__ = [
    "Evaluation",
    "Scores",
    "answered",
    "answers_of",
    "evaluate",
    "evaluate_each",
    "score",
]

Scores = dict[str, float]


_KEPT = 50_000  # pixels of an image, to fit its decoding to


@dataclass(frozen=True)
class Evaluation:
    """Scores of several images.

    Attributes
    ----------
    images : dict of dict
        Each image's scores, by stem.
    tables : list of ndarray
        (3, bins) calibration table of each image.
    samples, truths : list of ndarray
        Of some pixels of each image: (S, n) probability of any object in each sample, (n,) truth.
    seconds, megapixels : list of float
        Of each image: spent in the networks and in decoding, and its size (voxels of a volume).
    """

    images: dict[str, Scores] = field(default_factory=dict)
    tables: list[NDArray[np.float64]] = field(default_factory=list)
    samples: list[NDArray[np.float16]] = field(default_factory=list)
    truths: list[NDArray[np.bool_]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    megapixels: list[float] = field(default_factory=list)

    def add(
        self, stem: str, scores: Scores, result: Segmentation, truth: NDArray[np.bool_]
    ) -> None:
        """Take in one image, segmented with its samples kept."""
        self.images[stem] = scores
        inside = result.probability.sum(axis=0).clip(0, 1)
        self.tables.append(metrics.calibration_table(inside, truth))
        samples = inside[None] if result.samples is None else result.samples
        kept = np.random.default_rng(0).integers(truth.size, size=_KEPT)
        self.samples.append(samples.reshape(len(samples), -1)[:, kept].astype(np.float16))
        self.truths.append(truth.ravel()[kept])
        self.seconds.append(result.seconds)
        self.megapixels.append(truth.size / 1e6)

    @property
    def mean(self) -> Scores:
        """Mean of each metric over the images that have it, and what all have together.

        `ece_pooled` is the calibration error over the pixels of all images together.
        """
        names = dict.fromkeys(name for row in self.images.values() for name in row)
        rows = self.images.values()
        columns = {n: [row[n] for row in rows if not np.isnan(row.get(n, np.nan))] for n in names}
        means = {name: float(np.mean(column)) for name, column in columns.items() if column}
        means["ece_pooled"] = metrics.calibration_error(np.sum(self.tables, axis=0))
        return means

    @property
    def calibration(self) -> dict[str, list[float]]:
        """Reliability over the pixels of all images together, an entry for each bin with any.

        `pixels` in the bin, their mean `probability`, and the share of them that is `true`.
        """
        table = np.sum(self.tables, axis=0)
        pixels, probability, true = table[:, table[0] > 0]
        return {
            "pixels": pixels.tolist(),
            "probability": (probability / pixels).tolist(),
            "true": (true / pixels).tolist(),
        }


def answers_of(config: ModelConfig, steps: int | None = None) -> dict[str, int | None]:
    """Return the steps of each answer of a model: sampled, and the supervised head's if any."""
    return {"sampled": steps} | ({"supervised": 0} if config.network.has_head else {})


def score(
    result: Segmentation,
    labels: NDArray[np.integer],
    config: ModelConfig,
    instances: bool | None = None,
) -> Scores:
    """Every metric of one image, or of one volume as a whole.

    Parameters
    ----------
    result : Segmentation
        With its samples kept.
    labels : ndarray
        (H, W), or (I, J, K), truth: instances, class ids or a mask, as `config.target` says.
    config : ModelConfig
        Decoding as the answer was: `of_supervised_head` for the head's.
    instances : bool, optional
        Whether the truth holds one id per object, to score objects by; None: as the target has it.

    Returns
    -------
    dict
        For `classes`, Dice and IoU are means over the classes; the rest, and `dice_foreground`, is
        of all foreground.
    """
    truth = labels > 0
    inside = result.probability.sum(axis=0).clip(0, 1)
    threshold = config.decode.threshold
    found = inside > threshold
    scores: Scores = {}
    if config.target == "classes":
        kinds = range(1, len(config.classes) + 1)
        masks = [(result.labels == k, labels == k) for k in kinds]
        for name, (p, t) in zip(config.classes, masks, strict=True):
            scores[f"dice_{name}"] = metrics.dice(p, t)
            of_class = metrics.precision_recall(p, t)
            scores[f"precision_{name}"], scores[f"recall_{name}"] = of_class
        scores["dice_foreground"] = metrics.dice(found, truth)  # as of single samples, below
    else:
        masks = [(found, truth)]
    scores["dice"] = float(np.mean([metrics.dice(p, t) for p, t in masks]))
    scores["iou"] = float(np.mean([metrics.iou(p, t) for p, t in masks]))
    scores["precision"], scores["recall"] = metrics.precision_recall(found, truth)
    if config.target == "nuclei" if instances is None else instances:
        scores["aji"] = metrics.aji(result.labels, labels)
        scores |= metrics.panoptic_quality(result.labels, labels)
    band = metrics.near_boundary(truth)
    scores["ece"] = metrics.calibration_error(metrics.calibration_table(inside, truth))
    near = metrics.calibration_table(inside[band], truth[band])
    scores["ece_boundary"] = metrics.calibration_error(near)
    scores["error_auroc"] = metrics.error_auroc(result.uncertainty, found != truth)
    if result.samples is not None and len(result.samples) > 1:
        drawn = result.samples > threshold
        scores["dice_one_sample"] = float(np.mean([metrics.dice(m, truth) for m in drawn]))
        scores["dice_best_sample"] = metrics.best_of(drawn, truth)
        scores["pairwise_dice"] = metrics.pairwise_dice(drawn)
    return scores


def answered(
    segmenter: Segmenter,
    pair: Pair,
    image: NDArray[np.generic],
    mpp: float | None,
    samples: int = 5,
    steps: int | None = None,
    seed: int = 0,
    tile_mode: str = "overlap",
) -> Segmentation:
    """Segment what `read_pair` read, an image or a volume, and keep the samples."""
    if pair.is_volume:
        return segment_volume(
            segmenter,
            image,
            samples=samples,
            steps=steps,
            seed=seed,
            tile_mode=tile_mode,
            keep_samples=True,
        )
    return segmenter.segment(
        image,
        mpp=mpp,
        samples=samples,
        steps=steps,
        seed=seed,
        tile_mode=tile_mode,
        keep_samples=True,
        attention=False,
    )


def evaluate(
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    *,
    mpp: float | None = None,
    samples: int = 5,
    steps: int | None = None,
    on_image: Callable[[str], None] | None = None,
) -> Evaluation:
    """Segment and score every pair; options as `evaluate_each`."""
    return evaluate_each(segmenter, pairs, (steps,), mpp=mpp, samples=samples, on_image=on_image)[0]


def evaluate_each(
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    steps: Sequence[int | None],
    *,
    mpp: float | None = None,
    samples: int = 5,
    seed: int = 0,
    tile_mode: str = "overlap",
    instances: bool | None = None,
    on_image: Callable[[str], None] | None = None,
    on_failure: Callable[[CdalError], None] | None = None,
) -> list[Evaluation]:
    """Evaluate as `evaluate` once for each of `steps`, every pair being read once.

    Options as `Segmenter.segment`, `instances` as `score`; `on_image` is called with a pair's stem
    after each of its answers. With `on_failure`, a pair that cannot be scored costs no other one:
    it is called with the reason, and the pair is in no evaluation.

    Raises
    ------
    CdalError
        Naming the image, if a pair cannot be scored and there is no `on_failure`.
    """
    evaluations = [Evaluation() for _ in steps]
    for pair in pairs:
        scored = []
        try:
            image, labels, own = read_pair(pair, segmenter.model.config, mpp)
            for n in steps:
                config = segmenter.model.config
                config = config.of_supervised_head() if n == 0 else config
                result = answered(segmenter, pair, image, own, samples, n, seed, tile_mode)
                scored.append((score(result, labels.astype(np.int64), config, instances), result))
                if on_image is not None:
                    on_image(pair.stem)
        except CdalError as error:
            if on_failure is None:
                raise error.at(pair.image) from None
            on_failure(error.at(pair.image))
            continue
        for evaluation, (scores, result) in zip(evaluations, scored, strict=True):
            evaluation.add(pair.stem, scores, result, labels > 0)
    return evaluations
