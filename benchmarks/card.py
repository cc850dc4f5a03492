"""Print the tables of a model's card from the JSON of `cdal evaluate DATA --config ... -o FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = ("dice", "iou", "aji", "pq", "ece", "error_auroc")
MEANS = (
    *COLUMNS,
    "precision",
    "recall",
    "sq",
    "rq",
    "ece_pooled",
    "ece_boundary",
    "dice_one_sample",
    "dice_best_sample",
    "pairwise_dice",
)


def main(path: Path) -> None:
    report = json.loads(path.read_text())
    sampled, supervised = report["sampled"], report["supervised"]
    print("| image |", " | ".join(COLUMNS), "|")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for stem, scores in sampled["images"].items():
        print(f"| {stem} |", " | ".join(f"{scores[name]:.3f}" for name in COLUMNS), "|")
    print("\n| mean | 5 samples | supervised head alone |")
    print("|---|---|---|")
    for name in MEANS:
        beside = supervised["mean"].get(name)
        cell = "–" if beside is None else f"{beside:.4f}"
        print(f"| {name} | {sampled['mean'][name]:.4f} | {cell} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
