"""Label maps to targets and back, instances and what is measured of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from skimage.color import rgb2hed
from skimage.draw import disk
from skimage.measure import label as connected
from skimage.measure import regionprops

from cdal_engine import instances, metrics, targets
from cdal_engine.config import ModelConfig
from cdal_engine.errors import CdalError

NUCLEI = ModelConfig()
LABELS = arrays(
    np.int32, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 6)
)


def disks(seed: int, size: int = 200, count: int = 60) -> np.ndarray:
    """Round objects, many of them touching."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    for i in range(1, count + 1):
        rr, cc = disk(rng.uniform(0, size, 2), rng.uniform(6, 14), shape=labels.shape)
        free = labels[rr, cc] == 0
        if free.sum() < 0.7 * len(free) or free.sum() < 100:
            continue  # what is left over would be fragments, not objects
        labels[rr[free], cc[free]] = i
    return labels


@given(LABELS)
def test_channels_are_one_hot(labels: np.ndarray) -> None:
    x_0 = targets.encode(labels, NUCLEI)
    assert set(np.unique(x_0)) <= {-1.0, 1.0}
    assert ((x_0 == 1).sum(axis=0) == 1).all()
    assert ((x_0[0] == 1) == (labels == 0)).all()


@given(LABELS)
def test_every_object_has_an_interior(labels: np.ndarray) -> None:
    inner = instances.interior(labels, 3)
    assert set(np.unique(labels[inner])) == set(np.unique(labels)) - {0}


@pytest.mark.parametrize("seed", range(3))
def test_round_trip_keeps_touching_objects_apart(seed: int) -> None:
    labels = disks(seed)
    decoded = targets.decode((targets.encode(labels, NUCLEI) + 1) / 2, NUCLEI, 0.25)
    quality = metrics.panoptic_quality(decoded, labels)
    assert quality["rq"] > 0.95
    assert quality["sq"] > 0.93
    assert metrics.dice(decoded > 0, labels > 0) > 0.995


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_binary_round_trip_is_exact(mask: np.ndarray) -> None:
    settings_ = NUCLEI.decode.model_copy(update={"min_area": 0})
    config = NUCLEI.model_copy(update={"target": "binary", "decode": settings_})
    decoded = targets.decode((targets.encode(mask.astype(int), config) + 1) / 2, config, None)
    assert ((decoded > 0) == mask).all()
    assert decoded.max() == connected(mask, connectivity=1).max()


@given(arrays(np.int64, (9, 7), elements=st.integers(0, 2)))
def test_classes_round_trip_is_exact(labels: np.ndarray) -> None:
    config = ModelConfig(target="classes", classes=("anterior", "posterior"))
    decoded = targets.decode((targets.encode(labels, config) + 1) / 2, config, None)
    assert (decoded == labels).all()


def test_unknown_class_is_refused() -> None:
    config = ModelConfig(target="classes", classes=("anterior", "posterior"))
    with pytest.raises(CdalError, match="class id 7"):
        targets.encode(np.full((3, 3), 7), config)


def test_a_speck_without_interior_is_still_found() -> None:
    foreground = np.zeros((20, 20), np.float32)
    foreground[5:10, 5:10] = 0.9
    mask = foreground > 0.5
    labels = instances.flood(instances.markers(mask, np.zeros_like(mask)), foreground, mask)
    assert labels.max() == 1
    assert (labels > 0).sum() == 25


