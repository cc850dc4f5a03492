"""`cdal compare`: models side by side on one labelled folder, real files and an imported model."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cdal_engine.samples import he_path

MPP = ("--mpp", 0.25)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three parts of the H&E sample, and what is dark in them as objects."""
    folder = tmp_path / "data"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    with Image.open(he_path()) as sample:
        for n, corner in enumerate(((0, 0), (100, 150), (200, 60))):
            tile = sample.convert("RGB").crop((*corner, corner[0] + 96, corner[1] + 80))
            tile.save(folder / "images" / f"{n}.png")
            dark = np.asarray(tile.convert("L")) < 130
            ids = np.arange(1, dark.size + 1, dtype=np.uint16).reshape(dark.shape) // 64
            tifffile.imwrite(folder / "labels" / f"{n}.tif", np.where(dark, ids + 1, 0))
    return folder


@pytest.fixture
def published(parity_data: Path, cdal: Callable, tmp_path: Path) -> str:
    """An imported model, by name."""
    parameters = json.loads((parity_data / "rgb_tiny_parameters.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps(parameters | {"ngf": 8, "t_emb_dim": 16}))
    path = parity_data / "rgb_tiny_netG.pth"
    assert cdal("models", "import", path, "--parameters", "p.json", "-n", "published").code == 0
    return "published"


def test_published_ours_and_the_head_side_by_side(
    cdal: Callable, data: Path, published: str, tiny_model: Path
) -> None:
    models = ("-m", tiny_model, "-m", published)
    ended = cdal("compare", data, *models, *MPP, "--samples", 2, "--device", "cpu", "-o", "out")
    assert ended.code == 0, ended
    assert f"{tiny_model.name}, head" in ended.out
    assert str(tiny_model.parent) not in ended.out  # long names leave the plot no room
    report = json.loads(Path("out/compare.json").read_text())
    kinds = [(each["model"]["name"], each["answer"], each["steps"]) for each in report["answers"]]
    ours = str(tiny_model)
    assert kinds == [(ours, "sampled", 2), (ours, "supervised", 0), (published, "sampled", 4)]
    for each in report["answers"]:
        assert list(each["images"]) == ["0", "1", "2"]
        asked = {"dice", "iou", "aji", "pq", "ece", "seconds_per_image", "seconds_per_megapixel"}
        assert asked <= each["mean"].keys()
        assert ("pairwise_dice" in each["mean"]) == (each["answer"] == "sampled")
        dice = [scores["dice"] for scores in each["images"].values()]
        assert each["mean"]["dice"] == pytest.approx(np.mean(dice))
        per_image, per_megapixel = (
            each["mean"][f"seconds_per_{n}"] for n in ("image", "megapixel")
        )
        assert per_image / per_megapixel == pytest.approx(96 * 80 / 1e6)
        assert f"{each['mean']['dice']:.4f}" in ended.out
    with Path("out/compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["dice"]) for row in rows] == [
        pytest.approx(each["mean"]["dice"], rel=1e-5) for each in report["answers"]
    ]
    with Image.open("out/compare.png") as plot:
        assert plot.width > 1000
        assert len(plot.convert("RGB").getcolors(1 << 20) or ()) > 50
    again = cdal("compare", data, *models, *MPP, "-o", "out")
    assert (again.code, "there already" in again.err) == (2, True)


def test_it_scores_as_evaluate_does(cdal: Callable, data: Path, tiny_model: Path) -> None:
    common = (*MPP, "--samples", 2, "--seed", 3, "--device", "cpu")
    assert cdal("compare", data, "-m", tiny_model, *common, "-o", "out").code == 0
    assert cdal("evaluate", data, "-m", tiny_model, *common, "-o", "scores.json").code == 0
    scores = json.loads(Path("scores.json").read_text())
    for answer in json.loads(Path("out/compare.json").read_text())["answers"]:
        assert answer["images"] == scores[answer["answer"]]["images"]


def test_an_image_that_cannot_be_read_is_left_out_for_all(
    cdal: Callable, data: Path, published: str, tiny_model: Path
) -> None:
    (data / "images" / "1.png").write_bytes(b"no picture")
    models = ("-m", published, "-m", tiny_model)
    ended = cdal("compare", data, *models, *MPP, "--samples", 1, "-o", "out")
    assert ended.code == 1, ended
    (line,) = [line for line in ended.err.splitlines() if line.startswith("left out:")]
    assert "1.png" in line
    report = json.loads(Path("out/compare.json").read_text())
    assert all(list(each["images"]) == ["0", "2"] for each in report["answers"])
    assert len(report["left_out"]) == 1


def test_what_cannot_be_compared_ends_in_one_line(
    cdal: Callable, data: Path, published: str, tiny_model: Path, tmp_path: Path
) -> None:
    ours = ("-m", tiny_model)
    for part in ("images", "labels"):
        (tmp_path / "empty" / part).mkdir(parents=True)
        (tmp_path / "gray" / part).mkdir(parents=True)
    Image.open(data / "images" / "0.png").convert("L").save("gray/images/0.png")
    tifffile.imwrite("gray/labels/0.tif", tifffile.imread(data / "labels" / "0.tif"))
    config = json.loads((tiny_model / "config.json").read_text())
    for name, target in (("classes", {"target": "classes", "classes": ["left", "right"]}),):
        Path(name).mkdir()
        (Path(name) / "config.json").write_text(json.dumps(config | target))
    for given, reason in (
        ((data, *ours, "-m", "absent"), "unknown model 'absent'"),
        ((data, *ours, *ours), "given twice"),
        ((data, *ours, "-m", "classes"), "finds left, right"),
        (("empty", *ours), "files in images/"),
        (("gray", *ours), "takes RGB images (3 channels), got grayscale"),
        ((data, *ours, "-m", published), "for 0.25 and 3.906 µm per pixel (give --mpp)"),
        ((data, *ours, "-o", data / "images" / "0.png"), "choose another with -o"),
    ):
        ended = cdal("compare", *given)
        assert ended.code == 2, given
        assert reason in ended.err
        assert len(ended.err.strip().splitlines()) == 1
    assert cdal("compare", data).code == 2
