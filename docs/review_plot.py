"""Draw what correcting is worth: python docs/review_plot.py CORRECTIONS.json

The file is of benchmarks/corrections.py; the picture is docs/images/review-worth.png.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OUT = Path(__file__).parent / "images" / "review-worth.png"
COLOURS = {"disagreement": "tab:orange", "random": "tab:blue"}
NAMES = {"dice": "Dice", "pq": "PQ"}


def objects(axes: Axes, curves: dict[str, list[dict[str, float]]], score: str) -> None:
    """Scores of the answer over the share of its objects that was reviewed."""
    for order, rows in curves.items():
        shares = [100 * row["share"] for row in rows]
        label = f"{order} first" if order == "disagreement" else "random order"
        axes.plot(shares, [row[score] for row in rows], "o-", color=COLOURS[order], label=label)
    axes.set(xlabel="objects reviewed, %", ylabel=NAMES[score], title="the answer, corrected")


def regions(axes: Axes, result: dict[str, Any], score: str) -> None:
    """Scores on the held-out part of a model over the number of regions it learned from."""
    rows, before = result["regions"], result["before"][score]
    for order, colour in COLOURS.items():
        mine = [row for row in rows if row["order"].startswith(order)]
        counts = sorted({row["regions"] for row in mine})
        means = [np.mean([r[score] for r in mine if r["regions"] == n]) for n in counts]
        axes.plot([0, *counts], [before, *means], "-", color=colour)
        axes.plot([r["regions"] for r in mine], [r[score] for r in mine], "o", color=colour)
    axes.axhline(before, color="grey", linestyle=":")
    axes.set(xlabel="regions corrected", ylabel=NAMES[score], title="the model, elsewhere on it")


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    figure = Figure(figsize=(9, 6), layout="constrained")
    for row, score in zip(figure.subplots(2, 2), NAMES, strict=True):
        objects(row[0], result["objects"], score)
        regions(row[1], result, score)
    figure.axes[0].legend()
    figure.savefig(OUT, dpi=90)


if __name__ == "__main__":
    main()
