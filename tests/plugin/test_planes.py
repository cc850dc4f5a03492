"""From layers of any kind to the plane that is segmented."""

from typing import Any

import dask.array as da
import numpy as np
import pytest
from napari.layers import Image
from numpy.typing import NDArray

from cdal_engine.config import ImageConfig
from cdal_engine.errors import CdalError
from cdal_engine.io.colour import over_white
from napari_cdal.planes import (
    check,
    check_memory,
    check_shown,
    check_volume_memory,
    enlargement,
    placement,
    plane_of,
)

RGB = ImageConfig(channels=3)
GRAY = ImageConfig(channels=1, mean=(0.5,), std=(0.2,))


def test_plane_of_an_rgb_layer(tile: NDArray[np.uint8]) -> None:
    layer = Image(tile, name="tile", scale=(0.5, 0.5), units=("um", "um"))
    plane = plane_of(layer, (0, 0))
    assert (plane.name, plane.size, plane.index, plane.rgb) == ("tile", (96, 120), (), True)
    np.testing.assert_array_equal(plane.read(), tile)
    check(plane, RGB)


@pytest.mark.parametrize(
    ("scale", "units", "mpp"),
    [
        ((0.25, 0.25), ("micrometer", "micrometer"), 0.25),
        ((250, 250), ("nm", "nm"), 0.25),
        ((0.00025, 0.00025), ("mm", "mm"), 0.25),
        ((0.5, 0.125), ("um", "um"), 0.25),  # one figure for both axes
        ((0.25, 0.25), ("pixel", "pixel"), None),
        ((1, 1), None, None),
        ((0.25, 0.25), ("pixel", "um"), None),
    ],
)
def test_resolution_is_the_layers_where_its_units_are_lengths(
    tile: NDArray[np.uint8], scale: tuple[float, float], units: Any, mpp: float | None
) -> None:
    plane = plane_of(Image(tile, scale=scale, units=units), (0, 0))
    assert plane.mpp == (mpp and pytest.approx(mpp))


def test_resolution_counts_the_affine(tile: NDArray[np.uint8]) -> None:
    double = np.diag([2.0, 2.0, 1.0])
    layer = Image(tile, scale=(0.25, 0.25), rotate=30, affine=double, units=("um", "um"))
    assert plane_of(layer, (0, 0)).spacing == pytest.approx((0.5, 0.5))


def test_multiscale_takes_the_full_resolution(tile: NDArray[np.uint8]) -> None:
    plane = plane_of(Image([tile, tile[::2, ::2]], multiscale=True), (0, 0))
    np.testing.assert_array_equal(plane.read(), tile)


def test_dask_is_computed_only_when_read(tile: NDArray[np.uint8]) -> None:
    plane = plane_of(Image(da.from_array(tile, chunks=(40, 40, 3))), (0, 0))
    assert isinstance(plane.data, da.Array)
    np.testing.assert_array_equal(plane.read(), tile)


