"""What TensorBoard shows of a run, where it is installed: scalars, and validation overlays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["add_to_board"]


def add_to_board(run: Path, row: dict[str, float], pictures: list[Path]) -> None:
    """Add a row of metrics.csv, and pictures by their name, to RUN/tensorboard.

    Does nothing without TensorBoard: metrics.csv, curves.png and examples/ hold the same.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    step = int(row["step"])
    # What a run that was cut off wrote of this step and later is replaced.
    with SummaryWriter(str(run / "tensorboard"), purge_step=step) as board:
        for name, value in row.items():
            if name != "step":
                board.add_scalar(name, value, step)
        for path in pictures:
            with Image.open(path) as picture:
                pixels = np.asarray(picture)
            board.add_image(path.stem, pixels, step, dataformats="HWC")
