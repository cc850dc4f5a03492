"""A folder of images or volumes and their labels, paired and brought to the model's resolution."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .. import instances
from ..config import ImageConfig, ModelConfig
from ..errors import CdalError, together
from ..io.discovery import open_source
from ..preparation import grid_scale, normalise, prepare, resample
from ..volume import check_takes_volumes, normalised_slices
from .volumes import VOLUME_SUFFIXES, is_volume, read_volume_pair

__all__ = ["Item", "Pair", "find_pairs", "load_pair", "match_files", "read_pair"]

Item = tuple[Tensor, Tensor]  # intensities (C, H, W), labels (1, H, W)

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", *VOLUME_SUFFIXES)
_PATIENT = re.compile(r"TCGA-\w{2}-\w{4}")  # else each file is taken for a patient of its own


@dataclass(frozen=True)
class Pair:
    """An image or volume, and its label file."""

    image: Path
    label: Path

    @property
    def stem(self) -> str:
        """What both are called, without folder and suffix."""
        return _stem(self.image)

    @property
    def is_volume(self) -> bool:
        """Whether it is taken slice by slice; its slices are always on one side of a split."""
        return is_volume(self.image)

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
    pairs, problems = match_files(folder)
    if problems:
        raise together(problems)
    return pairs


def match_files(folder: Path) -> tuple[list[Pair], list[CdalError]]:
    """Pair the files of a folder as `find_pairs`, and say what has no partner.

    Raises
    ------
    CdalError
        If a folder is missing or empty.
    """
    images, labels = folder / "images", folder / "labels"
    labels = labels if labels.is_dir() else folder / "masks"
    if not images.is_dir() or not labels.is_dir():
        raise CdalError(
            "training data is a folder with images/ and labels/ (or masks/)",
            "see `cdal train --help`",
            folder,
        )
    problems: list[CdalError] = []
    found = [_by_stem(images, problems), _by_stem(labels, problems)]
    lonely = sorted(found[0].keys() ^ found[1].keys())
    if lonely:
        error = CdalError(
            f"images and labels do not pair: {len(found[0])} images, {len(found[1])} labels, "
            f"without partner: {', '.join(lonely[:10])}{' …' if len(lonely) > 10 else ''}",
            "give each image a label file of the same stem, or move it away",
            folder,
        )
        problems.append(error)
    pairs = [Pair(image, found[1][s]) for s, image in sorted(found[0].items()) if s in found[1]]
    if not pairs and not problems:
        raise CdalError(f"no {', '.join(SUFFIXES)} files in images/", "check the folder", folder)
    return pairs, problems


def _by_stem(folder: Path, problems: list[CdalError]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        known = is_volume(path) or path.suffix.lower() in SUFFIXES
        if not known or path.name.startswith("."):
            continue
        stem = _stem(path)
        if stem in files:
            names = f"{files[stem].name}, {path.name}"
            problems.append(CdalError(f"two files of one stem: {names}", "keep one", folder))
        files[stem] = path
    return files


def _stem(path: Path) -> str:
    if path.is_dir():
        return path.name
    return path.stem.removesuffix(".nii") if path.suffix == ".gz" else path.stem


def load_pair(pair: Pair, model: ModelConfig, mpp: float | None) -> list[Item]:
    """Read a pair at the model's resolution: an image, or the slices of a volume.

    Parameters
    ----------
    pair : Pair
    model : ModelConfig
    mpp : float or None
        Micrometres per pixel of the image; None: what its file says, else the model's own.

    Returns
    -------
    list of tuple
        (C, H, W) float32 intensities and (1, H, W) int32 labels. Intensities are normalised by
        the whole image's or volume's statistics already, or not yet by the model's constants.

    Raises
    ------
    CdalError
        See `read_pair`.
    """
    try:
        image, labels, own = read_pair(pair, model, mpp)
        if pair.is_volume:
            across = np.moveaxis(labels, model.image.slice_axis, 0).astype(np.int32)
            y = torch.from_numpy(np.ascontiguousarray(across))[:, None]
            slices = zip(normalised_slices(image, model), y, strict=True)
            return [_on_grid(x, y, None, model.image) for x, y in slices]
        x = prepare(image, model.image)
        if model.image.normalisation == "percentile":  # as in inference: of the file's pixels
            x = normalise(x, model.image)
        if model.target != "classes":
            # Ids of any size: augmentation keeps those below 2**24.
            numbers = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
            labels = numbers + int(labels.min() > 0)
        return [_on_grid(x, torch.from_numpy(labels.astype(np.int32))[None], own, model.image)]
    except CdalError as error:
        raise error.at(pair.image) from None


def _on_grid(x: Tensor, y: Tensor, mpp: float | None, config: ImageConfig) -> Item:
    """Bring intensities and ids to the model's resolution, or to the one size that it has."""
    height, width = x.shape[1:]
    if config.mpp is None and config.resized is not None:
        scale = config.resized[0] / height, config.resized[1] / width
    else:
        scale = (grid_scale(mpp, config),) * 2
    if scale == (1, 1):
        return x, y
    x = resample(x, scale)
    return x, _nearest(y, scale, (x.shape[1], x.shape[2]))


def read_pair(
    pair: Pair, model: ModelConfig, mpp: float | None
) -> tuple[NDArray[np.generic], NDArray[np.integer], float | None]:
    """Read an image, its labels and its resolution, checked against each other and the target.

    A volume's axes run right, anterior, superior.

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
    if pair.is_volume:
        check_takes_volumes(model)
        image, labels = read_volume_pair(pair.image, pair.label)
        size = image.shape
    else:
        if model.image.neighbours:
            raise CdalError("no volume, it has no neighbours", "use model.image.neighbours: 0")
        source = open_source(pair.image)
        image, labels = source.read(), _read_labels(pair.label)
        size = image.shape[:2]
        mpp = source.mpp if mpp is None else mpp
    if labels.shape != size:
        raise CdalError(
            f"image {size} and label {labels.shape} differ in size", "label the image at its size"
        )
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
    return image, labels, mpp


def _nearest(labels: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Resample (1, H, W) ids on the grid of `preparation.resample`."""
    for axis, (length, s) in enumerate(zip(size, scale, strict=True), 1):
        index = ((torch.arange(length) + 0.5) / s).long().clamp(max=labels.shape[axis] - 1)
        labels = labels.index_select(axis, index)
    return labels
