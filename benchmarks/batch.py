"""Inputs a minute with one worker process and with several.

    python benchmarks/batch.py IMAGES [--workers 1 2] [--samples 1] [--model nuclei-he]

Runs `cdal batch` on the folder once for each number of workers, into a folder of its own, and
compares what they wrote. Each run has as many processors as workers, each worker one thread.
Start-up of the processes is part of the time, as it is for users; the last column leaves it out, by
the times that files were written. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def contents(out: Path) -> dict[str, bytes]:
    """What does not record times."""
    timed = {"run.json", "summary.csv", "report.html"}
    files = (p for p in out.rglob("*") if p.is_file() and p.name not in timed)
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in files}


def main() -> None:
    """Print one line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--model", default="nuclei-he")
    options = parser.parse_args()
    start = [sys.executable, "-c", "from cdal_engine.cli import main; main()", "batch"]
    start += [str(options.images), "--samples", str(options.samples), "--model", options.model]
    processors = sorted(os.sched_getaffinity(0))
    first: dict[str, bytes] = {}
    print(f"{'workers':>7} {'inputs':>7} {'seconds':>8} {'a minute':>9} {'while working':>14} same")
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            begun = time.perf_counter()
            command = [*start, "-o", str(out), "--workers", str(workers)]
            os.sched_setaffinity(0, processors[:workers])  # inherited, and shared by the workers
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - begun
            ends = sorted(path.stat().st_mtime for path in out.glob("**/run.json"))
            # The first inputs' own times are not known: those after them are counted.
            busy = 60 * (len(ends) - workers) / max(ends[-1] - ends[workers - 1], 1e-9)
            first = first or contents(out)
            same = contents(out) == first
        rate = 60 * len(ends) / seconds
        line = f"{workers:>7} {len(ends):>7} {seconds:>8.1f} {rate:>9.1f} {busy:>14.1f} {same}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
