"""What the Segment form asks for: put into words before a run, checked, and made a job."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from napari.layers import Shapes

from cdal_engine.config import MAX_SAMPLES, ModelConfig, read_model_config
from cdal_engine.errors import CdalError

from .jobs import Answer, Job
from .planes import (
    Plane,
    check,
    check_memory,
    check_shown,
    check_volume_memory,
    enlargement,
    plane_of,
)
from .regions import Region, in_view, of_shapes, whole
from .results import images
from .segment_form import MPP_STEP, VOLUME, SegmentForm
from .settings import preferences
from .sources import mpp_in_file
from .volumes import check_slice

if TYPE_CHECKING:
    import napari

    from .settings import Preferences

__all__ = ["Chosen"]

_NOTABLE = 1.5  # a change of scale worth a word before running
_WHOLE, _VIEW = "whole image", "current view"


class Chosen:
    """What would be run.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    folders : mapping of str to Path
        Of the models, by name.
    chosen : Preferences

    Attributes
    ----------
    form : SegmentForm
    layer : napari.layers.Image or None
        The image that the form follows.
    """

    def __init__(
        self, viewer: napari.viewer.Viewer, folders: Mapping[str, Path], chosen: Preferences
    ) -> None:
        self._viewer = viewer
        self._folders = dict(folders)
        self.layer: Any = None
        self._in_file: WeakKeyDictionary[Any, tuple[Any, float | None]] = WeakKeyDictionary()
        self.form = SegmentForm(self._images, self._scopes, _readable(folders), chosen)

    def plane(self) -> Plane | None:
        """The plane of the image that is shown."""
        return None if self.layer is None else plane_of(self.layer, self._viewer.dims.point)

    def mpp(self) -> float | None:
        """Micrometres per pixel as the layer says, else its file, else the model."""
        plane, config = self.plane(), self.form.config
        known = plane and (plane.mpp or self._mpp_in_file(plane))
        return known or (config and config.image.mpp) or None

    def _mpp_in_file(self, plane: Plane) -> float | None:
        if plane.index:  # one of a stack
            return None
        size, mpp = self._in_file.get(plane.layer, (None, None))
        if size != plane.size:  # not looked at, or its data were replaced
            mpp = mpp_in_file(Path(plane.layer.source.path or ""), plane.size)
            self._in_file[plane.layer] = plane.size, mpp
        return mpp

    def _shows(self, mpp: float | None) -> bool:
        """Whether that is in the form, which rounds it."""
        entered = self.form.mpp.value
        return bool(entered and mpp and abs(mpp - entered) < 0.51 * MPP_STEP)

    def _images(self, _: object = None) -> list[tuple[str, Any]]:
        """Image layers by name, those that the plugin made left out."""
        return [(layer.name, layer) for layer in images(self._viewer)]

    def _scopes(self, _: object = None) -> list[tuple[str, Any]]:
        """What of the image may be segmented; shapes are offered a layer at a time."""
        plane = self.plane()
        config = self.form.config if plane is not None else None
        scopes: list[tuple[str, Any]] = [("Whole image", _WHOLE), ("Current view", _VIEW)]
        if plane is not None and plane.is_volume and config and config.takes_volumes:
            scopes = [("Whole volume", VOLUME), ("Slice shown", _WHOLE), scopes[1]]
        shapes = [layer for layer in self._viewer.layers if isinstance(layer, Shapes)]
        return scopes + [(f"Regions: {layer.name}", layer) for layer in shapes]

    def hint(self) -> str:
        """Say what a run will take, or why it will be refused."""
        try:
            plane, config, regions = self._checked()
        except CdalError as error:
            return str(error)
        if not regions:
            note = "" if plane.affine is not None else "; which way they lie is unknown"
            return f"All {len(plane.data)} slices of the volume{note}."
        height, width = plane.size if len(regions) > 1 else regions[0].size
        many = f"{len(regions)} regions of an image of " if len(regions) > 1 else ""
        note = self._resolution_note(plane, config, (height, width))
        return f"{many}{width} × {height} pixels{note}."

    def _resolution_note(self, plane: Plane, config: ModelConfig, size: tuple[int, int]) -> str:
        notes = []
        if plane.index:
            notes.append(", of the stack only the slice shown (2-D)")
        larger = enlargement(self.form.mpp.value, config.image)
        if larger > _NOTABLE or larger < 1 / _NOTABLE:
            height, width = (round(n * larger) for n in size)
            notes.append(f". At the model's resolution: {width} × {height}")
        if plane.spacing and max(plane.spacing) > 1.1 * min(plane.spacing):
            notes.append(f". They are not square: taken as {plane.mpp:.3g} µm")
        elif config.image.mpp:
            notes.append(self._assumption(plane, config.image.mpp))
        return "".join(notes)

    def _assumption(self, plane: Plane, of_model: float) -> str:
        """Say where the pixels' size comes from, if not from the layer or the user."""
        entered = self.form.mpp.value
        in_file = self._mpp_in_file(plane) if plane.mpp is None else None
        if in_file is not None and self._shows(in_file):
            return f". Their size is taken from the file: {in_file:.3g} µm"
        if not entered or (plane.mpp is None and in_file is None and entered == of_model):
            return f". Their size is unknown: the model's {of_model:g} µm is assumed"
        return ""

    def _checked(self) -> tuple[Plane, ModelConfig, tuple[Region, ...]]:
        """What would be run; no region: the whole volume."""
        plane, config = self.plane(), self.form.config
        if plane is None:
            raise CdalError("no image layer", "open one, or File > Open Sample > cDAL")
        if config is None:
            raise CdalError("no model is installed", "install napari-cdal again")
        check(plane, config.image)
        if self.form.scope.value == VOLUME:
            if self._keeps_steps:
                raise CdalError(
                    "the steps of a whole volume are not kept",
                    "untick Each step, or segment the slice shown",
                )
            check_volume_memory(plane, self.form.samples.value, preferences().memory_gb)
            return plane, config, ()
        dims = self._viewer.dims
        if dims.ndisplay != 2 or tuple(dims.displayed) != (dims.ndim - 2, dims.ndim - 1):
            raise CdalError(
                "the viewer shows a volume, or other axes than the last two",
                "show the image's own planes in 2-D first",
            )
        check_shown(plane)
        if plane.is_volume and config.takes_volumes:
            check_slice(plane, config)
        regions = self._regions(plane)
        grain = plane.grain(self._mpp, config.image)
        samples = self.form.samples.value
        kept = self.form.steps.value if self._keeps_steps else 0
        for region in regions:
            check_memory(plane.name, region.size, grain, samples, preferences().memory_gb, kept)
        return plane, config, regions

    @property
    def _keeps_steps(self) -> bool:
        return bool(self.form.wanted["steps"].value and self.form.steps.value)

    def _regions(self, plane: Plane) -> tuple[Region, ...]:
        scope = self.form.scope.value
        if isinstance(scope, Shapes):
            return of_shapes(plane, scope)
        return in_view(plane, self._viewer) if scope == _VIEW else whole(plane)

    @property
    def _mpp(self) -> float | None:
        """As entered; what the layer or the model says where the form shows that, rounded."""
        config = self.form.config
        for known in (self.mpp(), config.image.mpp if config else None):
            if self._shows(known):
                return known
        return self.form.mpp.value or None

    def job(self) -> Job:
        """What to run; raises `CdalError` if it cannot be run."""
        plane, _, regions = self._checked()
        form = self.form
        return Job(
            plane=plane,
            regions=regions,
            model=self._folders[form.model.value],
            device=form.device.value,
            mpp=self._mpp,
            samples=form.samples.value,
            steps=form.steps.value,
            seed=form.seed.value,
            wanted=frozenset(what for what, box in form.wanted.items() if box.value),
        )

    def more(self, answers: Mapping[int, Answer]) -> Job:
        """The run that adds as many samples as the form says to those of finished answers.

        Raises
        ------
        CdalError
            If there are none, or more samples than are allowed.
        """
        kept = {part: answer for part, answer in answers.items() if answer.can_grow}
        if not kept:
            raise CdalError(
                "no finished answer here has samples to add to (volumes keep none)",
                "run with steps, or a volume again with more samples",
            )
        job, added = next(iter(kept.values())).job, self.form.samples.value
        config = next(iter(kept.values())).config
        grain = job.plane.grain(job.mpp, config.image)
        steps = job.steps if "steps" in job.wanted else 0
        for answer in kept.values():
            count = answer.facts["samples"] + added
            if count > MAX_SAMPLES:
                raise CdalError(f"{count} samples: {MAX_SAMPLES} are the most", "add fewer")
            size = answer.region.size if answer.region else job.plane.size
            check_memory(job.plane.name, size, grain, count, preferences().memory_gb, steps)
        return replace(job, samples=added, kept=kept)

    def add_model(self, name: str, folder: Path) -> None:
        """Offer a model that was made meanwhile."""
        self._folders[name] = folder
        self.form.add_model(name, read_model_config(folder / "config.json"))


def _readable(folders: Mapping[str, Path]) -> dict[str, ModelConfig]:
    """Configs by name; a broken model of the user's must not keep the others from being shown."""
    configs = {}
    for name, folder in folders.items():
        with suppress(CdalError):  # `cdal models list` says what is wrong with it
            configs[name] = read_model_config(folder / "config.json")
    return configs
