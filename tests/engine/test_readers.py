"""Readers: every level and region is the file's own pixels, lazily and from any process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cdal_engine.io.discovery import open_source
from cdal_engine.io.source import Source

SLIDES = ("tif", "odd.tif", "openslide", "odd openslide", "ome.tif", "zarr 0.4", "zarr 0.5")
REAL = ("svs", "dicom", "dicom pyramid", "ome", "dicom by openslide")
PLAIN = ("png", "jpg", "strips", "planes", "float alpha", "bits")


def boxes(shape: tuple[int, ...], fractions: tuple[float, ...]) -> tuple[slice, ...]:
    out = []
    for n, a, b in zip(shape, fractions[::2], fractions[1::2], strict=True):
        low, high = sorted((int(a * n), int(b * n)))
        out.append(slice(low, max(high, low + 1)))
    return tuple(out)


@pytest.mark.parametrize("name", SLIDES + REAL + PLAIN)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_regions_are_those_of_the_whole(
    opened: Callable[[str], Source], name: str, data: st.DataObject
) -> None:
    source = opened(name)
    level = data.draw(st.integers(0, len(source.levels) - 1))
    whole = WHOLE.setdefault((name, level), source.read(level))
    assert whole.shape[:2] == source.levels[level].shape
    assert whole.dtype == source.pixels.dtype
    assert (1 if whole.ndim == 2 else whole.shape[2]) == source.channels
    fraction = st.floats(0, 0.999)
    box = boxes(whole.shape[:2], data.draw(st.tuples(fraction, fraction, fraction, fraction)))
    assert np.array_equal(source.read(level, box), whole[box])
    lazy = source.level_array(level)
    assert (lazy.shape, lazy.dtype) == (whole.shape, whole.dtype)
    step = data.draw(st.sampled_from([1, 3]))
    stepped = tuple(slice(s.start, s.stop, step) for s in box)
    assert np.array_equal(lazy[stepped].compute(), whole[stepped])
    assert np.array_equal(lazy[box[0].start].compute(), whole[box[0].start])
    assert np.array_equal(lazy[box][::-1, None].compute(), whole[box][::-1, None])
    some = data.draw(st.lists(st.integers(0, whole.shape[1] - 1), max_size=4))
    assert np.array_equal(lazy[box[0]][:, some].compute(), whole[box[0]][:, some])


WHOLE: dict[tuple[str, int], NDArray] = {}


@pytest.mark.parametrize("name", [*SLIDES, "svs", "dicom"])
def test_chunks_are_whole_tiles(opened: Callable[[str], Source], name: str) -> None:
    source = opened(name)
    for level in range(len(source.levels)):
        lazy, tile = source.level_array(level), source.pixels.tile(level)
        for chunks, size in zip(lazy.chunks, tile, strict=False):
            assert all(chunk % size == 0 for chunk in chunks[:-1])
        assert np.array_equal(lazy.compute(), source.read(level))


def test_levels_are_the_files_own_pixels(opened: Callable[[str], Source], scan: NDArray) -> None:
    for name in ("tif", "ome.tif"):
        source = opened(name)
        for level in range(3):
            own = tifffile.imread(source.path, series=0, level=level)
            assert np.array_equal(source.read(level), own)
    for name in ("zarr 0.4", "zarr 0.5"):
        source = opened(name)
        for level, key in enumerate(("s0", "s1", "s2")):
            own = np.moveaxis(zarr.open_group(source.path, mode="r")[key][:], 0, -1)
            assert np.array_equal(source.read(level), own)
    with openslide.OpenSlide(opened("openslide").path) as slide:
        for level, size in enumerate(slide.level_dimensions):
            own = np.asarray(slide.read_region((0, 0), level, size))[..., :3]
            assert np.array_equal(opened("openslide").read(level)[:2048, :2048], own[:2048, :2048])
    assert np.array_equal(opened("svs").read(), scan)
    assert np.array_equal(opened("ome").read(), tifffile.imread(opened("ome").path))


def test_only_the_tiles_touched_are_read(
    opened: Callable[[str], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = tifffile.FileHandle.read_segments

    def counted(self: object, offsets: list, *args: object, **kwargs: object) -> object:
        read.extend(offsets)
        return original(self, offsets, *args, **kwargs)

    monkeypatch.setattr(tifffile.FileHandle, "read_segments", counted)
    source = opened("svs")
    source.level_array()[240:480, 230:250].compute()
    assert len(read) == 2  # one row of tiles, two columns
    read.clear()
    source.read()
    source.thumbnail(100)
    source.level_array().compute()
    with tifffile.TiffFile(source.path) as tiff:
        beside = {o for page in tiff.pages[1:] for o in page.dataoffsets}
        assert len(tiff.pages) == 4
    assert not beside & set(read)  # neither thumbnail, label nor macro image


@pytest.mark.parametrize("name", [*SLIDES, *REAL, "png", "bits"])
def test_thumbnails_show_the_scan(opened: Callable[[str], Source], name: str) -> None:
    source = opened(name)
    whole = source.read().astype(np.float32)
    for edge in (64, 500, 5000):
        small = source.thumbnail(edge)
        assert max(small.shape[:2]) == min(edge, max(source.shape))
        size = small.shape[1::-1]
        expected = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(float) - expected).mean() < 4  # levels are JPEG, too
        assert small.dtype == source.pixels.dtype


@pytest.mark.parametrize("name", [*SLIDES, *REAL, "png", "strips"])
def test_arrays_are_read_in_another_process(
    opened: Callable[[str], Source], tmp_path: Path, name: str
) -> None:
    array = opened(name).level_array(-1 + len(opened(name).levels))
    array[:2, :2].compute()  # so that a file is open when the array is pickled
    (tmp_path / "array").write_bytes(pickle.dumps(array))
    code = (
        "import pickle, sys, numpy as np\n"
        "array = pickle.load(open(sys.argv[1], 'rb'))\n"
        "np.save(sys.argv[2], array.compute())"
    )
    command = [sys.executable, "-c", code, tmp_path / "array", tmp_path / "out.npy"]
    subprocess.run(command, check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), array.compute())


@pytest.mark.parametrize("name", ["svs", "dicom", "openslide", "zarr 0.5"])
def test_threads_share_a_reader(opened: Callable[[str], Source], name: str) -> None:
    source = opened(name)
    whole = source.read()
    rng = np.random.default_rng(0)
    corners = rng.integers(0, np.array(whole.shape[:2]) - 200, (64, 2)).tolist()
    all_boxes = [(slice(y, y + 200), slice(x, x + 150)) for y, x in corners]
    with ThreadPoolExecutor(8) as pool:
        regions = list(pool.map(lambda box: source.read(0, box), all_boxes))
    for box, region in zip(all_boxes, regions, strict=True):
        assert np.array_equal(region, whole[box])


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "aperio_jp2000_rgb"},
        {"compression": "jpeg2000"},
        {"compression": "jpeg", "subsampling": (2, 2)},
        {"compression": "lzw", "predictor": True},
        {"compression": "zstd"},
        {"byteorder": ">"},
        {"tile": None, "rowsperstrip": 50, "compression": "deflate"},
    ],
)
def test_compressions_of_svs(tmp_path: Path, scan: NDArray, options: dict) -> None:
    path = tmp_path / "a.svs"
    text = "Aperio Image Library v1\r\n590x513|AppMag = 40|MPP = 0.25"
    options = {"tile": (240, 240), "photometric": "rgb", **options}
    tifffile.imwrite(path, scan[500:1013, 700:1290], description=text, metadata=None, **options)
    source, own = open_source(path), tifffile.imread(path)
    assert (source.kind, source.mpp, source.magnification) == ("slide", 0.25, 40)
    assert np.array_equal(source.read(), own)
    assert np.array_equal(source.read(0, np.s_[100:400, 230:260]), own[100:400, 230:260])
