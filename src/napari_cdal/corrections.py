"""Between Labels layers and the engine's corrected copies: where they lie, and what of them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
from napari.layers import Image, Labels, Shapes
from numpy.typing import NDArray

from cdal_engine.corrections.answer import Answer, of_results
from cdal_engine.corrections.corrected import CORRECTED, CorrectedCopy
from cdal_engine.corrections.queue import regions_by_disagreement
from cdal_engine.errors import CdalError
from cdal_engine.tiling import Box
from cdal_engine.weights import user_folder

from .measured import mpp_of
from .planes import Plane, full_resolution, placement, plane_of, spacing_of
from .regions import in_view, of_shapes
from .results import METADATA_KEY, images, kind_of
from .results_folder import pyramid

if TYPE_CHECKING:
    import napari

    from cdal_engine.corrections.export import Colours

__all__ = [
    "answer_of",
    "box_of",
    "check_reviewable",
    "colours_of",
    "columns_of",
    "copy_folder",
    "corrected_layer",
    "corrected_name",
    "picture_of",
    "placed_at",
    "scopes",
    "shown_corrections",
]

EDGE = 512  # pixels of a region that is suggested
_LARGEST = 16e6  # pixels that are edited at once
_LARGEST_ID = 4_000_000_000  # what is drawn gets numbers above
_WARPED = (np.uint8, np.uint16, np.int16, np.float32, np.float64)  # types that OpenCV takes
_DOUBTFUL, _VIEW, _ALL = "doubtful", "view", "all"


def check_reviewable(layer: Labels | None) -> None:
    """Refuse what cannot be corrected plane by plane.

    Raises
    ------
    CdalError
        If there is no layer, or it is of a stack or volume.
    """
    if layer is None:
        raise CdalError("no labels", "segment an image, or open a folder of results, first")
    if layer.ndim != 2:
        raise CdalError(
            f"labels with {layer.ndim} axes", "review labels of an image or slide, not of a stack"
        )


def _facts(layer: Labels) -> dict[str, Any]:
    return dict(layer.metadata.get(METADATA_KEY, {}))


def answer_of(layer: Labels) -> Answer:
    """The answer that a layer shows: of its results folder, or as it is in the viewer.

    Raises
    ------
    CdalError
        If its folder holds none any more.
    """
    facts = _facts(layer)
    if "folder" in facts:
        return of_results(Path(facts["folder"]))
    import pyarrow as pa

    labels = np.asarray(full_resolution(layer))
    if labels.size and (labels.min() < 0 or labels.max() > _LARGEST_ID):
        raise CdalError(f"labels below 0 or above {_LARGEST_ID}", "renumber them first")
    labels = labels.astype(np.uint32)
    columns = columns_of(layer)
    ids = np.unique(labels)
    ids = ids[ids > 0]
    unknown = (np.nan, np.nan, kind_of(layer.metadata))
    rows = [columns.get(int(label), unknown) for label in ids]
    table = pa.table(
        {
            "label": ids,
            "class": pa.array([row[2] for row in rows], pa.string()),
            "score": pa.array([row[1] for row in rows], pa.float64()),
            "agreement": pa.array([row[0] for row in rows], pa.float64()),
        }
    )
    mpp, pixel = mpp_of(layer), float(facts.get("pixel", 1.0))
    corner = tuple(facts.get("corner", (0.0, 0.0)))
    height, width = (round(n * pixel + at) for n, at in zip(labels.shape, corner, strict=True))
    kept = ("source", "model", "digest", "samples", "steps", "seed")
    return Answer(
        labels,
        table,
        {"source": layer.name} | {name: facts[name] for name in kept if name in facts},
        None if mpp is None else mpp / pixel,
        (height, width),
        pixel,
        corner,
        kind_of(layer.metadata),
    )


def columns_of(layer: Labels) -> dict[int, tuple[float, float, str]]:
    """Agreement, score and class of each object, by label; NaN for what is not known."""
    table = layer.features
    if "index" not in table:
        return {}
    nothing = pd.Series(np.nan, table.index)
    index, *columns = (
        pd.to_numeric(table.get(name, nothing), errors="coerce")
        for name in ("index", "agreement", "score")
    )
    kinds = table.get("class", [kind_of(layer.metadata)] * len(table))
    rows = zip(index, *columns, kinds, strict=True)  # another program's table may say anything
    known = ((label, row) for label, *row in rows if np.isfinite(label))
    return {int(label): (float(a), float(s), str(kind)) for label, (a, s, kind) in known}


def copy_folder(layer: Labels, answer: Answer) -> Path:
    """Where the corrected copy of a layer's labels is kept.

    Beside the originals. Where those must not be written to, and of labels that are in no file, in
    the user's own folder, by name and place or content: the same answer of the same run finds its
    corrections again.
    """
    facts = _facts(layer)
    if "folder" in facts:
        folder = Path(facts["folder"])
        if os.access(folder, os.W_OK) or (folder / CORRECTED).exists():
            return folder / CORRECTED
        known = os.fsencode(folder.resolve())
    else:
        known = np.ascontiguousarray(answer.labels).tobytes()
    digest = hashlib.blake2b(known, digest_size=4).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(answer.facts["source"])).strip("-.") or "labels"
    return user_folder().parent / "reviews" / f"{name[:60]}-{digest}"


# -- regions --------------------------------------------------------------------------------------


def _plane(layer: Labels) -> Plane:
    """A Labels layer as the plane that regions are of."""
    levels = tuple(layer.data) if layer.multiscale else (layer.data,)
    height, width = levels[0].shape
    return Plane(
        layer=layer,
        name=str(layer.name),
        levels=levels,
        index=(),
        size=(int(height), int(width)),
        rgb=False,
        oblique=False,
        spacing=spacing_of(layer),
        axes=None,
        affine=None,
    )


def scopes(viewer: napari.viewer.Viewer, layer: Labels | None) -> list[tuple[str, Any]]:
    """What of the labels may be opened, by name; a small image as a whole first."""
    choices: list[tuple[str, Any]] = [
        (f"Most disagreement ({EDGE} px)", _DOUBTFUL),
        ("Current view", _VIEW),
        ("All of it", _ALL),
    ]
    if layer is not None and max(full_resolution(layer).shape) <= 2 * EDGE:
        choices = [choices[2], *choices[:2]]
    shapes = [each for each in viewer.layers if isinstance(each, Shapes)]
    return choices + [(f"Regions: {each.name}", each) for each in shapes]


def box_of(viewer: napari.viewer.Viewer, layer: Labels, scope: Any, done: Sequence[Box]) -> Box:
    """Rows and columns of the labels to open.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    layer : napari.layers.Labels
    scope
        One of `scopes`. Of several regions, the first that is not among `done`.
    done : sequence of tuple of slice

    Raises
    ------
    CdalError
        If there is none left, or it is too large to be edited.
    """
    plane = _plane(layer)
    if scope == _DOUBTFUL:
        boxes = _doubtful(layer, plane.size)
    elif scope == _VIEW:
        boxes = [in_view(plane, viewer)[0].box]
    elif scope == _ALL:
        boxes = [tuple(slice(0, n) for n in plane.size)]
    else:
        boxes = [region.box for region in of_shapes(plane, scope)]
    left = [box for box in boxes if box not in done] or ([] if scope == _DOUBTFUL else boxes)
    if not left:
        raise CdalError("every region with objects is reviewed", "choose the current view")
    height, width = (s.stop - s.start for s in left[0])
    if height * width > _LARGEST:
        raise CdalError(
            f"{width} x {height} pixels are too many to edit at once",
            "zoom in and choose the current view, or draw a rectangle in a Shapes layer",
        )
    return left[0]


def _doubtful(layer: Labels, size: tuple[int, int]) -> list[Box]:
    table = layer.features
    if not {"y", "x", "agreement", "score"} <= set(table):
        raise CdalError("the labels have no table with agreement", "choose the current view")
    columns = (table["y"], table["x"], table["agreement"].fillna(table["score"]))
    y, x, certain = (pd.to_numeric(column, errors="coerce").to_numpy(float) for column in columns)
    known = np.isfinite(y) & np.isfinite(x)
    y, x, doubt = y[known] + 0.5, x[known] + 0.5, np.nan_to_num(1 - certain[known])
    return regions_by_disagreement(y, x, doubt, size, EDGE)


def placed_at(layer: Labels, box: Box) -> dict[str, Any]:
    """Layer arguments that put what is in a box where it lies."""
    return placement(layer, [float(s.start) for s in box])


def picture_of(viewer: napari.viewer.Viewer, layer: Labels, box: Box) -> NDArray[np.generic] | None:
    """Pixels of the image below a box, on the grid of the labels; None where there is no image.

    Raises
    ------
    CdalError
        If the image cannot be read.
    """
    image = _image_of(viewer, layer)
    if image is None:
        return None
    plane = plane_of(image, viewer.dims.point)
    corners = np.array([[s.start, s.stop] for s in box], float).T - 0.5
    low, high = (np.asarray(image.world_to_data(layer.data_to_world(at))) + 0.5 for at in corners)
    size = tuple(s.stop - s.start for s in box)
    pixel = (high - low) / size
    if (low < -pixel).any() or (high > np.array(plane.size) + pixel).any():
        return None  # it lies elsewhere
    steps = [plane.size[0] / level.shape[0] for level in plane.levels]
    level = max(i for i, step in enumerate(steps) if step <= max(pixel[0] * 1.01, 1.0))
    low, high = low / steps[level], high / steps[level]
    scale = (high - low) / size
    limits = plane.levels[level].shape[:2]
    start, stop = (
        np.clip(at, 0, limits).astype(int) for at in (np.floor(low) - 1, np.ceil(high) + 1)
    )
    pixels: NDArray[Any] = plane.read(level, tuple(map(slice, start.tolist(), stop.tolist())))
    if pixels.dtype not in _WARPED:
        pixels = pixels.astype(np.float32)
    # To a fraction of a pixel, and what the labels' grid reaches beyond the image as its edge.
    shift = low - start + scale / 2 - 0.5
    way = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrix = np.array([[scale[1], 0, shift[1]], [0, scale[0], shift[0]]])
    edge = cv2.BORDER_REPLICATE
    return np.asarray(cv2.warpAffine(pixels, matrix, size[::-1], flags=way, borderMode=edge))


def colours_of(viewer: napari.viewer.Viewer, layer: Labels) -> Colours | None:
    """What `picture_of` gives for any box, if the image is there and in colours of 8 bits."""
    image = _image_of(viewer, layer)
    if image is None or not image.rgb or full_resolution(image).dtype != np.uint8:
        return None

    def colours(box: Box) -> NDArray[np.uint8]:
        picture = picture_of(viewer, layer, box)
        if picture is None:
            raise CdalError(
                f"the image {image.name!r} does not lie below all of the labels",
                "move it back, or remove it to do without colours",
            )
        return np.asarray(picture, np.uint8)

    return colours


def _image_of(viewer: napari.viewer.Viewer, layer: Labels) -> Image | None:
    """The image that labels are of: that of the name they tell; if they tell none, the only one."""
    name = _facts(layer).get("source")
    found = [each for each in images(viewer) if each.ndim == 2 and name in (None, each.name)]
    return found[0] if len(found) == 1 else None


# -- what comes of it -----------------------------------------------------------------------------


def corrected_name(source: Labels) -> str:
    """Name of the layer that shows corrected labels."""
    return f"corrected: {source.name.removeprefix('labels: ')}"


def shown_corrections(viewer: napari.viewer.Viewer, source: Labels) -> Labels | None:
    """The layer that shows corrected labels, if there is one: not another one of its name."""
    for layer in viewer.layers:
        facts = _facts(layer)
        ours = isinstance(layer, Labels) and facts.get("what") == CORRECTED
        if ours and layer.name == corrected_name(source) and facts.get("of") in (None, source.name):
            return layer
    return None


def corrected_layer(
    viewer: napari.viewer.Viewer, source: Labels, copy: CorrectedCopy, features: Any
) -> Labels:
    """Show the corrected labels with their table, in place of those they were made of."""
    data: Any = copy.labels
    if copy.labels_path.suffix == ".zarr":
        data, _ = pyramid(copy.labels_path)
    name = corrected_name(source)
    layer = shown_corrections(viewer, source)
    if layer is not None:
        layer.data = data
        layer.features = features
    else:
        layer = Labels(
            data,
            name=name,
            multiscale=isinstance(data, list),
            features=features,
            metadata={METADATA_KEY: _facts(source) | {"what": CORRECTED, "of": source.name}},
            **placement(source, (0.0, 0.0)),
        )
        layer.contour = source.contour
        viewer.layers.insert(viewer.layers.index(source) + 1, layer)
    layer.editable = False  # what is painted here would be in no file: regions are opened for that
    source.visible = False
    layer.visible = True
    return layer
