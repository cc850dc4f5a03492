"""Where results cannot be written: a full disk, a read-only one, and the folder of the input."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdal_engine.samples import he_path

HE = np.asarray(Image.open(he_path()))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a disk of some size at `tmp_path/disk`."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options: str) -> Path:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("a disk to fill needs Linux and root")
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no disk can be mounted here")
        return disk

    yield mount
    if os.path.ismount(disk):
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for n in range(4):
        Image.fromarray(HE[40 * n : 40 * n + 72, 250:346]).save(images / f"{n}.png")
    return images


def statuses(out: Path) -> list[str]:
    with (out / "summary.csv").open(newline="") as file:
        return [row["status"] for row in csv.DictReader(file)]


def test_a_full_disk_stops_in_a_line_and_goes_on_later(
    cdal: Callable, folder: Path, tiny_model: Path, small_disk: Callable, contents: Callable
) -> None:
    arguments = ("batch", folder, "--model", tiny_model, "--samples", 1, "--device", "cpu", "-o")
    cdal(*arguments, "whole")
    need = sum(-(-len(content) // 4096) for content in contents(Path("whole")).values())
    disk = small_disk("size=16m")
    ballast = disk / "ballast"
    # Room for about two and a half of the four, run.json and what is written aside counted in.
    room = (need // 4 + 6) * 4096 * 5 // 2
    ballast.write_bytes(bytes(16 * 2**20 - room))
    ended = cdal(*arguments, disk / "out")
    assert ended.code == 1, ended
    (line,) = (line for line in ended.err.splitlines() if line.startswith("stopped: "))
    assert "No space left on device" in line
    assert "make space, then do the same again" in line
    assert "Traceback" not in ended.err
    assert int(ended.out.split(" segmented")[0]) in (1, 2, 3)
    ballast.unlink()
    ended = cdal(*arguments, disk / "out")
    assert (ended.code, "finished before" in ended.out) == (0, True), ended
    assert statuses(disk / "out") == ["done"] * 4
    assert contents(disk / "out") == contents(Path("whole"))


def test_a_disk_that_is_not_to_be_written_on(
    cdal: Callable, folder: Path, tiny_model: Path, small_disk: Callable
) -> None:
    disk = small_disk("size=1m", "ro")
    ended = cdal("batch", folder, "--model", tiny_model, "-o", disk)
    assert ended.code == 2
    assert "cannot write results here: Read-only file system" in ended.err
    ended = cdal("batch", folder, "--model", tiny_model, "-o", disk / "below")
    assert ended.code == 2
    assert "choose another folder with -o" in ended.err


def test_results_in_the_folder_of_the_images_are_never_input(
    cdal: Callable, folder: Path, tiny_model: Path
) -> None:
    """Neither finished ones nor those that a killed run left unfinished."""
    arguments = ("batch", folder, "--model", tiny_model, "--samples", 1)
    assert "4 segmented" in cdal(*arguments, "-o", folder / "more" / "results").out
    shutil.copytree(folder / "more/results/0.png", folder / "more/results/killed/.cdal-writing-x")
    assert "4 segmented" in cdal(*arguments, "-o", folder / "others").out
    ended = cdal(*arguments, "--dry-run")
    assert "4 inputs, 0 finished before" in ended.out
    assert "megapixels at the model's resolution" in ended.out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_hundred_small_images(cdal: Callable, tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "many"
    for n in range(500):
        below = folder / str(n % 7)
        below.mkdir(parents=True, exist_ok=True)
        y, x = divmod(n, 25)
        Image.fromarray(HE[8 * y : 8 * y + 32, 12 * x : 12 * x + 32]).save(below / f"{n}.png")
    arguments = ("batch", folder, "--model", tiny_model, "--samples", 1, "--steps", 0)
    assert "500 segmented" in cdal(*arguments).out
    assert statuses(folder / "cdal-out") == ["done"] * 500
    assert "0 segmented, 500 finished before" in cdal(*arguments).out
