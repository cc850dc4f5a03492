"""Slides block by block: no block, tile, kill or region changes what is found."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import regionprops

from cdal_engine.batch.opened import Opened, check_source
from cdal_engine.batch.provenance import Earlier, Input, Parameters
from cdal_engine.batch.slide import SlideJob, segment_slide
from cdal_engine.config import DiffusionConfig, ModelConfig, NetworkConfig
from cdal_engine.errors import Cancelled
from cdal_engine.io.discovery import open_source
from cdal_engine.io.regions import read_regions
from cdal_engine.model import Model, Networks
from cdal_engine.segmenter import Progress, Segmenter

MODEL = "nuclei-he"  # an answer with objects
PLAIN = Parameters(samples=2, tissue=False, save=("labels", "table", "geojson", "overview"))
FAST = replace(PLAIN, samples=1, steps=0)
SCRIPT = """
import sys
from pathlib import Path
from cdal_engine.batch.provenance import Earlier, Input, Parameters
from cdal_engine.batch.opened import Opened, check_source
from cdal_engine.batch.slide import SlideJob, segment_slide
from cdal_engine.model import Model
from cdal_engine.segmenter import Segmenter

slide, folder, model, block = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
segmenter = Segmenter(Model.load(model), "cpu", 64)
save = ("labels", "table", "geojson", "overview", *sys.argv[5:])
parameters = Parameters(samples=2, save=save)
found = check_source(slide, segmenter, parameters)
opened = Opened(Input(slide, folder), *found, segmenter, parameters, Earlier())
segment_slide(SlideJob(opened, block))
"""


def write_slide(path: Path, pixels: NDArray, mpp: float = 0.499) -> Path:
    tag = {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 4):
            kind = min(step - 1, 1)
            tiff.write(pixels[::step, ::step], tile=(128, 128), subfiletype=kind, **tag)
    return path


@pytest.fixture(scope="module")
def slide(scan: NDArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A piece of a real slide, at half the model's resolution."""
    folder = tmp_path_factory.mktemp("slide") / "with spaces, Größe 切片"
    folder.mkdir()
    return write_slide(folder / "a b é.tif", scan[700:950, 1150:1470])


def run(
    slide: Path,
    folder: Path,
    model: Path | str,
    parameters: Parameters = PLAIN,
    tile: int = 256,
    block: int = 256,
    progress: Progress | None = None,
) -> dict:
    segmenter = Segmenter(Model.load(model), "cpu", tile)
    found = check_source(slide, segmenter, parameters)
    opened = Opened(Input(slide, folder), *found, segmenter, parameters, Earlier())
    return segment_slide(SlideJob(opened, block), progress)


def labels_of(folder: Path) -> NDArray:
    return zarr.open_array(folder / "labels.ome.zarr" / "s0", mode="r")[:]


def rows(folder: Path) -> list[tuple]:
    """Objects without their ids, in an order of their own; sums may end in other last bits."""
    table = pq.read_table(folder / "objects.parquet").drop_columns(["label"])
    rounded = (
        [round(value, 6) if isinstance(value, float) else value for value in column.to_pylist()]
        for column in table.columns
    )
    return sorted(zip(*rounded, strict=True))


