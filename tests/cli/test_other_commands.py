"""`cdal train`, `evaluate`, `models`, `doctor` and `demo`, and what the command loads."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.draw import disk

from cdal_engine.weights import DEFAULT, available

CONFIG = """
model:
  network: {widths: [8, 12], denoiser_width: 12, denoiser_blocks: 1, detail_width: 8,
            latent_dim: 4, discriminator_widths: [8, 8, 8]}
  diffusion: {steps: 2}
batch_size: 1
crop: 64
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images of disks with instance labels."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for n in range(3):
        labels = np.zeros((80, 80), np.uint16)
        for i in range(1, 6):
            labels[disk(rng.uniform(5, 75, 2), rng.uniform(6, 10), shape=labels.shape)] = i
        image = np.where(labels[..., None] > 0, (90, 50, 130), (230, 190, 215)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"case{n}.png")
        tifffile.imwrite(folder / "labels" / f"case{n}.tif", labels)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def test_help_loads_no_torch() -> None:
    code = "import sys; sys.argv = ['cdal', '--help']\n"
    code += "from cdal_engine.cli import main\ntry: main()\n"
    code += "except SystemExit: print(sorted({'torch', 'monai', 'zarr'} & sys.modules.keys()))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    assert "segment" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "[]"


def test_train_then_evaluate_then_segment(cdal: Callable, data: Path) -> None:
    ended = cdal("train", data, "-o", "run", "--config", data / "config.yaml", "--steps", 3)
    assert ended.code == 0, ended
    assert "2 training and 1 validation images" in ended.out
    names = {p.name for p in Path("run").iterdir()}
    assert {"best", "last", "metrics.csv", "curves.png", "checkpoint.pt", "config.yaml"} <= names
    again = cdal("train", data, "-o", "run", "--resume", "--steps", 3)
    assert again.code == 0, again  # it was finished: nothing to do
    other = cdal("train", data, "-o", "run", "--config", data / "config.yaml")
    assert other.code == 2
    assert "not empty" in other.err
    ended = cdal("evaluate", data, "--model", "run/best", "--samples", 2, "-o", "scores.json")
    assert ended.code == 0, ended
    report = json.loads(Path("scores.json").read_text())
    assert set(report["sampled"]["images"]) == {"case0", "case1", "case2"}
    assert {"dice", "iou", "aji", "pq", "ece", "pairwise_dice"} <= report["sampled"]["mean"].keys()
    assert "supervised" in ended.out
    for answer in ("sampled", "supervised"):
        bins = {name: np.array(n) for name, n in report[answer]["calibration"].items()}
        gap = np.average(abs(bins["probability"] - bins["true"]), weights=bins["pixels"])
        assert gap == pytest.approx(report[answer]["mean"]["ece_pooled"])
    ended = cdal("segment", data / "images" / "case0.png", "--model", "run/best")
    assert ended.code == 0, ended


def test_folds_are_evaluated_together(cdal: Callable, data: Path) -> None:
    """Each run's best model on what it held out, and the spread between them."""
    common = ("--config", data / "config.yaml", "--steps", 2, "--device", "cpu")
    for fold in (1, 2, 3):
        ended = cdal("train", data, "-o", f"cv{fold}", "--folds", 3, "--fold", fold, *common)
        assert ended.code == 0, ended
    runs = [part for fold in (1, 2, 3) for part in ("--run", f"cv{fold}")]
    ended = cdal("evaluate", data, *runs, "--samples", 1, "-o", "scores.json")
    assert ended.code == 0, ended
    report = json.loads(Path("scores.json").read_text())
    scores = {name: run["sampled"]["images"] for name, run in report["runs"].items()}
    assert list(scores) == ["cv1", "cv2", "cv3"]
    assert sorted(stem for images in scores.values() for stem in images) == [
        "case0",
        "case1",
        "case2",
    ]
    aji = [run["sampled"]["mean"]["aji"] for run in report["runs"].values()]
    assert report["mean"]["sampled"]["aji"] == pytest.approx(np.mean(aji))
    assert report["sd"]["sampled"]["aji"] == pytest.approx(np.std(aji, ddof=1))
    assert " ± " in ended.out
    assert cdal("train", data, "-o", "new", "--folds", 3).code == 2
    assert cdal("train", data, "-o", "new", "--folds", 3, "--fold", 4).code == 2
    assert cdal("evaluate", data, *runs, "--config", data / "config.yaml").code == 2


