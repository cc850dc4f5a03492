"""Readers: every level and region is the file's own pixels, lazily and from any process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import openslide
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ome_zarr.writer import write_multiscale
from PIL import Image

from cdal_engine.errors import CdalError
from cdal_engine.io import dicom, dicom_slides
from cdal_engine.io.describe import describe
from cdal_engine.io.discovery import open_source
from cdal_engine.io.levels import Level, best_level, downsample
from cdal_engine.io.slides import _bounds, open_slide
from cdal_engine.io.source import Source

HALVES = [(2967, 2220), (1483, 1110), (741, 555)]
ODD = [(2967, 2220), (1100, 823), (400, 300)]
SLIDES = ("tif", "odd.tif", "openslide", "odd openslide", "ome.tif", "zarr 0.4", "zarr 0.5")
REAL = ("svs", "dicom", "ome", "dicom by openslide")
PLAIN = ("png", "jpg", "strips", "planes", "float alpha", "bits")


def of_size(pixels: NDArray, shape: tuple[int, int]) -> NDArray:
    if pixels.shape[:2] == shape:
        return pixels
    return cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)


def write_tiff_pyramid(path: Path, pixels: NDArray, shapes: list, mpp: float | None = 0.25) -> None:
    """A tiled pyramid of reduced pages, as OpenSlide reads it, too."""
    tag = {} if mpp is None else {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for shape in shapes:
            more = {"subfiletype": 0 if shape == shapes[0] else 1, **tag}
            level = of_size(pixels, shape)
            tiff.write(level, tile=(256, 256), compression="jpeg", photometric="rgb", **more)


def write_ome_tiff(path: Path, pixels: NDArray, shapes: list) -> None:
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(pixels, subifds=len(shapes) - 1, metadata=metadata, **options)
        for shape in shapes[1:]:
            tiff.write(of_size(pixels, shape), subfiletype=1, **options)


def write_zarr(path: Path, pixels: NDArray, shapes: list, version: int) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=version)
    levels = [np.moveaxis(of_size(pixels, shape), -1, 0) for shape in shapes]
    units = dict.fromkeys("yx", "micrometer")
    options = {"chunks": (3, 200, 300)}
    write_multiscale(levels, group, axes="cyx", axes_units=units, storage_options=options)
    metadata = group.attrs["ome"] if version == 3 else dict(group.attrs)
    for i, dataset in enumerate(metadata["multiscales"][0]["datasets"]):
        scale = [1.0, 0.25 * 2**i, 0.25 * 2**i]
        dataset["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
    group.attrs.update({"ome": metadata} if version == 3 else metadata)


@pytest.fixture(scope="session")
def scan(shared_data: Path) -> NDArray:
    """Pixels of a real slide, as tifffile decodes all of it."""
    return tifffile.imread(shared_data / "slides" / "CMU-1-Small-Region.svs")


@pytest.fixture(scope="session")
def opened(
    shared_data: Path, scan: NDArray, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Source]:
    """A source of each kind, made when first asked for; its folder's name is awkward."""
    folder = tmp_path_factory.mktemp("made") / "with spaces, Größe 切片 é"
    folder.mkdir()
    sources: dict[str, Source] = {}
    slides = shared_data / "slides"
    small = scan[1000:1211, 700:1013]
    dicom_folder = slides / "dicom-CMU-1-Small-Region"

    def made(name: str) -> Source:
        path = folder / name.replace(" ", ".")
        match name:
            case "svs":
                return open_source(slides / "CMU-1-Small-Region.svs")
            case "dicom":
                return open_source(dicom_folder)
            case "dicom by openslide":
                files = [f for f in dicom.dicom_files(dicom_folder) if dicom._holds_slide(f)]
                return open_slide(files[0])
            case "ome":
                return open_source(slides / "he-crop.ome.tif")
            case "tif" | "odd.tif" | "openslide" | "odd openslide":
                path = folder / ("odd.tif" if "odd" in name else "even.tif")
                if not path.exists():
                    write_tiff_pyramid(path, scan, ODD if "odd" in name else HALVES)
                return (open_slide if "openslide" in name else open_source)(path)
            case "ome.tif":
                write_ome_tiff(path, scan, HALVES)
            case "zarr 0.4" | "zarr 0.5":
                path = folder / f"v{name[-1]}.zarr"
                write_zarr(path, scan, HALVES, 2 if name.endswith("4") else 3)
            case "png" | "jpg":
                path = folder / f"a.{name}"
                Image.fromarray(small).save(path)
            case "strips":
                tifffile.imwrite(path, small, rowsperstrip=7, photometric="rgb", byteorder=">")
            case "planes":
                planes = np.moveaxis(small, -1, 0)
                options = {"photometric": "rgb", "planarconfig": "separate", "tile": (64, 48)}
                tifffile.imwrite(path, planes, compression="deflate", predictor=True, **options)
            case "float alpha":
                pixels = np.dstack([small, small[..., :1]]).astype(np.float32)
                pixels[100:] /= 255  # so that a region alone could be taken for 0 … 1
                options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
                tifffile.imwrite(path, pixels, tile=(64, 64), **options)
            case "bits":
                tifffile.imwrite(path, small[..., 0] > 200, photometric="minisblack")
        return open_source(path)

    def get(name: str) -> Source:
        if name not in sources:
            sources[name] = made(name)
        return sources[name]

    return get


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
        for level, shape in enumerate(HALVES):
            assert np.array_equal(opened(name).read(level), of_size(scan, shape))
    with openslide.OpenSlide(opened("openslide").path) as slide:
        for level, size in enumerate(slide.level_dimensions):
            own = np.asarray(slide.read_region((0, 0), level, size))[..., :3]
            assert np.array_equal(opened("openslide").read(level)[:2048, :2048], own[:2048, :2048])
    assert np.array_equal(opened("svs").read(), scan)
    assert np.array_equal(opened("ome").read(), tifffile.imread(opened("ome").path))


