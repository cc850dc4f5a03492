"""Runs that share one output folder: side by side, in shares, killed and gone on with."""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdal_engine.batch.lock import alone
from cdal_engine.io.records import read_run
from cdal_engine.samples import he_path

HE = np.asarray(Image.open(he_path()))
NAMES = [f"{n}.png" for n in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images."""
    images = tmp_path / "images"
    images.mkdir()
    for n, name in enumerate(NAMES):
        Image.fromarray(HE[40 * n : 40 * n + 72, 250:346]).save(images / name)
    return images


@pytest.fixture
def command(folder: Path, tiny_model: Path) -> list[str]:
    """`cdal batch` of the folder in a process of its own."""
    start = [sys.executable, "-c", "from cdal_engine.cli import main; main()", "batch"]
    return [*start, str(folder), "--model", str(tiny_model), "--samples", "1", "--device", "cpu"]


def done(out: Path) -> list[str]:
    with (out / "summary.csv").open(newline="") as file:
        return sorted(row["results"] for row in csv.DictReader(file) if row["status"] == "done")


def count(text: str, word: str) -> int:
    """The number that stands before a word in a run's last line."""
    before = text.split(word)[0].split() if word in text else ["0"]
    return int(before[-1])


def test_two_runs_share_the_work(command: list[str], folder: Path, contents: Callable) -> None:
    out = folder / "cdal-out"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, **pipes) for _ in range(2)]
    ended = [(*run.communicate(timeout=250), run.returncode) for run in runs]
    assert [code for *_, code in ended] == [0, 0], ended
    segmented = [count(text, "segmented") for text, *_ in ended]
    before = [count(text, "finished before") for text, *_ in ended]
    assert sum(segmented) == len(NAMES)  # each once
    assert [a + b for a, b in zip(segmented, before, strict=True)] == [len(NAMES)] * 2
    assert done(out) == NAMES
    subprocess.run([*command, "-o", str(folder.parent / "alone")], check=True, timeout=200)
    assert contents(out) == contents(folder.parent / "alone")


def test_what_another_run_holds_comes_last(
    cdal: Callable, command: list[str], folder: Path
) -> None:
    out = folder / "cdal-out"
    with alone(out / NAMES[0]) as ours:
        assert ours
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while read_run(out / NAMES[-1]) is None:
            assert run.poll() is None
            time.sleep(0.01)
        assert read_run(out / NAMES[0]) is None
    assert "6 segmented; results" in run.communicate(timeout=200)[0]
    assert done(out) == NAMES


def test_shares_are_each_input_once(cdal: Callable, folder: Path, tiny_model: Path) -> None:
    arguments = ("batch", folder, "--model", tiny_model, "--samples", 1, "--device", "cpu")
    listed = []
    for share in range(1, 5):
        text = cdal(*arguments, "--shard", f"{share}/4", "--dry-run").out
        listed += [line.split(": image")[0] for line in text.splitlines() if ": image" in line]
    assert sorted(listed) == [str(folder / name) for name in NAMES]
    totals = [cdal(*arguments, "--shard", f"{share}/4") for share in (1, 2, 3, 4)]
    assert [count(ended.out, "segmented") for ended in totals] == [2, 2, 1, 1]
    assert done(folder / "cdal-out") == NAMES
    empty = cdal(*arguments, "--shard", "7/7")
    assert (empty.code, count(empty.out, "segmented")) == (0, 0)
    assert done(folder / "cdal-out") == NAMES


@pytest.mark.parametrize("share", ["0/4", "5/4", "1", "a/b", "-1/2", "1/0", "1/2/3", "1.5/2"])
def test_shares_that_there_are_not(cdal: Callable, folder: Path, share: str) -> None:
    ended = cdal("batch", folder, f"--shard={share}", "--dry-run")
    assert ended.code == 2
    assert "1/4 to 4/4" in ended.err


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.timeout(1200)
def test_killed_again_and_again_ends_the_same(
    command: list[str], folder: Path, kills: int, contents: Callable
) -> None:
    """Killed a random while after each start of work; whatever is left, the end is the same."""
    subprocess.run([*command, "-o", str(folder.parent / "whole")], check=True, timeout=200)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    wait = random.Random(seed)
    out = folder.parent / "killed"
    for _ in range(kills):
        before = _locks(out)
        process = subprocess.Popen([*command, "--restart", "-o", str(out)])
        while _locks(out) == before:  # the model is loading
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(wait.uniform(0, 0.6))
        process.kill()
        process.wait()
    subprocess.run([*command, "-o", str(out)], check=True, timeout=200)
    assert contents(out) == contents(folder.parent / "whole")
    assert done(out) == NAMES


def _locks(out: Path) -> set[tuple[str, int, int]]:
    found = set()
    for lock in out.glob("*/.cdal-lock"):
        with suppress(FileNotFoundError):
            status = lock.stat()
            found.add((str(lock), status.st_ino, status.st_mtime_ns))
    return found
