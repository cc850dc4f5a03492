"""`cdal models import`, and every command with what was imported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from cdal_engine.samples import he_path


@pytest.fixture
def image() -> Path:
    """A part of the H&E sample; its size is not that of tiles."""
    with Image.open(he_path()) as sample:
        sample.convert("RGB").crop((100, 150, 250, 240)).save("he.png")
    return Path("he.png")


def cdal_process(*arguments: object) -> str:
    code = "from cdal_engine.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def arguments(folder: Path, name: str, discriminator: bool = True) -> list[object]:
    """Of the import of a parity checkpoint, whose discriminators are narrower than said."""
    source = folder / f"{name}_parameters.json"
    parameters = json.loads(source.read_text()) | {"ngf": 8, "t_emb_dim": 16}
    Path("parameters.json").write_text(json.dumps(parameters))
    files = [folder / f"{name}_netG.pth", "--parameters", "parameters.json", "-n", name]
    return [*files, *(["--discriminator", folder / f"{name}_netD.pth"] if discriminator else [])]


def run_of(folder: str) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "he.png" / "run.json").read_text()))


@pytest.mark.slow
def test_import_then_segment_a_real_image(parity_data: Path, cdal: Callable, image: Path) -> None:
    assert "imported" in cdal_process("models", "import", *arguments(parity_data, "rgb_tiny"))
    options = ["--model", "rgb_tiny", "--device", "cpu", "--samples", 2]
    save = ["--save", "labels,table,probability,attention"]
    out = cdal_process("segment", image, *options, *save, "-o", "overlap")
    assert "objects in" in out
    assert "assumed: the model's own" in out
    mode = ["--tile-mode", "published"]
    assert "assumed" not in cdal_process("segment", image, *options, *save, *mode, "-o", "side")
    answers = []
    for folder, name in (("overlap", "overlap"), ("side", "published")):
        record = run_of(folder)
        assert record["parameters"]["tile_mode"] == name
        assert record["model"]["name"] == "rgb_tiny"
        assert record["tile"] == 32
        maps = zarr.open_group(Path(folder) / "he.png" / "maps.ome.zarr", mode="r")
        assert maps["s0"].shape == (2, 90, 150)  # probability and attention
        labels = tifffile.imread(Path(folder) / "he.png" / "labels.tif")
        assert labels.shape == (90, 150)
        assert len(np.unique(labels)) > 1
        answers.append(labels)
    assert not np.array_equal(answers[0] > 0, answers[1] > 0)
    assert run_of("side")["mpp"] is None
    again = cdal("segment", image, *options, *save, "-o", "overlap")
    assert "1 finished before" in again.out


@pytest.mark.parametrize(("name", "regions"), [("gray_tiny", False), ("threeclass_tiny", True)])
def test_grayscale_checkpoints_run_too(
    name: str, regions: bool, parity_data: Path, cdal: Callable, image: Path
) -> None:
    with Image.open(image) as opened:
        opened.convert("L").save(image)
    assert cdal("models", "import", *arguments(parity_data, name, discriminator=False)).code == 0
    ended = cdal("segment", image, "--model", name, "--samples", 1, "-o", "out")
    assert ended.code == 0, ended
    labels = tifffile.imread("out/he.png/labels.tif")
    assert labels.shape == (90, 150)
    assert (labels.max() <= 2) == regions
    refused = cdal("segment", image, "--model", name, "--save", "attention", "-o", "more")
    assert refused.code == 2
    assert "imported without a discriminator" in refused.err
    assert not Path("more").exists()


def test_models_lists_and_describes_what_was_imported(
    parity_data: Path, cdal: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDAL_MODELS", "own")
    assert cdal("models", "import", *arguments(parity_data, "gray_tiny")).code == 0
    listed = cdal("models", "list").out
    assert "gray_tiny" in listed
    assert "licence: the authors', non-commercial" in listed
    info = cdal("models", "info", "gray_tiny").out
    assert "the answer depends on it: 32 x 32 pixels" in info
    assert "ncsnpp" in info
    assert "Not validated by us" in info
    assert Path(cdal("models", "path", "gray_tiny").out.strip()) == Path("own/gray_tiny")
    assert "does not depend on it" in cdal("models", "info", "nuclei-he").out
    (tmp_path / "own" / "gray_tiny" / "config.json").write_text('{"halloo": 1}')
    broken = cdal("models", "list")
    assert broken.code == 0
    assert "halloo" in broken.out
    assert "nuclei-he" in broken.out


def test_what_cannot_be_done_ends_in_one_line(
    parity_data: Path, cdal: Callable, image: Path
) -> None:
    assert cdal("models", "import", *arguments(parity_data, "rgb_tiny")).code == 0
    model = ["--model", "rgb_tiny"]
    for given, reason in (
        (["models", "import", *arguments(parity_data, "rgb_tiny")], "already"),
        (["models", "import", *arguments(parity_data, "rgb_tiny"), "-n", "../x"], "name"),
        (["segment", image, *model, "--steps", 0], "no supervised head"),
        (["segment", image, *model, "--tile", 64], "tile must be 32"),
        (["segment", image, *model, "--tile-mode", "both"], "unknown tile mode"),
        (["segment", image, "--tile-mode", "published"], "is for imported models"),
    ):
        ended = cdal(*given)
        assert ended.code == 2, given
        assert reason in ended.err
        assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"beta_max": 1e6}, "beta_max"),
        ({"beta_min": 30.0}, "not below beta_max"),
        ({"num_channels_dae": 32_000_000}, "num_channels_dae"),
        ({"num_channels_dae": 1024, "ch_mult": [16, 16, 16]}, "of another shape"),  # 100 GB of it
    ],
)
def test_parameters_that_cannot_be_are_refused_at_once(
    changes: dict[str, Any], reason: str, parity_data: Path, cdal: Callable
) -> None:
    given = arguments(parity_data, "rgb_tiny")
    values = json.loads(Path("parameters.json").read_text()) | changes
    Path("parameters.json").write_text(json.dumps(values))
    ended = cdal("models", "import", *given)
    assert ended.code == 2, ended
    assert reason in ended.err


def test_records_from_before_there_were_tile_modes_are_resumed(
    cdal: Callable, image: Path, tiny_model: Path
) -> None:
    command = ["segment", image, "--model", tiny_model, "--samples", 1, "-o", "out"]
    assert cdal(*command).code == 0
    record = run_of("out")
    assert record["parameters"].pop("tile_mode") == "overlap"
    (Path("out") / "he.png" / "run.json").write_text(json.dumps(record))
    assert "1 finished before" in cdal(*command).out


def test_evaluate_and_train_with_an_imported_model(
    parity_data: Path, cdal: Callable, image: Path
) -> None:
    assert cdal("models", "import", *arguments(parity_data, "rgb_tiny")).code == 0
    for part in ("images", "masks"):
        (Path("data") / part).mkdir(parents=True)
    for n in range(2):
        Path(f"data/images/{n}.png").write_bytes(image.read_bytes())
        mask = np.zeros((90, 150), np.uint8)
        mask[20:50, 30:90] = 255
        Image.fromarray(mask).save(f"data/masks/{n}.png")
    ended = cdal("evaluate", "data", "--model", "rgb_tiny", "--samples", 2, "-o", "scores.json")
    assert ended.code == 0, ended
    report = json.loads(Path("scores.json").read_text())
    assert "dice" in report["sampled"]["mean"]
    assert "supervised" not in report
    command = ["evaluate", "data", "--model", "rgb_tiny", "--samples", 1]
    assert cdal(*command, "--tile-mode", "published").code == 0
    ended = cdal("train", "data", "--init", "rgb_tiny", "-o", "run")
    assert ended.code == 2
    assert "cannot be fine-tuned" in ended.err
