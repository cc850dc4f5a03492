"""The sample that the demo and napari open: see LICENSE.md beside it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["HE_MPP", "he_path"]

HE_MPP = 0.499  # micrometres per pixel


def he_path() -> Path:
    """Path of an H&E crop of skin, 512x512 RGB PNG at `HE_MPP` micrometres per pixel."""
    return Path(__file__).with_name("he-cmu-1.png")
