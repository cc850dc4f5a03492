"""What JPEG compression leaves of a batch of images, on any device.

Colours to luma and chroma, chroma at half the size, each 8 x 8 block's cosine transform rounded to
multiples of the quality's table, and back: ITU-T T.81. The lossless rest of JPEG is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from io import BytesIO

import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor
from torch.nn import functional as F

__all__ = ["compressed"]

_BLOCK = 8
_TO_YCC = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def compressed(images: Tensor, qualities: Sequence[int]) -> Tensor:
    """Compress (B, 3, H, W) images in 0 … 1 at a JPEG quality of 1 … 100 each."""
    height, width = images.shape[2:]
    whole = [-n % (2 * _BLOCK) for n in (width, height)]  # chroma's blocks at half the size
    x = F.pad(images, [0, whole[0], 0, whole[1]], mode="replicate") * 255 - 128
    to_ycc = _TO_YCC.to(images.device)
    ycc = torch.einsum("ij,bjhw->bihw", to_ycc, x)
    tables = torch.stack([_tables(quality) for quality in qualities]).to(images.device)
    luma = _quantised(ycc[:, :1], tables[:, :1])
    chroma = _quantised(F.avg_pool2d(ycc[:, 1:], 2), tables[:, 1:].expand(-1, 2, -1, -1))
    ycc = torch.cat([luma, F.interpolate(chroma, scale_factor=2.0, mode="bilinear")], dim=1)
    rgb = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(to_ycc), ycc)
    return ((rgb + 128) / 255).clamp(0, 1)[..., :height, :width]


def _quantised(planes: Tensor, tables: Tensor) -> Tensor:
    """Round the (B, C, H, W) planes' blocks to multiples of their (B, C, 8, 8) tables."""
    cosines = _cosines().to(planes.device)
    rows, columns = (n // _BLOCK for n in planes.shape[2:])
    blocks = planes.unflatten(3, (columns, _BLOCK)).unflatten(2, (rows, _BLOCK))
    blocks = blocks.transpose(3, 4)  # (B, C, rows, columns, 8, 8)
    steps = tables[:, :, None, None]
    frequencies = torch.round(cosines @ blocks @ cosines.T / steps) * steps
    blocks = cosines.T @ frequencies @ cosines
    back: Tensor = blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return back


@cache
def _cosines() -> Tensor:
    """(8, 8) orthonormal cosine transform: a row for each frequency."""
    k, n = torch.arange(_BLOCK)[:, None], torch.arange(_BLOCK)
    waves: Tensor = torch.cos(math.pi / _BLOCK * (n + 0.5) * k) * math.sqrt(2 / _BLOCK)
    waves[0] /= math.sqrt(2)
    return waves


@cache
def _tables(quality: int) -> Tensor:
    """(2, 8, 8) tables of luma and chroma, as Pillow writes them."""
    file = BytesIO()
    Image.new("RGB", (_BLOCK, _BLOCK)).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        tables = [image.quantization[i] for i in (0, 1)]
    return torch.tensor(tables, dtype=torch.float32).reshape(2, _BLOCK, _BLOCK)
