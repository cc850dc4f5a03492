"""`cdal batch` on worker processes: killed, interrupted, and the same bytes as in this process."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdal_engine.io.records import read_run
from cdal_engine.samples import he_path

pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")  # comes with distributed
HE = np.asarray(Image.open(he_path()))
NAMES = [f"{n}.png" for n in range(6)]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images and one that is none."""
    images = tmp_path / "images"
    images.mkdir()
    for n, name in enumerate(NAMES):
        Image.fromarray(HE[40 * n : 40 * n + 72, 250:346]).save(images / name)
    (images / "none.png").write_text("none")
    return images


@pytest.fixture
def command(folder: Path, tiny_model: Path) -> list[str]:
    start = [sys.executable, "-c", "from cdal_engine.cli import main; main()", "batch"]
    return [*start, str(folder), "--model", str(tiny_model), "--device", "cpu", "--samples", "2"]


def started(command: list[str], **options: object) -> subprocess.Popen:
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def status(out: Path) -> dict[str, str]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["results"]: row["status"] for row in csv.DictReader(file)}


def workers_of(pid: int) -> set[int]:
    """The workers of a local cluster among the processes below a process."""
    found = set()
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            if any("spawn_main" in word for word in process.cmdline()):
                found.add(process.pid)
    return found


def until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


