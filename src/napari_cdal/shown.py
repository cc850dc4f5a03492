"""The layers of one run, kept in step with its answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels, Layer
from napari.utils.notifications import ErrorNotification, notification_manager

from .planes import placement
from .results import CORRECTED_KEY, METADATA_KEY, LayerData, layer_data

if TYPE_CHECKING:
    import napari

    from .jobs import Answer

__all__ = ["ShownRun"]

_OUTLINE = 2  # pixels; the objects stay visible inside it
_OUTLINE_OF_VOLUME = 1  # voxels, of which a structure has few
_PLACED = ("scale", "translate", "rotate", "shear", "affine")
_EARLY = frozenset({"probability", "uncertainty"})  # maps shown while tiles are still to come


class ShownRun:
    """Adds and updates layers in the viewer, one at a time: the window is never busy for long.

    Layers that the user removes are not added again, and labels that the user edits after the
    run are not replaced.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        self._viewer = viewer
        self.answers: dict[int, Answer] = {}
        self._layers: dict[int, dict[str, Layer]] = {}
        self._pending: list[tuple[int, str, LayerData]] = []
        self._placed: dict[tuple[int, str], dict[str, Any]] = {}  # where each layer was put
        self._ours: dict[int, Any] = {}  # labels as they were put there
        self._name = ""  # of the image, as it was called when it was first shown
        self._held = False

    def hold(self, held: bool) -> None:
        """Let nobody paint on labels while a run goes on: it may replace them."""
        self._held = held
        for layers in self._layers.values():
            if "labels" in layers:
                layers["labels"].editable = not held

    def show(self, part: int, answer: Answer) -> None:
        """Have the layers of a region follow a newer answer."""
        self.answers[part] = answer
        plane, layer = answer.job.plane, answer.job.plane.layer
        self._name = name = self._name or str(layer.name)
        region = answer.region
        made = layer_data(
            answer.segmentation,
            source=f"{name}, {region.name}" if region and region.name else name,
            model=answer.facts["model"],
            classes=answer.config.classes,
            placement=placement(layer, answer.offset[-plane.layer.ndim :], answer.step),
            wanted=answer.job.wanted & _EARLY if answer.so_far else answer.job.wanted,
            taken=[other.name for other in self._viewer.layers if other not in self._mine()],
            run=answer.facts,
        )
        self._pending = [item for item in self._pending if item[0] != part]
        self._pending += [(part, title, data) for title, data in reversed(made.items())]

    def add_next(self) -> bool:
        """Add or update one layer; False if there is none left.

        What napari or a plugin makes of a layer wrongly is told, and keeps nothing from going on.
        """
        if not self._pending:
            return False
        try:
            self._add(*self._pending.pop(0))
        except Exception as error:
            notification_manager.dispatch(ErrorNotification(error))
        return True

    def _add(self, part: int, title: str, made: LayerData) -> None:
        data, arguments, kind = made
        layers, plane = self._layers.setdefault(part, {}), self.answers[part].job.plane
        new = title not in layers
        if new:
            layers[title] = layer = Layer.create(data, arguments, kind)
            if isinstance(layer, Labels):  # before it is drawn for the first time
                layer.contour = _OUTLINE_OF_VOLUME if plane.is_volume else _OUTLINE
        layer = layers[title]
        try:
            if new:
                self._insert(layer, layers, plane.layer)
            elif layer in self._viewer.layers:
                _renew(layer, data, arguments)
            self._follow(part, title, arguments)
        finally:  # whatever went wrong, what a person paints on it now is noticed
            if isinstance(layer, Labels):
                layer.editable = not self._held
                if layer in self._viewer.layers:
                    self._ours[part] = data.copy()

    def _follow(self, part: int, title: str, arguments: dict[str, Any]) -> None:
        """Put a layer where its image is, if that was moved; where the user put it, otherwise."""
        before = self._placed.get((part, title), {})
        now = {name: np.array(arguments[name]) for name in _PLACED}
        self._placed[part, title] = now
        for name, value in before.items():
            if not np.array_equal(value, now[name]):
                setattr(self._layers[part][title], name, now[name])

    def _insert(self, layer: Layer, siblings: dict[str, Layer], source: Layer) -> None:
        """Labels come first, on top of all; each map is put below its run's other layers.

        What the user works on stays selected; labels take the place of their image, and of the
        labels of an earlier run that nobody paints on.
        """
        every = self._viewer.layers
        active = every.selection.active
        present = [every.index(other) for other in siblings.values() if other in every]
        camera = self._viewer.scene.camera
        seen = camera.center, camera.zoom
        with _not_pointed_at(self._viewer):
            try:
                every.insert(min(present, default=len(every)), layer)
            finally:
                camera.center, camera.zoom = seen  # napari shows all again when a slider is added
                if isinstance(layer, Labels) and (active == source or _is_earlier(active, layer)):
                    active = layer  # compared by ==: they may be proxies
                every.selection.active = active

    def _mine(self) -> list[Layer]:
        return [layer for layers in self._layers.values() for layer in layers.values()]

    def clear(self) -> None:
        """Add nothing more."""
        self._pending.clear()

    @property
    def present(self) -> bool:
        """Whether labels of the run are still among the layers."""
        every = self._viewer.layers
        return any(each["labels"] in every for each in self._layers.values() if "labels" in each)

    @property
    def edited(self) -> bool:
        """Whether the user changed or corrected labels, which must then stay."""
        return any(
            CORRECTED_KEY in layers["labels"].metadata
            or not np.array_equal(layers["labels"].data, self._ours[part])
            for part, layers in self._layers.items()
            if layers.get("labels") in self._viewer.layers and part in self._ours
        )

    def recut(self, threshold: float, min_area: float) -> dict[int, Answer]:
        """Decode the kept maps with another threshold and smallest object; in any thread."""
        from .decode import decoded

        cut: dict[int, Answer] = {}
        for part, answer in self.answers.items():
            config = answer.config.with_decoding(threshold=threshold, min_area=min_area)
            found = decoded(answer.segmentation, config, answer.colours)
            cut[part] = replace(answer, segmentation=found, config=config)
        return cut


@contextmanager
def _not_pointed_at(viewer: napari.viewer.Viewer) -> Iterator[None]:
    """Have napari not say what lies below the mouse: it fails to in 3-D until the mouse moves."""
    over, viewer.mouse_over_canvas = viewer.mouse_over_canvas, False
    try:
        yield
    finally:
        viewer.mouse_over_canvas = over


def _renew(layer: Layer, data: Any, arguments: dict[str, Any]) -> None:
    """Give a layer newer data and, whatever another plugin makes of these, the table of them."""
    grown = layer.data.shape != data.shape
    try:
        layer.data = data
        if grown:
            layer.scale = layer.scale  # napari asks a hidden layer for its size only then
    finally:
        layer.metadata = arguments["metadata"]
        if isinstance(layer, Labels):
            layer.features = arguments["features"]


def _is_earlier(active: Layer | None, layer: Labels) -> bool:
    """Whether a layer has labels that were made of the same image, and is not being painted on."""
    if not isinstance(active, Labels) or active.mode != "pan_zoom":
        return False
    old, new = (each.metadata.get(METADATA_KEY, {}) for each in (active, layer))
    return bool(old) and old.get("source") == new.get("source")
