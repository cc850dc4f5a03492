"""Batches, made one ahead by threads; each a function of the config's seed and the step only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .. import targets
from ..config import TrainConfig
from ..preparation import normalise
from .augmentation import Augmentation, Drawn, random_crop
from .dataset import Item

__all__ = ["Batch", "batches"]

Batch = tuple[Tensor, Tensor]  # normalised images (B, C, H, W), label maps x_0 (B, K, H, W)


def batches(
    config: TrainConfig,
    data: Sequence[Item],
    device: torch.device,
    start: int,
    rows: range | None = None,
) -> Iterator[Batch]:
    """Yield the batches of step `start` and on, for ever.

    Parameters
    ----------
    config : TrainConfig
    data : sequence of Item
    device : torch.device
        Where images are augmented, and the batches lie.
    start : int
        Step of the first.
    rows : range, optional
        Which of each batch's rows to make: a device's own, of several. By default all.
    """
    rows = rows or range(config.batch_size)
    make = _Maker(config, data)
    # One ahead: reading and cutting hide behind the step.
    with ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 2) - 1))) as pool:

        def submit(step: int) -> list[Future[tuple[Drawn | Tensor, Tensor]]]:
            return [pool.submit(make.row, step, row) for row in rows]

        ahead, step = submit(start), start
        while True:
            ready, ahead, step = ahead, submit(step + 1), step + 1
            crops, x_0 = zip(*(future.result() for future in ready), strict=True)
            images = make.images(crops, device)
            yield _channels_last(images, device), _channels_last(torch.stack(x_0), device)


class _Maker:
    """What rows are made with."""

    def __init__(self, config: TrainConfig, data: Sequence[Item]) -> None:
        self.config, self.data = config, data
        self.image = config.model.image
        self.upright = config.orientation == "upright"
        self.by_constants = self.image.normalisation == "constant"
        stained = self.image.channels == 3 and self.by_constants
        self.augmentation = Augmentation(config.crop, stained, self.upright)

    def row(self, step: int, row: int) -> tuple[Drawn | Tensor, Tensor]:
        """One crop, to be augmented if the config says so, and its label map."""
        config = self.config
        rng = np.random.default_rng([config.seed, step, row])
        image, labels = self.data[int(rng.integers(len(self.data)))]
        crop: Drawn | Tensor
        if config.augment:
            crop, labels = self.augmentation.draw(image, labels, rng)
        else:
            crop, labels = random_crop(image, labels, config.crop, rng, self.upright)
        return crop, torch.from_numpy(targets.encode(labels[0].numpy(), config.model))

    def images(self, crops: Sequence[Drawn | Tensor], device: torch.device) -> Tensor:
        """Augmented, normalised images on `device`."""
        drawn = [crop for crop in crops if isinstance(crop, Drawn)]
        plain = [crop for crop in crops if isinstance(crop, Tensor)]
        x = self.augmentation.render(drawn, device) if drawn else torch.stack(plain).to(device)
        return normalise(x, self.image) if self.by_constants else x


def _channels_last(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, memory_format=torch.channels_last)
