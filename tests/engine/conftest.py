"""Slides made from a real one, in every format that can be written here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import wsidicom
import zarr
from numpy.typing import NDArray
from ome_zarr.writer import write_multiscale
from PIL import Image

from cdal_engine.io import dicom
from cdal_engine.io.discovery import open_source
from cdal_engine.io.slides import open_slide
from cdal_engine.io.source import Source

HALVES = [(1290, 1011), (645, 505), (322, 252)]
DICOM = "dicom-CMU-1-Small-Region"
ODD = [(1290, 1011), (500, 392), (130, 102)]


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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bits are the same for one number of threads only, which earlier tests may have set."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    slides, dicom_folder = shared_data / "slides", shared_data / "slides" / DICOM
    small, part = scan[1000:1211, 700:1013], scan[600:1890, 500:1511]

    def made(name: str) -> Source:
        path = folder / name.replace(" ", ".")
        match name:
            case "svs":
                return open_source(slides / "CMU-1-Small-Region.svs")
            case "dicom":
                return open_source(dicom_folder)
            case "dicom pyramid":
                path.mkdir()
                with wsidicom.WsiDicom.open(dicom_folder) as slide:
                    slide.save(path, add_missing_levels=True)
            case "dicom by openslide":
                files = [f for f in dicom.dicom_files(dicom_folder) if dicom._holds_slide(f)]
                return open_slide(files[0])
            case "ome":
                return open_source(slides / "he-crop.ome.tif")
            case "tif" | "odd.tif" | "openslide" | "odd openslide":
                path = folder / ("odd.tif" if "odd" in name else "even.tif")
                if not path.exists():
                    write_tiff_pyramid(path, part, ODD if "odd" in name else HALVES)
                return (open_slide if "openslide" in name else open_source)(path)
            case "ome.tif":
                write_ome_tiff(path, part, HALVES)
            case "zarr 0.4" | "zarr 0.5":
                path = folder / f"v{name[-1]}.zarr"
                write_zarr(path, part, HALVES, 2 if name.endswith("4") else 3)
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


@pytest.fixture(scope="session")
def tiff_pyramid() -> Callable[..., None]:
    """`write_tiff_pyramid`, for tests of what stands in it."""
    return write_tiff_pyramid