def same_objects(one: NDArray, other: NDArray) -> bool:
    """Whether two label maps differ in their numbers only."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return one.shape == other.shape and pairs.shape[1] == one.max() + 1 == other.max() + 1


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but run.json, which holds times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_block_moves_no_object(slide: Path, tmp_path: Path) -> None:
    """The probability is the same bit by bit, so the objects are, wherever blocks end."""
    whole = run(slide, tmp_path / "one", MODEL, FAST, block=4096)
    assert whole["counts"]["objects"] > 100
    for block in (256, 512):
        again = run(slide, tmp_path / f"{block}", MODEL, FAST, block=block)
        assert rows(tmp_path / f"{block}") == rows(tmp_path / "one")
        assert same_objects(labels_of(tmp_path / f"{block}"), labels_of(tmp_path / "one"))
        assert again["counts"]["area_um2"] == whole["counts"]["area_um2"]


@pytest.mark.slow
def test_blocks_and_tiles_give_what_the_whole_image_gives(slide: Path, tmp_path: Path) -> None:
    """By the shipped model: 99.9 % of objects at an IoU of 0.95, probability within 1e-3."""
    source = open_source(slide)
    segmenter = Segmenter(Model.load(MODEL), "cpu")
    whole = segmenter.segment(source.read(), mpp=source.mpp, samples=1, steps=0, on_model_grid=True)
    parameters = replace(FAST, save=(*FAST.save, "probability"))
    for tile, block in ((1024, 2048), (128, 256)):
        folder = tmp_path / f"{tile}"
        run(slide, folder, MODEL, parameters, tile, block)
        labels = labels_of(folder)
        pairs, shared = np.unique(
            np.stack([whole.labels.ravel(), labels.ravel()]), axis=1, return_counts=True
        )
        sizes, others = np.bincount(whole.labels.ravel()), np.bincount(labels.ravel())
        iou = shared / (sizes[pairs[0]] + others[pairs[1]] - shared)
        matched = int((iou[(pairs > 0).all(axis=0)] >= 0.95).sum())
        assert matched >= 0.999 * whole.labels.max() > 100
        assert len(others) == len(sizes)
        probability = zarr.open_array(folder / "maps.ome.zarr" / "s0", mode="r")[0]
        assert np.abs(probability - whole.probability[0]).max() <= 1e-3


def test_places_are_the_slides_own(slide: Path, tmp_path: Path) -> None:
    """The grid is the model's, twice as fine; coordinates and areas are the slide's."""
    folder = tmp_path / "out"
    run(slide, folder, MODEL, replace(PLAIN, save=(*PLAIN.save, "uncertainty", "samples")))
    labels = labels_of(folder)
    assert labels.shape == (499, 639)
    table = pq.read_table(folder / "objects.parquet").to_pydict()
    assert max(table["x1"]) <= 320
    assert max(table["y1"]) <= 250
    pixel = 0.25 / 0.499
    assert sum(table["area_px"]) == pytest.approx((labels > 0).sum() * pixel**2)
    assert table["label"] == list(range(1, labels.max() + 1))
    for i in (0, len(table["label"]) // 2, -1):
        y, x = np.nonzero(labels == table["label"][i])
        assert table["y"][i] == pytest.approx((y.mean() + 0.5) * pixel)
        assert table["x0"][i] == pytest.approx(x.min() * pixel)
    features = orjson.loads((folder / "objects.geojson").read_bytes())["features"]
    assert [f["properties"]["measurements"]["label"] for f in features] == table["label"]
    metadata = zarr.open_group(folder / "maps.ome.zarr", mode="r").attrs["ome"]
    names = [channel["label"] for channel in metadata["omero"]["channels"]]
    assert names == ["uncertainty", "deviation", "sample 1", "sample 2"]
    placed = metadata["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert placed[0]["scale"][1:] == [0.25, 0.25]
    assert placed[1]["translation"][1:] == pytest.approx([(0.25 - 0.499) / 2] * 2)


def start(slide: Path, folder: Path, model: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(slide), str(folder), str(model), "128", *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate(timeout=250)
    assert process.returncode == 0, error


@pytest.mark.parametrize("more", [(), pytest.param(("probability",), marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_the_same(
    slide: Path, tiny_model: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Killed as each stage has begun, three times over: the same command ends in the same bytes."""
    finish(start(slide, tmp_path / "whole", tiny_model, *more))
    folder = tmp_path / "killed"
    blocks = folder / ".cdal-blocks"
    moments = [
        lambda: len(list(blocks.glob("maps/*"))) > 0,
        lambda: len(list(blocks.glob("objects/*"))) > 2,
        lambda: len(list(blocks.glob("objects/*"))) > 7,
        lambda: any(blocks.glob("results-*")),
        lambda: any(blocks.glob("results-*/labels.ome.zarr")),
        lambda: (folder / "objects.parquet").exists() or (folder / "run.json").exists(),
    ]
    for moment in moments:
        process = start(slide, folder, tiny_model, *more)
        while not moment() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(slide, folder, tiny_model, *more))
    assert contents(folder) == contents(tmp_path / "whole")
    assert not blocks.exists()


