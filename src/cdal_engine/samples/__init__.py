"""The samples that the demo and napari open: see LICENSE.md beside them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["HE_MPP", "he_path", "mri_path", "slide_path"]

HE_MPP = 0.499  # micrometres per pixel


def he_path() -> Path:
    """Path of an H&E crop of skin, 512x512 RGB PNG at `HE_MPP` micrometres per pixel."""
    return Path(__file__).with_name("he-cmu-1.png")


def slide_path() -> Path:
    """Path of a pyramidal TIFF of skin, H&E, 1280x2048 at `HE_MPP` and two levels below it."""
    return Path(__file__).with_name("he-cmu-1-slide.tif")


def mri_path() -> Path:
    """Path of an MRI crop around a hippocampus, NIfTI, 35x51x35 voxels of 1 mm."""
    return Path(__file__).with_name("hippocampus.nii.gz")
