"""Clicks told from drags, which move the image."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from qtpy.QtWidgets import QApplication

__all__ = ["is_click"]


def is_click(event: Any) -> Generator[None, None, bool]:
    """Wait until the mouse is released; whether that was a click.

    A hand moves a little while it clicks: less than the distance where Qt's own drags begin.

    Parameters
    ----------
    event
        Of napari's `mouse_drag_callbacks`, which it renews as the mouse moves.
    """
    pressed, farthest = np.array(event.pos), 0
    while True:
        yield
        farthest = max(farthest, int(np.abs(event.pos - pressed).sum()))
        if event.type != "mouse_move":
            return farthest < QApplication.startDragDistance()
