"""Tables and calibration plot of a model's card.

    python benchmarks/card.py FILE [-o calibration.png]

FILE is the JSON of `cdal evaluate DATA --model NAME --config ... -o FILE`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLUMNS = ("dice", "iou", "aji", "pq", "ece", "error_auroc")
FEW = 12  # images that get a line of their own


def tables(report: dict[str, Any]) -> None:
    """Print the scores of images, and the mean of both answers."""
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


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw how often what is said with a probability is true, and how often it is said."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    reliability, histogram = figure.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], color="gray", lw=1)
    for answer, name in (("sampled", "5 samples"), ("supervised", "supervised head alone")):
        shown, error = report[answer]["calibration"], report[answer]["mean"]["ece_pooled"]
        label = f"{name}, error {100 * error:.1f} %"
        reliability.plot(shown["probability"], shown["true"], "o-", ms=3, label=label)
        histogram.plot(shown["probability"], shown["pixels"], "o-", ms=3, label=name)
    reliability.set(
        title="Calibration", xlabel="probability said", ylabel="share that is true", aspect="equal"
    )
    histogram.set(title="How often", xlabel="probability said", ylabel="pixels", yscale="log")
    for axes in (reliability, histogram):
        axes.grid(alpha=0.3)
    reliability.legend(loc="lower right", fontsize=7)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Print the tables, and draw the plot where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    report = json.loads(options.file.read_text())
    tables(report)
    if options.output:
        plot(report, options.output)


if __name__ == "__main__":
    main()
