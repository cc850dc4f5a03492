"""What a run writes for people to look at: metrics.csv and curves.png."""

from __future__ import annotations

import csv
import os
from pathlib import Path

__all__ = ["append_row", "draw_curves", "read_rows"]

Row = dict[str, float]


def read_rows(path: Path) -> list[Row]:
    """Rows of metrics.csv; cells left empty are left out."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def append_row(path: Path, row: Row) -> None:
    """Add a row to metrics.csv, rewritten whole so that new columns fit."""
    rows = [*(r for r in read_rows(path) if r["step"] < row["step"]), row]
    names = list(dict.fromkeys(name for r in rows for name in r))
    aside = path.with_suffix(".tmp")
    with aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(
            {k: int(v) if k == "step" else f"{v:.6g}" for k, v in r.items()} for r in rows
        )
    os.replace(aside, path)


def draw_curves(rows: list[Row], path: Path) -> None:
    """Draw losses, and validation metrics where there are any, over optimiser steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("reconstruction", "supervised", "adversarial", "discriminator"):
        points = [(r["step"], r[name]) for r in rows if name in r]
        left.plot(*zip(*points, strict=True), ".-", label=name) if points else None
    for name in ("dice", "dice_foreground", "dice_one_sample", "pairwise_dice", "aji", "pq"):
        points = [(r["step"], r[name]) for r in rows if name in r]
        right.plot(*zip(*points, strict=True), "o-", label=name) if points else None
    left.set(title="Training losses", xlabel="optimiser step", yscale="log")
    right.set(title="Validation, whole images", xlabel="optimiser step")
    right.set_ylim(top=1.005)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    aside = path.with_suffix(".tmp.png")
    figure.savefig(aside, dpi=110)
    os.replace(aside, path)
