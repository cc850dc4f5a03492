"""From a segmentation to napari layers; no viewer needed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import napari
    from napari.layers import Image

    from cdal_engine.segmentation import Segmentation

__all__ = [
    "ATTENTION_NOTE",
    "COLOUR_COLUMNS",
    "CORRECTED_KEY",
    "DISPLAY",
    "METADATA_KEY",
    "NOTES",
    "LayerData",
    "features",
    "images",
    "kind_of",
    "layer_data",
    "placed",
]

# The samples come last, so that all layers share their slider.
_STACKED = {"samples": ("sample",), "x_t": ("step", "sample"), "x_0": ("step", "sample")}
COLOUR_COLUMNS = ("red", "green", "blue", "haematoxylin")  # columns that are measured on the image
_AS_THEY_ARE = ("eccentricity", *COLOUR_COLUMNS)

LayerData = tuple[Any, dict[str, Any], str]

METADATA_KEY = "cdal"
CORRECTED_KEY = "cdal_corrected"  # in the metadata of labels that a person corrects in Review
ATTENTION_NOTE = "where the discriminator looks, not evidence for a diagnosis"
NOTES = {
    "labels": "one number per object; hover for area, score and agreement",
    "probability": "mean of the samples, 0 to 1",
    "uncertainty": "entropy of the mean of the samples, 0 to 1",
    "attention": ATTENTION_NOTE,
    "samples": "foreground probability of each sample, 0 to 1; the slider chooses",
    "x_t": "what each step starts from, noise at first; the sliders choose step and sample",
    "x_0": "label map that each step predicts, -1 to 1, before it is pooled into a probability",
}
DISPLAY: dict[str, dict[str, Any]] = {
    "probability": {"colormap": "viridis", "contrast_limits": (0, 1)},
    "uncertainty": {"colormap": "magma", "contrast_limits": (0, 1)},
    "attention": {"colormap": "turbo"},  # varies little around 1: napari finds its limits
    "samples": {"colormap": "viridis", "contrast_limits": (0, 1)},
    "x_t": {"colormap": "gray", "contrast_limits": (-2, 2)},
    "x_0": {"colormap": "gray", "contrast_limits": (-1, 1)},
}


def features(segmentation: Segmentation, classes: Collection[str]) -> dict[str, NDArray[Any]]:
    """Columns of the Labels layer's table.

    Returns
    -------
    dict of ndarray
        `index`, the label, by which napari finds the row to show; `area_um2`, or `area_px` where
        the resolution is unknown; `score` and `agreement`; `class` if there are several; centroid
        `y` and `x` in the layer's pixels, where napari puts a pixel's centre at a whole number;
        and of `instances.measure` the axes, eccentricity and colours.
    """
    objects, mpp = segmentation.objects, segmentation.mpp
    index = {"index": objects["label"].astype(np.int64)}
    if "area" in objects:  # of a volume: its classes
        return index | {"class": objects["class"], "voxels": objects["area"]}
    area = objects["area_px"].astype(np.float64)
    columns: dict[str, NDArray[Any]] = index | {
        "area_px" if mpp is None else "area_um2": area * (mpp or 1.0) ** 2,
        "score": objects["score"].astype(np.float64),
        "agreement": objects["agreement"].astype(np.float64),
        **({"class": objects["class"]} if len(classes) > 1 else {}),
        "y": objects["y"].astype(np.float64) - 0.5,
        "x": objects["x"].astype(np.float64) - 0.5,
    }
    for name in (name for name in ("major_axis", "minor_axis") if name in objects):
        columns[f"{name}_px" if mpp is None else f"{name}_um"] = objects[name] * (mpp or 1.0)
    return columns | {name: objects[name] for name in _AS_THEY_ARE if name in objects}


def images(viewer: napari.viewer.Viewer) -> list[Image]:
    """Image layers that the plugin did not make."""
    from napari.layers import Image

    return [
        layer
        for layer in viewer.layers
        if isinstance(layer, Image) and METADATA_KEY not in layer.metadata
    ]


def kind_of(metadata: Mapping[str, Any]) -> str:
    """Class of an object whose layer's table tells none: the only one that its model knows."""
    classes = metadata.get(METADATA_KEY, {}).get("classes", ())
    return str(classes[0]) if len(classes) == 1 else "object"