def test_what_is_finished_is_not_done_again(slide: Path, tiny_model: Path, tmp_path: Path) -> None:
    process = start(slide, tmp_path / "out", tiny_model)
    done = tmp_path / "out" / ".cdal-blocks" / "objects"
    while len(list(done.glob("*[0-9]"))) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate()
    before = {path.name: path.stat().st_mtime_ns for path in done.glob("*[0-9]")}
    seen = {}
    process = start(slide, tmp_path / "out", tiny_model)
    while process.poll() is None:
        for name in before:
            try:
                seen[name] = (done / name).stat().st_mtime_ns
            except OSError:
                break
    finish(process)
    recorded = [name for name in before if seen[name] == before[name]]
    assert len(recorded) >= len(before) - 1  # the last may have been killed before its record


def test_blocks_of_something_else_are_not_mixed_in(
    slide: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Killed with one seed, run with another: as if the first had never been."""
    folder, blocks = tmp_path / "out", tmp_path / "out" / ".cdal-blocks"
    process = start(slide, folder, tiny_model)
    while not list(blocks.glob("objects/*")):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate()
    (blocks / "notes.txt").write_text("mine")
    other = replace(PLAIN, seed=1, tissue=True)
    run(slide, folder, tiny_model, other, block=128)
    assert (blocks / "notes.txt").read_text() == "mine"
    assert [path.name for path in blocks.iterdir()] == ["notes.txt"]
    shutil.rmtree(blocks)
    run(slide, tmp_path / "clean", tiny_model, other, block=128)
    assert contents(folder) == contents(tmp_path / "clean")


def test_a_damaged_block_is_done_again(slide: Path, tiny_model: Path, tmp_path: Path) -> None:
    finish(start(slide, tmp_path / "whole", tiny_model))
    folder = tmp_path / "out"
    process = start(slide, folder, tiny_model)
    blocks = folder / ".cdal-blocks"
    while len(list(blocks.glob("objects/*[0-9]"))) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate()
    victim = min(blocks.glob("labels/*[0-9]"))
    victim.write_bytes(victim.read_bytes()[:-7])
    finish(start(slide, folder, tiny_model))
    assert contents(folder) == contents(tmp_path / "whole")


def test_only_tissue_counts(scan: NDArray, tmp_path: Path) -> None:
    """Beside tissue, glass and what has no colour: nothing there, and the rest as it was."""
    stained = scan[700:950, 1150:1310]
    gray = stained.mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, 2)
    glass = np.full((250, 160, 3), 243, np.uint8)
    slide = write_slide(tmp_path / "a.tif", np.hstack([stained, glass, gray]))
    every = run(slide, tmp_path / "every", MODEL, FAST)
    only = run(slide, tmp_path / "only", MODEL, replace(FAST, tissue=True))
    assert 0 < only["counts"]["objects"] < every["counts"]["objects"]
    assert only["counts"]["area_mm2"] < 0.8 * every["counts"]["area_mm2"]
    assert set(rows(tmp_path / "only")) <= set(rows(tmp_path / "every"))
    tissue = np.asarray(Image.open(tmp_path / "only" / "tissue.png")) > 0
    assert not (tmp_path / "every" / "tissue.png").exists()
    table = pq.read_table(tmp_path / "only" / "objects.parquet").to_pydict()
    beside = [
        not tissue[max(int(y0) - 1, 0) : int(y1) + 2, max(int(x0) - 1, 0) : int(x1) + 2].any()
        for x0, y0, x1, y1 in zip(*(table[key] for key in ("x0", "y0", "x1", "y1")), strict=True)
    ]
    assert not any(beside)


def test_an_empty_slide_is_a_result(tmp_path: Path) -> None:
    blank = np.random.default_rng(0).integers(236, 244, (300, 400, 1), np.uint8).repeat(3, 2)
    slide = write_slide(tmp_path / "a.tif", blank)
    every = ("labels", "probability", "uncertainty", "table", "geojson", "overview")
    record = run(slide, tmp_path / "out", MODEL, Parameters(samples=2, save=every))
    assert (record["counts"]["objects"], record["counts"]["area_mm2"]) == (0, 0)
    assert pq.read_table(tmp_path / "out" / "objects.parquet").num_rows == 0
    assert labels_of(tmp_path / "out").max() == 0
    assert orjson.loads((tmp_path / "out" / "objects.geojson").read_bytes())["features"] == []
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"maps.ome.zarr", "tissue.png", "overview.png"} <= names


def test_only_inside_the_regions(slide: Path, tmp_path: Path, regions_file: Callable) -> None:
    """An object counts if it begins in a region; then it is whole, as without regions."""
    path = regions_file([[[30, 20], [200.5, 40], [150, 180]]])
    inside = replace(FAST, regions=read_regions(path))
    run(slide, tmp_path / "every", MODEL, FAST)
    run(slide, tmp_path / "256", MODEL, inside)
    run(slide, tmp_path / "4096", MODEL, inside, block=4096)
    assert rows(tmp_path / "256") == rows(tmp_path / "4096")
    assert set(rows(tmp_path / "256")) < set(rows(tmp_path / "every"))
    table = pq.read_table(tmp_path / "256" / "objects.parquet").to_pydict()
    assert len(table["x"]) > 5
    assert all(25 < x < 206 and 15 < y < 186 for x, y in zip(table["x"], table["y"], strict=True))


@pytest.fixture
def regions_file(tmp_path: Path) -> Callable[[list], Path]:
    def write(rings: list) -> Path:
        closed = [[*ring, ring[0]] for ring in rings]
        geometry = {"type": "Polygon", "coordinates": closed}
        path = tmp_path / "regions.geojson"
        path.write_bytes(
            orjson.dumps(
                {
                    "type": "FeatureCollection",
                    "features": [{"type": "Feature", "geometry": geometry, "properties": {}}],
                }
            )
        )
        return path

    return write


def test_solidity_where_it_is_asked_for(slide: Path, tmp_path: Path) -> None:
    """As scikit-image has it of the whole, though blocks cut objects; a column comes and stays."""
    folder = tmp_path / "out"
    run(slide, folder, MODEL, FAST)
    assert "solidity" not in pq.read_table(folder / "objects.parquet").column_names
    run(slide, folder, MODEL, replace(FAST, save=(*FAST.save, "solidity")), block=128, tile=128)
    table = pq.read_table(folder / "objects.parquet").to_pydict()
    expected = {r.label: r.solidity for r in regionprops(labels_of(folder).astype(int))}
    assert len(expected) > 100
    assert min(expected.values()) < 0.9
    np.testing.assert_allclose(
        table["solidity"], [expected[label] for label in table["label"]], rtol=1e-6
    )


def test_classes_of_a_slide(scan: NDArray, classes_model: Path, tmp_path: Path) -> None:
    """A row and an outline for each class and block, told apart; areas do not depend on blocks."""
    slide = write_slide(tmp_path / "a.tif", scan[700:800, 1150:1290], mpp=0.25)
    records = {
        block: run(slide, tmp_path / f"{block}", classes_model, PLAIN, tile=64, block=block)
        for block in (64, 4096)
    }
    for block, record in records.items():
        folder = tmp_path / f"{block}"
        parquet = pq.ParquetFile(folder / "objects.parquet")
        groups = [parquet.read_row_group(i).to_pydict() for i in range(parquet.num_row_groups)]
        assert len(groups) == (6 if block == 64 else 1)
        assert all(len(set(group["label"])) == len(group["label"]) <= 2 for group in groups)
        labels = labels_of(folder)
        areas = {name: (labels == i).sum() * 0.25**2 for i, name in ((1, "gland"), (2, "stroma"))}
        assert record["counts"]["class_area_um2"] == pytest.approx(areas)
        assert record["counts"]["objects"] is None
        features = orjson.loads((folder / "objects.geojson").read_bytes())["features"]
        assert len({feature["id"] for feature in features}) == len(features)
        rows = [row for group in groups for row in zip(group["label"], group["class"], strict=True)]
        shown = [
            (f["properties"]["measurements"]["label"], f["properties"]["classification"]["name"])
            for f in features
        ]
        assert shown == rows
        assert set(rows) == {(1, "gland"), (2, "stroma")}
    np.testing.assert_array_equal(labels_of(tmp_path / "64"), labels_of(tmp_path / "4096"))
    assert records[64]["counts"] == records[4096]["counts"]


@pytest.fixture
def classes_model(tmp_path: Path, tiny_network: NetworkConfig) -> Path:
    config = ModelConfig(
        target="classes",
        classes=("gland", "stroma"),
        network=tiny_network,
        diffusion=DiffusionConfig(steps=2),
    )
    torch.manual_seed(0)
    Model.save(tmp_path / "classes", config, Networks(config))
    return tmp_path / "classes"


def test_stopped_while_merging_it_goes_on_from_there(
    slide: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """No block is done again, and nothing half-written is taken for a result."""
    whole, folder = tmp_path / "whole", tmp_path / "out"
    run(slide, whole, tiny_model)
    calls: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> bool:
        calls.append((done, total))
        return not list((folder / ".cdal-blocks").glob("results-*/labels.ome.zarr"))

    with pytest.raises(Cancelled):
        run(slide, folder, tiny_model, progress=stop)
    assert [path.name for path in folder.iterdir()] == [".cdal-blocks"]
    assert not list((folder / ".cdal-blocks").glob("results-*"))
    calls.clear()

    def watch(done: int, total: int) -> bool:
        calls.append((done, total))
        return True

    run(slide, folder, tiny_model, progress=watch)
    assert set(calls) == {(1, 1)}
    assert contents(folder) == contents(whole)


PEAK = """
import resource, sys
from pathlib import Path
sys.argv[1:] = [sys.argv[1], "-o", sys.argv[2], "--model", "nuclei-he", "--steps", "0"]
sys.argv[1:1] = ["segment"]
sys.argv += ["--device", "cpu", "--tile", "256"]
from cdal_engine.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_large(path: Path, edge: int, tissue: NDArray) -> None:
    """A pyramid of glass with one tile of tissue at each of two corners."""
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 4, 16):
            size = edge // step
            glass = np.full((512, 512, 3), 243, np.uint8)
            cells = [glass.copy(), *[glass] * ((size // 512) ** 2 - 2), glass.copy()]
            cells[0][: 512 // step, : 512 // step] = tissue[::step, ::step]
            cells[-1][-512 // step :, -512 // step :] = tissue[::step, ::step]
            tiff.write(
                iter(cells),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(512, 512),
                compression="jpeg",
                photometric="rgb",
                subfiletype=min(step - 1, 1),
                resolution=(4e4 / step,) * 2,
                resolutionunit="CENTIMETER",
            )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_memory_does_not_grow_with_the_slide(scan: NDArray, tmp_path: Path) -> None:
    """Four times the pixels, the same tissue: the peak stays within 15 %."""
    peaks, found = [], []
    for edge in (8192, 16384):
        path = tmp_path / f"{edge}.tif"
        write_large(path, edge, scan[700:1212, 1150:1662])
        command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "out")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert ended.returncode == 0, ended.stderr
        peaks.append(int(ended.stdout.split("peak")[1]))
        found.append(pq.read_table(tmp_path / "out" / path.name / "objects.parquet").num_rows)
    assert found[0] == found[1] > 200
    assert peaks[1] < 1.15 * peaks[0]
