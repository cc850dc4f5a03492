"""Which run labels are of, kept with them in an OME-Zarr and in layers made from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

__all__ = ["to_json", "trusted"]

_LONGEST, _MOST = 1000, 1000  # characters of a name, classes
_FARTHEST = 1e9  # pixels or micrometres


def to_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth keeping of a layer's facts, as JSON can say it."""
    return {name: _listed(facts[name]) for name in _KNOWN if name in facts}


def trusted(said: object) -> dict[str, Any]:
    """Facts read from a file; none where one of them is not what it should be."""
    if not isinstance(said, dict):
        return {}
    facts = {}
    with suppress(TypeError, ValueError, OverflowError):
        for name, read in _KNOWN.items():
            if name in said:
                facts[name] = read(said[name])
        return facts
    return {}


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ValueError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _length(value: Any) -> float:
    if not 1 / _FARTHEST <= _number(value) <= _FARTHEST:
        raise ValueError
    return float(value)


def _place(value: Any) -> float:
    if not 0 <= _number(value) <= _FARTHEST:
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def _or_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _pair(value: Any, read: Callable[[Any], float] = _place) -> tuple[float, float]:
    first, second = value
    return read(first), read(second)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MOST:
        raise ValueError
    return tuple(_name(each) for each in value)


_KNOWN: dict[str, Callable[[Any], Any]] = {
    "source": _name,
    "model": _name,
    "digest": _name,
    "samples": _whole,
    "steps": _or_none(_whole),  # as many as the model has
    "seed": _whole,
    "classes": _names,
    "pixel": _length,
    "corner": _pair,
    "mpp": _or_none(_length),
    "spacing": _or_none(lambda value: _pair(value, _length)),
}
