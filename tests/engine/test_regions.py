"""Regions and tissue: which points of a slide count, and files that say so."""

from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from cdal_engine.batch.area import Area
from cdal_engine.errors import CdalError
from cdal_engine.io.regions import Regions, read_regions
from cdal_engine.io.tissue import find_tissue

SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30], [10, 10]]
HOLE = [[15, 15], [15, 20], [20, 20], [20, 15], [15, 15]]
corners = st.lists(
    st.tuples(st.integers(-5, 45), st.integers(-5, 45)), min_size=3, max_size=8, unique=True
)


def of(*polygons: list) -> Regions:
    rings = (tuple(np.array([*r, r[0]], float) for r in polygon) for polygon in polygons)
    return Regions(tuple(rings), "")


@given(corners)
def test_points_inside_a_polygon_are_those_another_program_fills(ring: list) -> None:
    """By the even-odd rule; no pixel's centre lies on an edge with these corners."""
    shifted = [(x + 0.27182, y + 0.31416) for x, y in ring]
    inside = of([shifted]).inside(np.arange(0.5, 40), np.arange(0.5, 40))
    expected = polygon2mask((40, 40), np.array(shifted)[:, ::-1] - 0.5)
    assert np.array_equal(inside, expected)


@given(corners, st.integers(0, 39), st.integers(0, 39), st.integers(1, 20), st.floats(0.1, 3))
def test_a_pixel_is_inside_or_not_whatever_box_is_asked_for(
    ring: list, top: int, left: int, size: int, pixel: float
) -> None:
    tissue = np.random.default_rng(0).random((7, 9)) > 0.4
    area = Area((60, 60), pixel, tissue, of([ring]), (slice(3, 50), slice(2, 41)))
    whole = area.inside((slice(0, 60), slice(0, 60)))
    box = (slice(top, top + size), slice(left, left + size))
    assert np.array_equal(area.inside(box), whole[box])
    assert area.touches(box) == whole[box].any()
    alone = Area((60, 60), pixel, tissue)
    assert alone.touches(box) == alone.inside(box).any()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda geometry: geometry,
        lambda geometry: {"type": "Feature", "geometry": geometry, "properties": {}},
        lambda geometry: [{"type": "Feature", "geometry": geometry}],
        lambda geometry: {
            "type": "FeatureCollection",
            "features": [{"type": "Feature", "geometry": geometry}],
        },
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_forms_of_geojson(tmp_path: Path, wrap: object, many: bool) -> None:
    polygon = [SQUARE, HOLE]
    geometry = {
        "type": "MultiPolygon" if many else "Polygon",
        "coordinates": [polygon] if many else polygon,
    }
    path = tmp_path / "größe 切.geojson"
    path.write_bytes(orjson.dumps(wrap(geometry)))
    centres = np.arange(0.5, 40)
    inside = read_regions(path).inside(centres, centres)
    assert inside.sum() == 20 * 20 - 5 * 5
    assert not inside[17, 17]
    assert inside[12, 12]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no GeoJSON"),
        (b"\x00\xff", "is no GeoJSON"),
        (b"[]", "holds no polygon"),
        (b'{"type": "FeatureCollection", "features": []}', "holds no polygon"),
        (b'{"features": []}', "is no GeoJSON of polygons"),
        (b'{"type": "Point", "coordinates": [1, 2]}', "holds a Point; regions are polygons"),
        (b'{"type": "Polygon", "coordinates": []}', "holds no polygon"),
        (b'{"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}', "at least three points"),
        (b'{"type": "Polygon", "coordinates": [[[1], [3], [4]]]}', "at least three points"),
        (b'{"type": "Polygon", "coordinates": [["a", "b", "c"]]}', "is no GeoJSON of polygons"),
        (b'{"type": "Polygon", "coordinates": 5}', "is no GeoJSON of polygons"),
        (b"[" * 5000, "is no GeoJSON"),
        (b"[" * 900 + b"]" * 900, "holds no polygon|is no GeoJSON"),
    ],
)
def test_broken_regions_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_bytes(content)
    with pytest.raises(CdalError, match=message) as error:
        read_regions(path)
    assert error.value.path == path
    assert error.value.remedy
    with pytest.raises(CdalError, match="cannot be read"):
        read_regions(tmp_path / "none.geojson")


def test_tissue_of_a_real_slide(scan: NDArray) -> None:
    """Skin on glass: the tissue is found, and glass, shadow and noise are not."""
    tissue = find_tissue(scan[::2, ::2], 1.0)
    assert 0.25 < tissue.mean() < 0.6
    assert tissue[700:800, 500:600].all()
    assert not tissue[900:1400, 0:150].any()
    dark = (scan[::2, ::2] * 0.7).astype(np.uint8)  # a dimmer lamp
    assert (find_tissue(dark, 1.0) != tissue).mean() < 0.05


def test_glass_is_no_tissue_and_tissue_no_glass(scan: NDArray) -> None:
    noise = np.random.default_rng(0).normal(240, 3, (200, 300, 1)).astype(np.uint8)
    assert not find_tissue(noise.repeat(3, 2), 4.0).any()
    assert not find_tissue(np.full((200, 300, 3), 255, np.uint8), 4.0).any()
    shaded = np.linspace(120, 240, 300)[None, :, None].repeat(200, 0).repeat(3, 2)
    assert not find_tissue(shaded.astype(np.uint8), 4.0).any()
    assert find_tissue(scan[1400:1600, 900:1100], 0.5).mean() > 0.99