class Cluster:
    """A scheduler and workers, each a process of its own, as started from a shell."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen] = []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        file = folder / "scheduler.json"
        until(file.exists, self.scheduler)
        time.sleep(0.2)
        self.address = json.loads(file.read_text())["address"]

    def _start(self, kind: str, *arguments: str) -> subprocess.Popen:
        common = ["--no-dashboard"]
        if kind == "scheduler":
            common += ["--scheduler-file", str(self._folder / "scheduler.json")]
        code = "from dask.__main__ import main; main()"
        command = [sys.executable, "-c", code, kind, *arguments, *common]
        log = (self._folder / f"{kind}-{len(self._processes)}.log").open("w")
        self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        log.close()
        # As an init process would: one killed is gone, not a zombie that seems alive.
        threading.Thread(target=self._processes[-1].wait, daemon=True).start()
        return self._processes[-1]

    def worker(self, *arguments: str) -> None:
        """Start a worker and wait until the scheduler knows it."""
        process = self._start("worker", self.address, "--nthreads", "1", "--no-nanny", *arguments)
        log = self._folder / f"worker-{len(self._processes) - 1}.log"
        until(lambda: "Registered" in log.read_text(), process)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


def test_workers_write_the_same_bytes(command: list[str], folder: Path, contents: Callable) -> None:
    """And go on with what an earlier run left."""
    in_process = started([*command, "-o", str(folder.parent / "one")])
    assert in_process.wait() == 1
    in_process.communicate()
    run = started([*command, "--workers", "2"])
    out, error = run.communicate(timeout=280)
    assert run.returncode == 1, error
    assert "6 segmented, 1 failed" in out
    assert "none.png: is named .png but holds no PNG" in error
    assert "Traceback" not in error
    assert contents(folder / "cdal-out").keys() == contents(folder.parent / "one").keys()
    same = {k: v for k, v in contents(folder / "cdal-out").items() if "failed" not in k}
    assert same.items() <= contents(folder.parent / "one").items()
    again = started([*command, "--workers", "1"])
    assert "0 segmented, 6 finished before, 1 failed" in again.communicate(timeout=280)[0]


def test_a_killed_worker_costs_nothing(command: list[str], folder: Path) -> None:
    out = folder / "cdal-out"
    run = started([*command, "--tile", "16", "--workers", "2"])
    until(lambda: sum(read_run(out / name) is not None for name in NAMES) >= 2, run)
    (victim, *_) = workers_of(run.pid)
    os.kill(victim, signal.SIGKILL)
    text, error = run.communicate(timeout=280)
    # One that had just written its results when its worker died is found finished.
    sure = ("6 segmented, 1 failed", "5 segmented, 1 finished before, 1 failed")
    assert any(counts in text for counts in sure), error
    assert "Traceback" not in error
    assert not list(out.rglob(".cdal*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_and_nothing_is_lost(
    command: list[str], folder: Path, number: signal.Signals
) -> None:
    """To the whole group, as a terminal sends it."""
    out = folder / "cdal-out"
    arguments = [*command, "--tile", "16", "--workers", "2"]
    run = started(arguments, start_new_session=True)
    until(lambda: any(read_run(out / name) is not None for name in NAMES), run)
    workers = workers_of(run.pid)
    assert len(workers) == 2
    os.killpg(run.pid, number)
    _, error = run.communicate(timeout=100)
    assert run.returncode == 130, error
    assert "what is finished is kept" in error
    assert "Traceback" not in error
    assert not any(psutil.pid_exists(pid) for pid in workers)
    assert "done" in status(out).values()
    assert started(arguments).communicate(timeout=280)[0].count("6 finished before") == 0
    assert sorted(n for n, state in status(out).items() if state == "done") == NAMES


def test_what_kills_its_workers_fails_alone(
    command: list[str], folder: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """The third image kills whatever works on it; the others are done by those that are left."""
    preload = tmp_path / "deadly.py"
    preload.write_text(
        "import os, signal\n"
        "from cdal_engine.io import images\n"
        "def open_image(path, opened=images.open_image):\n"  # dask runs this more than once
        "    if path.name == '2.png':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return opened(path)\n"
        "images.open_image = open_image\n"
    )
    for _ in range(6):  # four tries are dask's default; once, five workers were not enough
        cluster.worker("--resources", "cdal=1", "--preload", str(preload))
    run = started([*command, "--scheduler", cluster.address])
    text, error = run.communicate(timeout=280)
    assert run.returncode == 1
    # One done by a worker that dies before it has said so is found finished by the next.
    assert "2 failed" in text, error
    assert sorted(n for n, state in status(folder / "cdal-out").items() if state == "done") == [
        name for name in NAMES if name != "2.png"
    ]
    (line,) = (line for line in error.splitlines() if "workers died" in line)
    assert str(folder / "2.png") in line
    assert "Traceback" not in error


def test_a_cluster_that_cannot_do_it_is_refused_first(
    cdal: Callable, folder: Path, tiny_model: Path, cluster: Cluster
) -> None:
    arguments = ("batch", folder, "--model", tiny_model, "--scheduler")
    ended = cdal(*arguments, "tcp://127.0.0.1:1")
    assert (ended.code, "no dask scheduler answers" in ended.err) == (2, True), ended
    ended = cdal(*arguments, cluster.address)
    assert (ended.code, "none of the 0 workers" in ended.err) == (2, True), ended
    cluster.worker()
    ended = cdal(*arguments, cluster.address)
    assert (ended.code, "--resources cdal=1" in ended.err) == (2, True), ended
    cluster.worker("--resources", "cdal=1")
    ended = cdal(*arguments, cluster.address, "--device", "cuda:77")
    assert (ended.code, "'cuda:77' is not available here" in ended.err) == (2, True), ended
    ended = cdal(*arguments, cluster.address, "--workers", 2)
    assert (ended.code, "contradict" in ended.err) == (2, True), ended
    assert list((folder / "cdal-out").iterdir()) == []


def test_a_lost_scheduler_ends_the_run(command: list[str], folder: Path, cluster: Cluster) -> None:
    out = folder / "cdal-out"
    cluster.worker("--resources", "cdal=1", "--death-timeout", "5")
    arguments = [*command, "--tile", "16"]
    run = started([*arguments, "--scheduler", cluster.address])
    until(lambda: sum(read_run(out / name) is not None for name in NAMES) >= 2, run)
    cluster.scheduler.kill()
    _, error = run.communicate(timeout=280)
    assert run.returncode == 1, error
    assert "the connection to the dask scheduler was lost" in error
    assert "Traceback" not in error
    assert "done" in status(out).values()
    assert "segmented, " in started(arguments).communicate(timeout=280)[0]
    assert sorted(n for n, state in status(out).items() if state == "done") == NAMES
