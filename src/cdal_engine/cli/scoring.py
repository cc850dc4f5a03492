"""What `evaluate` and `compare` share: the images of a config, and figures as JSON."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training.dataset import Pair


def held_out(pairs: "list[Pair]", config: Path) -> "tuple[list[Pair], float | None]":
    """The validation pairs that a training config names, and their micrometres per pixel."""
    from ..config import TrainConfig
    from ..training.splits import split

    settings = TrainConfig.from_file(config)
    return split(pairs, settings)[1], settings.mpp


def as_json(report: object) -> bytes:
    """Write figures as JSON; what no number is defined for, NaN, becomes null."""
    return (json.dumps(_without_nan(report), indent=2) + "\n").encode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
