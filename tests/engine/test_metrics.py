"""Metrics against hand-made cases and independent implementations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cdal_engine import metrics

LABELS = arrays(np.int32, (12, 12), elements=st.integers(0, 4))


def aji_by_loops(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Kumar et al. (2017), algorithm 1, word for word."""
    inter = union = 0
    used = set()
    for i in set(np.unique(truth)) - {0}:
        best, best_iou = None, 0.0
        for j in set(np.unique(prediction)) - {0}:
            both = ((truth == i) & (prediction == j)).sum()
            either = ((truth == i) | (prediction == j)).sum()
            if both / either > best_iou:
                best, best_iou = j, both / either
        if best is None:
            union += (truth == i).sum()
        else:
            inter += ((truth == i) & (prediction == best)).sum()
            union += ((truth == i) | (prediction == best)).sum()
            used.add(best)
    union += sum((prediction == j).sum() for j in set(np.unique(prediction)) - {0} - used)
    return inter / union if union else 1.0


@given(LABELS, LABELS)
def test_aji_is_kumars(prediction: np.ndarray, truth: np.ndarray) -> None:
    assert metrics.aji(prediction, truth) == pytest.approx(aji_by_loops(prediction, truth))


@given(LABELS, LABELS)
def test_panoptic_quality_by_definition(prediction: np.ndarray, truth: np.ndarray) -> None:
    ious = []
    p_ids, t_ids = (set(np.unique(a)) - {0} for a in (prediction, truth))
    for i in t_ids:
        for j in p_ids:
            iou = metrics.iou(prediction == j, truth == i)
            if iou > 0.5:
                ious.append(iou)
    total = len(ious) + 0.5 * (len(p_ids) - len(ious)) + 0.5 * (len(t_ids) - len(ious))
    expected = sum(ious) / total if total else 1.0
    assert metrics.panoptic_quality(prediction, truth)["pq"] == pytest.approx(expected)


@given(LABELS)
def test_a_perfect_answer_scores_one(truth: np.ndarray) -> None:
    mask = truth > 0
    assert metrics.aji(truth, truth) == 1
    assert metrics.panoptic_quality(truth, truth)["pq"] == 1
    assert metrics.dice(mask, mask) == metrics.iou(mask, mask) == 1
    assert metrics.precision_recall(mask, mask) == (1, 1)


def test_ids_do_not_need_to_be_consecutive_or_small() -> None:
    truth = np.array([[1, 1, 0, 2, 2]])
    assert metrics.aji(truth * 2**40, truth * 7) == 1


@given(arrays(np.bool_, (8, 8)), arrays(np.bool_, (8, 8)))
def test_dice_and_iou_are_tied(a: np.ndarray, b: np.ndarray) -> None:
    j = metrics.iou(a, b)
    assert metrics.dice(a, b) == pytest.approx(2 * j / (1 + j))


def test_calibration_of_honest_and_of_boastful_probabilities() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    truth = rng.random(p.shape) < p
    honest = metrics.calibration_table(p, truth)
    assert metrics.calibration_error(honest) < 0.01
    boastful = metrics.calibration_table(np.where(p > 0.5, 1.0, 0.0), truth)
    assert metrics.calibration_error(boastful) == pytest.approx(0.25, abs=0.01)
    assert np.isnan(metrics.calibration_error(metrics.calibration_table(p[:0], truth[:0])))


def test_calibration_of_two_images_is_that_of_their_pixels_together() -> None:
    """Errors that cancel out between images do so in the pooled error only."""
    p, truth = np.full((2, 100), 0.5), np.array([[True], [False]]).repeat(100, axis=1)
    tables = [metrics.calibration_table(a, b) for a, b in zip(p, truth, strict=True)]
    assert [metrics.calibration_error(table) for table in tables] == [0.5, 0.5]
    assert metrics.calibration_error(sum(tables)) == 0
    np.testing.assert_array_equal(sum(tables), metrics.calibration_table(p, truth))


@given(st.integers(0, 2**31))
def test_dice_by_threshold_is_dice_of_the_thresholded_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, truth = rng.random((9, 11)), rng.random((9, 11)) < 0.3
    by_threshold = metrics.dice_by_threshold(metrics.calibration_table(p, truth, 20))
    for k, value in enumerate(by_threshold):
        assert value == pytest.approx(metrics.dice(p >= k / 20, truth))


def test_error_auroc() -> None:
    error = np.array([False, False, True, True])
    assert metrics.error_auroc(np.array([0.1, 0.2, 0.3, 0.4]), error) == 1
    assert metrics.error_auroc(np.array([0.4, 0.3, 0.2, 0.1]), error) == 0
    assert metrics.error_auroc(np.full(4, 0.5), error) == 0.5
    assert np.isnan(metrics.error_auroc(np.zeros(4), np.zeros(4, bool)))


def test_boundary_band_has_its_width_on_both_sides() -> None:
    truth = np.zeros((1, 60), bool)
    truth[:, 30:] = True
    assert np.flatnonzero(metrics.near_boundary(truth, 10)[0]).tolist() == list(range(20, 40))
    assert not metrics.near_boundary(np.ones((4, 4), bool)).any()


def test_samples_are_compared_in_pairs() -> None:
    a, b = np.array([[True, True, False, False]]), np.array([[True, False, False, False]])
    assert metrics.pairwise_dice(np.stack([a, a, a])) == 1
    assert metrics.pairwise_dice(np.stack([a, b])) == pytest.approx(2 / 3)
    assert np.isnan(metrics.pairwise_dice(a[None]))
    assert metrics.best_of(np.stack([a, b]), b) == 1
