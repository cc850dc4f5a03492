"""`cdal segment` and `cdal batch`: everything readable is done, every failure is one line."""

import csv
import json
import os
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
import zarr
from ome_zarr.writer import write_multiscale
from PIL import Image

from cdal_engine.io.records import read_run
from cdal_engine.samples import he_path

TILE = np.asarray(Image.open(he_path()))[200:296, 250:370]
FILES = {"labels.tif", "objects.parquet", "objects.csv", "objects.geojson", "overview.png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good images, one in a folder below."""
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    Image.fromarray(TILE).save(images / "a.png")
    tifffile.imwrite(images / "more" / "b.tif", TILE, resolution=(20000, 20000), resolutionunit=3)
    return images


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["results"]: row for row in csv.DictReader(file)}


def test_segment_writes_the_contracts_files(cdal: Callable, folder: Path, tiny_model: Path) -> None:
    ended = cdal("segment", folder / "a.png", "--model", tiny_model, "--samples", 2)
    assert ended.code == 0, ended
    out = Path("cdal-out")
    assert {p.name for p in (out / "a.png").iterdir()} == FILES | {"run.json"}
    run = json.loads((out / "a.png" / "run.json").read_text())
    assert run["parameters"]["seed"] == 0
    assert run["mpp_source"].startswith("assumed")
    assert "assumed: the model's own 0.25 µm" in ended.err
    assert tifffile.imread(out / "a.png" / "labels.tif").shape == TILE.shape[:2]
    assert rows(out)["a.png"]["status"] == "done"
    assert int(rows(out)["a.png"]["objects"]) == run["counts"]["objects"] > 0
    assert float(rows(out)["a.png"]["seconds"]) == pytest.approx(run["seconds"]["total"], abs=1e-3)
    assert "1 segmented" in ended.out
    again = cdal("segment", folder / "a.png", "--model", tiny_model, "--no-tissue-mask")
    assert "--no-tissue-mask is for slides" in again.err


def test_batch_does_the_good_and_names_the_broken(
    cdal: Callable, folder: Path, tiny_model: Path
) -> None:
    (folder / "empty.png").write_bytes(b"")
    (folder / "misnamed.jpg").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:2000])
    Image.fromarray(TILE[..., 0]).save(folder / "gray.png")
    Image.fromarray(TILE[:1, :1]).save(folder / "one.png")
    tifffile.imwrite(
        folder / "nan.tif", np.full((20, 20, 3), np.nan, np.float32), photometric="rgb"
    )
    tifffile.imwrite(folder / "wide.tif", TILE.astype(np.uint16) * 257)
    Image.fromarray(TILE).convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(TILE).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(TILE).convert("P").save(folder / "palette.png")
    ended = cdal("batch", folder, "--model", tiny_model, "--samples", 1, "--device", "cpu")
    assert ended.code == 1
    done = {"a.png", "more/b.tif", "one.png", "wide.tif", "rgba.png", "cmyk.jpg", "palette.png"}
    failed = {"empty.png", "misnamed.jpg", "cut.png", "gray.png", "nan.tif"}
    found = rows(folder / "cdal-out")
    assert {name for name, row in found.items() if row["status"] == "done"} == done
    assert {name for name, row in found.items() if row["status"] == "failed"} == failed
    lines = [line for line in ended.err.splitlines() if line.startswith("failed: ")]
    assert len(lines) == len(failed)
    for name in failed:
        (line,) = (line for line in lines if str(folder / name) in line)
        assert line.endswith(")")  # the remedy
        assert found[name]["error"] in line
    assert "Traceback" not in ended.err
    assert found["more/b.tif"]["mpp"] == "0.5"
    assert "7 segmented, 5 failed" in ended.out