@pytest.mark.slow
def test_fine_tuning_says_what_it_was_worth(cdal: Callable, data: Path, tiny_model: Path) -> None:
    """Three images are held out one by one, and a model that is not better is not kept."""
    (data / "tune.yaml").write_text("crop: 64\nbatch_size: 1\nlearning_rate: 1.0e-9\n")
    init = Path(shutil.copytree(tiny_model, data / "old"))
    (init / "CARD.md").write_text("# Old")
    options = ("--init", init, "--config", data / "tune.yaml", "--steps", 1)
    ended = cdal("train", data, "-o", "few", *options, "--device", "cpu")
    assert ended.code == 0, ended
    assert "3 images, each held out in turn" in ended.out
    assert "held-out images, before -> after: dice (which decides) 0." in ended.out
    assert "is the model as it was" in ended.out
    assert Path("few/best/model.safetensors").exists()
    assert Path("few/best/CARD.md").read_text() == "# Old"
    ended = cdal("evaluate", data, "--run", "few", "--samples", 1, "-o", "scores.json")
    assert ended.code == 0, ended
    runs = json.loads(Path("scores.json").read_text())["runs"].values()
    assert [list(run["sampled"]["images"]) for run in runs] == [["case0"], ["case1"], ["case2"]]
    (data / "labels" / "case1.tif").unlink()
    (data / "images" / "case0.png").write_bytes(b"no picture")
    ended = cdal("train", data, "-o", "broken", *options)
    assert ended.code == 2
    assert "without partner: case1" in ended.err
    assert "case0.png" in ended.err


def test_images_without_objects_have_undefined_scores(cdal: Callable, data: Path) -> None:
    Image.new("RGB", (80, 80), "white").save(data / "images" / "case0.png")
    tifffile.imwrite(data / "labels" / "case0.tif", np.zeros((80, 80), np.uint16))
    ended = cdal("evaluate", data, "-o", "scores.json", "--steps", 0)
    assert ended.code == 0, ended
    assert json.loads(Path("scores.json").read_text())["sampled"]["images"]["case0"]["ece"] >= 0
    assert cdal("evaluate", data, "-o", "absent/scores.json").code == 2


@pytest.mark.parametrize("part", ["images/case1.png", "labels/case1.tif"])
def test_one_damaged_file_does_not_cost_an_evaluation(
    cdal: Callable, data: Path, tiny_model: Path, part: str
) -> None:
    command = ("evaluate", data, "--model", tiny_model, "--samples", 2, "--device", "cpu")
    assert cdal(*command, "-o", "whole.json").code == 0
    damaged = data / part
    damaged.write_bytes(damaged.read_bytes()[:200])
    ended = cdal(*command, "-o", "scores.json")
    assert ended.code == 1, ended
    (line,) = [line for line in ended.err.splitlines() if line.startswith("left out:")]
    assert damaged.name in line
    whole, report = (json.loads(Path(f"{n}.json").read_text()) for n in ("whole", "scores"))
    assert (len(report["left_out"]), whole["left_out"]) == (1, [])
    for answer in ("sampled", "supervised"):
        left = {stem: whole[answer]["images"][stem] for stem in ("case0", "case2")}
        assert report[answer]["images"] == left
        dice = np.mean([scores["dice"] for scores in left.values()])
        assert report[answer]["mean"]["dice"] == pytest.approx(dice)


def test_an_evaluation_of_nothing_is_an_error(cdal: Callable, data: Path, tiny_model: Path) -> None:
    for path in (data / "images").iterdir():
        path.write_bytes(b"no picture")
    ended = cdal("evaluate", data, "--model", tiny_model, "-o", "scores.json")
    assert ended.code == 2
    assert "no image can be scored (3 tried), the first:" in ended.err
    assert not Path("scores.json").exists()


