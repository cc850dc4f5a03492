"""Clicks on the region under review: to select, for the other of a merge, to split in two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from napari.layers import Labels

from .clicks import is_click
from .review import Review

__all__ = ["Picking"]


class Picking:
    """What the next clicks mean.

    Parameters
    ----------
    review : Review
    say : callable
        Shows what is waited for.
    told : callable
        Wraps what may raise a `CdalError`, which it shows.

    Attributes
    ----------
    prompt : str
        What is waited for; empty for nothing.
    """

    def __init__(
        self,
        review: Review,
        say: Callable[[str], None],
        told: Callable[[Callable[[], None]], Callable[..., None]],
    ) -> None:
        self._review, self._say, self._told = review, say, told
        self._waiting = ""  # for the clicks of a merge or split
        self.prompt = ""
        self._points: list[tuple[int, int]] = []
        review.layer.mouse_drag_callbacks.append(self._on_mouse)
        review.layer.bind_key("Escape", self._cancel, overwrite=True)

    def merge(self) -> None:
        """Wait for a click on the other object."""
        self._wait("merge", "Click the object to merge with (Esc: none).")

    def split(self) -> None:
        """Wait for two clicks in the object."""
        self._wait("split", "Click two points inside the object, one in each part (Esc: none).")

    def _wait(self, what: str, text: str) -> None:
        self._waiting, self._points = what, []
        self._review.layer.mode = "pan_zoom"
        self.prompt = text
        self._say(text)

    def _end(self) -> None:
        self._waiting = self.prompt = ""

    def _cancel(self, layer: Labels) -> None:
        if self._waiting:
            self._end()
            self._say("Nothing was changed.")
        else:
            layer.mode = "pan_zoom"

    def _on_mouse(self, layer: Labels, event: Any) -> Iterator[None]:
        at = event.position
        self._review.drawing = layer.mode != "pan_zoom"
        click = yield from is_click(event)
        self._review.drawing = False
        if click and layer.mode == "pan_zoom":
            y, x = (round(float(n)) for n in layer.world_to_data(at)[-2:])
            height, width = layer.data.shape
            if 0 <= y < height and 0 <= x < width:
                self._told(lambda: self._clicked((y, x)))()

    def _clicked(self, point: tuple[int, int]) -> None:
        label = int(self._review.layer.data[point])
        if self._waiting == "merge":
            self._end()
            self._review.merge(label)
        elif self._waiting == "split":
            self._points.append(point)
            if len(self._points) == 2:
                self._end()
                self._review.split(*self._points)
            else:
                self.prompt = "Now a point in the other part (Esc: none)."
                self._say(self.prompt)
        else:
            self._review.select(label)
