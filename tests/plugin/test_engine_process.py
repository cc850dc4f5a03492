"""The engine's own process: what is loaded where, what it gives, and how it ends."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from napari.layers import Image
from numpy.typing import NDArray

from cdal_engine.model import Model
from cdal_engine.segmenter import Segmenter
from napari_cdal import engine_process
from napari_cdal.jobs import Job
from napari_cdal.planes import plane_of
from napari_cdal.regions import whole
from napari_cdal.worker import Run

PATIENCE = 120  # seconds, on a busy machine


def job_of(image: NDArray[np.uint8], model: Path, **changes: Any) -> Job:
    plane = plane_of(Image(image), (0, 0))
    options: dict[str, Any] = {
        "regions": whole(plane),
        "device": "cpu",
        "mpp": 0.25,
        "samples": 2,
        "steps": 2,
        "seed": 3,
        "wanted": frozenset(),
    }
    return Job(plane, model=model, **options | changes)


def engines() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # one of an earlier test, ended meanwhile
            if "engine_server" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_napari_loads_no_torch_and_the_engine_no_napari(tiny_model: Path) -> None:
    here = f"""
import sys
import numpy as np
from napari.layers import Image
from pathlib import Path
from napari_cdal.jobs import Job
from napari_cdal.planes import plane_of
from napari_cdal.regions import whole
from napari_cdal.worker import Run
plane = plane_of(Image(np.zeros((40, 50, 3), np.uint8)), (0, 0))
run = Run(Job(plane, whole(plane), Path({str(tiny_model)!r}), "cpu", 0.25, 2, 2, 0, frozenset()))
assert run() == ""
assert run.answers[0].segmentation.labels.shape == (40, 50)
import cdal_engine.corrections.export, napari_cdal.review_widget  # and all that they load
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", here], check=True, timeout=PATIENCE)
    there = (
        "import sys, torch, napari_cdal.engine_server, cdal_engine.segmenter, cdal_engine.volume;"
        "print({'napari', 'qtpy', 'magicgui', 'vispy'} & set(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", there], check=True, timeout=PATIENCE, capture_output=True, text=True
    )
    assert loaded.stdout.strip() == "set()"


