"""A region under review: its objects in order, what is done to them, and that nothing is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from numpy.typing import NDArray

from cdal_engine.corrections.corrected import CorrectedCopy
from cdal_engine.corrections.edits import (
    Touched,
    bounding_box,
    changes,
    now,
    renamed,
    renumbered,
    settled,
    split,
)
from cdal_engine.corrections.queue import by_disagreement
from cdal_engine.corrections.versions import Edit
from cdal_engine.errors import CdalError
from cdal_engine.tiling import Box

from .corrections import columns_of, picture_of, placed_at
from .object_colours import coloured
from .outline import Outline
from .results import METADATA_KEY

if TYPE_CHECKING:
    import napari

__all__ = ["ORDERS", "Review"]

ORDERS = ("disagreement", "score", "position")
_OUTLINE = 2  # pixels; the objects stay visible inside it
_REMEMBERED = 100  # steps back, as many as napari keeps of a layer


class Review:
    """Adds a layer of the region's labels to the viewer and steps through its objects.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    source : napari.layers.Labels
        Where the region is of.
    copy : CorrectedCopy
    box : tuple of slice
        The region.
    changed : callable
        Called after whatever may have changed progress.

    Attributes
    ----------
    layer : napari.layers.Labels
        The region, to be painted on.
    current : int
        Label of the object under review; 0 for none.
    drawing : bool
        Whether a stroke of the brush is under way, which is to be one step by itself.
    """

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        source: Labels,
        copy: CorrectedCopy,
        box: Box,
        changed: Callable[[], None],
    ) -> None:
        self._viewer, self.copy, self.box, self._changed = viewer, copy, box, changed
        self._base = copy.read(box)
        self.picture = picture_of(viewer, source, box)
        self._columns = columns_of(source)
        self._earlier = set(copy.touched)
        self._touched: Touched = {}
        self._noticed: dict[int, str] = {}  # when a change was seen first
        self._past: deque[tuple[bool, Touched, Touched]] = deque(maxlen=_REMEMBERED)
        self._future: list[tuple[bool, Touched, Touched]] = []
        self._acting = False
        self.drawing = False
        self._coloured_by = "object"
        self._unkept = False
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._add_layers(source, placed_at(source, box))
        self.queue: list[int] = []
        self.current = 0

    def _add_layers(self, source: Labels, place: dict[str, Any]) -> None:
        """The region's labels, above its picture where the image is a pyramid."""
        name = str(source.name).removeprefix("labels: ").removeprefix("corrected: ")
        self._crop: Image | None = None
        if self.picture is not None and source.multiscale:
            rgb = self.picture.ndim == 3
            self._crop = Image(self.picture, name=f"region: {name}", rgb=rgb, **place)
            self._viewer.add_layer(self._crop)
        facts = dict(source.metadata.get(METADATA_KEY, {}))
        pixel, corner = float(facts.get("pixel", 1.0)), facts.get("corner", (0.0, 0.0))
        facts |= {"what": "review", "pixel": pixel}  # so that what is saved lies on the image
        facts["corner"] = tuple(
            at + s.start * pixel for at, s in zip(corner, self.box, strict=True)
        )
        self.layer = Labels(
            self._base.copy(), name=f"review: {name}", metadata={METADATA_KEY: facts}, **place
        )
        self.layer.contour = _OUTLINE
        source.visible = False  # deleted objects would show through
        self._colormap = self.layer.colormap
        self._viewer.add_layer(self.layer)
        self._outline = Outline(self._viewer, place)
        self._viewer.layers.selection.active = self.layer
        self.layer.events.paint.connect(self._on_paint)

    # -- the queue --------------------------------------------------------------------------------

    def sort(self, order: str) -> None:
        """Put the objects in order, and go to the first that is not reviewed."""
        labels, first = np.unique(self.layer.data, return_index=True)
        labels, first = labels[labels > 0], first[labels > 0]
        unknown = (np.nan, np.nan, "")
        rows = [self._columns.get(int(label), unknown)[:2] for label in labels]
        agreement, score = np.array(rows, float).reshape(-1, 2).T
        chosen = {
            "disagreement": by_disagreement(agreement, score),
            "score": by_disagreement(np.zeros_like(score), score),
            "position": np.argsort(first),
        }[order]
        self.queue = labels[chosen].tolist()
        left = [label for label in self.queue if not self.is_reviewed(label)]
        self._go_to_first(left + self.queue)

    def is_reviewed(self, label: int) -> bool:
        """Whether a person has dealt with an object."""
        return label in self._touched or label in self._noticed or label in self._earlier

    @property
    def progress(self) -> tuple[int, int]:
        """Objects that are reviewed, and all."""
        return sum(map(self.is_reviewed, self.queue)), len(self.queue)

    def described(self) -> str:
        """What is known of the object under review."""
        if not self.current:
            return "No object is left. " if self.queue else "There are no objects. "
        agreement, score, _ = self._columns.get(self.current, (np.nan, np.nan, ""))
        known = {"agreement": agreement, "score": score}
        facts = [f"{name} {value:.2f}" for name, value in known.items() if not np.isnan(value)]
        return f"Object {self.current}: {', '.join(facts) or 'no score is known'}. "

    def step(self, by: int) -> None:
        """Go on in the queue by 1, or back by -1; objects that are gone are passed over."""
        at = self.queue.index(self.current) if self.current in self.queue else -1
        turned = [
            self.queue[(at + by * i) % len(self.queue)] for i in range(1, len(self.queue) + 1)
        ]
        self._go_to_first(turned)

    def _next_unreviewed(self) -> None:
        at = self.queue.index(self.current) + 1 if self.current in self.queue else 0
        following = self.queue[at:] + self.queue[:at]
        self._go_to_first([label for label in following if not self.is_reviewed(label)])

    def _go_to_first(self, labels: list[int]) -> None:
        """Go to the first of these that is still there."""
        self._go(next((label for label in labels if (self.layer.data == label).any()), 0))

    def _go(self, label: int) -> None:
        """Centre, select and outline an object."""
        self.current = label
        box = bounding_box(self.layer.data, label) if label else None
        if box is None:
            self._outline.hide()
        else:
            self.layer.selected_label = label
            self._outline.show(self.layer.data, label, box)
            self._centre(box)
        self._changed()

    def _centre(self, box: tuple[slice, slice]) -> None:
        """Move the camera to an object, and nearer or away where it is too small or too large."""
        camera = self._viewer.scene.camera
        ends = np.array([[s.start, s.stop - 1] for s in box], float).T
        low, high = (np.asarray(self.layer.data_to_world(end)) for end in ends)
        camera.center = tuple(((low + high) / 2).tolist())
        pixel = np.asarray(self.layer.data_to_world((1, 1))) - self.layer.data_to_world((0, 0))
        shown = float((np.abs(high - low) + np.abs(pixel)).max()) * camera.zoom
        if not 20 <= shown <= 300:
            camera.zoom *= 60 / shown

    # -- what is done to objects ------------------------------------------------------------------

    def select(self, label: int) -> None:
        """Take an object under review."""
        if label:
            self._go(label)

    def accept(self) -> None:
        """The object is right as it is."""
        if self.current:
            self._act({self.current: {"action": "accepted"}})
            self._next_unreviewed()

    def delete(self) -> None:
        """The object is none."""
        if self.current:
            self._act({self.current: {"action": "deleted"}}, self.layer.data == self.current, 0)
            self._next_unreviewed()

    def merge(self, other: int) -> None:
        """Make another object a part of this one."""
        if not self.current or not other or other == self.current:
            raise CdalError("that is no other object", "point at the one to merge with")
        touched: Touched = {
            other: {"action": "merged", "into": self.current},
            self.current: {"action": "merged", "with": other},
        }
        self._act(touched, self.layer.data == other, self.current)
        self._go(self.current)

    def split(self, first: tuple[int, int], second: tuple[int, int]) -> None:
        """Cut the object in two, one with each of the points."""
        if not self.current:
            raise CdalError("no object is chosen", "click one, then split it")
        part = split(self.layer.data, self.current, first, second)
        new = max(self.copy.next_label, int(self.layer.data.max()) + 1)
        touched: Touched = {
            self.current: {"action": "split"},
            new: {"action": "split", "from": self.current},
        }
        self._act(touched, part, new)
        after = self.queue.index(self.current) + 1 if self.current in self.queue else None
        if new not in self.queue:  # it is, where this was done before and undone
            self.queue.insert(len(self.queue) if after is None else after, new)
        self._go(self.current)

    def redraw(self) -> None:
        """Take napari's brush, with this object's number, over nothing but background."""
        if self.current:
            self.layer.selected_label = self.current
            self.layer.preserve_labels = True
            self.layer.mode = "paint"

    def _act(
        self, touched: Touched, where: NDArray[np.bool_] | None = None, value: int = 0
    ) -> None:
        """Do something that is one step of undo."""
        if self.drawing:
            raise CdalError("a stroke of the brush is under way", "release the mouse first")
        if where is not None and not where.any():
            where = None  # napari remembers no step that changes nothing
        before = dict(self._touched)
        self._touched |= {label: each | {"when": now()} for label, each in touched.items()}
        self._acting = True
        try:
            if where is not None:
                self.layer.data_setitem(np.nonzero(where), value)
        finally:
            self._acting = False
        self._remember(where is not None, before)

    def _on_paint(self, _: object = None) -> None:
        if not self._acting:
            self._remember(True, dict(self._touched))

    def _remember(self, pixels: bool, before: Touched) -> None:
        self._past.append((pixels, before, dict(self._touched)))
        self._future.clear()
        self._on_step()
        self._changed()

    def _on_step(self) -> None:
        self._unkept = True
        if self._coloured_by == "reviewed":
            self.colour("reviewed")

    def undo(self) -> None:
        """Take back the last step, be it of the brush or one of these."""
        if self._past and not self.drawing:
            pixels, before, after = self._past.pop()
            self._future.append((pixels, before, after))
            self._back(pixels, before, self.layer.undo, set(after) ^ set(before))

    def redo(self) -> None:
        """Do what was taken back."""
        if self._future and not self.drawing:
            pixels, before, after = self._future.pop()
            self._past.append((pixels, before, after))
            self._back(pixels, after, self.layer.redo, set(after) ^ set(before))

    def _back(
        self, pixels: bool, touched: Touched, move: Callable[[], None], labels: set[int]
    ) -> None:
        self._touched = dict(touched)
        self._noticed = {n: when for n, when in self._noticed.items() if n not in labels}
        if pixels:
            move()
        self._on_step()
        there = [label for label in labels if label in self.queue]
        self._go(there[0] if there else self.current)

    # -- colours ----------------------------------------------------------------------------------

    def colour(self, by: str) -> None:
        """Colour the objects by `COLOURS`; what is not known is grey."""
        if by == self._coloured_by == "object":
            return  # they are; napari would draw all once more
        self._coloured_by = by
        if by == "object":
            self.layer.colormap = self._colormap
            return
        self.layer.colormap = coloured(by, self.queue, self._columns, self.is_reviewed)

    # -- nothing is lost --------------------------------------------------------------------------

    def edit(self, reviewed: bool = False) -> Edit:
        """The region as it is now."""
        labels = np.array(self.layer.data, np.uint32)
        return self._edit(labels, dict(self._touched), reviewed)

    def _edit(self, labels: NDArray[np.uint32], touched: Touched, reviewed: bool) -> Edit:
        """What was painted, beside what was done by keys; takes long for a large region."""
        found = changes(self._base, labels)
        self._noticed = {label: self._noticed.get(label) or now() for label in found}
        for label, what in found.items():
            done = touched.get(label, {"action": "accepted"})
            gone = done["action"] == "deleted" or "into" in done
            if done["action"] == "accepted" or (gone and what != "erased"):  # its number again
                touched[label] = {"action": what, "when": self._noticed[label]}
        result, numbers = renumbered(self._base, labels, self.copy.next_label)
        touched = renamed(settled(touched, self._base, labels), numbers)
        return Edit(self.box, result, touched, reviewed)

    def keep(self) -> bool:
        """Keep a version of what has changed since the last one, in another thread.

        Returns
        -------
        bool
            Whether the last one has been written since this was called before.

        Raises
        ------
        CdalError
            If the last one could not be written.
        """
        if self._writing is not None and not self._writing.done():
            return False
        done, self._writing = self._writing, None
        if self._unkept:
            self._unkept = False
            now_there = np.array(self.layer.data, np.uint32), dict(self._touched)
            self._writing = self._writer.submit(self._keep, *now_there)
        if done is None:
            return False
        self._changed()
        self._unkept = self._unkept or done.exception() is not None  # to be tried again
        done.result()
        return True

    def _keep(self, labels: NDArray[np.uint32], touched: Touched) -> None:
        self.copy.keep(self._edit(labels, touched, reviewed=False))

    def write(self, reviewed: bool) -> None:
        """Write the region into the corrected copy; if nothing was done, it stays reviewed.

        Raises
        ------
        CdalError
            If it cannot be written.
        """
        if self._writing is not None:
            wait([self._writing])
        edit = self.edit(reviewed)
        if not edit.touched and self.box in self.copy.regions(reviewed=True):
            edit = replace(edit, reviewed=True)
        if reviewed and self.picture is not None:
            self.copy.keep_picture(self.box, self.picture)
        self.copy.write(edit)
        self._writer.shutdown()

    def remove_layers(self) -> None:
        """Take the region's layers out of the viewer."""
        self._outline.remove()
        for layer in (self.layer, self._crop):
            if layer is not None and layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