def test_slides_take_regions_and_no_tissue_mask(
    cdal: Callable, tmp_path: Path, tiny_model: Path
) -> None:
    """By the command line, from paths with spaces and letters of many languages."""
    slide = tmp_path / "a b é 切.tif"
    pixels = np.tile(TILE, (3, 3, 1))
    with tifffile.TiffWriter(slide) as tiff:
        for i, step in enumerate((1, 4)):
            tag = {"resolution": (40000, 40000), "resolutionunit": 3, "subfiletype": i}
            tiff.write(pixels[::step, ::step], tile=(64, 64), photometric="rgb", **tag)
    regions = tmp_path / "régions.geojson"
    corners = [[0, 0], [90, 0], [90, 90], [0, 90], [0, 0]]
    regions.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    arguments = ("segment", slide, "--model", tiny_model, "--samples", 2, "--no-tissue-mask")
    assert cdal(*arguments).code == 0
    folder = Path("cdal-out") / slide.name
    every = json.loads((folder / "run.json").read_text())
    assert not (folder / "tissue.png").exists()
    ended = cdal(*arguments, "--regions", regions)
    assert "1 segmented" in ended.out, ended
    inside = json.loads((folder / "run.json").read_text())
    assert 0 < inside["counts"]["objects"] < every["counts"]["objects"]
    assert inside["counts"]["area_mm2"] == pytest.approx(90 * 90 * 0.25**2 / 1e6)
    assert "1 finished before" in cdal(*arguments, "--regions", regions).out
    again = cdal(*arguments[:-1], "--regions", regions, "--restart")
    assert again.code == 0
    assert (folder / "tissue.png").exists()
    assert not (folder / ".cdal-blocks").exists()
    regions.write_text("{")
    broken = cdal(*arguments, "--regions", regions)
    assert broken.code == 2
    assert "régions.geojson: is no GeoJSON" in broken.err


def test_running_again_does_only_what_is_not_done(
    cdal: Callable, folder: Path, tiny_model: Path, contents: Callable
) -> None:
    arguments = ("batch", folder, "--model", tiny_model, "--samples", 2)
    cdal(*arguments)
    out = folder / "cdal-out"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    first = contents(out)
    shutil.rmtree(out / "more")
    ended = cdal(*arguments)
    assert (ended.code, "1 segmented, 1 finished before" in ended.out) == (0, True), ended
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    same = {p for p in before if "a.png" in p.parts}
    assert all(before[p] == after[p] for p in same)
    assert contents(out) == first
    other = cdal(*arguments, "--seed", 1)
    assert "2 segmented" in other.out
    assert contents(out) != first
    assert "2 segmented" in cdal(*arguments, "--restart").out
    assert contents(out) == first
    Image.fromarray(TILE[::-1]).save(folder / "a.png")
    assert "1 segmented, 1 finished before" in cdal(*arguments).out


