"""Levels: where they lie on the first, which one a model reads, and that nothing moves by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cdal_engine.batch import opened
from cdal_engine.batch.opened import check_source
from cdal_engine.batch.run import Input, Parameters, run_one
from cdal_engine.errors import CdalError
from cdal_engine.io.discovery import open_source
from cdal_engine.io.levels import Level, best_level, downsample, levels_of
from cdal_engine.io.slides import _bounds
from cdal_engine.io.source import Source
from cdal_engine.model import Model
from cdal_engine.samples import he_path
from cdal_engine.segmenter import Segmenter


def test_what_levels_say_of_themselves(opened: Callable[[str], Source]) -> None:
    for name in ("tif", "openslide", "ome.tif", "zarr 0.4", "zarr 0.5"):
        source = opened(name)
        assert source.kind == "slide", name
        assert [level.shape for level in source.levels] == [
            (1290, 1011),
            (645, 505),
            (322, 252),
        ]
        assert [level.downsample for level in source.levels] == [(1, 1), (2, 2), (4, 4)]
        assert [level.mpp for level in source.levels] == pytest.approx([0.25, 0.5, 1.0], rel=1e-4)
    doubled = opened("dicom pyramid").levels
    assert [level.downsample for level in doubled] == [(2**i, 2**i) for i in range(len(doubled))]
    assert [level.mpp for level in doubled] == pytest.approx([0.499 * 2**i for i in range(5)])
    odd = opened("odd.tif").levels
    assert odd[1].downsample == pytest.approx((1290 / 500, 1011 / 392))
    assert opened("odd openslide").levels == odd


@given(st.integers(1, 200_000), st.integers(1, 200_000), st.integers(1, 64), st.booleans())
def test_rounded_sizes_stand_for_whole_factors(y: int, x: int, step: int, up: bool) -> None:
    shape = tuple(-(-n // step) if up else max(n // step, 1) for n in (y, x))
    found = downsample((y, x), shape)
    for n, small, factor in zip((y, x), shape, found, strict=True):
        assert abs(n / factor - small) < 1
    if min(shape) > 4 * step:
        assert found == (step, step)


@given(
    st.lists(st.floats(1, 64), max_size=6),
    st.floats(0.05, 10),
    st.floats(0.05, 10),
)
def test_the_best_level_is_the_coarsest_fine_enough(
    steps: list[float], mpp: float, wanted: float
) -> None:
    levels = [Level((10000, 10000)), *(Level((100, 100), (s, s)) for s in sorted(steps))]
    best = best_level(levels, mpp, wanted)
    fine = [level for level in levels if mpp * level.step < wanted * 1.02]
    assert levels[best].step == max((level.step for level in fine), default=1.0)


def test_a_level_stretched_along_one_axis_is_not_used() -> None:
    levels = [Level((9000, 9000)), Level((4500, 4000), (2.0, 2.25))]
    assert best_level(levels, 0.25, 1.0) == 0
    assert best_level(levels, None, 1.0) == best_level(levels, 0.25, None) == 0


def test_bounds() -> None:
    numbers = {"x": "10", "y": "20", "width": "300", "height": "400"}
    properties = {f"openslide.bounds-{key}": value for key, value in numbers.items()}
    assert _bounds(properties) == (slice(20, 420), slice(10, 310))
    assert _bounds({}) is None


@pytest.fixture
def segmenter(tiny_model: Path) -> Segmenter:
    return Segmenter(Model.load(tiny_model), "cpu")


def run_on(path: Path, segmenter: Segmenter) -> tuple[NDArray, NDArray, dict, dict]:
    """Labels, probability, run.json and table of a slide."""
    folder = path.parent / f"{path.name} results"
    save = ("labels", "probability", "table", "overview")
    parameters = Parameters(samples=1, steps=0, save=save, tissue=False)
    _, record = run_one(Input(path, folder), segmenter, parameters)
    labels, maps = (
        zarr.open_array(folder / name / "s0", mode="r")[:]
        for name in ("labels.ome.zarr", "maps.ome.zarr")
    )
    return labels, maps, record, pq.read_table(folder / "objects.parquet").to_pydict()


def transformation(folder: Path) -> list:
    metadata = zarr.open_group(folder / "labels.ome.zarr", mode="r").attrs["ome"]
    transformations = metadata["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    return [t[t["type"]] for t in transformations]


def test_a_coarser_level_gives_the_same_grid_and_places(tmp_path: Path, scan: NDArray) -> None:
    """A slide at 0.125 µm for a model at 0.25 µm: level 1 is read, and nothing moves."""
    segmenter = Segmenter(Model.load("nuclei-he"), "cpu")  # its answer has edges to compare
    fine = scan[1000:1301, 700:1131].repeat(2, 0).repeat(2, 1)[:601, :861]
    tag = {"resolution": (8e4, 8e4), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    coarse = scan[1000:1301, 700:1131]
    for name, levels in (("both.tif", [fine, coarse]), ("fine.tif", [fine, fine[::4, ::4]])):
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            for i, level in enumerate(levels):
                tiff.write(level, tile=(128, 128), subfiletype=min(i, 1), **tag)
    (labels, both, by_level, found), (_, alone, by_first, expected) = (
        run_on(tmp_path / name, segmenter) for name in ("both.tif", "fine.tif")
    )
    assert [r["input"]["level"] for r in (by_level, by_first)] == [1, 0]
    assert by_level["input"]["downsample"] == 2
    assert labels.shape == both.shape[1:] == alone.shape[1:] == (301, 431)
    places = [transformation(tmp_path / f"{name} results") for name in ("both.tif", "fine.tif")]
    assert places[0] == places[1] == [[0.25, 0.25], [0.0625, 0.0625]]
    # Level 1 holds the pixels that averaging pairs of level 0 gives, but for the filter's tails.
    moved = np.roll(both, 1, axis=2)
    difference, by_a_pixel = (np.abs(p - alone).mean() for p in (both, moved))
    assert difference < by_a_pixel / 3
    assert np.max(found["x1"]) <= 861
    assert np.max(found["y1"]) <= 601
    assert len(found["x"]) == pytest.approx(len(expected["x"]), rel=0.1)
    assert np.mean(found["x"]) == pytest.approx(np.mean(expected["x"]), abs=15)
    assert by_level["counts"]["area_mm2"] == by_first["counts"]["area_mm2"]


def test_reading_the_first_level_changes_nothing(
    tmp_path: Path, scan: NDArray, segmenter: Segmenter, tiff_pyramid: Callable
) -> None:
    """A pyramid whose other levels are too coarse gives what its first level gives alone."""
    part = scan[1000:1400, 700:1000]
    tiff_pyramid(tmp_path / "a.tif", part, [(400, 300), (100, 75)], mpp=0.25)
    source = open_source(tmp_path / "a.tif")
    labels, maps, record, _ = run_on(source.path, segmenter)
    expected = segmenter.segment(source.read(), mpp=source.mpp, samples=1, steps=0)
    assert record["input"]["level"] == 0
    assert np.array_equal(maps, expected.probability)
    assert np.array_equal(labels, expected.labels)


def test_only_what_no_scanner_makes_is_too_large_a_slide(
    tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(he_path())
    for edge, fits in ((300_000, True), (1_000_000, False)):
        slide = replace(source, kind="slide", levels=levels_of([(edge, edge)], 0.25), mpp=0.25)
        monkeypatch.setattr(opened, "open_source", lambda path, slide=slide: slide)
        if fits:
            check_source(tmp_path, segmenter, Parameters())
        else:
            with pytest.raises(CdalError, match="1000 gigapixels"):
                check_source(tmp_path, segmenter, Parameters())


def test_a_slide_without_resolution_fails_with_its_magnification_as_a_hint(
    tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = replace(open_source(he_path()), kind="slide", mpp=None, magnification=20.0)
    monkeypatch.setattr(opened, "open_source", lambda path: slide)
    with pytest.raises(CdalError, match=r"magnification says 20x \(give --mpp, e.g. --mpp 0.5\)"):
        check_source(tmp_path, segmenter, Parameters())
    assert check_source(tmp_path, segmenter, Parameters(mpp=0.5))[1].mpp == 0.5