def test_what_levels_say_of_themselves(opened: Callable[[str], Source]) -> None:
    for name in ("tif", "openslide", "ome.tif", "zarr 0.4", "zarr 0.5"):
        source = opened(name)
        assert source.kind == "slide", name
        assert [level.shape for level in source.levels] == HALVES
        assert [level.downsample for level in source.levels] == [(1, 1), (2, 2), (4, 4)]
        assert [level.mpp for level in source.levels] == pytest.approx([0.25, 0.5, 1.0], rel=1e-4)
    odd = opened("odd.tif").levels
    assert odd[1].downsample == pytest.approx((2967 / 1100, 2220 / 823))
    assert opened("odd openslide").levels == odd


@pytest.mark.parametrize("name", ["dicom", "dicom by openslide"])
def test_a_dicom_slide_is_the_slide_it_was_made_from(
    opened: Callable[[str], Source], scan: NDArray, name: str
) -> None:
    source = opened(name)
    assert source.mpp == pytest.approx(0.499)
    assert (source.shape, source.kind) == (scan.shape[:2], "slide")
    assert np.abs(source.read().astype(int) - scan).mean() < 4


def test_a_dicom_slide_by_one_of_its_files(shared_data: Path, opened: Callable) -> None:
    files = dicom.dicom_files(shared_data / "slides" / "dicom-CMU-1-Small-Region")
    assert len(files) == 4
    for file in files:  # its label and overview, too, stand for the slide and are not shown
        assert np.array_equal(open_source(file).read(), opened("dicom").read())
    names = " ".join(map(str, files[0].parents))
    assert "LABEL" not in names


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
    for edge in (64, 500, 5000):
        small = source.thumbnail(edge)
        assert max(small.shape[:2]) == min(edge, max(source.shape))
        expected = of_size(source.read().astype(np.float32), small.shape[:2])
        assert np.abs(small.astype(float) - expected).mean() < 3
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
    corners = rng.integers(0, (2700, 2000), (64, 2)).tolist()
    all_boxes = [(slice(y, y + 200), slice(x, x + 150)) for y, x in corners]
    with ThreadPoolExecutor(8) as pool:
        regions = list(pool.map(lambda box: source.read(0, box), all_boxes))
    for box, region in zip(all_boxes, regions, strict=True):
        assert np.array_equal(region, whole[box])


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


def test_a_pyramid_without_resolution_says_so(tmp_path: Path, scan: NDArray) -> None:
    write_tiff_pyramid(tmp_path / "a.tif", scan, HALVES, mpp=None)
    source = open_source(tmp_path / "a.tif")
    assert (source.kind, source.mpp, source.mpp_source) == ("slide", None, "not in the file")
    assert {level.mpp for level in source.levels} == {None}
    assert "--mpp" in dict(describe(tmp_path / "a.tif"))["would read"]