def placed(
    array: NDArray[np.generic], placement: Mapping[str, Any], stacked: tuple[str, ...] = ()
) -> tuple[NDArray[np.generic], dict[str, Any]]:
    """Give a plane or volume its layer's axes and placement, after the axes it is `stacked` along.

    napari extends scale, translation, rotation, shear and affine to a leading axis itself.
    """
    first, plane = array.shape[: len(stacked)], array.shape[len(stacked) :]
    before = len(placement["units"]) - len(plane)
    return array.reshape(first + (1,) * before + plane), {
        **placement,
        "units": ("pixel",) * len(stacked) + tuple(placement["units"]),
        "axis_labels": stacked + tuple(placement["axis_labels"]),
    }


def layer_data(
    segmentation: Segmentation,
    *,
    source: str,
    model: str,
    classes: Collection[str],
    placement: Mapping[str, Any],
    wanted: Collection[str],
    taken: Collection[str] = (),
    run: Mapping[str, Any] | None = None,
) -> dict[str, LayerData]:
    """Turn a segmentation into layers by title: maps first and hidden, labels last and on top.

    Parameters
    ----------
    segmentation : Segmentation
    source, model : str
        Names of the segmented layer and of the model, part of every layer's name.
    classes : collection of str
        Foreground classes of the model.
    placement : dict
        Layer arguments of the segmented plane, see `planes.placement`.
    wanted : collection of str
        Any of `probability`, `uncertainty`, `attention`, `samples` and `steps`; those the
        segmentation lacks are left out.
    taken : collection of str
        Names of the viewer's layers. A second run is numbered, so that its layers are told apart.
    run : dict, optional
        Facts kept in each layer's metadata.
    """
    maps = list(_maps(segmentation, classes, wanted))
    number = 1
    names = _names(source, model, [title for title, _, _ in maps], number)
    while not names.isdisjoint(taken):
        number += 1
        names = _names(source, model, [title for title, _, _ in maps], number)
    layers = {}
    for title, what, array in maps:
        data, arguments = placed(array, placement, _STACKED.get(what, ()))
        arguments["name"] = _name(title, source, model, number)
        arguments["metadata"] = {METADATA_KEY: {"what": what, "note": NOTES[what], **(run or {})}}
        if what == "labels":
            arguments |= {"features": features(segmentation, classes), "opacity": 1.0}
        else:
            arguments |= {"visible": False, "opacity": 0.7, "rgb": False, **DISPLAY[what]}
        layers[title] = (data, arguments, "labels" if what == "labels" else "image")
    return layers


def _maps(
    segmentation: Segmentation, classes: Collection[str], wanted: Collection[str]
) -> Iterator[tuple[str, str, NDArray[np.generic]]]:
    """Title, kind and array of each layer, lowest first."""
    if "steps" in wanted and segmentation.steps is not None:
        x_t, x_0 = segmentation.steps
        yield "x_t", "x_t", x_t
        yield "x̂0", "x_0", x_0
    if "samples" in wanted and segmentation.samples is not None:
        yield "samples", "samples", segmentation.samples
    if "attention" in wanted and segmentation.attention is not None:
        yield "attention", "attention", segmentation.attention
    if "uncertainty" in wanted:
        yield "uncertainty", "uncertainty", segmentation.uncertainty
    if "probability" in wanted:
        for name, array in zip(classes, segmentation.probability, strict=True):
            title = "probability" if len(classes) == 1 else f"probability of {name}"
            yield title, "probability", array
    yield "labels", "labels", segmentation.labels


def _name(title: str, source: str, model: str, number: int) -> str:
    return f"{title}: {source}, {model}" + (f" #{number}" if number > 1 else "")


def _names(source: str, model: str, titles: Collection[str], number: int) -> set[str]:
    return {_name(title, source, model, number) for title in titles}
