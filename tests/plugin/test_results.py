"""From a segmentation to layer tuples, without a viewer."""

from typing import Any

import numpy as np
import pytest
from napari.layers import Image, Labels, Layer

from cdal_engine.segmenter import Segmentation
from napari_cdal.planes import placement, plane_of
from napari_cdal.results import ATTENTION_NOTE, features, layer_data

ALL = ("probability", "uncertainty", "attention", "samples")
SHAPE = (20, 30)


def segmentation(mpp: float | None = 0.5, classes: int = 1, **changes: Any) -> Segmentation:
    labels = np.zeros(SHAPE, np.uint32)
    labels[2:6, 3:9] = 7  # its centre is pixel (3.5, 5.5)
    labels[10:15, 10:20] = 9
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "labels": labels,
        "probability": rng.random((classes, *SHAPE), np.float32),
        "uncertainty": rng.random(SHAPE, np.float32),
        "deviation": rng.random(SHAPE, np.float32),
        "attention": rng.random(SHAPE, np.float32),
        "samples": rng.random((3, *SHAPE), np.float32).astype(np.float16),
        "objects": {
            "label": np.array([7, 9]),
            "area_px": np.array([24, 50]),
            "y": np.array([4.0, 12.5]),
            "x": np.array([6.0, 15.0]),
            "score": np.array([0.9, 0.6], np.float32),
            "agreement": np.array([1.0, 2 / 3]),
            "class": np.array(["nucleus", "stroma"]),
        },
        "mpp": mpp,
        "seconds": 1.0,
    }
    return Segmentation(**values | changes)


def tuples(answer: Segmentation, layer: Image | None = None, **arguments: Any) -> dict[str, Any]:
    layer = layer or Image(np.zeros(SHAPE))
    defaults: dict[str, Any] = {
        "source": "tile",
        "model": "tiny",
        "classes": ("nucleus",),
        "placement": placement(layer, (0,) * layer.ndim),
        "wanted": ALL,
    }
    layers = [Layer.create(*item) for item in layer_data(answer, **defaults | arguments).values()]
    return {layer.name: layer for layer in layers}


def test_each_map_becomes_a_layer_with_labels_on_top() -> None:
    answer = segmentation()
    layers = tuples(answer)
    assert list(layers) == [
        f"{what}: tile, tiny"
        for what in ("samples", "attention", "uncertainty", "probability", "labels")
    ]
    assert isinstance(layers["labels: tile, tiny"], Labels)
    for what in ("attention", "uncertainty"):
        np.testing.assert_array_equal(layers[f"{what}: tile, tiny"].data, getattr(answer, what))
    np.testing.assert_array_equal(layers["probability: tile, tiny"].data, answer.probability[0])
    assert [layer.visible for layer in layers.values()] == [False] * 4 + [True]
    assert layers["attention: tile, tiny"].metadata["cdal"]["note"] == ATTENTION_NOTE


def test_only_what_is_wanted_and_there() -> None:
    assert list(tuples(segmentation(), wanted=())) == ["labels: tile, tiny"]
    preview = segmentation(attention=None, samples=None)
    assert [name.split(":")[0] for name in tuples(preview)] == [
        "uncertainty",
        "probability",
        "labels",
    ]


def test_classes_get_a_map_each() -> None:
    layers = tuples(segmentation(classes=2), classes=("nucleus", "stroma"), wanted=["probability"])
    assert list(layers)[:2] == [
        "probability of nucleus: tile, tiny",
        "probability of stroma: tile, tiny",
    ]
    assert "class" in layers["labels: tile, tiny"].features


def test_placement_is_the_sources(skewed: dict[str, Any]) -> None:
    source = Image(np.zeros(SHAPE), **skewed)
    for name, layer in tuples(segmentation(), source).items():
        for y, x in ((0, 0), (19, 29), (3, 11)):
            at = (2, y, x) if name.startswith("samples") else (y, x)
            np.testing.assert_allclose(
                layer.data_to_world(at)[-2:], source.data_to_world((y, x)), atol=1e-12
            )
        assert layer.units[-2:] == source.units
        if not name.startswith("samples"):
            for part in ("scale", "translate", "rotate", "shear"):
                np.testing.assert_array_equal(getattr(layer, part), getattr(source, part))
            np.testing.assert_array_equal(layer.affine.affine_matrix, source.affine.affine_matrix)


def test_a_stacks_slice_keeps_the_stacks_axes() -> None:
    source = Image(np.zeros((4, *SHAPE)), scale=(2, 1, 1), units=("um", "um", "um"))
    plane = plane_of(source, (6, 0, 0))
    layers = tuples(segmentation(), source, placement=placement(source, (*plane.index, 0, 0)))
    assert layers["labels: tile, tiny"].data.shape == (1, *SHAPE)
    assert layers["samples: tile, tiny"].data.shape == (3, 1, *SHAPE)
    np.testing.assert_allclose(layers["labels: tile, tiny"].data_to_world((0, 5, 6)), (6, 5, 6))


@pytest.mark.parametrize(
    ("mpp", "column", "areas"), [(0.5, "area_um2", [6, 12.5]), (None, "area_px", [24, 50])]
)
def test_table_is_found_by_label(mpp: float | None, column: str, areas: list[float]) -> None:
    labels = tuples(segmentation(mpp))["labels: tile, tiny"]
    assert list(labels.features["index"]) == [7, 9]
    np.testing.assert_allclose(labels.features[column], areas)
    assert labels.features["score"][0] == pytest.approx(0.9)
    hover = labels.get_status((3, 5))["value"]
    assert f"{column}: {areas[0]:g}" in hover.replace(".0", "")
    assert "agreement: 1" in hover


def test_centroids_are_in_the_layers_pixels() -> None:
    """napari's pixel centres are whole numbers, the engine's end in one half."""
    table = features(segmentation(), ("nucleus",))
    np.testing.assert_array_equal((table["y"], table["x"]), ([3.5, 12.0], [5.5, 14.5]))


def test_runs_are_numbered() -> None:
    taken: list[str] = []
    for _ in range(3):
        taken += tuples(segmentation(), taken=taken, wanted=["probability"])
    assert taken[2:4] == ["probability: tile, tiny #2", "labels: tile, tiny #2"]
    assert len(set(taken)) == 6


def test_no_object_is_a_result_too() -> None:
    empty = segmentation()
    empty = segmentation(
        labels=np.zeros(SHAPE, np.uint32),
        objects={name: column[:0] for name, column in empty.objects.items()},
    )
    assert len(tuples(empty)["labels: tile, tiny"].features) == 0
