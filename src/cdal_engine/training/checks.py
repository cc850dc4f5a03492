"""What is checked before the first step, so that every problem is known at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..config import ModelConfig, TrainConfig
from ..errors import CdalError, together
from .cache import Items
from .dataset import Item, Pair, load_pair

__all__ = ["load_checked"]


def load_checked(
    sides: tuple[Sequence[Pair], Sequence[Pair]],
    config: TrainConfig,
    known: Sequence[CdalError] = (),
) -> Items:
    """Read and check training and validation pairs, and return what is learned from.

    Parameters
    ----------
    sides : tuple of list of Pair
        Training and validation. Of validation, only the checks are done: it is read as it is
        scored.
    config : TrainConfig
    known : list of CdalError
        Problems found already, named with those found here.

    Raises
    ------
    CdalError
        Naming every problem: files that cannot be read or do not fit each other, the model or the
        target; one image on both sides under two names; classes that no label has.
    """
    problems = list(known)
    items, ids = Items(config), set[int]()
    seen: dict[str, Pair] = {}
    for pairs, keep in zip(sides, (True, False), strict=True):
        here: dict[str, Pair] = {}
        for pair in pairs:
            try:
                loaded = load_pair(pair, config.model, config.mpp)
            except CdalError as error:
                problems.append(error)
                continue
            digest = _digest(loaded)
            if digest in seen:
                reason = f"the same pixels are in training as {seen[digest].image.name}"
                remedy = "remove one of them: validation must not hold what is learned"
                problems.append(CdalError(reason, remedy, pair.image))
            here[digest] = pair
            if keep:
                items.add(pair, loaded)
                ids.update(int(i) for _, y in loaded for i in y.unique())
        seen |= here
    if items:
        problems += _absent(ids - {0}, config.model)
    if problems:
        raise together(problems)
    return items


def _digest(items: list[Item]) -> str:
    """Of the pixels, whatever the file is called and however it is packed."""
    digest = hashlib.sha256()
    for x, _ in items:
        digest.update(f"{tuple(x.shape)}".encode() + x.numpy().tobytes())
    return digest.hexdigest()


def _absent(ids: set[int], model: ModelConfig) -> list[CdalError]:
    """Classes that cannot be learned, as no training label has them."""
    if model.target != "classes":
        return [] if ids else [CdalError("all training labels are empty", "check the label files")]
    return [
        CdalError(
            f"class {k} ({name}) is in no training label; there are {sorted(ids) or 'none'}",
            "correct `model.classes`, or add images that have it",
        )
        for k, name in enumerate(model.classes, 1)
        if k not in ids
    ]