def test_stack_gives_the_slice_the_viewer_shows(tile: NDArray[np.uint8]) -> None:
    stack = np.stack([tile, tile[::-1], 255 - tile, tile // 2])
    layer = Image(stack, scale=(2.0, 0.5, 0.5), translate=(10, 0, 0), rgb=True)
    plane = plane_of(layer, (10 + 2 * 2.0, 0, 0))
    assert plane.index == (2,)
    np.testing.assert_array_equal(plane.read(), stack[2])


def test_neighbours_in_a_stack_are_read_as_channels() -> None:
    stack = np.arange(2 * 5 * 6 * 7, dtype=np.uint16).reshape(2, 5, 6, 7)
    for data in (stack, da.from_array(stack, chunks=(1, 2, 6, 7))):
        plane = plane_of(Image(data), (1, 4, 0, 0))
        expected = np.stack([stack[1, 3], stack[1, 4], stack[1, 4]], axis=-1)
        np.testing.assert_array_equal(plane.read(neighbours=1), expected)
        np.testing.assert_array_equal(plane.read(), stack[1, 4])


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")  # napari's, about what it shows
def test_plane_of_a_stack_lies_where_the_stack_has_it(tile: NDArray[np.uint8]) -> None:
    affine = np.eye(4)
    affine[:3] += np.linspace(-0.1, 0.2, 12).reshape(3, 4)
    layer = Image(
        np.stack([tile] * 5),
        rgb=True,
        scale=(3.0, 0.5, 0.6),
        translate=(4, 5, 6),
        rotate=(10, 20, 30),
        shear=(0.1, 0.2, 0.3),
        affine=affine,
    )
    plane = plane_of(layer, layer.data_to_world((3, 0, 0)))
    assert plane.index == (3,)
    alone = Image(plane.read()[None], rgb=True, **placement(layer, (3, 0, 0)))
    for y, x in ((0, 0), (95, 119), (7, 60)):
        np.testing.assert_allclose(
            alone.data_to_world((0, y, x)), layer.data_to_world((3, y, x)), atol=1e-9
        )


def test_rgba_is_laid_over_white() -> None:
    pixels = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    expected = np.array([[[200, 100, 0], [255, 255, 255], [244, 224, 204]]], np.uint8)
    np.testing.assert_array_equal(plane_of(Image(pixels, rgb=True), (0, 0)).read(), expected)
    np.testing.assert_allclose(
        over_white(pixels.astype(np.float32) / 255), expected / 255, atol=1 / 255
    )
    wide = over_white(pixels.astype(np.uint16) * 257)
    assert wide.dtype == np.uint16
    np.testing.assert_allclose(wide / 257, expected, atol=1)


def layer_over(data: Any, **arguments: Any) -> Image:
    return Image(data, contrast_limits=(0, 255), **arguments)


@pytest.mark.parametrize(
    ("layer", "config", "reason"),
    [
        (lambda: layer_over(np.zeros((64, 64), np.uint8)), RGB, "is grayscale"),
        (lambda: layer_over(np.zeros((3, 64, 64), np.uint8)), RGB, "is grayscale"),
        (lambda: layer_over(np.zeros((64, 64, 3), np.uint8)), GRAY, "is RGB"),
    ],
)
def test_refused_with_a_reason_and_a_remedy(layer: Any, config: ImageConfig, reason: str) -> None:
    with pytest.raises(CdalError, match=reason) as error:
        check(plane_of(layer(), (0, 0)), config)
    assert error.value.remedy


def test_data_that_cannot_be_read_names_the_layer(tile: NDArray[np.uint8]) -> None:
    class Broken:
        shape, ndim, dtype = (64, 64), 2, np.dtype(np.uint8)
        gone = False

        def __getitem__(self, key: Any) -> NDArray[np.uint8]:
            if self.gone:
                raise OSError("the drive is gone")
            return np.zeros(self.shape, np.uint8)[key]

    data = Broken()
    plane = plane_of(layer_over(data, name="remote"), (0, 0))
    data.gone = True
    with pytest.raises(CdalError, match="'remote' cannot be read: the drive is gone"):
        plane.read()


@pytest.mark.parametrize(
    ("size", "mpp", "gigabytes", "fits"),
    [
        ((1000, 1000), 0.25, 1, True),
        ((1000, 1000), 60.0, 1000, False),  # enlarged to the model's resolution
        ((10_000, 10_000), 0.25, 1, False),
        ((6_000, 6_000), 0.25, 8, True),
        ((25_000, 20_000), 0.25, 1000, False),
    ],
)
def test_what_would_not_fit_in_memory_is_refused(
    size: tuple[int, int], mpp: float, gigabytes: int, fits: bool
) -> None:
    def run() -> None:
        check_memory("slide", size, max(enlargement(mpp, RGB), 1), 5, gigabytes)

    if fits:
        run()
    else:
        with pytest.raises(CdalError, match=r"'slide': .* megapixels at the model's resolution"):
            run()


def test_of_a_pyramid_the_level_that_is_read_counts() -> None:
    levels = [np.zeros((n, n, 3), np.uint8) for n in (400, 200, 100)]
    plane = plane_of(Image(levels, rgb=True, multiscale=True), (0, 0))
    one = plane_of(Image(levels[0], rgb=True), (0, 0))
    for mpp, of_pyramid, of_one in ((0.25, 1, 1), (0.125, 0.5, 1), (0.0625, 0.25, 1), (0.5, 2, 2)):
        assert plane.grain(mpp, RGB) == pytest.approx(of_pyramid)
        assert one.grain(mpp, RGB) == pytest.approx(of_one)


def test_a_volume_that_would_not_fit_in_memory_is_refused() -> None:
    voxels = np.broadcast_to(np.float32(0), (300, 512, 512))
    plane = plane_of(Image(voxels, name="CT", contrast_limits=(0, 1)), (0, 0, 0))
    check_volume_memory(plane, 5, 11)
    with pytest.raises(CdalError, match=r"'CT': its voxels take 11 GB .* slice shown"):
        check_volume_memory(plane, 5, 8)


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
@pytest.mark.parametrize("turned", [{"rotate": (10, 20, 30)}, {"shear": (0.1, 0.2, 0.3)}])
def test_a_stack_turned_out_of_the_sliders_axes_is_refused(
    tile: NDArray[np.uint8], turned: dict[str, Any]
) -> None:
    stack = np.stack([tile] * 3)
    plane = plane_of(Image(stack, rgb=True, scale=(2, 1, 1), **turned), (2, 0, 0))
    with pytest.raises(CdalError, match="turned out of the sliders' axes"):
        check_shown(plane)
    turn = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    in_plane = plane_of(Image(stack, rgb=True, scale=(2, 1, 1), rotate=turn), (2, 0, 0))
    check_shown(in_plane)
    assert in_plane.index == (1,)
