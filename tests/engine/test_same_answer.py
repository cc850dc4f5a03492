"""One answer at a pixel, whatever the tiles, their order and batches, and the part asked for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cdal_engine.config import ImageConfig, ModelConfig
from cdal_engine.errors import CdalError
from cdal_engine.inference import AtOnce, Inference
from cdal_engine.model import Model
from cdal_engine.noise import noise
from cdal_engine.preparation import Grid, normalise, prepare, resample
from cdal_engine.samples import he_path
from cdal_engine.segmenter import Segmentation, Segmenter
from cdal_engine.tiling import plan
from cdal_engine.training.dataset import Pair, load_pair

MPPS = [0.25, 0.499, 0.5, 0.33, 0.2]


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=25)
@given(st.data())
def test_a_region_gets_the_answer_of_the_whole(tiny_model: Path, data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 170), st.integers(1, 170)), label="size")
    rows, columns = (
        slice(a := data.draw(st.integers(0, n - 1)), data.draw(st.integers(a + 1, n)))
        for n in (height, width)
    )
    mpp = data.draw(st.sampled_from(MPPS), label="mpp")
    tile = data.draw(st.sampled_from([32, 64, 128]), label="tile")
    image = picture(0, height, width)
    model = Model.load(tiny_model)
    options = {"mpp": mpp, "samples": 2, "keep_samples": True}
    whole = Segmenter(model, "cpu").segment(image, **options)
    part = Segmenter(model, "cpu", tile).segment(image, region=(rows, columns), **options)
    assert part.labels.shape == whole.labels[rows, columns].shape
    for name in ("probability", "deviation", "uncertainty", "samples"):
        of_part, of_whole = getattr(part, name), getattr(whole, name)[..., rows, columns]
        np.testing.assert_allclose(of_part, of_whole, atol=1e-3, err_msg=name)
    np.testing.assert_allclose(part.attention, whole.attention[rows, columns], atol=1e-3)


def test_a_region_without_its_surroundings_would_differ(tiny_model: Path) -> None:
    """The property above can fail: with no halo it does."""
    model, image, region = Model.load(tiny_model), picture(0, 96, 96), (slice(32, 64),) * 2
    blind = replace(model, config=model.config.model_copy(update={"halo": 0}))
    whole = Segmenter(model, "cpu").segment(image, samples=1)
    part = Segmenter(blind, "cpu").segment(image, region=region, samples=1)
    assert np.abs(part.probability - whole.probability[:, *region]).max() > 1e-3


@given(st.floats(0.2, 4), st.data())
def test_resampling_a_window_gives_the_pixels_of_the_whole(
    scale: float, data: st.DataObject
) -> None:
    """Bit for bit, from a cut of the input that starts anywhere: no tile is rescaled by itself."""
    x = torch.rand(2, 40, 37, dtype=torch.float64)
    whole = resample(x, scale)
    window = tuple(
        slice(a := data.draw(st.integers(0, n - 1)), data.draw(st.integers(a + 1, n)))
        for n in whole.shape[1:]
    )
    reach = max(1.0, 1 / scale) + 1
    cut = [
        slice(max(int(w.start / scale - reach), 0), int(w.stop / scale + reach) + 1) for w in window
    ]
    part = resample(x[:, cut[0], cut[1]], scale, window, (cut[0].start, cut[1].start))
    assert torch.equal(part, whole[:, window[0], window[1]])


def run_tiles(model: Model, image: np.ndarray, mpp: float, tile: int, **changes: object) -> dict:
    """Maps of an image by `Inference` itself, tiles in the order and batches asked for."""
    config = model.config
    x = normalise(prepare(image, config.image), config.image)
    grid = Grid.over(x.shape[1:], mpp / 0.25, config.network.stride)
    shuffle = changes.pop("shuffle", False)
    segmenter = Segmenter(model, "cpu")
    schedule = segmenter.check_options(2, None)
    tiles = plan(grid.size, tile, segmenter.halo(schedule))
    assert len({str(tile.box) for tile in tiles}) > 1
    if shuffle:
        tiles = [tiles[i] for i in np.random.default_rng(1).permutation(len(tiles))]
    inference = Inference(
        config=config,
        networks=model.networks,
        samples=2,
        seed=3,
        schedule=schedule,
        attention=True,
        keep_samples=False,
        device=torch.device("cpu"),
        at_once=AtOnce(1, 2),
        advance=lambda passes: None,
    )
    x = resample(x, grid.scale, grid.box)
    with torch.inference_mode():
        return vars(replace(inference, **changes).run(x, (0, 0), grid.box, tiles))


@pytest.mark.parametrize(
    ("mpp", "height", "width"),
    [(0.25, 201, 133), pytest.param(0.499, 230, 170, marks=pytest.mark.slow)],
)
def test_order_of_tiles_changes_no_bit_and_batches_hardly_any(
    tiny_model: Path, mpp: float, height: int, width: int
) -> None:
    model, image = Model.load(tiny_model), picture(1, height, width)
    scale = mpp / 0.25
    image = image[: int(height / scale), : int(width / scale)]
    first = run_tiles(model, image, mpp, 64)
    for count in (1, 3):
        batched = run_tiles(model, image, mpp, 64, at_once=AtOnce(count, 2))
        np.testing.assert_allclose(batched["probability"], first["probability"], atol=1e-5)
        again = run_tiles(model, image, mpp, 64, at_once=AtOnce(count, 2), shuffle=True)
        for name in ("probability", "deviation", "masks", "attention"):
            assert np.array_equal(batched[name], again[name]), name


@given(
    st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
    st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
)
def test_noise_of_two_tiles_agrees_where_they_meet(a: tuple[int, int], b: tuple[int, int]) -> None:
    size = 60
    one, other = (noise(7, 1, 2, 3, origin, (size, size)) for origin in (a, b))
    first = [max(p, q) for p, q in zip(a, b, strict=True)]
    last = [min(p, q) + size for p, q in zip(a, b, strict=True)]
    if all(f < n for f, n in zip(first, last, strict=True)):
        cut = [
            x[:, *(slice(f - o, n - o) for f, n, o in zip(first, last, origin, strict=True))]
            for x, origin in ((one, a), (other, b))
        ]
        assert torch.equal(*cut)


def matched(labels: np.ndarray, others: np.ndarray, least: float = 0.95) -> float:
    """Share of the objects that meet one of the others at an IoU of `least`."""
    area, other_area = np.bincount(labels.ravel()), np.bincount(others.ravel())
    pairs, both = np.unique(np.stack([labels, others]).reshape(2, -1), axis=1, return_counts=True)
    both, (a, b) = both[(pairs > 0).all(axis=0)], pairs[:, (pairs > 0).all(axis=0)]
    good = both / (area[a] + other_area[b] - both) >= least
    return float(good.sum() / (area[1:] > 0).sum())


def assert_same(one: Segmentation, other: Segmentation) -> None:
    """DESIGN's bound for another tile size."""
    assert np.abs(one.probability - other.probability).max() <= 1e-3
    assert min(matched(one.labels, other.labels), matched(other.labels, one.labels)) >= 0.999


