"""Volumes in training and evaluation: one normalisation, one patient, one score each."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.metrics import compute_confusion_matrix_metric, compute_dice, get_confusion_matrix
from PIL import Image

from cdal_engine.config import ImageConfig, LossConfig, ModelConfig, NetworkConfig, TrainConfig
from cdal_engine.errors import CdalError
from cdal_engine.io.discovery import open_source
from cdal_engine.model import Model, Networks
from cdal_engine.segmenter import Segmenter
from cdal_engine.training.dataset import Pair, find_pairs, load_pair
from cdal_engine.training.loop import Trainer
from cdal_engine.training.splits import split
from cdal_engine.training.validation import evaluate
from cdal_engine.volume import normalised_slices, segment_volume, turned

IMAGE = ImageConfig(channels=1, mpp=None, normalisation="percentile", mean=(), std=())
NETWORK = NetworkConfig(
    widths=(8, 12),
    denoiser_width=12,
    denoiser_blocks=1,
    detail_width=8,
    latent_dim=4,
    discriminator_widths=(8, 8),
)
MRI = ModelConfig(
    target="classes",
    classes=("anterior", "posterior"),
    image=IMAGE,
    network=NETWORK,
    attention={"level": 1},
    diffusion={"steps": 2},
)
SHAPE = (20, 26, 9)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bright blocks in noise: class 1 before class 2 along the first axis."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 5:18, 2:7] = 1
    labels[9:16, 8:14, 3:6] = 2
    noise = np.random.default_rng(seed).normal(0, 8, SHAPE)
    return (50 + 60 * labels + noise).astype(np.float32), labels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four volumes, intensities of which differ a thousandfold; one label is of floats."""
    folder = tmp_path / "data"
    for n in range(4):
        voxels, labels = phantom(n)
        save(folder / "images" / f"case{n}.nii.gz", voxels * 1000.0 ** (n % 2))
        save(folder / "labels" / f"case{n}.nii.gz", labels.astype(float) if n == 3 else labels)
    return folder


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    Model.save(folder, MRI, Networks(MRI))
    return Segmenter(Model.load(folder), "cpu")


def training(**changes: object) -> TrainConfig:
    base = {"model": MRI, "steps": 2, "batch_size": 2, "crop": 32, "losses": LossConfig()}
    return TrainConfig(**base | changes)


def with_image(**changes: object) -> ModelConfig:
    return MRI.model_copy(update={"image": IMAGE.model_copy(update=changes)})


def test_slices_share_the_statistics_of_their_volume() -> None:
    voxels, _ = phantom(0)
    voxels[:, :, 0] *= 0.1  # a dark slice stays dark
    slices = normalised_slices(voxels, MRI)
    assert slices.shape == (9, 1, 20, 26)
    assert slices[0].max() < slices[4].median()
    low, high = np.percentile(voxels, (1, 99))
    expected = ((voxels - low) * 2 / (high - low) - 1).clip(-3, 3)
    np.testing.assert_allclose(slices[:, 0].permute(1, 2, 0), expected, atol=1e-4)


@pytest.mark.parametrize("factor", [1024, 1000])
def test_the_scale_of_a_volumes_intensities_changes_nothing(
    segmenter: Segmenter, factor: int
) -> None:
    voxels, _ = phantom(0)
    plain = segment_volume(segmenter, voxels, samples=2)
    scaled = segment_volume(segmenter, voxels * factor, samples=2)
    if factor == 1024:  # exact in floating point
        np.testing.assert_array_equal(scaled.probability, plain.probability)
    np.testing.assert_allclose(scaled.probability, plain.probability, atol=1e-4)


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_each_slice_is_answered_in_its_place(segmenter: Segmenter, axis: int) -> None:
    """Along any axis: the answer of slice n, with the volume's limits, lies at index n."""
    image = IMAGE.model_copy(update={"slice_axis": axis})
    model = Model("x", MRI.model_copy(update={"image": image}), segmenter.model.networks, "")
    along, (voxels, _) = Segmenter(model, "cpu"), phantom(1)
    result = segment_volume(along, voxels, samples=2, keep_samples=True)
    assert result.labels.shape == SHAPE
    assert result.probability.shape == (2, *SHAPE)
    assert result.samples is not None
    assert result.samples.shape == (2, *SHAPE)
    limits = np.percentile(voxels, (1, 99))
    alone = along.segment(np.take(voxels, 4, axis), limits=limits, samples=2)
    np.testing.assert_array_equal(np.take(result.probability, 4, axis), alone.probability)
    np.testing.assert_array_equal(np.take(result.labels, 4, axis), alone.labels)


