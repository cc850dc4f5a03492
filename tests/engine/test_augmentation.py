"""Crops and what is done to them: labels exact and in place, intensities as meant."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage as ndi

from cdal_engine.samples import he_path
from cdal_engine.training.augmentation import Augmentation, random_crop
from cdal_engine.training.jpeg import compressed

CPU = torch.device("cpu")


def test_crops_of_image_and_labels_stay_together() -> None:
    labels = torch.arange(40 * 50, dtype=torch.int32).reshape(1, 40, 50)
    image = labels.float().repeat(3, 1, 1)
    for size in (16, 64):  # smaller and larger than the image
        x, y = random_crop(image, labels, size, np.random.default_rng(0))
        assert x.shape == (3, size, size)
        assert torch.equal(x[0].int(), y[0])


@pytest.mark.parametrize("upright", [True, False])
def test_a_small_image_lies_anywhere_in_its_crop(upright: bool) -> None:
    """All of it is there, in places that vary, and mirrored beyond only if it may be."""
    labels = torch.arange(20 * 30, dtype=torch.int32).reshape(1, 20, 30)
    places = set()
    for seed in range(20):
        x, y = random_crop(labels.float(), labels, 48, np.random.default_rng(seed), upright)
        assert torch.equal(x.int(), y)
        assert y.unique().numel() == labels.numel()
        assert bool((y[0].diff(dim=0) >= 0).all() and (y[0].diff(dim=1) >= 0).all()) == upright
        places.add(int(y[0, 24, 24]))
    assert len(places) > 10


def framed() -> tuple[torch.Tensor, torch.Tensor]:
    """A dark bar with an id far beyond what float16 holds, on a light ground."""
    labels = torch.zeros(1, 160, 160, dtype=torch.int32)
    labels[:, 40:120, 60:110] = 2**24 + 1
    return torch.where(labels > 0, 0.2, 0.9).repeat(3, 1, 1), labels


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("color", [True, False])
def test_labels_stay_exact_and_where_the_image_is(color: bool, upright: bool) -> None:
    image, labels = framed()
    image = image if color else image[:1]
    augment = Augmentation(64, color, upright)
    drawn = [augment.draw(image, labels, np.random.default_rng(seed)) for seed in range(24)]
    images = augment.render([crop for crop, _ in drawn], CPU)
    assert images.shape == (24, len(image), 64, 64)
    compared = 0
    for x, (_, y) in zip(images, drawn, strict=True):
        assert y.shape == (1, 64, 64)
        assert set(y.unique().tolist()) <= {0, 2**24 + 1}
        inside = ndi.binary_erosion(y[0] > 0, iterations=5)
        outside = ndi.binary_erosion(y[0] == 0, iterations=5)
        if inside.sum() > 50 and outside.sum() > 50:
            dark, light = x[:, torch.from_numpy(inside)], x[:, torch.from_numpy(outside)]
            # Of all pixels: a shift by a few would mix the two.
            assert dark.quantile(0.98) < light.quantile(0.02)
            compared += 1
    assert compared > 10


def test_crops_repeat_whatever_is_beside_them() -> None:
    """As they must for a run to be resumed, or to be shared by several devices."""
    image, labels = framed()
    augment = Augmentation(64, color=True)

    def crops(seeds: range) -> torch.Tensor:
        drawn = [augment.draw(image, labels, np.random.default_rng(seed))[0] for seed in seeds]
        return augment.render(drawn, CPU)

    together = crops(range(12))
    torch.testing.assert_close(torch.cat([crops(range(5)), crops(range(5, 12))]), together)
    assert torch.equal(crops(range(12)), together)
    assert len({x.sum().item() for x in together}) == 12


def test_stains_are_shown_at_half_to_twice_their_size() -> None:
    labels = torch.zeros(1, 512, 512, dtype=torch.int32)
    labels[:, ::32] = labels[..., ::32] = 1  # a grid of lines, 32 pixels apart
    sizes = []
    for color in (True, False):
        augment = Augmentation(128, color)
        grids = [
            augment.draw(torch.zeros(3, 512, 512), labels, np.random.default_rng(s))[0].grid
            for s in range(300)
        ]
        area = [
            float(torch.linalg.det(torch.stack([g[-1, 0] - g[0, 0], g[0, -1] - g[0, 0]])).abs())
            for g in grids
        ]
        window = augment.window / 2 / 128
        sizes.append(1 / (np.sqrt(area) * window))  # pixels of the crop per pixel of the image
    stain, other = sizes
    assert stain.min() < 0.65
    assert stain.max() > 1.55
    assert ((stain > 0.45) & (stain < 2.2)).all()
    assert 0.85 < np.median(stain) < 1.15
    assert ((other > 0.65) & (other < 1.55)).all()


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_compression_is_that_of_a_jpeg_file(quality: int) -> None:
    """Nearer to what Pillow's own encoder leaves than the image is, by far."""
    with Image.open(he_path()) as picture:
        cut = picture.convert("RGB").crop((100, 60, 300, 200))
    file = BytesIO()
    cut.save(file, "JPEG", quality=quality)
    pixels, expected = (np.asarray(p, np.float32) / 255 for p in (cut, Image.open(file)))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    ours = compressed(x, [quality])[0].permute(1, 2, 0).numpy()
    assert ours.shape == pixels.shape
    error, change = np.abs(ours - expected).mean(), np.abs(pixels - expected).mean()
    assert error < 0.35 * change
