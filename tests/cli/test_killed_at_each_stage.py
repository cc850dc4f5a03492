"""Killed as it touches any of its files, from a block's to the report: the end is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cdal_engine.samples import he_path

HE = np.asarray(Image.open(he_path()))
SCRIPT = Path(__file__).with_name("killed.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A slide, an image and a broken one."""
    folder = tmp_path / "with spaces, 切片"
    folder.mkdir()
    tag = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    with tifffile.TiffWriter(folder / "slide é.tif") as tiff:
        for level in (0, 1):
            pixels = HE[: 72 : 1 + level, 250 : 346 : 1 + level]
            tiff.write(pixels, tile=(64, 64), subfiletype=level, **tag)
    Image.fromarray(HE[40:112, 250:346]).save(folder / "image.png")
    (folder / "none.png").write_text("none")
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("every", [12, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_at_each_stage_it_ends_the_same(
    every: int, folder: Path, tiny_model: Path, tmp_path: Path, contents: Callable
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, SCRIPT, folder, tiny_model, out, str(every)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=True)
    whole = contents(out / "whole")
    assert {name.rsplit("/")[-1] for name in whole} >= {"objects.geojson", "failed.json"}
    runs = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(runs) > 100 // every
    for run in runs:
        assert run["codes"] == [-9, 1], run
        found = contents(Path(run["out"]))
        assert found.keys() == whole.keys(), run
        assert found == whole, run
