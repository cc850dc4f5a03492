"""The H&E tile of File > Open Sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdal_engine.samples import HE_MPP, he_path

__all__ = ["he_tile"]


def he_tile() -> list[tuple[NDArray[np.uint8], dict[str, Any], str]]:
    """Return the shipped crop of CMU-1 (skin, CC0) as one RGB layer in micrometres."""
    with Image.open(he_path()) as image:
        pixels = np.asarray(image.convert("RGB"))
    placement = {"scale": (HE_MPP, HE_MPP), "units": ("micrometer", "micrometer")}
    return [(pixels, {"name": "H&E tile (CMU-1)", "rgb": True, **placement}, "image")]
