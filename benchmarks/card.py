"""Print the tables of a model's card from the JSON of `cdal evaluate DATA --config ... -o FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = ("dice", "iou", "aji", "pq", "ece", "error_auroc")
FEW = 12  # images that get a line of their own


def main(path: Path) -> None:
    report = json.loads(path.read_text())
    sampled, supervised = report["sampled"], report["supervised"]
    columns = [name for name in COLUMNS if name in sampled["mean"]]
    print("| image |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    rows = sorted(sampled["images"].items(), key=lambda row: row[1]["dice"])
    for stem, scores in rows if len(rows) <= FEW else [*rows[:3], rows[len(rows) // 2], rows[-1]]:
        print(f"| {stem} |", " | ".join(f"{scores[name]:.3f}" for name in columns), "|")
    print("\n| mean | 5 samples | supervised head alone |")
    print("|---|---|---|")
    for name in sampled["mean"]:
        beside = supervised["mean"].get(name)
        cell = "–" if beside is None else f"{beside:.4f}"
        print(f"| {name} | {sampled['mean'][name]:.4f} | {cell} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