@given(
    arrays(np.uint32, array_shapes(min_dims=2, max_dims=2, max_side=25), elements=st.integers(0, 9))
)
def test_measurements_agree_with_scikit_image(labels: np.ndarray) -> None:
    probability = np.random.default_rng(0).random(labels.shape).astype(np.float32)
    table = instances.measure(labels, probability)
    regions = regionprops(labels.astype(int), probability)
    assert [r.label for r in regions] == table["label"].tolist()
    for i, region in enumerate(regions):
        assert table["area_px"][i] == region.area
        np.testing.assert_allclose(
            (table["y"][i], table["x"][i]), np.array(region.centroid) + 0.5, rtol=1e-6
        )
        assert tuple(table[k][i] for k in ("y0", "x0", "y1", "x1")) == region.bbox
        assert table["score"][i] == pytest.approx(region.intensity_mean, rel=1e-4)
        for name in ("major_axis", "minor_axis"):
            axis = getattr(region, f"axis_{name.removesuffix('_axis')}_length")
            assert table[name][i] == pytest.approx(axis, rel=1e-4, abs=1e-3)
        if region.axis_minor_length > 0:
            assert table["eccentricity"][i] == pytest.approx(region.eccentricity, abs=1e-3)


def test_ids_may_start_high_and_places_be_far_out() -> None:
    labels = np.zeros((40, 5000), np.uint32)
    labels[3:20, 4900:4930] = 1
    labels[30, 7] = 3
    probability = np.ones(labels.shape, np.float32)
    low = instances.measure(labels, probability)
    far = instances.measure(labels + np.uint32(2**32 - 9) * (labels > 0), probability)
    for name, column in low.items():
        assert np.array_equal(far[name], column + np.uint32(2**32 - 9) * (name == "label"))
    small = instances.measure(labels[:, 4890:], probability[:, 4890:])
    assert small["major_axis"][0] == low["major_axis"][0]
    assert small["eccentricity"][0] == low["eccentricity"][0]


@given(arrays(np.uint8, (6, 7, 3), elements=st.integers(1, 255)))
def test_colours_and_haematoxylin_agree_with_scikit_image(image: np.ndarray) -> None:
    labels = (np.arange(42).reshape(6, 7) // 9).astype(np.uint32)
    table = instances.measure(labels, np.ones(labels.shape, np.float32), image)
    # scikit-image's densities are in units of ln(10^6), and its stains of nearly unit length
    haematoxylin = rgb2hed(image)[..., 0] * 6
    for i, label in enumerate(table["label"]):
        colour = image[labels == label].mean(axis=0)
        found = [table[name][i] for name in ("red", "green", "blue")]
        assert found == pytest.approx(colour.tolist(), rel=1e-4)
        expected = haematoxylin[labels == label].mean()
        assert table["haematoxylin"][i] == pytest.approx(expected, rel=0.02, abs=0.01)


@given(arrays(np.uint32, (15, 15), elements=st.integers(0, 5)), st.integers(0, 30))
def test_small_objects_go_and_the_rest_keep_their_order(labels: np.ndarray, least: int) -> None:
    kept = instances.remove_small(labels, least)
    areas = np.bincount(labels.ravel(), minlength=6)
    large = [i for i in range(1, 6) if areas[i] >= max(least, 1)]
    assert kept.max() == len(large)
    for new, old in enumerate(large, 1):
        assert ((kept == new) == (labels == old)).all()


def agreement_by_hand(labels: np.ndarray, masks: np.ndarray, i: int) -> float:
    ys, xs = np.nonzero(labels == i)
    box = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    own = labels[box] == i
    votes = []
    for mask in masks:
        seen = mask[box] & ((labels[box] == i) | (labels[box] == 0))
        votes.append((own & seen).sum() / (own | seen).sum() >= 0.5)
    return float(np.mean(votes))


def test_agreement_is_the_fraction_of_samples_holding_the_object() -> None:
    labels = disks(0, 80, 12).astype(np.uint32)
    rng = np.random.default_rng(1)
    masks = np.stack([(labels > 0) & (rng.random(13)[labels] < 0.6) for _ in range(5)])
    masks |= rng.random(masks.shape) < 0.05
    table = instances.measure(labels, (labels > 0).astype(np.float32))
    found = instances.agreement(instances.contained(labels, table, masks))
    expected = [agreement_by_hand(labels, masks, int(i)) for i in table["label"]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert 0 < found.mean() < 1
    assert np.isnan(instances.agreement(instances.contained(labels, table, masks[:1]))).all()