def test_interrupted_training_goes_on(data: Path) -> None:
    """A real process and a real Ctrl-C: it saves, and --resume goes on from there."""
    code = "from cdal_engine.cli import main; main()"
    arguments = ["train", str(data), "-o", str(data / "run"), "--device", "cpu"]
    config = ["--config", str(data / "config.yaml")]
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(
        [*command, *config, "--steps", "100000"], stderr=subprocess.PIPE, text=True
    )
    while not (data / "run" / "config.yaml").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 130, error
    assert "saved; go on with --resume" in error
    assert (data / "run" / "checkpoint.pt").exists()
    subprocess.run([*command, "--resume", "--steps", "1"], check=True, timeout=200)
    assert (data / "run" / "best" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux'")
def test_training_that_takes_too_much_memory_says_what_to_lower(data: Path) -> None:
    large = CONFIG.replace("batch_size: 1", "batch_size: 256").replace("[8, 12]", "[96, 12]")
    (data / "config.yaml").write_text(large)
    code = "import resource, torch; from cdal_engine.cli import main; most = 2**31\n"
    code += "resource.setrlimit(resource.RLIMIT_DATA, (most, most)); main()"
    arguments = ["train", data, "-o", data / "run", "--config", data / "config.yaml"]
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments), "--device", "cpu", "--steps", "2"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "not enough memory (lower batch_size or crop" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_labels_that_do_not_match_their_images(cdal: Callable, data: Path) -> None:
    (data / "labels" / "case1.tif").rename(data / "labels" / "other.tif")
    ended = cdal("train", data, "-o", "run")
    assert ended.code == 2
    assert "without partner: case1, other" in ended.err
    assert not Path("run").exists()
    assert cdal("evaluate", data, "--model", DEFAULT).code == 2


def test_a_config_with_a_typing_error_names_the_key(cdal: Callable, data: Path) -> None:
    (data / "config.yaml").write_text("batchsize: 3\n")
    ended = cdal("train", data, "-o", "run", "--config", data / "config.yaml")
    assert ended.code == 2
    assert "batchsize" in ended.err


def test_models(cdal: Callable, tiny_model: Path) -> None:
    listed = cdal("models", "list").out
    for name in available():
        assert name in listed
    assert "CC BY-NC-SA 4.0" in listed
    assert Path(cdal("models", "path", DEFAULT).out.strip()) == available()[DEFAULT]
    info = cdal("models", "info", DEFAULT).out
    assert "MoNuSeg" in info
    assert "0.25 µm/px" in info
    assert "not stated" in cdal("models", "info", tiny_model).out
    assert cdal("models", "info", "absent").code == 2


def test_shipped_models_are_small_and_licensed() -> None:
    for folder in available().values():
        assert (folder / "model.safetensors").stat().st_size <= 15e6
        assert "Licence:" in (folder / "CARD.md").read_text("utf-8")


def test_doctor(cdal: Callable, tmp_path: Path) -> None:
    ended = cdal("doctor")
    assert ended.code == 0
    assert "torch" in ended.out
    assert DEFAULT in ended.out
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png", dpi=(50800, 50800))
    ended = cdal("doctor", tmp_path / "a.png")
    assert "30 x 20" in ended.out
    assert "0.5 µm per pixel (resolution tag)" in ended.out
    ended = cdal("doctor", tmp_path / "absent.png")
    assert ended.code == 2
    assert "absent.png" in ended.err


def test_doctor_of_slides_and_volumes(cdal: Callable, shared_data: Path) -> None:
    slides = shared_data / "slides"
    readers = {"CMU-1-Small-Region.svs": "tifffile", "dicom-CMU-1-Small-Region": "wsidicom"}
    for name, reader in readers.items():
        ended = cdal("doctor", slides / name)
        assert ended.code == 0, ended
        lines = dict(line.split(None, 1) for line in ended.out.splitlines())
        assert lines["reader"].startswith(reader)
        assert lines["kind"] == "slide"
        assert "2220 x 2967" in lines["size"]
        assert "0.499 µm per pixel" in lines["resolution"]
        assert "level 0 2220 x 2967" in " ".join(ended.out.split())
        assert "would read level 0 for a model at 0.25" in " ".join(ended.out.split())
    broken = cdal("doctor", slides / "unreadable.svs")
    assert (broken.code, "level 0: cannot be decoded" in broken.out) == (1, True)
    volume = cdal("doctor", shared_data / "dicom" / "Study1_13_HCropVolume")
    assert volume.code == 0
    assert "35 x 51 x 32 voxels" in volume.out


@pytest.mark.slow
def test_demo_finds_the_nuclei(cdal: Callable) -> None:
    ended = cdal("demo", "-o", "out", "--device", "cpu")
    assert ended.code == 0, ended
    labels = tifffile.imread("out/labels.tif")
    assert 100 < labels.max() < 600
    assert f"{labels.max()} nuclei" in ended.out
    names = {"labels.tif", "maps.ome.zarr", "objects.csv", "objects.geojson", "overview.png"}
    assert names <= {p.name for p in Path("out").iterdir()}
    assert cdal("demo", "-o", "out", "--device", "cpu").code == 0  # its own results are replaced
