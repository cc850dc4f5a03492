"""One slide shared between the workers of a cluster: the same bytes, and a death costs a block."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from cdal_engine.batch.opened import open_input
from cdal_engine.batch.provenance import Input, Parameters
from cdal_engine.batch.run import Outcome, Sharing
from cdal_engine.batch.slide import SlideJob, segment_slide
from cdal_engine.errors import CdalError
from cdal_engine.io.records import FAILED, read_run
from cdal_engine.model import Model
from cdal_engine.segmenter import Segmenter

distributed = pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="kills processes"),
    pytest.mark.usefixtures("one_thread"),  # as a worker has
]

BLOCK = TILE = 128
SHARED = Sharing(least=4, block=BLOCK)
PLAIN = Parameters(samples=2, tissue=False)


@pytest.fixture
def slides(scan: NDArray, tmp_path: Path) -> Path:
    """Folder of a slide of many blocks, and one of a single block."""
    folder = tmp_path / "slides"
    folder.mkdir()
    tag = {"resolution": (1e4 / 0.499,) * 2, "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    for name, pixels in (("large", scan[700:860, 1150:1350]), ("small", scan[700:760, 1150:1210])):
        with tifffile.TiffWriter(folder / f"{name}.tif") as tiff:
            for step in (1, 4):
                kind = min(step - 1, 1)
                tiff.write(pixels[::step, ::step], tile=(128, 128), subfiletype=kind, **tag)
    return folder


@pytest.fixture
def client() -> Iterator[distributed.Client]:
    from cdal_engine.batch.distributed import local_cluster

    with local_cluster(2) as client:
        yield client


def alone(path: Path, folder: Path, model: Path, parameters: Parameters = PLAIN) -> None:
    """Segment a slide in this process."""
    opened = open_input(Input(path, folder), Segmenter(Model.load(model), "cpu", TILE), parameters)
    segment_slide(SlideJob(opened, BLOCK))


def together(
    client: distributed.Client,
    slides: Path,
    out: Path,
    model: Path,
    parameters: Parameters = PLAIN,
    progress: Callable[[int, int], bool] | None = None,
) -> dict[str, Outcome]:
    """Segment all slides of a folder on the workers."""
    from cdal_engine.batch.distributed import Loading, run_on

    out.mkdir(exist_ok=True)
    inputs = [Input(path, out / path.name) for path in sorted(slides.iterdir())]
    loading, digest = Loading(str(model), "cpu", TILE), Model.load(model).digest
    what = (client, inputs, loading, digest, out, parameters, False, SHARED, progress)
    return {outcome.input.path.name: outcome for outcome in run_on(*what)}


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.mark.parametrize("more", [(), ("probability",)])
def test_the_same_bytes_as_in_one_process(
    client: distributed.Client, slides: Path, tiny_model: Path, tmp_path: Path, more: tuple
) -> None:
    parameters = replace(PLAIN, save=(*PLAIN.save, *more))
    for name in ("large.tif", "small.tif"):
        alone(slides / name, tmp_path / "one" / name, tiny_model, parameters)
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> bool:
        seen.append((done, total))
        return True

    outcomes = together(client, slides, tmp_path / "two", tiny_model, parameters, watch)
    assert {name for name, outcome in outcomes.items() if outcome.run} == {"large.tif", "small.tif"}
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    counts = [read_run(tmp_path / each / "large.tif")["counts"] for each in ("one", "two")]
    assert counts[0] == counts[1]
    assert seen[-1] == (12, 12)
    assert seen == sorted(seen)
    again = together(client, slides, tmp_path / "two", tiny_model, parameters)
    assert all(outcome.already for outcome in again.values())


def test_a_death_costs_the_block_that_was_under_way(
    client: distributed.Client, slides: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """What was finished before is not touched again."""
    alone(slides / "large.tif", tmp_path / "one", tiny_model)
    (slides / "small.tif").unlink()
    victims = list(client.run(os.getpid).values())[:1]
    folder = tmp_path / "two" / "large.tif"
    written: dict[str, set[int]] = {}

    def watch(done: int, total: int) -> bool:
        for path in (folder / ".cdal-blocks").glob("objects/*[0-9]"):
            written.setdefault(path.name, set()).add(path.stat().st_mtime_ns)
        if done == 4 and victims:
            os.kill(victims.pop(), signal.SIGKILL)
        return True

    outcomes = together(client, slides, tmp_path / "two", tiny_model, progress=watch)
    assert outcomes["large.tif"].run, outcomes
    assert contents(folder) == contents(tmp_path / "one")
    assert len(written) > 5
    assert sum(len(times) > 1 for times in written.values()) <= 1


def test_killed_and_started_again_it_goes_on(
    client: distributed.Client, slides: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Stopped among the workers, it goes on in one process with the blocks that there are."""
    alone(slides / "large.tif", tmp_path / "one", tiny_model)

    def stop(done: int, total: int) -> bool:
        if done == 4:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        together(client, slides, tmp_path / "two", tiny_model, progress=stop)
    folder = tmp_path / "two" / "large.tif"
    lines = (folder / ".cdal-blocks" / "blocks.jsonl").read_text().splitlines()
    assert sum("objects/" in line for line in lines) == 4
    assert not (folder / ".cdal-lock").exists()
    outcomes = together(client, slides, tmp_path / "two", tiny_model)
    assert outcomes["large.tif"].run
    assert contents(folder) == contents(tmp_path / "one")


def test_what_cannot_be_read_fails_in_a_line(
    client: distributed.Client, slides: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A tile in the middle is damaged: the slide fails, the other does not."""
    noise = np.random.default_rng(0).integers(0, 255, (640, 640, 3), np.uint8)
    path = slides / "large.tif"
    options = {"tile": (128, 128), "compression": "jpeg", "photometric": "rgb"}
    tag = {"resolution": (1e4 / 0.499,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 4):
            kind = min(step - 1, 1)
            tiff.write(noise[::step, ::step], subfiletype=kind, **options, **tag)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[12]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(60))
    outcomes = together(client, slides, tmp_path / "two", tiny_model)
    assert outcomes["small.tif"].run
    error = outcomes["large.tif"].error
    assert isinstance(error, CdalError)
    assert error.path == path
    assert "cannot be decoded" in error.reason
    assert (tmp_path / "two" / "large.tif" / FAILED).exists()


def test_another_run_that_holds_the_slide_is_waited_for(
    client: distributed.Client, slides: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from cdal_engine.batch.lock import alone as held

    folder = tmp_path / "two" / "large.tif"
    let_go = threading.Event()

    def hold() -> None:
        with held(folder) as ours:
            assert ours
            let_go.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    while not (folder / ".cdal-lock").exists():
        time.sleep(0.01)
    threading.Timer(3, let_go.set).start()
    outcomes = together(client, slides, tmp_path / "two", tiny_model)
    other.join()
    assert outcomes["large.tif"].run
    assert outcomes["small.tif"].run