def test_label_and_macro_beside_the_scan_are_no_levels(tmp_path: Path, scan: NDArray) -> None:
    tile = {"tile": (256, 256), "photometric": "rgb"}
    label = np.zeros((300, 600, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(scan, **tile)
        tiff.write(of_size(scan, HALVES[1]), subfiletype=1, **tile)
        tiff.write(label, subfiletype=1, **tile)
    assert [level.shape for level in open_source(tmp_path / "a.tif").levels] == HALVES[:2]
    with tifffile.TiffWriter(tmp_path / "b.ome.tif", ome=True) as tiff:
        for name, pixels in (("scan", scan), ("label image", label)):
            tiff.write(pixels, metadata={"axes": "YXS", "Name": name}, **tile)
    assert np.array_equal(open_source(tmp_path / "b.ome.tif").read(), scan)
    with tifffile.TiffWriter(tmp_path / "c.ome.tif", ome=True) as tiff:
        for name, pixels in (("macro image", label), ("scan", scan)):
            tiff.write(pixels, metadata={"axes": "YXS", "Name": name}, **tile)
    with pytest.raises(CdalError, match="label or macro"):
        open_source(tmp_path / "c.ome.tif")


def test_a_truncated_pyramid_is_damaged(opened: Callable[[str], Source], tmp_path: Path) -> None:
    content = opened("tif").path.read_bytes()
    for part in (0.2, 0.6, 0.9, 0.97):
        (tmp_path / "cut.tif").write_bytes(content[: int(part * len(content))])
        with pytest.raises(CdalError) as caught:
            open_source(tmp_path / "cut.tif").read()
        assert caught.value.remedy


def test_a_tile_too_large_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), tile=(64, 64), metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        for tag in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
            tiff.pages[0].tags[tag].overwrite(64_000)
    with pytest.raises(CdalError, match="at once"):
        open_source(tmp_path / "a.tif")


def test_a_large_level_is_refused_when_read_not_when_opened(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), tile=(64, 64))
    source = open_source(tmp_path / "a.tif")
    huge = Source(
        path=source.path,
        kind="slide",
        reader="",
        levels=(Level((100_000, 100_000)),),
        channels=1,
        pixels=source.pixels,
    )
    with pytest.raises(CdalError, match="10000 megapixels"):
        huge.read()
    assert huge.read(0, (slice(0, 3), slice(5, 9))).shape == (3, 4)
    assert huge.level_array().shape == (100_000, 100_000)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no `multiscales`"),
        ({"plate": {}}, "plate"),
        ({"multiscales": [{}], "image-label": {}}, "labels"),
        ({"bioformats2raw.layout": 3}, "holds 0 images"),
    ],
)
def test_zarr_that_is_no_image(tmp_path: Path, metadata: dict, message: str) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.attrs["ome"] = metadata
    with pytest.raises(CdalError, match=message) as caught:
        open_source(tmp_path / "a.zarr")
    assert caught.value.remedy
    assert caught.value.path == tmp_path / "a.zarr"


def test_zarr_stacks_and_fluorescence_are_refused(tmp_path: Path) -> None:
    for name, axes, shape in (
        ("stack", "zyx", (5, 20, 30)),
        ("four", "cyx", (4, 20, 30)),
        ("wide", "cyx", (3, 20, 30)),
    ):
        group = zarr.open_group(tmp_path / f"{name}.zarr", mode="w", zarr_format=3)
        write_multiscale([np.zeros(shape, np.uint16)], group, axes=axes)
        with pytest.raises(CdalError, match=r"stack|not known"):
            open_source(tmp_path / f"{name}.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(CdalError, match="no OME-Zarr"):
        open_source(tmp_path / "empty.zarr")


def test_a_damaged_chunk_is_named(opened: Callable[[str], Source], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(opened("zarr 0.4").path, tmp_path / "a.zarr")
    chunk = max(
        (f for f in (tmp_path / "a.zarr").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    chunk.write_bytes(chunk.read_bytes()[:1000])
    source = open_source(tmp_path / "a.zarr")
    with pytest.raises(CdalError, match="damaged"):
        source.read()
    assert describe(tmp_path / "a.zarr")[-1][1].startswith("level 0: cannot be decoded")


def test_without_wsidicom_openslide_reads(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    source = open_source(shared_data / "slides" / "dicom-CMU-1-Small-Region")
    assert source.reader == "OpenSlide, dicom"
    assert (source.shape, source.mpp) == ((2967, 2220), pytest.approx(0.499))


def test_several_slides_in_a_folder(shared_data: Path, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    for file in dicom.dicom_files(shared_data / "slides" / "dicom-CMU-1-Small-Region"):
        dataset = pydicom.dcmread(file)
        dataset.save_as(tmp_path / f"a {file.name}")
        dataset.SeriesInstanceUID = "1.2.3"
        dataset.save_as(tmp_path / f"b {file.name}")
    with pytest.raises(CdalError, match="2 slides"):
        open_source(tmp_path)
    inputs = dicom.dicom_inputs(tmp_path)
    assert [path.name[0] for path in inputs] == ["a", "b"]
    assert open_source(inputs[0]).shape == (2967, 2220)
    scans = dicom_slides._scan_of(inputs[0], [], pydicom)
    assert [path.name[0] for path in scans] == ["a"]


def test_formats_that_openslide_reads_better_go_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NDPI, SCN and BIF: in SCN the macro image may come first."""
    from cdal_engine.io import slides

    tifffile.imwrite(tmp_path / "a.scn", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    wanted = SimpleNamespace(reader="OpenSlide")
    monkeypatch.setattr(slides, "open_slide", lambda path: wanted)
    for name in ("ndpi", "scn", "bif", "philips"):
        with monkeypatch.context() as patch:
            patch.setattr(tifffile.TiffFile, f"is_{name}", True, raising=False)
            assert open_source(tmp_path / "a.scn") is wanted
    assert open_source(tmp_path / "a.scn") is not wanted


def test_images_need_neither_dask_nor_zarr(tmp_path: Path) -> None:
    """What import-linter is told to overlook: training reads PNG and TIFF without them."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8))
    code = (
        "import sys, pathlib, cdal_engine.training.dataset\n"
        "from cdal_engine.io.discovery import open_source\n"
        "open_source(pathlib.Path(sys.argv[1])).read()\n"
        "print(sorted({'dask', 'zarr', 'SimpleITK', 'nibabel', 'openslide'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, tmp_path / "a.tif"]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ended.stdout.strip() == "[]"
