"""The Segmenter: one answer whatever the tiling, for every kind of image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdal_engine.config import ImageConfig
from cdal_engine.device import select_device
from cdal_engine.errors import Cancelled, CdalError
from cdal_engine.model import Model
from cdal_engine.networks import receptive_halo
from cdal_engine.preparation import Grid, grid_scale, prepare, resample
from cdal_engine.segmenter import Segmenter
from cdal_engine.tiling import first_batch, plan

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (90, 131, 3), np.uint8)


@pytest.fixture(scope="module")
def segmenter(tiny_model: Path) -> Segmenter:
    return Segmenter(Model.load(tiny_model), "cpu")


def test_arrays_have_the_images_shape_and_their_ranges(segmenter: Segmenter) -> None:
    result = segmenter.segment(IMAGE, samples=3, keep_samples=True)
    shape = IMAGE.shape[:2]
    assert result.labels.shape == shape
    assert result.labels.dtype == np.uint32
    assert result.probability.shape == (1, *shape)
    assert result.samples.shape == (3, *shape)
    for array in (result.probability, result.uncertainty, result.samples):
        assert 0 <= array.min() <= array.max() <= 1.0001
    assert 0 <= result.attention.min() <= result.attention.max() <= 2
    np.testing.assert_allclose(result.samples.mean(0), result.probability[0], atol=2e-3)
    np.testing.assert_allclose(result.samples.std(0), result.deviation, atol=2e-3)
    assert len(set(map(len, result.objects.values()))) == 1
    assert result.mpp == 0.25


@pytest.mark.parametrize("tile", [32, 64, 104])
def test_tiled_equals_whole(tiny_model: Path, segmenter: Segmenter, tile: int) -> None:
    model = Model.load(tiny_model)
    image = RNG.integers(0, 256, (150, 230, 3), np.uint8)
    tiled = Segmenter(model, "cpu", tile=tile).segment(image, samples=2, keep_samples=True)
    whole = segmenter.segment(image, samples=2, keep_samples=True)
    np.testing.assert_allclose(tiled.probability, whole.probability, atol=1e-5)
    np.testing.assert_allclose(tiled.attention, whole.attention, atol=1e-4)
    assert (tiled.samples[0] != tiled.samples[1]).any()


def test_a_halo_too_small_would_be_noticed(tiny_model: Path, segmenter: Segmenter) -> None:
    """The property above can fail: with no halo it does."""
    model = Model.load(tiny_model)
    cut = Model(model.name, model.config.model_copy(update={"halo": 0}), model.networks, "")
    image = RNG.integers(0, 256, (128, 128, 3), np.uint8)
    tiled = Segmenter(cut, "cpu", tile=32).segment(image, samples=1)
    assert np.abs(tiled.probability - segmenter.segment(image, samples=1).probability).max() > 1e-3


def test_seed_decides_and_samples_differ(segmenter: Segmenter) -> None:
    one, same, other = (
        segmenter.segment(IMAGE, samples=2, seed=s, keep_samples=True) for s in (5, 5, 6)
    )
    assert np.array_equal(one.samples, same.samples)
    assert not np.array_equal(one.samples, other.samples)
    assert not np.array_equal(one.samples[0], one.samples[1])


def test_a_sample_does_not_depend_on_how_many_are_drawn(segmenter: Segmenter) -> None:
    few = segmenter.segment(IMAGE, samples=2, keep_samples=True).samples
    many = segmenter.segment(IMAGE, samples=4, keep_samples=True).samples
    np.testing.assert_allclose(few, many[:2], atol=2e-3)


def test_samples_go_on_where_others_ended(segmenter: Segmenter) -> None:
    every = segmenter.segment(IMAGE, samples=5, keep_samples=True)
    first = segmenter.segment(IMAGE, samples=3, keep_samples=True)
    more = segmenter.segment(IMAGE, samples=2, first_sample=3, keep_samples=True)
    np.testing.assert_allclose(np.concatenate([first.samples, more.samples]), every.samples, 2e-3)
    np.testing.assert_allclose((3 * first.mean + 2 * more.mean) / 5, every.mean, atol=1e-5)


def test_steps_are_what_the_samples_were_made_of(segmenter: Segmenter) -> None:
    kept = segmenter.segment(IMAGE, samples=3, keep_steps=True, mpp=0.25)
    steps = kept.steps.astype(np.float32)
    assert steps.shape == (2, 2, 3, *IMAGE.shape[:2])
    x_t, x_0 = steps
    assert np.abs(x_0).max() <= 1
    assert x_t[0].std() == pytest.approx(1, abs=0.1)  # unit noise at step T
    np.testing.assert_array_equal(x_t[..., ::2, ::2][..., :45, :65], x_t[..., 1::2, 1::2])
    again = segmenter.segment(IMAGE, samples=1, first_sample=2, keep_steps=True)
    np.testing.assert_allclose(again.steps[:, :, 0], steps[:, :, 2], atol=5e-3)
    tiled = Segmenter(segmenter.model, "cpu", tile=32).segment(IMAGE, samples=3, keep_steps=True)
    np.testing.assert_allclose(tiled.steps, steps, atol=5e-3)
    assert segmenter.segment(IMAGE, samples=1).steps is None
    assert segmenter.segment(IMAGE, steps=0, keep_steps=True).steps is None


@pytest.mark.parametrize("mpp", [0.25, 0.4, 0.18])
def test_a_window_of_an_image_gives_the_images_answer(segmenter: Segmenter, mpp: float) -> None:
    image = RNG.integers(0, 256, (420, 500, 3), np.uint8)
    small = Segmenter(segmenter.model, "cpu", tile=32)
    region = (slice(211, 241), slice(203, 255))
    box = small.seen(image.shape[:2], region, mpp)
    origin = tuple(s.start for s in box)
    assert all(origin)
    assert image[box].shape != image.shape
    options = {"region": region, "mpp": mpp, "samples": 2}
    part = small.segment(image[box], origin=origin, shape=image.shape[:2], **options)
    whole = small.segment(image, **options)
    np.testing.assert_array_equal(part.probability, whole.probability)
    for name, column in whole.objects.items():
        np.testing.assert_array_equal(part.objects[name], column, err_msg=name)


def test_no_steps_is_one_deterministic_pass(segmenter: Segmenter) -> None:
    one, other = (segmenter.segment(IMAGE, steps=0, seed=s) for s in (0, 1))
    assert np.array_equal(one.probability, other.probability)
    assert (one.deviation == 0).all()
    assert one.attention is None
    assert np.isnan(one.objects["agreement"]).all()


@pytest.mark.parametrize("mpp", [0.5, 0.33, 0.125])
def test_other_resolutions_come_back_on_the_images_grid(segmenter: Segmenter, mpp: float) -> None:
    result = segmenter.segment(IMAGE, mpp=mpp, samples=2, keep_samples=True)
    assert result.labels.shape == IMAGE.shape[:2]
    assert result.probability.shape == (1, *IMAGE.shape[:2])
    assert result.samples.shape == (2, *IMAGE.shape[:2])
    assert result.mpp == mpp


@settings(max_examples=8)
@given(
    st.sampled_from(["uint8", "uint16", "float32", "float64", "bool"]),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_any_type_and_size(segmenter: Segmenter, dtype: str, height: int, width: int) -> None:
    image = np.random.default_rng(1).random((height, width, 3))
    image[0, 0] = 1
    image = (
        image * np.iinfo(dtype).max if "int" in dtype else image > 0.5 if dtype == "bool" else image
    )
    result = segmenter.segment(image.astype(dtype), samples=1)
    assert result.labels.shape == (height, width)
    assert np.isfinite(result.probability).all()


def test_the_type_does_not_change_the_picture(segmenter: Segmenter) -> None:
    first = segmenter.segment(IMAGE, samples=1)
    for same in (IMAGE.astype(np.uint16) * 257, IMAGE / 255, IMAGE.astype(np.float32)):
        again = segmenter.segment(same, samples=1)
        np.testing.assert_allclose(again.probability, first.probability, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"takes RGB.*got grayscale"),
        (np.zeros((8, 8, 4), np.uint8), "takes RGB"),
        (np.zeros((3, 8, 8), np.uint8), "takes RGB"),
        (np.zeros((2, 8, 8, 3), np.uint8), "takes RGB"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        (np.full((8, 8, 3), np.nan, np.float32), "NaN"),
        (np.full((8, 8, 3), np.inf, np.float32), "NaN or infinite"),
        (np.full((8, 8, 3), -1.0, np.float32), "float intensities"),
        (np.full((8, 8, 3), 4000.0, np.float32), "float intensities"),
        (np.zeros((8, 8, 3), np.complex64), "complex64"),
        (np.full((8, 8, 3), 4095, np.uint16), "12-bit"),
        (np.full((8, 8, 3), -5, np.int16), "int16"),
    ],
)
def test_images_the_model_cannot_take(
    segmenter: Segmenter, image: np.ndarray, message: str
) -> None:
    with pytest.raises(CdalError, match=message) as caught:
        segmenter.segment(image)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 1},
        {"steps": 3},
        {"steps": -1},
        {"samples": 0},
        {"samples": 65},
        {"mpp": 0.0},
        {"mpp": -1.0},
    ],
)
def test_options_out_of_range(segmenter: Segmenter, wrong: dict) -> None:
    with pytest.raises(CdalError):
        segmenter.segment(IMAGE, **wrong)


def test_tile_must_lie_on_the_grid(tiny_model: Path) -> None:
    with pytest.raises(CdalError, match="multiple of the network's stride"):
        Segmenter(Model.load(tiny_model), "cpu", tile=33)


def test_unknown_and_absent_devices() -> None:
    with pytest.raises(CdalError, match="unknown device"):
        select_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(CdalError, match="not available"):
            select_device("cuda:1")
    assert select_device("cpu").type == "cpu"


def test_progress_counts_to_its_total_and_can_cancel(tiny_model: Path) -> None:
    segmenter = Segmenter(Model.load(tiny_model), "cpu", tile=64)
    calls = []
    segmenter.segment(IMAGE, progress=lambda done, total: calls.append((done, total)) or True)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1][0] == calls[-1][1]
    assert {total for _, total in calls} == {calls[-1][1]}
    with pytest.raises(Cancelled):
        segmenter.segment(IMAGE, progress=lambda done, total: done < 3)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 8), st.integers(0, 6))
def test_tiles_cover_every_pixel_once_and_stay_on_the_grid(
    height: int, width: int, tile: int, halo: int
) -> None:
    stride = 16
    size = (-(-height // stride) * stride, -(-width // stride) * stride)
    tiles = plan(size, tile * stride, halo * stride)
    seen = np.zeros(size, int)
    for t in tiles:
        seen[t.core] += 1
        assert all(
            o % stride == 0 and n % stride == 0 for o, n in zip(t.origin, t.shape, strict=True)
        )
        box = np.zeros(size, bool)
        box[t.box] = True
        assert box[t.core].all()
        assert np.array_equal(np.ones(t.shape)[t.inside].shape, seen[t.core].shape)
    assert (seen == 1).all()
    batch = first_batch(tiles, 4)
    assert batch == tiles[: len(batch)]
    assert 1 <= len(batch) <= 4
    assert len({t.shape for t in batch}) == 1


@given(st.floats(0.3, 3), st.integers(5, 60), st.integers(5, 60))
def test_resampling_is_anchored_at_the_corner(scale: float, height: int, width: int) -> None:
    """A ramp in pixel-corner coordinates stays the same ramp at every resolution."""
    y, x = np.mgrid[:height, :width] + 0.5
    ramp = torch.from_numpy(np.stack([y, x]).astype(np.float32))
    out = resample(ramp, scale).numpy()
    yy, xx = np.mgrid[: out.shape[1], : out.shape[2]] + 0.5
    margin = 2 * max(scale, 1 / scale)
    inner = (
        (yy / scale > margin)
        & (yy / scale < height - margin)
        & (xx / scale > margin)
        & (xx / scale < width - margin)
    )
    np.testing.assert_allclose(out[0][inner], (yy / scale)[inner], atol=0.1)
    np.testing.assert_allclose(out[1][inner], (xx / scale)[inner], atol=0.1)
    grid = Grid.over((height, width), scale, 1)
    assert grid.bring_back(out).shape == ramp.shape


def test_close_resolutions_are_not_resampled() -> None:
    assert grid_scale(0.2501, ImageConfig()) == 1
    assert grid_scale(0.5, ImageConfig()) == 2
    assert grid_scale(None, ImageConfig()) == 1
    assert grid_scale(0.5, ImageConfig(mpp=None)) == 1


def test_grayscale_models_take_any_range() -> None:
    config = ImageConfig(channels=1, mpp=None, normalisation="percentile", mean=(), std=())
    x = prepare(np.linspace(-1e6, 1e6, 64, dtype=np.float32).reshape(8, 8), config)
    assert x.shape == (1, 8, 8)


def test_default_halo_keeps_a_large_tile_below_twice_its_pixels() -> None:
    model = Model.load("nuclei-he")
    halo = model.config.halo or receptive_halo(model.config, model.config.diffusion.steps)
    assert (1024 + 2 * halo) ** 2 <= 2.1 * 1024**2
