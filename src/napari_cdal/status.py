"""The line at a widget's foot that says how things stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QSizePolicy

if TYPE_CHECKING:
    from qtpy.QtWidgets import QLabel

__all__ = ["as_status", "sentence"]


def as_status(label: QLabel, lines: int = 5) -> None:
    """Have a label show plain text over several lines, and never widen its dock."""
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    label.setAlignment(Qt.AlignmentFlag.AlignTop)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.MinimumExpanding)
    label.setMinimumHeight(lines * label.fontMetrics().lineSpacing())


def sentence(text: str) -> str:
    """Begin with a capital: errors do not."""
    return text[:1].upper() + text[1:]
