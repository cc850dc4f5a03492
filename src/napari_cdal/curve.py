"""A small plot that grows while a model learns."""

from __future__ import annotations

from itertools import pairwise

from qtpy.QtCore import QPointF, QRectF
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPalette, QPen
from qtpy.QtWidgets import QSizePolicy, QWidget

__all__ = ["Curve"]

_HEIGHT = 150
_LOSS, _SCORE = QColor(130, 160, 200), QColor(240, 180, 60)
_MARGIN, _HEAD = 8.0, 24.0  # pixels around the plot, and above it for its legend


class Curve(QWidget):
    """Loss over the steps, falling, and scores on held-out regions, 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.setMinimumHeight(_HEIGHT)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Loss and held-out Dice over steps")
        self.losses: list[tuple[float, float]] = []
        self.scores: list[tuple[float, float]] = []

    def clear(self) -> None:
        """Start anew."""
        self.losses, self.scores = [], []
        self.update()

    def add(self, row: dict[str, float]) -> None:
        """Take in what training reports: the loss of a step, or a validation's Dice."""
        if "dice" in row:
            self.scores.append((row["step"], row["dice"]))
        elif "reconstruction" in row:
            self.losses.append((row["step"], row["reconstruction"]))
        self.update()

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Draw both lines, each over its own range."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area = QRectF(self.rect()).adjusted(_MARGIN, _HEAD, -_MARGIN, -_MARGIN)
        painter.setPen(QPen(self.palette().color(QPalette.ColorRole.Mid), 1))
        painter.drawRect(area)
        end = max([step for step, _ in self.losses + self.scores] or [1.0]) or 1.0
        largest = max([loss for _, loss in self.losses] or [1.0]) or 1.0
        low, high = _range([score for _, score in self.scores])
        for points, colour, bottom, top in (
            (self.losses, _LOSS, 0.0, largest),
            (self.scores, _SCORE, low, high),
        ):
            painter.setPen(QPen(colour, 2))
            at = [
                QPointF(
                    area.left() + area.width() * step / end,
                    area.bottom() - area.height() * (value - bottom) / (top - bottom),
                )
                for step, value in points
            ]
            for a, b in pairwise(at):
                painter.drawLine(a, b)
            if points is self.scores:
                for point in at:
                    painter.drawEllipse(point, 3, 3)
        painter.setPen(_LOSS)
        painter.drawText(QPointF(area.left(), area.top() - 8), "loss")
        painter.setPen(_SCORE)
        text = f"held-out Dice {self.scores[-1][1]:.3f}" if self.scores else "held-out Dice"
        painter.drawText(QPointF(area.left() + 44, area.top() - 8), text)


def _range(scores: list[float]) -> tuple[float, float]:
    """From a little below the lowest to a little above the highest."""
    if not scores:
        return 0.0, 1.0
    return min(scores) - 0.02, max(scores) + 0.02
