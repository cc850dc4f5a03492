"""`cdal segment` of volumes: labels in their own space, and what it cannot do in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cdal_engine.config import ModelConfig
from cdal_engine.model import Model, Networks
from cdal_engine.segmenter import Segmenter
from cdal_engine.volume import segment_volume

OBLIQUE = np.array([[-0.9, 0.3, 0.1, 7], [0.2, 1.1, -0.4, -3], [0.1, 0.2, 2.0, 5], [0, 0, 0, 1]])


def volume_model(folder: Path) -> Path:
    network = {"widths": (8, 12), "denoiser_width": 12, "denoiser_blocks": 1, "detail_width": 8}
    image = {"channels": 1, "mpp": None, "normalisation": "percentile", "mean": (), "std": ()}
    config = ModelConfig(
        target="classes",
        classes=("anterior", "posterior"),
        image=image,
        network=network,
        diffusion={"steps": 2},
    )
    torch.manual_seed(0)
    Model.save(folder, config, Networks(config))
    return folder


def test_labels_of_a_volume_lie_in_its_own_space(cdal: Callable, tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    voxels = np.random.default_rng(0).integers(0, 3000, (11, 18, 5), np.int16)
    nib.save(nib.Nifti1Image(voxels, OBLIQUE), tmp_path / "a.nii.gz")
    model = volume_model(tmp_path / "mri")
    ended = cdal("segment", tmp_path / "a.nii.gz", "--model", model, "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    labels = nib.load(tmp_path / "out" / "a.nii.gz" / "labels.nii.gz")
    np.testing.assert_allclose(labels.affine, OBLIQUE, atol=1e-5)
    segmenter = Segmenter(Model.load(model), "cpu")
    expected = segment_volume(segmenter, voxels, affine=OBLIQUE).labels
    np.testing.assert_array_equal(np.asarray(labels.dataobj), expected)
    assert len(np.unique(expected)) > 1
    run = json.loads((tmp_path / "out" / "a.nii.gz" / "run.json").read_text())
    size = (expected == 2).sum() * abs(np.linalg.det(OBLIQUE[:3, :3]))
    assert run["counts"]["volume_mm3"]["posterior"] == pytest.approx(size, rel=1e-4)
    assert run["input"]["shape"] == [11, 18, 5]
    assert "posterior" in ended.err
    dry = cdal("batch", tmp_path, "--model", model, "-o", tmp_path / "dry", "--dry-run")
    assert "a.nii.gz: volume, 11 x 18 x 5" in dry.out
    again = cdal("segment", tmp_path / "a.nii.gz", "--model", model, "-o", tmp_path / "out")
    assert "1 finished before" in again.out


def test_what_a_volume_cannot_have_is_said_in_one_line(
    cdal: Callable, tmp_path: Path, tiny_model: Path
) -> None:
    nib = pytest.importorskip("nibabel")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    for more, reason in (
        (("--model", tiny_model), "the model is not one for volumes"),
        (
            ("--model", volume_model(tmp_path / "mri"), "--save", "labels,samples"),
            "of a volume only labels are written so far, not samples",
        ),
        (
            ("--model", tmp_path / "mri", "--save", "table"),
            "of a volume only labels are written so far, not table",
        ),
    ):
        ended = cdal("segment", tmp_path / "a.nii.gz", *more)
        assert ended.code == 1
        (line,) = (line for line in ended.err.splitlines() if line.startswith("failed: "))
        assert f"a.nii.gz: {reason} (" in line
