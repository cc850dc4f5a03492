"""What a run found, in a few words for the panel: counts and density of each region."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .jobs import Answer, Job

__all__ = ["found"]

_SHOWN = 6  # regions told one by one


def found(job: Job, answers: Mapping[int, Answer]) -> str:
    """Say how many objects there are, and how many a square millimetre."""
    if not answers:
        return "Nothing was added."
    lines = [_line(answer) for answer in list(answers.values())[:_SHOWN]]
    if len(answers) > _SHOWN:
        count = sum(len(answer.segmentation.objects["label"]) for answer in answers.values())
        lines.append(f"In all {len(answers)} regions: {count} objects.")
    missing = max(len(job.regions), 1) - len(answers)
    if missing:
        lines.append(f"Stopped before {missing} more region{'s' * (missing != 1)}.")
    return "\n".join(lines)


def _line(answer: Answer) -> str:
    from cdal_engine.counts import counted  # scipy: only once it is needed

    segmentation, region = answer.segmentation, answer.region
    name = f"{region.name}: " if region and region.name else ""
    note = f" (only {answer.so_far})" if answer.so_far else ""
    if region is None:
        named = zip(segmentation.objects["class"], segmentation.objects["area"], strict=True)
        voxel = _voxel_mm3(answer)
        sizes = ", ".join(
            f"{kind} {count:.0f} voxels" + (f" ({count * voxel:.0f} mm³)" if voxel else "")
            for kind, count in named
        )
        return f"{sizes}{note}; {segmentation.seconds:.1f} s on {answer.facts['device']}."
    count = len(segmentation.objects["label"])
    shape, mask = segmentation.labels.shape, answer.mask
    pixels = math.prod(shape) if mask is None else int(np.count_nonzero(mask))
    area = pixels * (segmentation.mpp / 1000) ** 2 if segmentation.mpp else None
    if answer.config.target == "classes":  # how densely pieces of a class lie says nothing
        area = None
    said = counted(count, 0, segmentation.counts, segmentation.mpp, area)
    seconds = f"{segmentation.seconds:.1f} s on {answer.facts['device']}"
    text = f"{name.capitalize()}{count} object{'s' * (count != 1)} in {seconds}"
    alone = _interval(said["objects_interval"])
    if area:
        text += f", {said['objects_per_mm2']:.0f} per mm² in {area:.3g} mm²"
        each = _interval(said["objects_per_mm2_interval"])
        alone += f", {each} per mm²" if each else ""
    return f"{text}{note}{f'; single samples: {alone}' if alone else ''}."


def _voxel_mm3(answer: Answer) -> float | None:
    """Volume of a voxel; None where the layer's units are no lengths."""
    layer = answer.job.plane.layer
    if not all(unit.is_compatible_with("millimeter") for unit in layer.units):
        return None
    sides = (
        scale * float((1 * unit).to("millimeter").magnitude)
        for scale, unit in zip(layer.scale, layer.units, strict=True)
    )
    return float(math.prod(sides))


def _interval(each: list[float] | None) -> str:
    """Least and most of the samples; nothing where there is one."""
    low, high = (f"{n:.0f}" for n in each) if each else ("", "")
    return low if low == high else f"{low} to {high}"