def test_neighbours_are_channels_and_nothing_beyond_them_counts() -> None:
    """The answer for a slice changes with the one beside it, not with the next but one."""
    config = with_image(neighbours=1)
    torch.manual_seed(0)
    model = Model("x", config, Networks(config).eval(), "")
    beside, (voxels, _) = Segmenter(model, "cpu"), phantom(1)
    slices, plain = normalised_slices(voxels, config), normalised_slices(voxels, MRI)
    assert slices.shape == (9, 3, 20, 26)
    for n in range(9):
        for channel, other in enumerate((max(n - 1, 0), n, min(n + 1, 8))):
            assert torch.equal(slices[n, channel], plain[other, 0])
    whole = segment_volume(beside, voxels, samples=1, steps=0).probability
    limits = np.percentile(voxels, (1, 99))
    alone = beside.segment(voxels[..., 3:6], limits=limits, samples=1, steps=0).probability
    np.testing.assert_array_equal(whole[..., 4], alone)
    first = np.stack([voxels[..., 0], voxels[..., 0], voxels[..., 1]], axis=-1)
    alone = beside.segment(first, limits=limits, samples=1, steps=0).probability
    np.testing.assert_array_equal(whole[..., 0], alone)
    voxels[8:12, 8:12, 6] = voxels[8:12, 8:12, 6][::-1].copy()  # percentiles stay
    changed = np.abs(segment_volume(beside, voxels, samples=1, steps=0).probability - whole)
    assert (changed.max(axis=(0, 1, 2)) > 0).tolist() == [False] * 5 + [True] * 3 + [False]
    one = beside.segment(voxels[..., 4], limits=limits, samples=1, steps=0)  # a slice by itself
    assert one.labels.shape == (20, 26)


def test_neighbours_are_refused_where_they_mean_nothing(data: Path) -> None:
    with pytest.raises(ValueError, match="neighbours are for volumes"):
        ImageConfig(neighbours=1)
    Image.new("L", (20, 20)).save(data / "images" / "flat.png")
    Image.new("L", (20, 20)).save(data / "labels" / "flat.png")
    with pytest.raises(CdalError, match=r"flat\.png: no volume"):
        load_pair(find_pairs(data)[-1], with_image(neighbours=1), None)


def test_progress_counts_slices_and_cancels(segmenter: Segmenter) -> None:
    seen = []

    def progress(done: int, total: int) -> bool:
        seen.append((done, total))
        return True

    segment_volume(segmenter, phantom(0)[0], samples=1, progress=progress)
    assert seen[-1] == (9, 9)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_training_reads_labels_slice_for_slice(data: Path, axis: int) -> None:
    image = IMAGE.model_copy(update={"slice_axis": axis})
    model = MRI.model_copy(update={"image": image})
    for pair in find_pairs(data):
        items = load_pair(pair, model, None)
        stacked = np.stack([y[0].numpy() for _, y in items], axis=axis)
        np.testing.assert_array_equal(stacked, phantom(int(pair.stem[-1]))[1])
        bright = torch.cat([x[y > 0] for x, y in items])
        dark = torch.cat([x[y == 0] for x, y in items])
        assert bright.mean() > dark.mean() + 0.5


def test_no_volume_is_on_both_sides(data: Path) -> None:
    pairs = find_pairs(data)
    assert [pair.stem for pair in pairs] == ["case0", "case1", "case2", "case3"]
    for seed in range(5):
        sides = split(pairs, training(seed=seed))
        assert not {p.image for p in sides[0]} & {p.image for p in sides[1]}


def test_a_volume_is_scored_as_a_volume(data: Path, segmenter: Segmenter) -> None:
    """MONAI's metrics of the whole volume agree with ours, sampled and deterministic."""
    pair = find_pairs(data)[0]
    voxels, labels = phantom(0)
    for steps in (None, 0):
        scores = evaluate(segmenter, [pair], samples=2, steps=steps).images["case0"]
        result = segment_volume(segmenter, voxels, samples=2, steps=steps)
        one_hot = [
            torch.from_numpy(np.stack([array == k for k in (1, 2)])[None]).float()
            for array in (result.labels, labels)
        ]
        dice = compute_dice(*one_hot)[0]
        counts = get_confusion_matrix(*one_hot)
        for k, name in enumerate(MRI.classes):
            assert scores[f"dice_{name}"] == pytest.approx(float(dice[k]))
            for metric in ("precision", "recall"):
                expected = compute_confusion_matrix_metric(metric, counts)[0, k]
                if torch.isfinite(expected):
                    assert scores[f"{metric}_{name}"] == pytest.approx(float(expected))


@pytest.mark.parametrize("neighbours", [0, 1])
def test_training_on_volumes_leaves_a_model_for_volumes(
    data: Path, tmp_path: Path, neighbours: int
) -> None:
    config = training(orientation="upright", model=with_image(neighbours=neighbours))
    pairs = split(find_pairs(data), config)
    best = Trainer(config, pairs, tmp_path / "run", "cpu").run()
    (drawn,) = (tmp_path / "run" / "examples").iterdir()
    with Image.open(drawn) as picture:
        assert picture.size == (10 * 26, 10 * 20)
    result = segment_volume(Segmenter(Model.load(best), "cpu"), phantom(0)[0], samples=1)
    assert result.labels.shape == SHAPE


