"""Histograms of the objects' area and score, below their table."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from qtpy.QtCore import QTimer

__all__ = ["Histograms"]

_SHOWN = (("area_um2", "area (µm²)"), ("area_px", "area (px)"), ("score", "score"))
_BINS = 30
_LATER = 300  # milliseconds: results that follow each other are drawn once


class Histograms(FigureCanvasQTAgg):
    """How the objects' area and score are distributed.

    Parameters
    ----------
    text : str
        Colour of the axes and their labels.
    """

    def __init__(self, text: str) -> None:
        super().__init__(Figure(figsize=(4, 1.8), layout="constrained"))  # type: ignore[no-untyped-call]
        self.figure.patch.set_alpha(0)
        self.setStyleSheet("background: transparent")
        self.setMinimumHeight(150)
        self._text = text
        self._features: Any = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_LATER)
        self._timer.timeout.connect(self._draw)

    def show_features(self, features: Any) -> None:
        """Show the objects of another DataFrame soon; None: none."""
        self._features = features
        self._timer.start()

    def _draw(self) -> None:
        self.figure.clear()
        features = self._features
        if features is not None:
            shown = [(name, title) for name, title in _SHOWN if name in features]
            if "area_um2" in features:  # in pixels, it would be the same
                shown = [each for each in shown if each[0] != "area_px"]
            for number, (name, title) in enumerate(shown, 1):
                values = features[name].to_numpy(float)
                axes = self.figure.add_subplot(1, len(shown), number)
                axes.hist(values[np.isfinite(values)], bins=_BINS, color="#4c9be8")
                axes.yaxis.set_major_locator(MaxNLocator(integer=True))
                axes.set_xlabel(title, color=self._text)
                axes.tick_params(colors=self._text, labelsize=8)
                axes.patch.set_alpha(0)
                axes.spines[["top", "right"]].set_visible(False)
                axes.spines[["bottom", "left"]].set_color(self._text)
            if shown:
                self.figure.axes[0].set_ylabel("objects", color=self._text)
        self.draw()  # type: ignore[no-untyped-call]
