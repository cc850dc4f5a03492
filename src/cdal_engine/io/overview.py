"""overview.png: the image with the objects' outlines, coloured by how far the samples agree."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from .colour import as_rgb8

__all__ = ["small_overview", "write_overview"]

_LONGEST, _SHORTEST = 2000, 1000  # of the picture's longer edge, in pixels
_FOOTER = 36
_SMALL = 400, 300
_UNSURE, _BETWEEN, _SURE = (255, 60, 0), (255, 230, 0), (0, 255, 130)
_LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)  # µm, of the scale bar


def write_overview(
    path: Path,
    image: NDArray[np.generic],
    labels: NDArray[np.uint32],
    objects: dict[str, NDArray[Any]],
    mpp: float | None,
) -> None:
    """Draw the picture.

    Parameters
    ----------
    path : Path
    image : ndarray
        (H, W) or (H, W, 3).
    labels : ndarray
        (h, w) ids of what the whole image shows, at any resolution.
    objects : dict of ndarray
        Columns `label` and `agreement`.
    mpp : float or None
        Micrometres per pixel of `image`, for the scale bar.
    """
    height, width = image.shape[:2]
    zoom = min(1.0, _LONGEST / max(height, width))
    if max(height, width) < _SHORTEST:  # so that single pixels can be seen
        zoom = min(16, -(-_SHORTEST // max(height, width)))
    size = (max(round(width * zoom), 1), max(round(height * zoom), 1))
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_NEAREST
    picture = np.asarray(cv2.resize(as_rgb8(image), size, interpolation=how), np.uint8)
    labels = _nearest(labels, (size[1], size[0]))
    edges = find_boundaries(labels, mode="inner" if zoom < 1 else "thick")
    picture[edges] = _colours(objects)[labels[edges]]
    _with_footer(picture, objects, None if mpp is None else mpp / zoom).save(path)


def small_overview(path: Path) -> bytes | None:
    """A picture of `write_overview` without its footer as a JPEG of at most 400 x 300 pixels.

    None where there is none, or none that was written here.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            width, height = picture.size
            if height <= _FOOTER or max(width, height) > _LONGEST + _FOOTER:
                return None
            pixels = np.asarray(picture.convert("RGB"))[: height - _FOOTER]
    except (OSError, SyntaxError, ValueError):  # damaged, in Pillow's ways of saying so
        return None
    file = io.BytesIO()
    Image.fromarray(_made_small(pixels)).save(file, "JPEG", quality=75)
    return file.getvalue()


def _made_small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink a picture to `_SMALL` so that its outlines, told by their colours, stay seen."""
    height, width = pixels.shape[:2]
    zoom = min(1.0, _SMALL[0] / width, _SMALL[1] / height)
    size = (max(round(width * zoom), 1), max(round(height * zoom), 1))

    def shrunk(values: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)

    red, green, blue = cv2.split(pixels)
    strongest, weakest = (np.asarray(of(of(red, green), blue)) for of in (cv2.max, cv2.min))
    vivid = ((strongest >= 230) & (weakest <= 90)).astype(np.uint8)  # as all of `_ramp`
    share = shrunk(vivid * np.uint8(255))[..., None] / 255
    alone = np.asarray(cv2.bitwise_and(pixels, pixels, mask=vivid), np.uint8)
    outlines = shrunk(alone) / np.maximum(share, 1e-2)
    strength = (3 * share).clip(0, 1)
    mixed = outlines * strength + shrunk(pixels) * (1 - strength)
    return np.asarray(mixed.round().clip(0, 255), np.uint8)


def _nearest(labels: NDArray[np.uint32], size: tuple[int, int]) -> NDArray[np.uint32]:
    rows, columns = (
        ((np.arange(n) + 0.5) * (old / n)).astype(np.int64)
        for n, old in zip(size, labels.shape, strict=True)
    )
    return np.asarray(labels[rows[:, None], columns])


def _colours(objects: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """A colour for each label: of its agreement, or `_SURE` where there was one sample only."""
    colours = np.zeros((int(objects["label"].max(initial=0)) + 1, 3), np.uint8)
    agreement = np.nan_to_num(objects["agreement"].astype(np.float64), nan=1.0)
    colours[objects["label"].astype(np.int64)] = _ramp(agreement)
    return colours


def _ramp(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    stops = np.array([_UNSURE, _BETWEEN, _SURE], np.float64)
    channels = [np.interp(values, (0, 0.5, 1), stops[:, i]) for i in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _with_footer(
    picture: NDArray[np.uint8], objects: dict[str, NDArray[Any]], mpp: float | None
) -> Image.Image:
    """Put count, colour scale and scale bar below the picture."""
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (max(width, 640), height + _FOOTER), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(16)
    middle = height + _FOOTER // 2

    def write(x: int, text: str) -> int:
        draw.text((x, middle), text, "black", font, anchor="lm")
        return x + round(draw.textlength(text, font)) + 8

    x = write(8, f"{len(objects['label'])} objects")
    if not np.isnan(objects["agreement"]).all():
        x = write(x + 16, "samples that agree: none")
        scale = _ramp(np.linspace(0, 1, 100))[None].repeat(12, axis=0)
        canvas.paste(Image.fromarray(scale), (x, middle - 6))
        x = write(x + 108, "all")
    if mpp is not None:
        length = max((n for n in _LENGTHS if n / mpp <= width / 4), default=None)
        if length is not None:
            end = x + 24 + round(length / mpp)
            draw.line([(x + 24, middle), (end, middle)], "black", 4)
            write(end + 8, f"{length} um")  # the font has no µ
    return canvas
