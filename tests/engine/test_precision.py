"""Networks as they run against networks as they were trained."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cdal_engine import model as model_module
from cdal_engine.model import Model
from cdal_engine.networks import ResidualBlock
from cdal_engine.segmenter import Segmenter

IMAGE = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)


def test_folded_norms_answer_as_before() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(2, 8, 16, stride=2)
    x = torch.randn(4, 8, 32, 32) * 3 + 1
    for _ in range(20):  # statistics far from those of a new block
        block(x)
    block.eval()
    with torch.no_grad():
        expected = block(x)
        block.fold()
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in block.modules())


def test_the_model_itself_stays_as_it_was(tiny_model: Path) -> None:
    model = Model.load(tiny_model)
    before = {name: v.clone() for name, v in model.networks.state_dict().items()}
    Segmenter(model, "cpu").segment(IMAGE)
    after = model.networks.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[name]) for name, v in before.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_hardly_changes_an_answer(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """As on a GPU, whose precision is float16: no layer falls back, and none is left behind."""
    expected = Segmenter(Model.load(tiny_model), "cpu").segment(IMAGE)
    monkeypatch.setattr(model_module, "precision", lambda device: dtype)
    segmenter = Segmenter(Model.load(tiny_model), "cpu")
    seen = set()
    for module in segmenter.networks.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda m, args, out: seen.add((args[0].dtype, out.dtype)))
    result = segmenter.segment(IMAGE)
    assert seen == {(dtype, dtype)}
    assert result.probability.dtype == np.float32
    for name in ("probability", "attention"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), atol=1e-2)
