"""What is known of memory before anything runs, against what is taken."""

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cdal_engine import segmenter as segmenter_module
from cdal_engine.config import ModelConfig
from cdal_engine.device import memory_budget
from cdal_engine.diffusion import NoiseSchedule
from cdal_engine.errors import CdalError
from cdal_engine.inference import AtOnce, Inference
from cdal_engine.memory import activation_bytes, fitting
from cdal_engine.model import Model, Networks
from cdal_engine.published import model_config, network_config
from cdal_engine.segmenter import Segmenter
from cdal_engine.tiling import Tile

from .test_published_networks import COMMON, PUBLISHED

IMAGE = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)


class LiveBytes(TorchDispatchMode):
    """Peak size of all tensors that operations made and that are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.untyped_storage() not in self.known:
                storage = made.untyped_storage()
                self.known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.freed, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def freed(self, size: int) -> None:
        self.live -= size


def inference(config: ModelConfig, samples: int, schedule: NoiseSchedule | None) -> Inference:
    return Inference(
        config=config,
        networks=Networks(config).eval(),
        samples=samples,
        seed=0,
        schedule=schedule,
        attention=schedule is not None,
        keep_samples=False,
        device=torch.device("cpu"),
        at_once=AtOnce(1, samples),
        advance=lambda passes: None,
    )


SHAPES = {
    "as shipped": {},
    "wide details": {"detail_width": 64},
    "wide": {"widths": (64, 96, 128)},
    "binary": {"widths": (16, 32, 64)},
    "wide denoiser": {"denoiser_width": 128, "denoiser_blocks": 3},
}


@pytest.mark.parametrize("name", SHAPES)
def test_memory_is_what_it_is_said_to_be(name: str) -> None:
    target = {"target": "binary"} if name == "binary" else {}
    config = ModelConfig(network=SHAPES[name], **target)
    tile = Tile((slice(0, 128),) * 2, (slice(0, 128),) * 2)
    schedule = NoiseSchedule.variance_preserving(config.diffusion)
    peaks = []
    for samples in (0, 4, 8):
        runner = inference(config, max(samples, 1), schedule if samples else None)
        with torch.inference_mode(), LiveBytes() as live:
            runner.answer(torch.zeros(1, config.image.channels, *tile.shape), [tile], samples)
        peaks.append(live.peak / np.prod(tile.shape))
    encoding, sample = activation_bytes(config, torch.float32)
    assert encoding == pytest.approx(peaks[0], rel=0.25)
    assert sample == pytest.approx((peaks[2] - peaks[1]) / 4, rel=0.25)
    assert 0.9 * peaks[2] < encoding + 8 * sample < 1.35 * peaks[2]


# The quickest of each network; the other pairs take minutes.
QUICK = {("lung", "small"), ("monuseg", "large"), ("hippocampus", None)}
PAIRS = [
    pytest.param(name, size, marks=() if (name, size) in QUICK else pytest.mark.slow)
    for name in PUBLISHED
    for size in (None, "large", "small")
]


@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_memory_of_imported_models_is_what_it_is_said_to_be(name: str, size: str | None) -> None:
    parameters = {**COMMON, **PUBLISHED[name][0], "discriminator": size}
    config = model_config(network_config(parameters))
    edge = 64  # of a tile that is smaller than theirs: what is taken goes with its pixels
    tile = Tile((slice(0, edge),) * 2, (slice(0, edge),) * 2)
    schedule = NoiseSchedule.variance_preserving(config.diffusion)
    peaks = []
    for samples in (1, 3):
        runner = replace(inference(config, samples, schedule), attention=size is not None)
        with torch.inference_mode(), LiveBytes() as live:
            runner.answer(torch.zeros(1, config.image.channels, edge, edge), [tile], samples)
        peaks.append(live.peak / edge**2)
    encoding, sample = activation_bytes(config, torch.float32)
    assert sample == pytest.approx((peaks[1] - peaks[0]) / 2, rel=0.25)
    assert 0.9 * peaks[1] < encoding + 3 * sample < 1.35 * peaks[1]


@pytest.mark.parametrize("samples", [1, 5, 64])
@pytest.mark.parametrize("edge", [64, 1280, 8192])
def test_what_goes_through_at_once_fits_the_budget(samples: int, edge: int) -> None:
    config = ModelConfig()
    runner = inference(config, samples, NoiseSchedule.variance_preserving(config.diffusion))
    tile = Tile((slice(0, edge),) * 2, (slice(0, edge),) * 2)
    at_once = fitting(runner, [tile])
    encoding, sample = activation_bytes(config, torch.float32)
    budget, most = memory_budget(torch.device("cpu"))
    taken = edge**2 * at_once.tiles * (encoding + sample * at_once.samples)
    assert 1 <= at_once.samples <= samples
    assert 1 <= at_once.tiles <= most
    assert taken <= budget or at_once == AtOnce(1, 1)
    if at_once.samples < samples:  # and no less than fits
        assert taken + edge**2 * sample > budget


@pytest.mark.parametrize(
    "at_once",
    [
        AtOnce(1, 1),
        pytest.param(AtOnce(1, 2), marks=pytest.mark.slow),
        pytest.param(AtOnce(2, 3), marks=pytest.mark.slow),
        AtOnce(5, 5),
    ],
)
def test_how_much_goes_through_at_once_hardly_matters(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, at_once: AtOnce
) -> None:
    segmenter = Segmenter(Model.load(tiny_model), "cpu", tile=32)
    options = {"samples": 5, "keep_samples": True}
    expected = segmenter.segment(IMAGE, **options)
    monkeypatch.setattr(segmenter_module, "fitting", lambda inference, tiles: at_once)
    calls: list[tuple[int, int]] = []
    result = segmenter.segment(IMAGE, progress=lambda *done: calls.append(done) or True, **options)
    for name in ("probability", "deviation", "attention", "samples"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), atol=1e-3)
    assert calls[-1] == (66, 66)  # six tiles: the encoder, and two steps of five samples


def test_too_little_memory_halves_what_goes_through_and_says_so_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A device that holds no more than two samples of a tile: torch's own error, from a hook."""
    segmenter = Segmenter(Model.load(tiny_model), "cpu", tile=32)
    expected = segmenter.segment(IMAGE, samples=5)
    monkeypatch.setattr(segmenter_module, "fitting", lambda inference, tiles: AtOnce(4, 5))

    def full(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    segmenter.networks.generator.denoiser.register_forward_pre_hook(full)
    calls: list[tuple[int, int]] = []
    with caplog.at_level(logging.WARNING):
        result = segmenter.segment(
            IMAGE, samples=5, progress=lambda *done: calls.append(done) or True
        )
    np.testing.assert_allclose(result.probability, expected.probability, atol=1e-3)
    assert [r.message for r in caplog.records if "memory" in r.message] == [
        "memory does not suffice for 4 tiles of 5 samples at once: going on with less"
    ]
    assert calls[-1][0] == calls[-1][1]

    def never(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    segmenter.networks.generator.denoiser.register_forward_pre_hook(never)
    with pytest.raises(CdalError, match="not enough memory"):
        segmenter.segment(IMAGE)
