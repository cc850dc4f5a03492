"""The 2-D plane of an image layer that is segmented, and where it lies in the world."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdal_engine.config import MAX_MEGAPIXELS
from cdal_engine.errors import CdalError
from cdal_engine.io.colour import over_white
from cdal_engine.io.levels import Level, best_level, levels_of

from .sources import SOURCE_KEY

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer

    from cdal_engine.config import ImageConfig

# Memory for each pixel, for each of each sample, and for each of each kept step of a sample: what
# the engine's process has of an answer, and here the one before beside it.
_BYTES, _SAMPLE_BYTES, _STEP_BYTES = 120, 15, 16
_VOXEL_BYTES, _VOXEL_SAMPLE_BYTES = 110, 5  # the same of a volume

__all__ = [
    "Plane",
    "check",
    "check_memory",
    "check_shown",
    "check_volume_memory",
    "enlargement",
    "full_resolution",
    "in_micrometres",
    "placement",
    "plane_of",
    "spacing_of",
]


@dataclass(frozen=True)
class Shape:
    """What another process knows of a level."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Plane:
    """One plane of a layer, as it was when the run was started.

    Attributes
    ----------
    layer : napari.layers.Image
        To see afterwards whether it is still there, and where.
    name : str
        Of the layer.
    levels : tuple of array-like
        The layer's data from full resolution on; possibly lazy.
    index : tuple of int
        Position on each axis before the last two.
    size : tuple of int
        (H, W) in pixels.
    rgb : bool
    oblique : bool
        Whether the layer is a stack turned out of the sliders' axes.
    spacing : tuple of float or None
        Micrometres per pixel along y and x; None if the layer's units are no lengths.
    axes : tuple of int or None
        Of a volume that was read from a file, the file's axis of each of the layer's.
    affine : ndarray or None
        Of such a volume (4, 4), from the file's voxel indices to millimetres right, anterior,
        superior.
    """

    layer: Image
    name: str
    levels: tuple[Any, ...]
    index: tuple[int, ...]
    size: tuple[int, int]
    rgb: bool
    oblique: bool
    spacing: tuple[float, float] | None
    axes: tuple[int, ...] | None
    affine: NDArray[np.float64] | None

    def __getstate__(self) -> dict[str, Any]:
        """What another process is told: of the levels the shapes, whose pixels it asks for."""
        shapes = tuple(Shape(tuple(level.shape)) for level in self.levels)
        return vars(self) | {"layer": None, "levels": shapes}

    @property
    def data(self) -> Any:
        """The layer's data at full resolution."""
        return self.levels[0]

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel, one figure for both axes."""
        return math.sqrt(self.spacing[0] * self.spacing[1]) if self.spacing else None

    @property
    def is_volume(self) -> bool:
        """Whether it is one of a stack of grayscale planes."""
        return len(self.index) == 1 and not self.rgb

    def level_for(self, mpp: float | None, config: ImageConfig) -> tuple[int, Level]:
        """Index of the level to read for a model, and the level."""
        axis = -3 if self.rgb else -2
        shapes = [(int(n[axis]), int(n[axis + 1])) for n in (data.shape for data in self.levels)]
        levels = levels_of(shapes, mpp)
        index = best_level(levels, mpp, config.mpp)
        return index, levels[index]

    def grain(self, mpp: float | None, config: ImageConfig) -> float:
        """Pixels along one of the layer's that a model makes work for: read, or of its own grid."""
        _, level = self.level_for(mpp, config)
        return max(1 / level.step, enlargement(mpp, config))

    def read(
        self, level: int = 0, box: tuple[slice, ...] | None = None, neighbours: int = 0
    ) -> NDArray[np.generic]:
        """Return the pixels, (H, W) or (H, W, C); computes lazy data.

        Parameters
        ----------
        level : int
        box : tuple of slice, optional
            Of that level; by default all of it.
        neighbours : int
            Planes of a stack on either side that a model takes as channels beside this one.

        Raises
        ------
        CdalError
            If the layer's data cannot be read.
        """
        data, inside = self.levels[level], box or ()
        if neighbours and self.index:
            from cdal_engine.volume import with_neighbours  # torch: in the engine's process

            stack = self._computed(data, (*self.index[:-1], slice(None), *inside))
            return with_neighbours(stack, self.index[-1], neighbours)
        pixels = self._computed(data, (*self.index, *inside))
        return over_white(pixels) if self.rgb and pixels.shape[-1] == 4 else pixels

    def read_volume(self) -> NDArray[np.generic]:
        """Return the whole stack that the plane is of, in the layer's order of axes."""
        return self._computed(self.data, ())

    def part(self, level: int, index: Any) -> NDArray[np.generic]:
        """Return the pixels of a level at any index; errors as `read`."""
        return self._computed(self.levels[level], index)

    def _computed(self, data: Any, index: Any) -> NDArray[np.generic]:
        try:
            return np.asarray(data[index])
        except (MemoryError, CdalError):  # the latter said so in napari's process
            raise
        except Exception as error:  # a lazy layer reads its file now, and may raise anything
            raise CdalError(
                f"layer {self.name!r} cannot be read: {error}", "check the file it came from"
            ) from error


