"""Crops per second of training, and how long runs took to reach a validation Dice.

    python benchmarks/train_speed.py DATA --config FILE [--device auto] [--steps 50]
    python benchmarks/train_speed.py --run RUN [--run RUN ...] [--dice 0.80 0.82 0.83]

The first times making batches alone, learning from one batch again and again, and both as a run
does them, batches one step ahead. The second reads RUN/metrics.csv: the seconds of the first
validation with that Dice, validations before it included. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cdal_engine.config import TrainConfig
from cdal_engine.training.checks import load_checked
from cdal_engine.training.curves import read_rows
from cdal_engine.training.dataset import find_pairs
from cdal_engine.training.learner import Learner
from cdal_engine.training.loop import deciding_score
from cdal_engine.training.splits import split
from cdal_engine.training.team import Team

WARM_UP = 3  # steps


def per_second(work: Callable[[], object], steps: int, batch: int, device: torch.device) -> float:
    """Crops that go through `work`, which is a step."""
    for _ in range(WARM_UP):
        work()
    start = time.perf_counter()
    for _ in range(steps):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return steps * batch / (time.perf_counter() - start)


def speed(options: argparse.Namespace) -> None:
    config = TrainConfig.from_file(options.config) if options.config else TrainConfig()
    training, _ = split(find_pairs(options.data), config)
    team = Team(options.device)
    start = time.perf_counter()
    learner = Learner(config, load_checked((training, []), config), team)
    read = time.perf_counter() - start
    batches = learner.batches()
    one = next(batches)
    works: dict[str, Callable[[], object]] = {
        "batches alone": lambda: next(batches),
        "learning alone": lambda: learner.learn(*one, 0.0),
        "both, as in a run": lambda: learner.learn(*next(batches), 0.0),
    }
    print(
        f"{team.device}, batch {config.batch_size} of {config.crop}, {read:.1f} s to read the data"
    )
    print("\n| work | crops a second |\n|---|---|")
    for name, work in works.items():
        print(f"| {name} | {per_second(work, options.steps, config.batch_size, team.device):.1f} |")


def seconds_to(run: Path, dice: float) -> str:
    """When the first validation of a run had this Dice, and at which step."""
    score = deciding_score(TrainConfig.from_file(run / "config.yaml"))
    reached = (row for row in read_rows(run / "metrics.csv") if row.get(score, 0) >= dice)
    return next((f"{row['seconds']:.0f} s, step {row['step']:.0f}" for row in reached), "–")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--run", type=Path, action="append", default=[])
    parser.add_argument("--dice", type=float, nargs="+", default=[0.80, 0.82, 0.83])
    options = parser.parse_args()
    if options.data:
        speed(options)
    if options.run:
        print("\n| run |", *(f"Dice {dice:.2f} |" for dice in options.dice))
        print("|---" * (len(options.dice) + 1) + "|")
        for run in options.run:
            print(f"| {run} |", *(f"{seconds_to(run, dice)} |" for dice in options.dice))
    if not options.data and not options.run:
        parser.error("give DATA, or --run")


if __name__ == "__main__":
    main()