def test_what_is_wrong_with_volumes_is_said(data: Path, tmp_path: Path) -> None:
    voxels, labels = phantom(0)
    pair = Pair(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")

    def refused(image: np.ndarray, label: np.ndarray, words: str, **options: object) -> None:
        save(pair.image, image)
        save(pair.label, label, **options)
        with pytest.raises(CdalError, match=words) as caught:
            load_pair(pair, MRI, None)
        assert str(tmp_path) in str(caught.value)

    shifted = AFFINE.copy()
    shifted[0, 3] = 0.5
    refused(voxels, labels, r"affines.*differ by up to 0\.5", affine=shifted)
    refused(voxels, labels[:-1], "differ in size")
    refused(voxels, labels + 0.25, "one whole number a voxel")
    refused(voxels, labels.astype(np.int16) - 1, "below 0")
    refused(voxels, labels * 2, "class id 4 with 2 classes")
    refused(np.stack([voxels, voxels], -1), labels, "holds 2 volumes")
    refused(voxels * np.nan, labels, "NaN")
    pair.image.write_bytes(b"no volume")
    with pytest.raises(CdalError, match="holds no NIfTI"):
        load_pair(pair, MRI, None)
    with pytest.raises(CdalError, match="not one for volumes"):
        load_pair(find_pairs(data)[0], ModelConfig(), None)


@pytest.mark.parametrize("otherwise", [False, True])
def test_a_dicom_series_is_a_volume(shared_data: Path, tmp_path: Path, otherwise: bool) -> None:
    """A real series beside its NIfTI labels, also if their rows were stored from below."""
    (series,) = {path.parent for path in (shared_data / "dicom").rglob("*") if path.is_file()}
    shutil.copytree(series, tmp_path / "images" / "case.1")
    source = open_source(series)
    labels = (np.arange(np.prod(source.shape)).reshape(source.shape) % 3).astype(np.uint8)
    stored, affine = labels, source.affine
    if otherwise:
        stored = labels[:, ::-1].transpose(0, 2, 1)
        flip = np.eye(4)
        flip[1, 1], flip[1, 3] = -1, source.shape[1] - 1
        affine = source.affine @ flip @ np.eye(4)[[0, 2, 1, 3]]
    save(tmp_path / "labels" / "case.1.nii.gz", stored, affine)
    (pair,) = find_pairs(tmp_path)
    assert (pair.stem, pair.patient, pair.is_volume) == ("case.1", "case.1", True)
    items = load_pair(pair, MRI, None)
    shown = turned(labels, source.affine, np.eye(4))
    np.testing.assert_array_equal(np.stack([y[0] for _, y in items], axis=-1), shown)
    x = normalised_slices(turned(source.read(), source.affine, np.eye(4)), MRI)
    assert torch.equal(torch.stack([x for x, _ in items]), x)
    affine = affine.copy()
    affine[:3, 3] += 1
    save(tmp_path / "labels" / "case.1.nii.gz", stored, affine)
    with pytest.raises(CdalError, match="affines"):
        load_pair(pair, MRI, None)


def test_real_volumes(shared_data: Path) -> None:
    """Of both data types, and the labels stored as floats, all with both classes."""
    kinds = set()
    for pair in find_pairs(shared_data / "hippocampus")[:40]:
        items = load_pair(pair, MRI, None)
        shape = nibabel.load(pair.image).shape
        assert len(items) == shape[2]
        assert items[0][0].shape == (1, *shape[:2])
        x = torch.cat([x for x, _ in items])
        assert -3 <= x.min() < -0.9
        assert 0.9 < x.max() <= 3
        assert set(torch.cat([y for _, y in items]).unique().tolist()) == {0, 1, 2}
        kinds.add(nibabel.load(pair.image).get_data_dtype().str)
    assert len(kinds) == 2


def test_a_volume_is_segmented_alike_however_its_axes_run(segmenter: Segmenter) -> None:
    """As in DICOM series, whose rows run to the left: the answer lies on the same voxels."""
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(17, 21, 9)).astype(np.float32)
    plain = segment_volume(segmenter, voxels, samples=2, affine=np.eye(4))
    other = np.diag([-1.0, 1, 1, 1])[:, [1, 0, 2, 3]]  # axes exchanged, one flipped
    moved = turned(voxels, np.eye(4), other)
    assert moved.shape == (21, 17, 9)
    found = segment_volume(segmenter, moved, samples=2, affine=other)
    assert np.array_equal(found.labels, turned(plain.labels, np.eye(4), other))
    assert np.array_equal(found.probability, turned(plain.probability, np.eye(4), other))
    assert not np.array_equal(segment_volume(segmenter, moved, samples=2).labels, found.labels)