def test_two_runs_at_once_give_what_each_gives(tiny_model: Path, tile: NDArray[np.uint8]) -> None:
    segmenter = Segmenter(Model.load(tiny_model), "cpu")
    images = [tile, np.ascontiguousarray(tile[::-1])]
    runs = [Run(job_of(image, tiny_model)) for image in images]
    threads = [threading.Thread(target=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for run, image in zip(runs, images, strict=True):
        alone = segmenter.segment(image, mpp=0.25, samples=2, steps=2, seed=3)
        np.testing.assert_array_equal(run.answers[0].segmentation.probability, alone.probability)
        assert run.answers[0].job is run.job
    assert len(engine_process._idle) == 1  # the other has gone


def test_what_nobody_expected_is_told_with_its_traceback(
    tiny_model: Path, tile: NDArray[np.uint8]
) -> None:
    job = job_of(tile, tiny_model, regions=("none",))
    with pytest.raises(RuntimeError, match="AttributeError: 'str' object has no") as error:
        Run(job)()
    assert "segmenting.py" in error.value.__notes__[0]


def test_a_layer_that_cannot_be_read_is_named_once(tiny_model: Path) -> None:
    class Gone:
        shape, ndim, dtype = (40, 50, 3), 3, np.dtype(np.uint8)

        def __getitem__(self, key: Any) -> NDArray[np.uint8]:
            raise OSError("the drive is gone")

    job = job_of(np.zeros(Gone.shape, np.uint8), tiny_model)
    run = Run(replace(job, plane=replace(job.plane, name="remote", levels=(Gone(),))))
    expected = "layer 'remote' cannot be read: the drive is gone (check the file it came from)"
    assert run() == expected


def test_what_is_printed_does_not_lie_between_the_messages(
    tiny_model: Path,
    tile: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As a library may, from C too."""
    (tmp_path / "noisy.py").write_text(
        "import os, threading, time\n"
        "def talk():\n"
        "    while not os.path.sameopenfile(1, 2):\n"  # not before its main
        "        time.sleep(0.001)\n"
        "    for _ in range(500):\n"
        "        print('hello', flush=True); os.write(1, b'there'); time.sleep(0.001)\n"
        "threading.Thread(target=talk, daemon=True).start()\n"
    )
    start = engine_process._START.replace("main()", "import noisy; main()")
    monkeypatch.setattr(engine_process, "_START", start)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(engine_process, "_idle", [])
    assert Run(job_of(tile, tiny_model))() == ""
    engine_process._idle.pop().end()
    assert "hellothere" in capfd.readouterr().err.replace("\n", "")


def test_it_starts_on_windows_and_from_any_path(
    tiny_model: Path, tile: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`os.nice` is not for Windows; scripts put `Path` objects on `sys.path`."""
    start = engine_process._START.replace("main()", "import os; vars(os).pop('nice'); main()")
    monkeypatch.setattr(engine_process, "_START", start)
    monkeypatch.setattr(engine_process, "_idle", [])
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    assert Run(job_of(tile, tiny_model))() == ""
    engine_process._idle.pop().end()


@pytest.mark.skipif(sys.platform == "win32", reason="there a process cannot be halted so")
def test_one_that_hangs_keeps_nobody_waiting(
    tiny_model: Path, tile: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a graphics driver may; napari waits for its workers when it is closed."""
    monkeypatch.setattr(engine_process, "_idle", [])
    run = Run(job_of(np.tile(tile, (12, 20, 1)), tiny_model))
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not run.answers and time.monotonic() < deadline:
        time.sleep(0.01)
    engine = max(engines(), key=lambda child: child.create_time())
    engine.suspend()
    run.abandon()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not engine.is_running()
    assert not engine_process._idle


def test_one_that_waits_long_gives_its_memory_back(
    tiny_model: Path, tile: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "_idle", [])
    monkeypatch.setattr(engine_process, "_IDLE", 0.5)
    assert Run(job_of(tile, tiny_model))() == ""
    (process,) = engine_process._idle
    deadline = time.monotonic() + PATIENCE
    while engine_process._idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine_process._idle
    deadline = time.monotonic() + PATIENCE
    while process.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.alive
    assert Run(job_of(tile, tiny_model))() == ""
    with engine_process.borrowed("") as second:  # in good time: nobody ends it meanwhile
        time.sleep(1)
        assert second.alive
    second.end()


def test_what_is_abandoned_once_it_has_ended_takes_no_other_along(
    tiny_model: Path, tile: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "_idle", [])
    run = Run(job_of(tile, tiny_model))
    assert run() == ""
    run.abandon()
    (process,) = engine_process._idle
    assert process.alive
    assert Run(job_of(tile, tiny_model))() == ""
    process.end()


@pytest.mark.gui
def test_one_process_waits_for_the_first_run_of_any_widget(
    make_napari_viewer: Callable[..., Any], docked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "_idle", [])
    viewer = make_napari_viewer()
    docked(viewer)
    (process,) = engine_process._idle
    docked(viewer)
    assert engine_process._idle == [process]
    with engine_process.borrowed("") as borrowed:
        assert borrowed is process
        assert not engine_process._idle
    engine_process._idle.pop().end()
    assert not process.alive


@pytest.mark.gui
def test_a_killed_engine_leaves_what_is_shown(
    make_napari_viewer: Callable[..., Any], docked: Any, qtbot: Any, tile: NDArray[np.uint8]
) -> None:
    """By the system where memory is short, for one."""
    viewer = make_napari_viewer()
    viewer.add_image(np.tile(tile, (12, 20, 1)), name="large", rgb=True)
    widget = docked(viewer)
    widget.run_button.native.click()
    qtbot.waitUntil(lambda: "of 3 tiles" in widget.status.value)
    for engine in engines():
        engine.kill()
    qtbot.waitUntil(lambda: not widget.running)
    assert "The engine's process ended" in widget.status.value
    assert "segment a smaller region" in widget.status.value
    assert viewer.layers[-1].name == "labels: large, tiny"
    assert viewer.layers[-1].editable
    viewer.layers.clear()
    viewer.add_image(tile, rgb=True)
    widget.run_button.native.click()
    qtbot.waitUntil(lambda: not widget.running)
    assert "objects in" in widget.status.value


@pytest.mark.skipif(sys.platform == "win32", reason="there a process cannot be killed so")
def test_the_engine_ends_with_napari() -> None:
    code = (
        "import sys, time; from napari_cdal.engine_process import EngineProcess;"
        "print(EngineProcess().pid, flush=True); time.sleep(600)"
    )
    napari = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert napari.stdout is not None
    engine = psutil.Process(int(napari.stdout.readline()))
    napari.send_signal(signal.SIGKILL)
    napari.wait(PATIENCE)
    napari.stdout.close()
    engine.wait(PATIENCE)