def test_interrupted_and_run_again_ends_the_same(
    folder: Path, tiny_model: Path, contents: Callable
) -> None:
    """A real process, a real Ctrl-C, as soon as the first of two inputs is finished."""
    command = [sys.executable, "-c", "from cdal_engine.cli import main; main()"]
    command += ["batch", str(folder), "--samples", "2"]
    command += ["--model", str(tiny_model), "--device", "cpu", "--tile", "16"]
    subprocess.run([*command, "-o", str(folder.parent / "whole")], check=True, timeout=200)
    out = folder.parent / "cut"
    process = subprocess.Popen([*command, "-o", str(out)], stderr=subprocess.PIPE, text=True)
    while read_run(out / "a.png") is None:  # finished, not only begun
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert rows(out)["a.png"]["status"] == "done"
    assert not (out / "more" / "b.tif" / "run.json").exists()
    subprocess.run([*command, "-o", str(out)], check=True, timeout=200)
    assert contents(out) == contents(folder.parent / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_full_disk_fails_in_a_line(folder: Path, tiny_model: Path) -> None:
    """A limit on the size of files stands for the disk's: writing fails in the same way."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
    code += "from cdal_engine.cli import main; main()"
    arguments = ["segment", "images/a.png", "--model", str(tiny_model), "--samples", "1"]
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "COLUMNS": "400"},
    )
    assert ended.returncode == 1, ended.stderr
    assert "cannot write results here" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list((folder.parent / "cdal-out" / "a.png").glob("*.tif"))


def test_a_file_in_place_of_the_output_folder(
    cdal: Callable, folder: Path, tiny_model: Path
) -> None:
    Path("taken").write_text("mine")
    for out in ("taken", "taken/below", folder):
        ended = cdal("batch", folder, "--model", tiny_model, "-o", out)
        assert ended.code == 2, ended
        assert "choose another folder with -o" in ended.err
    assert Path("taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment"], "Missing argument"),
        (["segment", "a.png", "--model", "absent"], "unknown model 'absent'"),
        (["segment", "a.png", "--save", "all"], "unknown all"),
        (["segment", "a.png", "--samples", "0"], "Invalid value for '--samples'"),
        (["segment", "a.png", "--device", "gpu"], "unknown device"),
        (["segment", "a.png", "--tile", "33"], "multiple of the network's stride"),
        (["segment", "a.png", "--steps", "3"], "steps must be"),
        (["segment", "a.png", "--mpp", "0"], "Invalid value for '--mpp'"),
        (["batch", "absent"], "no such folder"),
        (["batch", "."], "no images or slides found"),
        (["nonsense"], "No such command"),
    ],
)
def test_what_cannot_be_started_ends_with_2(
    cdal: Callable, tiny_model: Path, arguments: list[str], message: str
) -> None:
    more = ["--model", tiny_model] if "--model" not in arguments and len(arguments) > 2 else []
    ended = cdal(*arguments, *more)
    assert ended.code == 2, ended
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_an_absent_input_fails_and_the_rest_goes_on(
    cdal: Callable, folder: Path, tiny_model: Path
) -> None:
    ended = cdal("segment", "absent.png", folder / "a.png", folder, "--model", tiny_model)
    assert ended.code == 1
    assert "absent.png: cannot be read: No such file" in ended.err
    assert f"{folder}: is a folder (use `cdal batch`" in ended.err
    assert "1 segmented, 2 failed" in ended.out


def test_inputs_of_one_name_do_not_share_a_folder(
    cdal: Callable, folder: Path, tiny_model: Path
) -> None:
    shutil.copy(folder / "a.png", folder / "more" / "a.png")
    cdal("segment", folder / "a.png", folder / "more" / "a.png", "--model", tiny_model)
    assert set(rows(Path("cdal-out"))) == {"a.png", "more/a.png"}


def test_dry_run_lists_and_writes_nothing(cdal: Callable, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"")
    ended = cdal("batch", folder, "--dry-run")
    assert ended.code == 1
    assert f"{folder / 'a.png'}: image, 120 x 96, 0.25 µm/px (assumed" in ended.out
    assert f"{Path('more', 'b.tif')}: image, 120 x 96, 0.5 µm/px (resolution tag" in ended.out
    assert "3 inputs, 0 finished before, 1 would fail" in ended.out
    assert not (folder / "cdal-out").exists()


def test_a_slide_without_resolution_asks_for_it(
    cdal: Callable, folder: Path, tiny_model: Path
) -> None:
    """A pyramid is a slide; without micrometres per pixel nothing is assumed."""
    path = folder / "slide.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(TILE, subifds=1, photometric="rgb")
        tiff.write(TILE[::2, ::2], subfiletype=1, photometric="rgb")
    ended = cdal("segment", path, "--model", tiny_model, "--samples", 1)
    assert ended.code == 1
    assert "does not say its micrometres per pixel" in ended.err
    assert "--mpp" in ended.err
    ended = cdal("segment", path, "--model", tiny_model, "--samples", 1, "--mpp", 0.5)
    assert ended.code == 0
    assert (Path("cdal-out") / "slide.tif" / "labels.ome.zarr").is_dir()


def test_nothing_of_the_users_is_replaced(cdal: Callable, folder: Path, tiny_model: Path) -> None:
    mine = Path("cdal-out/a.png/labels.tif")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    ended = cdal("segment", folder / "a.png", "--model", tiny_model, "--samples", 1)
    assert ended.code == 1
    assert "which cdal did not write" in ended.err
    assert mine.read_text() == "mine"


def test_a_corrupt_model_is_named(
    cdal: Callable, folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    ended = cdal("segment", folder / "a.png", "--model", broken)
    assert ended.code == 2
    assert f"{weights}: not a sound safetensors file" in ended.err


def test_another_image_of_the_same_name_is_not_replaced(
    cdal: Callable, folder: Path, tiny_model: Path, contents: Callable
) -> None:
    Image.fromarray(TILE[::-1]).save(folder / "more" / "a.png")
    arguments = ("--model", tiny_model, "--samples", 1)
    cdal("segment", folder / "a.png", *arguments)
    first = contents(Path("cdal-out"))
    ended = cdal("segment", folder / "more" / "a.png", *arguments)
    assert ended.code == 1
    assert f"the results of {folder / 'a.png'} lie in" in ended.err
    assert {k: v for k, v in contents(Path("cdal-out")).items() if "failed" not in k} == first
    assert cdal("segment", folder / "more" / "a.png", *arguments, "--restart").code == 0
    # A folder that was moved keeps its results.
    cdal("batch", folder, *arguments)
    folder.rename(folder.with_name("moved"))
    ended = cdal("batch", folder.with_name("moved"), *arguments)
    assert "0 segmented, 3 finished before" in ended.out


def test_saving_more_keeps_what_is_there(cdal: Callable, folder: Path, tiny_model: Path) -> None:
    arguments = ("segment", folder / "a.png", "--model", tiny_model, "--samples", 1)
    cdal(*arguments)
    assert "1 segmented" in cdal(*arguments, "--save", "probability").out
    out = Path("cdal-out/a.png")
    assert {p.name for p in out.iterdir()} == FILES | {"run.json", "maps.ome.zarr"}
    assert "1 finished before" in cdal(*arguments).out
    (out / "labels.tif").unlink()
    assert "1 segmented" in cdal(*arguments).out
    assert "1 finished before" in cdal(*arguments, "--save", "probability").out
    # Maps lie in one file: what it held is still there beside what is new.
    assert "1 segmented" in cdal(*arguments, "--save", "uncertainty").out
    assert "1 finished before" in cdal(*arguments, "--save", "probability,uncertainty").out
    maps = zarr.open_group(out / "maps.ome.zarr", mode="r")
    assert maps[next(iter(maps.array_keys()))].shape[0] == 3
    # Another seed is another answer: nothing of the first stays.
    assert "1 segmented" in cdal(*arguments, "--save", "table", "--seed", 1).out
    assert {p.name for p in out.iterdir()} == {"run.json", "objects.csv", "objects.parquet"}


def test_files_of_one_folder_are_of_one_answer(
    cdal: Callable, folder: Path, tiny_model: Path
) -> None:
    """Other tiles may change a bit: what is there is then written anew."""
    arguments = ("segment", folder / "a.png", "--model", tiny_model, "--samples", 1)
    cdal(*arguments, "--save", "labels", "--tile", 32)
    before = Path("cdal-out/a.png/labels.tif").stat().st_mtime_ns
    assert "1 segmented" in cdal(*arguments, "--save", "table", "--tile", 64).out
    assert read_run(Path("cdal-out/a.png"))["tile"] == 64
    assert Path("cdal-out/a.png/labels.tif").stat().st_mtime_ns > before


def test_a_failure_is_forgotten_once_the_input_is_done(
    cdal: Callable, folder: Path, tiny_model: Path
) -> None:
    arguments = ("segment", folder / "a.png", "--model", tiny_model, "--samples", 1)
    cdal(*arguments)
    assert cdal(*arguments, "--mpp", 100).code == 1  # too large at the model's resolution
    assert rows(Path("cdal-out"))["a.png"]["status"] == "failed"
    assert cdal(*arguments).code == 0
    assert rows(Path("cdal-out"))["a.png"]["status"] == "done"


def test_a_foreign_summary_is_refused_first(cdal: Callable, folder: Path, tiny_model: Path) -> None:
    Path("cdal-out").mkdir()
    Path("cdal-out/summary.csv").write_text("mine")
    ended = cdal("segment", folder / "a.png", "--model", tiny_model)
    assert ended.code == 2
    assert "summary.csv: cdal did not write this file" in ended.err
    assert Path("cdal-out/summary.csv").read_text() == "mine"


def test_no_steps_and_attention_contradict(cdal: Callable, folder: Path, tiny_model: Path) -> None:
    arguments = ("segment", folder / "a.png", "--model", tiny_model, "--steps", 0)
    assert cdal(*arguments).code == 0
    ended = cdal(*arguments, "--save", "attention")
    assert ended.code == 2
    assert "has no attention map" in ended.err


def test_one_input_is_one_slide(
    cdal: Callable, tmp_path: Path, shared_data: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "with spaces, 切片"
    shutil.copytree(shared_data / "slides", folder)
    group = zarr.open_group(folder / "z.zarr", mode="w", zarr_format=3)
    write_multiscale([np.moveaxis(TILE, -1, 0)], group, axes="cyx")
    arguments = ("batch", folder, "--model", tiny_model, "--samples", 1, "--steps", 0)
    ended = cdal(*arguments, "--dry-run")
    listed = [line for line in ended.out.splitlines() if str(folder) in line]
    names = ("CMU-1-Small-Region.svs", "dicom-CMU-1-Small-Region", "he-crop.ome.tif")
    for name in (*names, "small.svs", "z.zarr"):
        (line,) = (line for line in listed if f"{name}:" in line)
        assert "would fail" not in line
    assert len(listed) == 7  # and two broken ones
    only = ("--include", "z.zarr", "--include", "small.svs", "--save", "labels,table")
    ended = cdal(*arguments, *only)
    assert ended.code == 0, ended
    assert "2 segmented" in ended.out
    assert "2 finished before" in cdal(*arguments, *only).out
    (folder / "z.zarr" / "more.txt").write_text("changed")
    assert "1 segmented, 1 finished before" in cdal(*arguments, *only).out
