"""Files in: every colour model to RGB or grayscale, resolution believed or not, damage refused."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cdal_engine.errors import CdalError
from cdal_engine.io import slides
from cdal_engine.io.describe import describe
from cdal_engine.io.discovery import find_sources, open_source
from cdal_engine.io.records import RUN, write_json
from cdal_engine.samples import he_path

RGB = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
GRAY = RGB[..., 0]


def saved(folder: Path, name: str, mode: str, **options: object) -> Path:
    path = folder / name
    Image.fromarray(RGB).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)]
)
def test_png_modes(tmp_path: Path, mode: str, channels: int) -> None:
    pixels = open_source(saved(tmp_path, "a.png", mode)).read()
    assert (1 if pixels.ndim == 2 else pixels.shape[2]) in (channels, 1)
    assert pixels.shape[:2] == RGB.shape[:2]
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(pixels, RGB)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("RGBA")
    image.putalpha(
        Image.fromarray(np.where(np.arange(36) < 18, 0, 255).astype(np.uint8)[None].repeat(24, 0))
    )
    image.save(tmp_path / "a.png")
    tifffile.imwrite(
        tmp_path / "a.tif", np.asarray(image), photometric="rgb", extrasamples=["unassalpha"]
    )
    for name in ("a.png", "a.tif"):
        pixels = open_source(tmp_path / name).read()
        assert (pixels[:, :18] == 255).all()
        assert np.array_equal(pixels[:, 18:], RGB[:, 18:])


def test_transparency_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("P")
    image.save(tmp_path / "a.png", transparency=int(np.asarray(image)[0, 0]))
    pixels = open_source(tmp_path / "a.png").read()
    assert pixels.shape == RGB.shape
    assert (pixels[0, 0] == 255).all()


def test_16_bits_stay(tmp_path: Path) -> None:
    wide = GRAY.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", wide)
    for name in ("a.png", "a.tif"):
        assert np.array_equal(open_source(tmp_path / name).read(), wide)


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_becomes_rgb(tmp_path: Path, name: str) -> None:
    flat = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    flat.save(tmp_path / name)
    pixels = open_source(tmp_path / name).read()
    assert pixels.shape == (32, 32, 3)
    np.testing.assert_allclose(pixels.reshape(-1, 3).mean(0), (255, 0, 0), atol=3)


def test_tiff_photometrics(tmp_path: Path) -> None:
    palette = np.zeros((3, 256), np.uint16)
    palette[0] = np.arange(256) * 257
    palette[1] = 65535
    tifffile.imwrite(tmp_path / "p.tif", GRAY, photometric="palette", colormap=palette)
    pixels = open_source(tmp_path / "p.tif").read()
    assert np.array_equal(pixels[..., 0], GRAY)
    assert (pixels[..., 1] == 255).all()
    assert (pixels[..., 2] == 0).all()
    tifffile.imwrite(tmp_path / "w.tif", GRAY, photometric="miniswhite")
    assert np.array_equal(open_source(tmp_path / "w.tif").read(), 255 - GRAY)
    planar = np.moveaxis(RGB, -1, 0)
    tifffile.imwrite(tmp_path / "s.tif", planar, photometric="rgb", planarconfig="separate")
    assert np.array_equal(open_source(tmp_path / "s.tif").read(), RGB)


def test_resolution_is_believed_where_it_can_be_a_microscopes(tmp_path: Path) -> None:
    dpi = 25400 / 0.25
    cases = {
        "png": saved(tmp_path, "a.png", "RGB", dpi=(dpi, dpi)),
        "paper": saved(tmp_path, "b.png", "RGB", dpi=(300, 300)),
        "screen": saved(tmp_path, "c.jpg", "RGB", dpi=(72, 72)),
        "silent": saved(tmp_path, "d.png", "RGB"),
        "cm": tmp_path / "e.tif",
        "ome": tmp_path / "f.ome.tif",
        "imagej": tmp_path / "g.tif",
    }
    tifffile.imwrite(cases["cm"], RGB, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    metadata = {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}
    metadata |= {"PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm", "axes": "YXS"}
    tifffile.imwrite(cases["ome"], RGB, metadata=metadata)
    tifffile.imwrite(
        cases["imagej"], GRAY, imagej=True, resolution=(2, 2), metadata={"unit": "micron"}
    )
    found = {key: open_source(path) for key, path in cases.items()}
    for key, mpp in (("png", 0.25), ("cm", 0.5), ("ome", 0.5), ("imagej", 0.5)):
        assert found[key].mpp == pytest.approx(mpp, rel=1e-3), key
        assert found[key].mpp_source != "not in the file"
    for key in ("paper", "screen", "silent"):
        assert found[key].mpp is None, key
        assert found[key].mpp_source == "not in the file"
    assert {source.kind for source in found.values()} == {"image"}


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    saved(tmp_path, "a.png", "RGB").rename(tmp_path / "a.tif")
    assert np.array_equal(open_source(tmp_path / "a.tif").read(), RGB)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "a.docx").write_bytes(b"PK\3\4....")
    for name, message in (
        ("empty.png", "empty"),
        ("text.jpg", "holds no PNG"),
        ("a.docx", "not read"),
        ("absent.png", "No such file"),
        ("", "is a folder"),
    ):
        with pytest.raises(CdalError, match=message) as caught:
            open_source(tmp_path / name)
        assert caught.value.remedy
        assert caught.value.path == tmp_path / name


def test_stacks_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((5, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(CdalError, match="stack"):
        open_source(tmp_path / "z.tif")


def test_channels_not_known_to_be_colours_are_refused(tmp_path: Path) -> None:
    planes = np.moveaxis(RGB, -1, 0)
    tifffile.imwrite(
        tmp_path / "fluorescence.ome.tif",
        planes,
        photometric="minisblack",
        metadata={"axes": "CYX"},
    )
    four = np.concatenate([RGB, RGB[..., :1]], axis=2)
    tifffile.imwrite(tmp_path / "four.tif", four, photometric="rgb", extrasamples=["unspecified"])
    for name in ("fluorescence.ome.tif", "four.tif"):
        with pytest.raises(CdalError, match="not known to be"):
            open_source(tmp_path / name)


def test_premultiplied_alpha(tmp_path: Path) -> None:
    pixels = np.array([[[100, 50, 0, 128], [0, 0, 0, 0], [9, 8, 7, 255]]], np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    expected = [[[227, 177, 127], [255, 255, 255], [9, 8, 7]]]
    assert open_source(tmp_path / "a.tif").read().tolist() == expected


def test_grayscale_stays_grayscale(tmp_path: Path) -> None:
    alpha = np.full_like(GRAY, 255)
    Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    Image.fromarray(GRAY).save(tmp_path / "key.png", transparency=int(GRAY[0, 0]))
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.stack([GRAY, alpha], axis=-1),
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unassalpha"],
    )
    for name in ("la.png", "key.png", "a.tif"):
        source = open_source(tmp_path / name)
        assert source.channels == 1
        assert np.array_equal(source.read(), GRAY)


def test_several_images_in_one_file_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(RGB[:10, :10], photometric="rgb")
        tiff.write(RGB, photometric="rgb")
    with pytest.raises(CdalError, match="holds 2 images"):
        open_source(tmp_path / "a.tif")


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs, and links need rights")
def test_what_is_no_file_is_named_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "broken.png").symlink_to("absent.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    skipped: list[CdalError] = []
    assert find_sources(folder, on_skip=skipped.append) == []
    names = {str(folder / name) for name in ("pipe.png", "broken.png", "link")}
    assert {str(error.path) for error in skipped} == names
    with pytest.raises(CdalError, match="no regular file"):
        open_source(folder / "pipe.png")


def test_a_folder_of_results_is_no_input(tmp_path: Path) -> None:
    write_json(tmp_path / RUN, {})
    with pytest.raises(CdalError, match="holds results"):
        find_sources(tmp_path)


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        for tag in ("ImageWidth", "ImageLength"):
            tiff.pages[0].tags[tag].overwrite(1_000_000)
    with pytest.raises(CdalError, match=r"megapixels|damaged"):
        open_source(tmp_path / "a.tif")


def whole(kind: str, folder: Path) -> bytes:
    path = folder / f"whole.{kind}"
    if not path.exists():
        if kind == "tif":
            tifffile.imwrite(path, RGB, tile=(16, 16), compression="jpeg")
        else:
            Image.fromarray(RGB).save(path)
    return path.read_bytes()


@settings(max_examples=60)
@given(st.sampled_from(["png", "jpg", "tif"]), st.floats(0, 0.999))
def test_truncated_files_are_never_read_as_whole(
    tmp_path_factory: pytest.TempPathFactory, kind: str, part: float
) -> None:
    folder = tmp_path_factory.getbasetemp() / "truncated"
    folder.mkdir(exist_ok=True)
    content = whole(kind, folder)
    expected = open_source(folder / f"whole.{kind}").read()
    cut = folder / f"cut.{kind}"
    cut.write_bytes(content[: int(part * len(content))])
    try:
        pixels = open_source(cut).read()
    except CdalError as error:
        assert error.remedy  # noqa: PT017 - either outcome is right, a wrong image is not
    else:
        assert np.array_equal(pixels, expected)


def test_inputs_are_found_below_but_never_results(tmp_path: Path) -> None:
    for name in ("a.png", "b/c.TIF", "b/.hidden.png", ".cache/d.png", "notes.txt", "out/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    write_json(tmp_path / "out" / RUN, {})
    (tmp_path / "b" / RUN).write_text("{}")  # another program's

    def found(**patterns: list[str]) -> list[str]:
        return [p.relative_to(tmp_path).as_posix() for p in find_sources(tmp_path, **patterns)]

    assert found() == ["a.png", "b/c.TIF"]
    assert found(include=["*.png"]) == ["a.png"]
    assert found(exclude=["b/*"]) == ["a.png"]


def test_a_real_slide(shared_data: Path) -> None:
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    source = open_source(path)
    assert (source.kind, source.shape, len(source.levels)) == ("slide", (2967, 2220), 1)
    assert (source.mpp, source.mpp_source, source.magnification) == (0.499, "Aperio MPP", 20)
    pixels = source.read()
    other = slides.open_slide(path)
    assert (other.shape, other.mpp, other.magnification) == (source.shape, 0.499, 20)
    assert np.abs(pixels.astype(int) - other.read()).mean() < 1
    y, x = 1200, 900  # of the sample, cut from this slide
    with Image.open(he_path()) as sample:
        assert sample.size[0] > 100
    assert "0.499" in dict(describe(path))["resolution"]
    assert pixels[y, x].tolist() != [255, 255, 255]


def test_an_ome_tiff_with_micrometres(shared_data: Path) -> None:
    source = open_source(shared_data / "slides" / "he-crop.ome.tif")
    assert source.shape == (1484, 1380)
    assert source.mpp == pytest.approx(0.5, rel=1e-3)


def test_broken_slides(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "slides"
    with pytest.raises(CdalError, match="damaged"):
        open_source(folder / "unreadable.svs").read()
    with pytest.raises(CdalError):
        open_source(folder / "unopenable.tiff").read()
    content = (folder / "CMU-1-Small-Region.svs").read_bytes()
    for part in (0.3, 0.6, 0.7, 0.95):
        (tmp_path / "cut.svs").write_bytes(content[: int(part * len(content))])
        try:
            pixels = open_source(tmp_path / "cut.svs").read()
        except CdalError:
            continue
        assert pixels.shape == (2967, 2220, 3)  # only its label and macro image are cut off
        assert part > 0.65
