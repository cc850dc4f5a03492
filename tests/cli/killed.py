"""Kill `cdal batch` as it touches each of its files: `killed.py FOLDER MODEL OUT EVERY`.

Lists what an undisturbed run opens, renames and removes below its output, by Python's audit
events. Then, for each EVERY-th kind of that, starts a run that kills itself the first time it is
about to do it, and runs the same command to the end. Prints a line of JSON for each: what, where
the results lie, and both exit codes. Runs are forks of this process, which imports but once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Before the forks, which then need not.
import cdal_engine.batch.run
import cdal_engine.io.ome_zarr
import cdal_engine.io.overview
import cdal_engine.io.report
import cdal_engine.io.tables
import cdal_engine.io.tiff  # noqa: F401
from cdal_engine.cli import main

RANDOM = re.compile(r"(?<=writing-)\w+|(?<=results-)\w+|\w*\d\w*")
EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
SAVE = "labels,table,geojson,overview,probability"
FOLDER, MODEL, OUT, EVERY = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])


def forked(out: Path, hook: Callable[[str, tuple[Any, ...]], None] | None = None) -> int:
    """Run the command in a fork; returns how it ended, -9 if killed."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    if hook is not None:
        sys.addaudithook(hook)
    sys.argv = ["cdal", "batch", str(FOLDER), "--model", MODEL, "-o", str(out)]
    sys.argv += ["--device", "cpu", "--samples", "2", "--save", SAVE]
    code = 70
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 70
    finally:
        os._exit(code)


def kind(out: Path, event: str, arguments: tuple[Any, ...]) -> str:
    """An event below the output, random names and numbers left out; empty if it is another."""
    if event not in EVENTS or not isinstance(arguments[0], str | Path):
        return ""
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return ""
    path = str(arguments[1] if event == "os.rename" else arguments[0])
    if not path.startswith(f"{out}{os.sep}"):
        return ""
    return f"{event} {RANDOM.sub('#', path[len(str(out)) :])}"


def killing(out: Path, wanted: str) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if kind(out, event, arguments) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def listing(out: Path, file: Path) -> Callable[[str, tuple[Any, ...]], None]:
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if what := kind(out, event, arguments):
            os.write(descriptor, f"{what}\n".encode())

    return hook


def run() -> None:
    """Kill and go on, for each kind."""
    torch.set_num_threads(1)
    forked(OUT / "whole", listing(OUT / "whole", OUT / "list"))
    kinds = list(dict.fromkeys((OUT / "list").read_text().splitlines()))
    for number, what in enumerate(kinds):
        if number % EVERY:
            continue
        out = OUT / f"killed-{number}"
        codes = forked(out, killing(out, what)), forked(out)
        print(json.dumps({"what": what, "out": str(out), "codes": codes}), flush=True)


if __name__ == "__main__":
    run()
