"""Validation images with what the model found, missed and made up, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries

from ..io.colour import as_rgb8
from ..io.records import write_aside
from ..segmenter import Segmenter
from .dataset import Pair, read_pair
from .validation import answered

__all__ = ["draw_examples"]

_MANY = 4  # pictures
_EDGE = (
    256  # pixels that a picture's longer edge has at least: slices of small volumes are enlarged
)
_TRUTH, _MISSED, _WRONG = (0, 220, 90), (40, 90, 255), (255, 60, 0)


def draw_examples(
    segmenter: Segmenter, pairs: Sequence[Pair], folder: Path, mpp: float | None
) -> list[Path]:
    """Write a picture STEM.png of a few pairs: an image, or the fullest slice of a volume.

    True outlines are green, what is missed or of another class blue, what is made up red. Returns
    the pictures' paths.
    """
    folder.mkdir(exist_ok=True)
    config, pictures = segmenter.model.config, []
    for pair in pairs[:: -(-len(pairs) // _MANY)]:
        image, truth, own = read_pair(pair, config, mpp)
        found = answered(segmenter, pair, image, own).labels
        if pair.is_volume:
            axis = config.image.slice_axis
            fullest = int((np.moveaxis(truth, axis, 0) > 0).sum(axis=(1, 2)).argmax())
            image, truth = np.take(image, fullest, axis), np.take(truth, fullest, axis)
            found = np.take(found, fullest, axis)
        same = found == truth if config.target == "classes" else (found > 0) == (truth > 0)
        picture = as_rgb8(image).copy()
        for where, colour in (
            (~same & (truth > 0), _MISSED),
            (~same & (truth == 0), _WRONG),
            (find_boundaries(truth, mode="inner"), _TRUTH),
        ):
            picture[where] = (picture[where] + np.array(colour)) // 2
        larger = -(-_EDGE // max(picture.shape))
        picture = picture.repeat(larger, axis=0).repeat(larger, axis=1)
        png = BytesIO()
        Image.fromarray(picture).save(png, "PNG")
        pictures.append(folder / f"{pair.stem}.png")
        write_aside(pictures[-1], png.getvalue())
    return pictures
