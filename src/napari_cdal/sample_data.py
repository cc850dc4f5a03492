"""What File > Open Sample opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cdal_engine.io.discovery import open_source
from cdal_engine.samples import HE_MPP, he_path, mri_path, slide_path

from .sources import source_layers

if TYPE_CHECKING:
    from .results import LayerData

__all__ = ["he_tile", "mri", "slide"]


def he_tile() -> list[LayerData]:
    """Return the shipped crop of CMU-1 (skin, CC0) as one RGB layer in micrometres."""
    with Image.open(he_path()) as image:
        pixels = np.asarray(image.convert("RGB"))
    placement = {"scale": (HE_MPP, HE_MPP), "units": ("micrometer", "micrometer")}
    return [(pixels, {"name": "H&E tile (CMU-1)", "rgb": True, **placement}, "image")]


def slide() -> list[LayerData]:
    """Return the shipped pyramid of CMU-1 (CC0) as a lazy multiscale layer."""
    return source_layers(open_source(slide_path()))


def mri() -> list[LayerData]:
    """Return the shipped MRI crop around a hippocampus as a stack in millimetres."""
    return source_layers(open_source(mri_path()))
