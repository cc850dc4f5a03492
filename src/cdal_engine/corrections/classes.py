"""Classes of objects that a person drew."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["drawn_class"]


def drawn_class(known: Iterable[str]) -> str:
    """The only class among those that the model found; `object` where there are none or several."""
    kinds = set(known)
    return kinds.pop() if len(kinds) == 1 else "object"
