"""Whether training stays good once it is good: a small model trained for longer than it needs.

python benchmarks/stability.py DATA -o DIR [--steps 2400] [--every 2.5] [--device cpu]

The ablation's "ours" with its whole validation, every so many minutes of training. Prints each
validation, and how far the last one is below the best, in points of Dice.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from ablation import Row, config_of

from cdal_engine.training.dataset import find_pairs
from cdal_engine.training.loop import Trainer
from cdal_engine.training.splits import split

SHOWN = ("step", "dice", "supervised_dice", "aji", "pq", "dice_one_sample", "pairwise_dice")


def main() -> None:
    """Train, validating on the way, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--every", type=float, default=2.5, help="minutes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = config_of(Row({"validate_every": options.every}), options.steps)
    pairs = split(find_pairs(options.data), config)
    Trainer(config, pairs, options.output, options.device).run()
    with (options.output / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["dice"]]
    print(f"| {' | '.join(SHOWN)} |", "|" + "---|" * len(SHOWN), sep="\n")
    for row in rows:
        print(f"| {' | '.join(f'{float(row[name]):.4g}' for name in SHOWN)} |")
    for name in ("dice", "supervised_dice"):
        scores = [float(row[name]) for row in rows]
        print(f"{name}: {100 * (max(scores) - scores[-1]):.2f} points below its best at the end")


if __name__ == "__main__":
    main()
