"""A folder of images and labels, checked, brought to the model's resolution and split."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .. import instances
from ..config import ModelConfig, TrainConfig
from ..errors import CdalError
from ..io.discovery import open_source
from ..preparation import grid_scale, normalise, prepare, resample

__all__ = ["Pair", "find_pairs", "load_for_training", "read_pair", "split"]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
_PATIENT = re.compile(r"TCGA-\w{2}-\w{4}")  # else each file is taken for a patient of its own


@dataclass(frozen=True)
class Pair:
    """An image and its label file."""

    image: Path
    label: Path

    @property
    def stem(self) -> str:
        """What both are called, without folder and suffix."""
        return self.image.stem

    @property
    def patient(self) -> str:
        """Whose tissue it is, so that nobody is on both sides of a split."""
        match = _PATIENT.match(self.stem)
        return match.group() if match else self.stem


def _read_labels(path: Path) -> NDArray[np.integer]:
    """Read a label file as it is, palette indices included: (H, W) integers.

    Raises
    ------
    CdalError
        If it cannot be decoded or is no label map.
    """
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            labels = np.asarray(tifffile.imread(path))
        else:
            with Image.open(path) as image:
                labels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, tifffile.TiffFileError) as error:
        raise CdalError(f"cannot be decoded: {error}", "replace the file", path) from None
    if labels.ndim != 2 or labels.dtype.kind not in "bui" or labels.min(initial=0) < 0:
        raise CdalError(
            "labels must be one integer a pixel, not negative; got "
            f"{labels.dtype} of shape {labels.shape}",
            "save them as 8-bit or 16-bit grayscale",
            path,
        )
    return labels


def find_pairs(folder: Path) -> list[Pair]:
    """Pair `images/` with `labels/` (or `masks/`) by file stem.

    Raises
    ------
    CdalError
        If a folder is missing or empty, or any file has no partner; all are named at once.
    """
    images, labels = folder / "images", folder / "labels"
    labels = labels if labels.is_dir() else folder / "masks"
    if not images.is_dir() or not labels.is_dir():
        raise CdalError(
            "training data is a folder with images/ and labels/ (or masks/)",
            "see `cdal train --help`",
            folder,
        )
    found = [_by_stem(images), _by_stem(labels)]
    lonely = sorted(found[0].keys() ^ found[1].keys())
    if lonely:
        raise CdalError(
            f"images and labels do not pair: {len(found[0])} images, {len(found[1])} labels, "
            f"without partner: {', '.join(lonely[:10])}{' …' if len(lonely) > 10 else ''}",
            "give each image a label file of the same stem",
            folder,
        )
    if not found[0]:
        raise CdalError(f"no {', '.join(SUFFIXES)} files in images/", "check the folder", folder)
    return [Pair(image, found[1][stem]) for stem, image in sorted(found[0].items())]


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise CdalError(
                f"two files of one stem: {files[path.stem].name}, {path.name}", "keep one", folder
            )
        files[path.stem] = path
    return files


def split(pairs: list[Pair], config: TrainConfig) -> tuple[list[Pair], list[Pair]]:
    """Split into training and validation pairs, never one patient in both.

    Raises
    ------
    CdalError
        If a stem in `config.validation` is unknown, a patient would be in both, or one side would
        be empty.
    """
    patients = defaultdict(list)
    for pair in pairs:
        patients[pair.patient].append(pair)
    if config.validation:
        unknown = set(config.validation) - {pair.stem for pair in pairs}
        if unknown:
            raise CdalError(f"no images for `validation`: {', '.join(sorted(unknown))}")
        held_out = {p.patient for p in pairs if p.stem in config.validation}
        torn = {p.stem for p in pairs if p.patient in held_out} - set(config.validation)
        if torn:
            raise CdalError(
                f"of the same patients as the validation images: {', '.join(sorted(torn))}",
                "add them to `validation`",
            )
    else:
        order = np.random.default_rng(config.seed).permutation(sorted(patients))
        held_out = set(order[: max(len(order) // 5, 1)].tolist())
    training = [p for p in pairs if p.patient not in held_out]
    validation = [p for p in pairs if p.patient in held_out]
    if not training or not validation:
        raise CdalError(
            f"{len(patients)} patient(s) cannot be split into training and validation",
            "add images of at least one more patient",
        )
    return training, validation


def load_for_training(
    pairs: list[Pair], model: ModelConfig, mpp: float | None
) -> list[tuple[Tensor, Tensor]]:
    """Read pairs at the model's resolution.

    Parameters
    ----------
    pairs : list of Pair
    model : ModelConfig
    mpp : float or None
        Micrometres per pixel of the images; None: what each file says, else the model's own.

    Returns
    -------
    list of tuple
        (C, H, W) float32 intensities and (1, H, W) int32 labels. Intensities are normalised by
        the whole image's statistics already, or not yet by the model's constants.

    Raises
    ------
    CdalError
        Naming every pair that does not fit, at once.
    """
    loaded, problems = [], []
    for pair in pairs:
        try:
            image, labels, own = read_pair(pair, model, mpp)
            scale = grid_scale(own, model.image)
            x = prepare(image, model.image)
            if model.image.normalisation == "percentile":  # as in inference: of the file's pixels
                x = normalise(x, model.image)
        except CdalError as error:
            problems.append(str(error.at(pair.image)))
            continue
        if model.target != "classes":
            # Ids of any size: augmentation keeps those below 2**24.
            numbers = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
            labels = numbers + int(labels.min() > 0)
        y = torch.from_numpy(labels.astype(np.int32))[None]
        if scale != 1:
            x = resample(x, scale)
            y = _nearest(y, scale, (x.shape[1], x.shape[2]))
        loaded.append((x, y))
    if problems:
        raise CdalError(f"{len(problems)} unusable pair(s): {'; '.join(problems)}")
    return loaded


def read_pair(
    pair: Pair, model: ModelConfig, mpp: float | None
) -> tuple[NDArray[np.generic], NDArray[np.integer], float | None]:
    """Read an image, its labels and its resolution, checked against each other and the target.

    Parameters
    ----------
    pair : Pair
    model : ModelConfig
    mpp : float or None
        Micrometres per pixel; None: what the image's file says, if it does.

    Raises
    ------
    CdalError
        If either cannot be read, or they do not fit.
    """
    source = open_source(pair.image)
    image, labels = source.read(), _read_labels(pair.label)
    if labels.shape != image.shape[:2]:
        raise CdalError(f"image {image.shape[:2]} and label {labels.shape} differ in size")
    one_value = model.target == "nuclei" and len(np.unique(labels[labels > 0])) == 1
    if one_value and instances.components(labels > 0).max() > 1:
        raise CdalError(
            "target 'nuclei' needs one id per object, the label holds one value for several",
            "use instance maps, or target 'binary'",
        )
    if model.target == "classes" and labels.max(initial=0) > len(model.classes):
        raise CdalError(
            f"class id {labels.max()} with {len(model.classes)} classes configured",
            "name every class in `model.classes`",
        )
    return image, labels, source.mpp if mpp is None else mpp


def _nearest(labels: Tensor, scale: float, size: tuple[int, int]) -> Tensor:
    """Resample (1, H, W) ids on the grid of `preparation.resample`."""
    for axis, length in ((1, size[0]), (2, size[1])):
        index = ((torch.arange(length) + 0.5) / scale).long().clamp(max=labels.shape[axis] - 1)
        labels = labels.index_select(axis, index)
    return labels