def full_resolution(layer: Image | Labels) -> Any:
    """The layer's data, the finest level of several."""
    return layer.data[0] if layer.multiscale else layer.data


def plane_of(layer: Image, point: Sequence[float]) -> Plane:
    """Take the plane of `layer` on its last two axes that the viewer shows.

    Parameters
    ----------
    layer : napari.layers.Image
    point : sequence of float
        Where the viewer's sliders are, in world coordinates.
    """
    data = full_resolution(layer)
    shape = tuple(data.shape[:-1] if layer.rgb else data.shape)
    position = np.round(layer.world_to_data(point)).astype(int)
    index = tuple(
        int(np.clip(at, 0, max(size - 1, 0)))
        for at, size in zip(position[:-2], shape[:-2], strict=True)
    )
    source = layer.metadata.get(SOURCE_KEY, {})
    return Plane(
        layer=layer,
        name=str(layer.name),
        levels=tuple(layer.data) if layer.multiscale else (data,),
        index=index,
        size=(int(shape[-2]), int(shape[-1])),
        rgb=bool(layer.rgb),
        oblique=_is_oblique(layer),
        spacing=spacing_of(layer),
        axes=source.get("axes"),
        affine=source.get("affine"),
    )


def placement(layer: Image, offset: Sequence[float], step: float = 1.0) -> dict[str, Any]:
    """Layer arguments that put an array where it lies on a layer.

    Parameters
    ----------
    layer : napari.layers.Image
    offset : sequence of float
        Where the array's first pixel has its centre, in the layer's pixels; one a layer axis.
    step : float
        Edge of the array's pixels in the layer's, on the last two axes.
    """
    translate, scale = layer.translate, np.array(layer.scale)
    scale[-2:] *= step
    if any(offset):
        translate = layer.affine.inverse(layer.data_to_world(np.asarray(offset, float)))
    return {
        "scale": scale,
        "translate": np.array(translate),
        "rotate": np.array(layer.rotate),
        "shear": np.array(layer.shear),
        "affine": np.array(layer.affine.affine_matrix),
        "units": tuple(str(unit) for unit in layer.units),
        "axis_labels": tuple(layer.axis_labels),
    }


def _is_oblique(layer: Image) -> bool:
    """Whether a stack's planes are tilted against the viewer's: no plane of it is then shown."""
    origin = np.asarray(layer.data_to_world(np.zeros(layer.ndim)))
    axes = [np.asarray(layer.data_to_world(step)) - origin for step in np.eye(layer.ndim)]
    across = np.stack(axes, axis=1)[:-2]  # what each step adds to the sliders' coordinates
    straight = np.zeros_like(across)
    np.fill_diagonal(straight, np.diagonal(across))
    return not np.allclose(
        across, straight, atol=1e-6 * max(float(np.abs(across).max(initial=0)), 1)
    )


