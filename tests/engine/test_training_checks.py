"""What is checked before the first step, and how data are split."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile

from cdal_engine.config import ImageConfig, ModelConfig, TrainConfig
from cdal_engine.errors import CdalError
from cdal_engine.training.checks import load_checked
from cdal_engine.training.dataset import Pair, find_pairs, match_files
from cdal_engine.training.splits import split

MRI = ModelConfig(
    target="classes",
    classes=("anterior", "posterior"),
    image=ImageConfig(channels=1, mpp=None, normalisation="percentile", mean=(), std=()),
)


def write(folder: Path, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
    for kind, array in (("images", image), ("labels", labels)):
        (folder / kind).mkdir(exist_ok=True)
        tifffile.imwrite(folder / kind / f"{stem}.tif", array)


def test_every_problem_is_in_one_error(tmp_path: Path) -> None:
    """Pairing, size, class id, label type, affine, a duplicate, a missing class, the file."""
    rng = np.random.default_rng(0)

    def image() -> np.ndarray:
        return rng.integers(0, 255, (16, 16), np.uint8)

    ones, twin = np.ones((16, 16), np.uint8), image()
    write(tmp_path, "a-twin", twin, ones)
    write(tmp_path, "b-twin", twin, ones)
    write(tmp_path, "beyond", image(), ones * 7)
    write(tmp_path, "colour", image(), np.stack([ones] * 3, -1))
    write(tmp_path, "small", image(), ones[:9])
    write(tmp_path, "alone", image(), ones)
    (tmp_path / "labels" / "alone.tif").unlink()
    (tmp_path / "images" / "text.png").write_text("no picture")
    tifffile.imwrite(tmp_path / "labels" / "text.tif", ones)
    moved = np.eye(4)
    moved[1, 3] = 3
    for kind, affine in (("images", np.eye(4)), ("labels", moved)):
        volume = nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), affine)
        nibabel.save(volume, tmp_path / kind / "volume.nii")
    config = TrainConfig(model=MRI, validation=("b-twin", "text", "volume"))
    pairs, known = match_files(tmp_path)
    with pytest.raises(CdalError) as caught:
        load_checked(split(pairs, config, known), config, known)
    for words in (
        "8 problems",
        "without partner: alone",
        "class id 7 with 2 classes",
        "one integer a pixel",
        "differ in size",
        "holds no PNG",
        "affines of image and label differ by up to 3",
        "b-twin.tif: the same pixels are in training as a-twin.tif",
        "class 2 (posterior) is in no training label; there are [1]",
    ):
        assert words in str(caught.value)


def test_what_prevents_the_split_is_named_with_the_rest(tmp_path: Path) -> None:
    plane = np.ones((8, 8), np.uint8)
    write(tmp_path, "a", plane, plane)
    write(tmp_path, "b", plane, plane)
    (tmp_path / "labels" / "b.tif").unlink()
    pairs, known = match_files(tmp_path)
    with pytest.raises(CdalError, match=r"2 problems.*without partner: b.*cannot be split"):
        split(pairs, TrainConfig(model=MRI), known)


def test_labels_without_objects_are_refused(tmp_path: Path) -> None:
    plane = np.arange(64, dtype=np.uint8).reshape(8, 8)
    write(tmp_path, "a", plane, plane * 0)
    binary = MRI.model_copy(update={"target": "binary", "classes": ("lung",)})
    with pytest.raises(CdalError, match="all training labels are empty"):
        load_checked((find_pairs(tmp_path), []), TrainConfig(model=binary))


def test_duplicates_on_one_side_are_the_users_affair(tmp_path: Path) -> None:
    plane = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for stem in ("a", "b"):
        write(tmp_path, stem, plane, plane // 32 + 1)
    assert len(load_checked((find_pairs(tmp_path), []), TrainConfig(model=MRI))) == 2


def pairs_of(patients: int, images: int = 2) -> list[Pair]:
    names = [f"TCGA-AA-{p:04}-{i}" for p in range(patients) for i in range(images)]
    return [Pair(Path(f"{name}.png"), Path(f"{name}.tif")) for name in names]


@pytest.mark.parametrize("patients", [3, 7, 11])
def test_folds_hold_every_patient_out_once_and_tear_none(patients: int) -> None:
    pairs, held_out = pairs_of(patients), []
    for part in (1, 2, 3):
        training, validation = split(pairs, TrainConfig(fold=(part, 3), seed=5))
        assert {p.patient for p in training}.isdisjoint(p.patient for p in validation)
        assert len(training) + len(validation) == len(pairs)
        held_out += validation
    assert sorted(p.stem for p in held_out) == sorted(p.stem for p in pairs)


def test_folds_are_shuffled_by_the_seed() -> None:
    pairs = pairs_of(12)
    first, again, other = (
        [p.stem for p in split(pairs, TrainConfig(fold=(1, 3), seed=seed))[1]] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_folds_that_cannot_be() -> None:
    with pytest.raises(CdalError, match=r"3 patient\(s\) in 4 folds"):
        split(pairs_of(3), TrainConfig(fold=(1, 4)))
    for wrong in ((0, 3), (4, 3), (1, 1)):
        with pytest.raises(ValueError, match="1 <= i <= K"):
            TrainConfig(fold=wrong)
    with pytest.raises(ValueError, match="not both"):
        TrainConfig(fold=(1, 3), validation=("a",))
