"""One run at a time on an input's results: real processes, killed and on other hosts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdal_engine.batch.lock import LOCK, alone
from cdal_engine.errors import CdalError

HOLD = """
import sys, time
from pathlib import Path
from cdal_engine.batch.lock import alone
with alone(Path(sys.argv[1]), lease=float(sys.argv[2])) as ours:
    print(ours, flush=True)
    time.sleep(1000)
"""
ELSEWHERE = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "-"]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """A process that holds `tmp_path`, started behind `prefix`."""
    started = []

    def start(lease: float = 60.0, prefix: list[str] | None = None) -> subprocess.Popen:
        command = [*(prefix or []), sys.executable, "-c", HOLD, str(tmp_path), str(lease)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "True\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_at_a_time_and_then_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "if needed"
    with alone(folder) as first, alone(folder) as second:
        assert (first, second) == (True, False)
    with alone(folder) as third:
        assert third
    assert list(folder.iterdir()) == []


def test_a_live_process_keeps_it_and_a_dead_one_does_not(tmp_path: Path, holder: Callable) -> None:
    process = holder()
    with alone(tmp_path) as ours:
        assert not ours
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK).exists()
    with alone(tmp_path) as ours:
        assert ours


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.name != "posix" or os.geteuid() != 0,
    reason="another host's name needs Linux and root",
)
def test_a_holder_on_another_host_is_known_by_its_heartbeat(
    tmp_path: Path, holder: Callable
) -> None:
    if subprocess.run([*ELSEWHERE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    process = holder(1.0, ELSEWHERE)
    with alone(tmp_path, wait=2.5, lease=1.0) as ours:
        assert not ours  # it is alive: its heart beats
    process.kill()
    process.wait()
    with alone(tmp_path, lease=1.0) as ours:
        assert not ours  # who could know?
    with alone(tmp_path, wait=100.0, lease=1.0) as ours:
        assert ours


def test_who_does_not_write_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CdalError, match="cannot write results here"), alone(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_stranger_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    """A link there must not make us write elsewhere."""
    target = tmp_path / "elsewhere"
    target.write_text("mine")
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / LOCK).symlink_to(target)
    with alone(folder, wait=60.0):
        time.sleep(0)
    assert target.read_text() == "mine"
