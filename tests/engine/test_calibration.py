"""Temperature and threshold fitted on validation answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdal_engine import metrics
from cdal_engine.answers import pooled, tempered
from cdal_engine.model import Model
from cdal_engine.segmenter import Segmenter
from cdal_engine.training.calibration import best_threshold, fit_temperature, tempered_mean
from cdal_engine.training.dataset import Pair
from cdal_engine.training.validation import evaluate


def answers(temperature: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two images whose one sample is too sure by `temperature`."""
    rng = np.random.default_rng(0)
    p = [rng.beta(0.5, 1.5, 40_000).clip(0.01, 0.99) for _ in range(2)]
    truths = [rng.random(q.shape) < q for q in p]
    return [(1 / (1 + (1 / q - 1) ** temperature))[None] for q in p], truths


@pytest.mark.parametrize("temperature", [0.8, 1.0, 1.7, 2.5])
def test_the_temperature_that_made_them_too_sure_is_found(temperature: float) -> None:
    samples, truths = answers(temperature)
    assert fit_temperature(samples, truths) == pytest.approx(temperature, rel=0.05)


def test_it_makes_probabilities_as_right_as_they_say() -> None:
    samples, truths = answers(2.0)
    before, after = (
        metrics.calibration_error(
            sum(
                metrics.calibration_table(tempered_mean(s, t), truth)
                for s, truth in zip(samples, truths, strict=True)
            )
        )
        for t in (1.0, fit_temperature(samples, truths))
    )
    assert after < 0.01 < 0.05 < before


def test_no_cut_is_better_than_the_best() -> None:
    samples, truths = answers(1.0)
    threshold, dice = best_threshold(samples, truths, 1.0)
    for cut in (threshold, 0.3, 0.5, 0.7):
        each = [metrics.dice(s[0] >= cut, t) for s, t in zip(samples, truths, strict=True)]
        assert np.mean(each) <= dice + 1e-9
    assert 0.2 < threshold < 0.5  # right probabilities are best cut below one half


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.8, 4.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_tempered_probabilities_add_up_and_are_those_of_the_fit(
    temperature: float, channels: int
) -> None:
    """Also where the networks are certain: 0 and 1."""
    p = torch.rand(7, channels, 5, 5).softmax(dim=1) if channels > 1 else torch.rand(7, 1, 5, 5)
    p[0], p[1] = 0, 0
    p[0, 0], p[1, -1] = 1, 1
    hot = tempered(2 * p - 1, temperature)
    inside = hot[:, 0] if channels == 1 else 1 - hot[:, 0]
    if channels > 1:
        torch.testing.assert_close(hot.sum(dim=1), torch.ones(7, 5, 5))
        assert torch.equal(hot[2:, 1:].argmax(dim=1), p[2:, 1:].argmax(dim=1))
    plain = (p[:, 0] if channels == 1 else 1 - p[:, 0]).reshape(7, -1).numpy()
    np.testing.assert_allclose(
        tempered_mean(plain, temperature), inside.reshape(7, -1).mean(dim=0), atol=1e-5
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pool_lies_between_sample_and_head(channels: int) -> None:
    sample, head = torch.rand(2, 4, channels, 6, 6).mul(9).softmax(dim=2) * 2 - 1
    if channels == 1:
        sample, head = torch.rand(2, 4, 1, 6, 6) * 2 - 1
    torch.testing.assert_close(pooled(sample, head, 1.0), sample)
    torch.testing.assert_close(pooled(head, head, 0.3), head)
    some = pooled(sample, head, 0.3)
    if channels > 1:  # they add up, and what both say stays so
        torch.testing.assert_close(((some + 1) / 2).sum(dim=1), torch.ones(4, 6, 6))
        agreed = sample.argmax(dim=1) == head.argmax(dim=1)
        assert torch.equal(some.argmax(dim=1)[agreed], head.argmax(dim=1)[agreed])
    else:
        assert (some <= torch.maximum(sample, head) + 1e-6).all()
        assert (some >= torch.minimum(sample, head) - 1e-6).all()
    swapped = pooled(head, sample, 0.7)
    torch.testing.assert_close(some, swapped)


def test_the_smaller_its_weight_the_less_samples_differ(tiny_model: Path) -> None:
    model = Model.load(tiny_model)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    spread = []
    for weight in (1.0, 0.5, 0.1):
        config = model.config.with_decoding(sample_weight=weight)
        result = Segmenter(replace(model, config=config), "cpu").segment(image)
        spread.append(result.deviation.mean())
    assert spread[0] > spread[1] > spread[2] > 0


@pytest.mark.parametrize("steps", [None, 0])
def test_each_answer_has_its_own_decoding(tiny_model: Path, steps: int | None) -> None:
    model = Model.load(tiny_model)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    fitted = {"": (1.8, 0.4), "supervised_": (2.5, 0.6)}
    config = model.config.with_decoding(
        **{f"{k}temperature": v[0] for k, v in fitted.items()},
        **{f"{k}threshold": v[1] for k, v in fitted.items()},
    )
    temperature, threshold = fitted["" if steps is None else "supervised_"]
    plain, mild = (
        Segmenter(m, "cpu").segment(image, keep_samples=True, steps=steps)
        for m in (model, replace(model, config=config))
    )
    expected = tempered_mean(plain.samples.reshape(-1, 64 * 64), temperature).reshape(64, 64)
    np.testing.assert_allclose(mild.probability[0], expected, atol=2e-3)
    np.testing.assert_allclose(mild.samples.mean(axis=0), mild.probability[0], atol=2e-3)
    assert ((mild.probability[0] > threshold) >= (mild.labels > 0)).all()


def test_each_answer_is_scored_at_its_own_cut(tiny_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, truth = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(image)
    objects = np.kron(np.arange(16).reshape(4, 4), np.ones((16, 16), np.uint8))
    Image.fromarray(objects.astype(np.uint8)).save(truth)
    model = Model.load(tiny_model)
    config = model.config.with_decoding(threshold=0.99, supervised_threshold=0.01)
    segmenter = Segmenter(replace(model, config=config), "cpu")
    sampled, head = (
        evaluate(segmenter, [Pair(image, truth)], steps=steps).mean["recall"] for steps in (None, 0)
    )
    assert sampled < 0.1 < 0.9 < head
