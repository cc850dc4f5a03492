"""What the engine is to do, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .planes import Plane
from .regions import Region

if TYPE_CHECKING:
    from cdal_engine.config import ModelConfig
    from cdal_engine.segmentation import Segmentation

__all__ = ["Answer", "Job", "Learned", "Lesson"]


@dataclass(frozen=True)
class Job:
    """What to segment and how; the options are those of `Segmenter.segment`."""

    plane: Plane
    regions: tuple[Region, ...]  # of the plane; none: the whole volume that it is of
    model: Path
    device: str
    mpp: float | None
    samples: int
    steps: int
    seed: int
    wanted: frozenset[str]  # maps to add, see `results.layer_data`
    kept: Mapping[int, Answer] = field(default_factory=dict)  # by region, to add the samples to


@dataclass(frozen=True)
class Answer:
    """What is known of one region, or of a volume, so far.

    Attributes
    ----------
    job : Job
    region : Region or None
        None: the whole volume.
    segmentation : Segmentation
    config : ModelConfig
        Its `decode` is what the labels were made with.
    so_far : str
        What this is, where it is not the whole answer.
    offset : tuple of float
        Where the first pixel's centre is, in the layer's pixels, one a layer axis.
    step : float
        Edge of the answer's pixels in the layer's.
    mask : ndarray or None
        Pixels inside the region's outline.
    facts : dict
        Kept in the layers' metadata.
    colours : ndarray or None
        (H, W, 3) uint8 of the image, where the model takes colours.
    """

    job: Job
    region: Region | None
    segmentation: Segmentation
    config: ModelConfig
    so_far: str
    offset: tuple[float, ...]
    step: float
    mask: NDArray[np.bool_] | None
    facts: dict[str, Any]
    colours: NDArray[np.uint8] | None = None

    @property
    def can_grow(self) -> bool:
        """Whether samples can be added: the answer is whole, and what it was made of is kept."""
        found = self.segmentation
        return found.samples is not None and found.mean is not None and not self.so_far


@dataclass(frozen=True)
class Lesson:
    """What to fine-tune a model to, and what the new one is called.

    Attributes
    ----------
    folder : Path
        Holds `data`, a training folder; the run is written beside it.
    stems : dict
        Of `training_folder`.
    model : Path
        Folder of the model to start from.
    device : str
    minutes : float
        At most; validation comes on top.
    name : str
        Of the new model, whose card says that it comes from `start`.
    start : str
    own : Path
        Folder of the user's models.
    """

    folder: Path
    stems: Mapping[int, list[str]]
    model: Path
    device: str
    minutes: float
    name: str
    start: str
    own: Path


@dataclass(frozen=True)
class Learned:
    """What came of a lesson.

    Attributes
    ----------
    lesson : Lesson
    folder : Path or None
        Of the new model; None if it is not better than the old one.
    scores : str
        On the held-out regions before and after.
    stopped : bool
        Whether it was stopped before its end.
    """

    lesson: Lesson
    folder: Path | None
    scores: str
    stopped: bool