def test_shipped_model_on_the_shipped_sample() -> None:
    """0.499 µm/px against a model at 0.25: no tile starts on a pixel of the image."""
    model, sample_image = Model.load("nuclei-he"), np.asarray(Image.open(he_path()))
    one, other = (
        Segmenter(model, "cpu", tile).segment(sample_image, mpp=0.499, samples=1)
        for tile in (512, 2048)
    )
    assert_same(one, other)
    rows, columns = slice(101, 230), slice(55, 222)
    part = Segmenter(model, "cpu").segment(
        sample_image, region=(rows, columns), mpp=0.499, samples=1
    )
    assert np.abs(part.probability - other.probability[:, rows, columns]).max() <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("mpp", "tiles"), [(0.25, (256, 512)), (0.499, (512, 1024))])
def test_shipped_model_on_a_real_image(
    shared_data: Path, mpp: float, tiles: tuple[int, int]
) -> None:
    """Against one tile of 2048, which holds the whole image at either resolution."""
    path = next((shared_data / "monuseg" / "train" / "images").glob("*.png"))
    image, model = np.asarray(Image.open(path).convert("RGB")), Model.load("nuclei-he")
    whole = Segmenter(model, "cpu", 2048).segment(image, mpp=mpp, samples=2)
    for tile in tiles:
        assert_same(Segmenter(model, "cpu", tile).segment(image, mpp=mpp, samples=2), whole)


@pytest.mark.parametrize(
    "region",
    [
        (slice(30, 40), slice(0, 5)),
        (slice(0, 10, 2), slice(0, 5)),
        (slice(0, 10),),
    ],
)
def test_a_region_that_is_none_is_refused(tiny_model: Path, region: tuple[slice, ...]) -> None:
    segmenter = Segmenter(Model.load(tiny_model), "cpu")
    with pytest.raises(CdalError, match="holds no pixel"):
        segmenter.segment(picture(0, 20, 20), region=region)


def test_the_grid_ends_where_the_image_does() -> None:
    """Whatever floating point makes of 0.7 / 0.1 or 0.6 / 0.2."""
    for scale, size in ((0.7 / 0.1, 350), (0.6 / 0.2, 150)):
        grid = Grid.over((50, 50), scale, 1)
        assert grid.size == (size, size)
        part = Grid.over((60, 60), scale, 1, (slice(50, 60), slice(0, 50))).itself()
        assert part.region[0].start == part.region[1].stop == size


@pytest.mark.parametrize("mpp", [0.5, 0.25])
def test_grayscale_is_normalised_by_the_whole_image_in_training_and_in_any_region(
    tmp_path: Path, mpp: float
) -> None:
    config = ImageConfig(channels=1, mpp=0.5, normalisation="percentile", mean=(), std=())
    model = ModelConfig(target="binary", image=config)
    pixels = np.random.default_rng(0).gamma(1, 40, (64, 64)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray((pixels > 40).astype(np.uint8)).save(tmp_path / "b.png")
    pair = Pair(tmp_path / "a.png", tmp_path / "b.png")
    x, _ = load_pair(pair, model, mpp)[0]
    whole = resample(normalise(prepare(pixels, config), config), mpp / 0.5)
    assert torch.equal(x, whole)
