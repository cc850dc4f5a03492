"""Noise is a function of seed, sample, step and place, and looks Gaussian and independent."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cdal_engine.noise import latent, noise

SEEDS = st.integers(0, 2**62 - 1)
PLACE = st.tuples(st.integers(0, 100_000), st.integers(0, 100_000))


@given(
    SEEDS, st.integers(0, 63), st.integers(1, 16), PLACE, PLACE.map(lambda p: (p[0] % 7, p[1] % 7))
)
def test_regions_agree_where_they_overlap(
    seed: int, sample: int, step: int, origin: tuple[int, int], inset: tuple[int, int]
) -> None:
    whole = noise(seed, sample, step, 3, origin, (16, 16))
    part_origin = (origin[0] + inset[0], origin[1] + inset[1])
    part = noise(seed, sample, step, 3, part_origin, (5, 6))
    assert torch.equal(whole[:, inset[0] : inset[0] + 5, inset[1] : inset[1] + 6], part)


def test_it_is_unit_gaussian() -> None:
    values = noise(0, 0, 1, 1, (0, 0), (500, 500)).double().numpy().ravel()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert np.isfinite(values).all()


def test_seed_sample_step_channel_and_axis_each_matter() -> None:
    size = (200, 200)
    base = noise(1, 2, 3, 2, (0, 0), size)
    others = [
        noise(2, 2, 3, 2, (0, 0), size)[0],
        noise(1 + 2**31, 2, 3, 2, (0, 0), size)[0],
        noise(1, 3, 3, 2, (0, 0), size)[0],
        noise(1, 2, 4, 2, (0, 0), size)[0],
        noise(1, 2, 3, 2, (1, 0), size)[0],
        noise(1, 2, 3, 2, (0, 1), size)[0],
        base[0].T,
        base[1],
    ]
    for other in others:
        assert abs(float((base[0] * other).mean())) < 0.03  # correlation, 6 standard errors


def test_it_works_in_three_dimensions() -> None:
    whole = noise(0, 0, 1, 2, (5, 0, 9), (4, 8, 8))
    assert torch.equal(whole[:, 1:3, 2:7], noise(0, 0, 1, 2, (6, 2, 9), (2, 5, 8)))


def test_latents_differ_between_samples_and_steps() -> None:
    z = torch.stack([latent(0, s, t, 64) for s in range(4) for t in range(1, 5)])
    assert len(torch.unique(z, dim=0)) == 16
    correlation = torch.corrcoef(z) - torch.eye(16)
    assert correlation.abs().max() < 0.6