def in_micrometres(layer: Layer, point: Any) -> NDArray[np.float64]:
    """World coordinates of a data point, micrometres where the layer's units are lengths."""
    at: NDArray[np.float64] = np.asarray(layer.data_to_world(point), np.float64)
    return at * [_micrometres(unit) or 1.0 for unit in layer.units]


def spacing_of(layer: Layer) -> tuple[float, float] | None:
    """Micrometres that one step along y and one along x cover; None if units are no lengths."""
    if None in [_micrometres(unit) for unit in layer.units[-2:]]:
        return None
    lengths = [_micrometres(unit) is not None for unit in layer.units]
    origin = in_micrometres(layer, np.zeros(layer.ndim))
    steps = [(in_micrometres(layer, e) - origin) * lengths for e in np.eye(layer.ndim)[-2:]]
    return float(np.linalg.norm(steps[0])), float(np.linalg.norm(steps[1]))


def _micrometres(unit: Any) -> float | None:
    """Micrometres in one of napari's units."""
    if not unit.is_compatible_with("micrometer"):
        return None
    return float((1 * unit).to("micrometer").magnitude)


def enlargement(mpp: float | None, config: ImageConfig) -> float:
    """Pixels of the model's grid along one pixel of the image."""
    return mpp / config.mpp if mpp and config.mpp else 1.0


def check(plane: Plane, config: ImageConfig) -> None:
    """Refuse a layer that the model cannot segment, before any work is done.

    Raises
    ------
    CdalError
        For an empty layer, or one of the wrong kind.
    """
    if 0 in plane.data.shape:
        raise CdalError(f"layer {plane.name!r} is empty", "choose another layer")
    if config.channels == 3 and not plane.rgb:
        raise CdalError(
            f"layer {plane.name!r} is grayscale and this model takes RGB images",
            "choose an RGB layer (colours on the last axis) or a grayscale model",
        )
    if config.channels == 1 and plane.rgb:
        raise CdalError(
            f"layer {plane.name!r} is RGB and this model takes grayscale images",
            "choose a grayscale layer (Split RGB in its menu makes some) or an RGB model",
        )


def check_shown(plane: Plane) -> None:
    """Refuse a plane that the viewer does not show as it is."""
    if plane.oblique:
        raise CdalError(
            f"layer {plane.name!r} is a stack turned out of the sliders' axes",
            "segment the whole volume, turn it back, or choose another layer",
        )


def check_memory(
    name: str, size: tuple[int, ...], grain: float, samples: int, memory_gb: float, steps: int = 0
) -> None:
    """Refuse a region that would not fit in memory.

    Parameters
    ----------
    name : str
        Of the layer.
    size : tuple of int
        (H, W) of the region, in pixels.
    grain : float
        See `Plane.grain`.
    samples : int
    memory_gb : float
        What the user allows.
    steps : int
        How many of each sample are kept.
    """
    megapixels = math.prod(size) * grain**2 / 1e6
    needed = megapixels * (_BYTES + (_SAMPLE_BYTES + _STEP_BYTES * steps) * samples) / 1000
    if megapixels > MAX_MEGAPIXELS or needed > memory_gb:
        raise CdalError(
            f"{name!r}: {megapixels:.0f} megapixels at the model's resolution take {needed:.0f} GB "
            f"of memory; the limit is {memory_gb:.0f} GB and {MAX_MEGAPIXELS} megapixels",
            f"{'untick Each step, ' if steps else ''}segment the current view or regions, run "
            "`cdal batch` on the file, or change the limit in Preferences",
        )


def check_volume_memory(plane: Plane, samples: int, memory_gb: float) -> None:
    """Refuse a volume that would not fit in memory."""
    needed = math.prod(plane.data.shape) * (_VOXEL_BYTES + _VOXEL_SAMPLE_BYTES * samples) / 1e9
    if needed > memory_gb:
        raise CdalError(
            f"{plane.name!r}: its voxels take {needed:.0f} GB of memory; the limit is "
            f"{memory_gb:.0f} GB",
            "segment the slice shown, take fewer samples, or change the limit in Preferences",
        )
