"""Counts of the samples: by hand, block by block, and of a real image."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage as ndi
from skimage.measure import label

from cdal_engine import instances
from cdal_engine.counts import SampleCounts, count_samples, counted
from cdal_engine.model import Model
from cdal_engine.samples import he_path
from cdal_engine.segmenter import Segmenter

SIDE = 18
blobs = arrays(np.uint8, (6, 6), elements=st.integers(0, 1)).map(
    lambda small: np.repeat(np.repeat(small, 3, 0), 3, 1).astype(bool)
)


def votes_of(labels: np.ndarray, masks: np.ndarray) -> tuple[dict, np.ndarray]:
    objects = instances.measure(labels, np.ones(labels.shape, np.float32))
    return objects, instances.contained(labels, objects, masks)


@settings(max_examples=150)
@given(blobs, st.lists(blobs, min_size=2, max_size=3), st.sampled_from([1, 10, 20]))
def test_a_sample_counts_what_it_contains_and_what_it_has_apart(
    mean: np.ndarray, samples: list[np.ndarray], least: int
) -> None:
    labels, masks = label(mean, connectivity=1).astype(np.uint32), np.stack(samples)
    _, votes = votes_of(labels, masks)
    counts = count_samples(labels, votes, masks, least)
    for i, mask in enumerate(masks):
        pieces, number = ndi.label(mask)
        own = sum(
            (pieces == n).sum() >= least and not mean[pieces == n].any()
            for n in range(1, number + 1)
        )
        assert counts.objects[i] == votes[i].sum() + own
        assert counts.area[i] == mask.sum()


@settings(max_examples=150)
@given(blobs, st.lists(blobs, min_size=2, max_size=3), st.integers(1, SIDE - 1))
def test_blocks_add_up_to_the_whole(mean: np.ndarray, samples: list[np.ndarray], cut: int) -> None:
    """Each block sees all, and owns objects and pieces by their first pixel."""
    labels, masks = label(mean, connectivity=1).astype(np.uint32), np.stack(samples)
    objects, votes = votes_of(labels, masks)
    firsts = instances.first_pixels(labels)
    column = np.array([firsts[int(i)][1] for i in objects["label"]], int)
    parts = [
        count_samples(labels, votes[:, owned], masks, 5, np.broadcast_to(where, labels.shape))
        for owned, where in (
            (column < cut, np.arange(SIDE) < cut),
            (column >= cut, np.arange(SIDE) >= cut),
        )
    ]
    together, whole = parts[0] + parts[1], count_samples(labels, votes, masks, 5)
    assert together.objects.tolist() == whole.objects.tolist()
    assert together.area.tolist() == whole.area.tolist()


def test_intervals_hold_the_samples_in_their_units() -> None:
    samples = SampleCounts(np.array([7, 4, 9]), np.array([100, 300, 200]))
    record = counted(6, 250, samples, 0.5, 0.02, np.array([1, 0.5]))
    assert record == {
        "objects": 6,
        "objects_interval": [4, 9],
        "area_um2": 62.5,
        "area_interval": [25.0, 75.0],
        "area_mm2": 0.02,
        "objects_per_mm2": 300.0,
        "objects_per_mm2_interval": [200.0, 450.0],
        "agreement": 0.75,
    }
    one = counted(6, 250, None, None, None, np.array([np.nan]))
    assert (one["objects"], {v for k, v in one.items() if k != "objects"}) == (6, {None})


def test_one_sample_has_no_counts_of_its_own(tiny_model: Path) -> None:
    image = np.asarray(Image.open(he_path()))[:96, :96]
    segmenter = Segmenter(Model.load(tiny_model), "cpu")
    assert segmenter.segment(image, samples=1).counts is None
    result = segmenter.segment(image, samples=3, keep_samples=True)
    assert result.counts is not None
    assert len(result.counts.objects) == 3
    threshold = segmenter.model.config.decode.threshold
    areas = (result.samples > threshold).sum(axis=(1, 2))
    assert np.abs(result.counts.area - areas).max() <= 0.01 * areas.max()  # float16 at the edge
