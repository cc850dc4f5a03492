"""Files made to harm: refused before they take memory, and never led out of their folder."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import tifffile
import zarr
from numcodecs import LZ4, Blosc, GZip, Pickle, Zlib, Zstd
from PIL import Image
from zarr.codecs import (
    BloscCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

from cdal_engine.errors import CdalError
from cdal_engine.io.discovery import find_sources, open_source
from cdal_engine.io.records import is_results_folder, write_aside

PIXELS = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
MEGABYTE = 2**20
GZIP = zlib.MAX_WBITS + 16
Sides = tuple[int, int]
READ = """
import sys
from pathlib import Path
from cdal_engine.errors import CdalError
from cdal_engine.io import nifti, tiff, zarr_images
from cdal_engine.io.discovery import find_sources, open_source
def peak():  # getrusage's may be that of the process that started this one
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
try:
    import SimpleITK, nibabel, pydicom
except ImportError:
    pass
before = peak()
try:
    path = Path(sys.argv[1])
    found = find_sources(path.parent)  # as `batch` looks first
    source = open_source(path)
    source.read()
    end = "read"
except CdalError as error:
    end = f"refused {error}"
print((peak() - before) // 1024, end)
"""


def ifd(at: int, following: bool, **more: int) -> bytes:
    """A TIFF page of bytes, its tags by number."""
    tags = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 64, 279: 4096}
    tags |= {int(name[1:]): value for name, value in more.items()}
    body = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    size = 2 + len(body) + 4
    return struct.pack("<H", len(tags)) + body + struct.pack("<I", at + size if following else 0)


def tiff_of(pages: int = 1, **more: int) -> bytes:
    size = len(ifd(0, False, **more))
    body = [ifd(8 + n * size, n < pages - 1, **more) for n in range(pages)]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(body)


@cache
def zeros_packed(wbits: int = zlib.MAX_WBITS) -> bytes:
    """Half a gigabyte in half a megabyte."""
    packer, piece = zlib.compressobj(wbits=wbits), bytes(MEGABYTE)
    return b"".join(packer.compress(piece) for _ in range(512)) + packer.flush()


def png_of(width: int, height: int, data: bytes, more: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = piece(b"IHDR", header) + more + piece(b"IDAT", data) + piece(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def piece(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def described(group: zarr.Group, names: Sequence[str] = ("0",)) -> None:
    """Say that the arrays of a group are the levels of an OME-Zarr image."""
    scale = {"type": "scale", "scale": [1, 1]}
    datasets = [{"path": name, "coordinateTransformations": [scale]} for name in names]
    axes = [{"name": name, "type": "space"} for name in "yx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


def zarr_of(
    path: Path, shape: Sides, chunks: Sides, dtype: str = "u1", levels: int = 1, **more: Any
) -> zarr.Array:
    """An OME-Zarr of zarr 2, packed by zlib, if not `zarr_format` says otherwise."""
    more = {"zarr_format": 2, **more}
    group = zarr.open_group(path, mode="w", zarr_format=more.pop("zarr_format"))
    described(group, [str(level) for level in range(levels)])
    arrays = [
        group.create_array(
            str(level),
            shape=tuple(-(-n // 2**level) for n in shape),
            chunks=chunks,
            dtype=dtype,
            **{"compressors": Zlib(), **more},
        )
        for level in range(levels)
    ]
    return arrays[0]


def packed_bomb(path: Path, data: bytes, packer: Any, **more: Any) -> None:
    """A chunk of 16 MB that unpacks to far more."""
    side = (4096, 4096)
    zarr_of(path, side, side, compressors=packer, **more)
    place = path / "0" / ("c/0/0" if "zarr_format" in more else "0.0")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)


def rle_zstd() -> bytes:
    """8 GB in 256 KB: a frame of unknown size, of blocks that repeat one byte."""
    block = (1 << 1 | 2**17 << 3).to_bytes(3, "little") + b"\0"
    last = (1 | 1 << 1 | 2**17 << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block * (2**16 - 1) + last


def shards_bomb(path: Path) -> None:
    """A shard whose index has every chunk be the whole file."""
    more = {"zarr_format": 3, "shards": (2048, 2048), "compressors": None}
    zarr_of(path, (1000, 1000), (64, 64), **more)
    entries, length = 32 * 32, 4 * MEGABYTE
    index = struct.pack("<QQ", 0, length) * entries
    data = bytes(length) + index + struct.pack("<I", google_crc32c.value(index))
    (path / "0" / "c" / "0").mkdir(parents=True)
    (path / "0" / "c" / "0" / "0").write_bytes(data)


def nested_shards(path: Path) -> None:
    inner = ShardingCodec(chunk_shape=(1, 1))
    zarr_of(
        path,
        (2048, 2048),
        (64, 64),
        zarr_format=3,
        shards=(2048, 2048),
        serializer=inner,
        compressors=None,
    )


def metadata_bomb(path: Path) -> None:
    zarr_of(path, (64, 64), (64, 64))
    attributes = json.loads((path / ".zattrs").read_text())
    (path / ".zattrs").write_text(json.dumps(attributes | {"more": [[]] * 10**7}))


def huge_pyramid(path: Path) -> None:
    zarr_of(path, (10**6, 10**6), (16, 16), levels=2)


def endless_pyramid(path: Path) -> None:
    zarr_of(path, (64, 64), (64, 64))
    described(zarr.open_group(path, mode="r+"), ["0"] * 10**4)


def nifti_of(sides: tuple[int, ...], offset: int = 352, code: int = 2, bits: int = 8) -> bytes:
    """A header of NIfTI 1; what lies before `offset` is one extension."""
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into(f"<h{len(sides)}h", header, 40, len(sides), *sides)
    struct.pack_into("<hh", header, 70, code, bits)
    struct.pack_into("<4f", header, 76, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, offset)
    header[344:348] = b"n+1\0"
    more = offset - 352
    return bytes(header) + (struct.pack("<4Bii", 1, 0, 0, 0, more, 6) if more else bytes(4))


def dicom_of(path: Path, syntax: str, data: bytes) -> None:
    path.mkdir()
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    group = b"\2\0\x10\0UI" + struct.pack("<H", len(uid)) + uid
    length = b"\2\0\0\0UL\4\0" + struct.pack("<I", len(group))
    (path / "a.dcm").write_bytes(bytes(128) + b"DICM" + length + group + data)


def deflated_dicom(path: Path) -> None:
    element = b"\x09\0\1\0OB\0\0" + struct.pack("<I", 2**29)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = packer.compress(element) + packer.flush(zlib.Z_FULL_FLUSH)
    dicom_of(path, "1.2.840.10008.1.2.1.99", data + zeros_packed(-zlib.MAX_WBITS))


BOMBS: dict[str, Callable[[Path], object]] = {
    "sides.tif": lambda p: p.write_bytes(tiff_of(t256=10**6, t257=10**6, t278=1)),
    "strip.tif": lambda p: p.write_bytes(tiff_of(t256=10**6, t257=10**6, t278=10**6)),
    "tile.tif": lambda p: p.write_bytes(tiff_of(t322=2**20, t323=2**20, t324=8, t325=9)),
    "pages.tif": lambda p: p.write_bytes(tiff_of(10**5)),
    "deflate.tif": lambda p: p.write_bytes(tiff_of(t259=8, t273=122, t279=10**6) + zeros_packed()),
    "sides.png": lambda p: p.write_bytes(png_of(10**6, 10**6, b"")),
    "data.png": lambda p: p.write_bytes(png_of(64, 64, zeros_packed())),
    "text.png": lambda p: p.write_bytes(
        png_of(64, 64, b"", piece(b"zTXt", b"a\0\0" + zeros_packed()))
    ),
    "sides.nii": lambda p: p.write_bytes(nifti_of((32767,) * 3)),
    "sides.nii.gz": lambda p: p.write_bytes(gzip.compress(nifti_of((32767,) * 3))),
    "volumes.nii.gz": lambda p: p.write_bytes(gzip.compress(nifti_of((512, 512, 512, 32767)))),
    "doubles.nii.gz": lambda p: p.write_bytes(
        gzip.compress(nifti_of((700,) * 3, code=64, bits=64)) + bytes(3 * MEGABYTE)
    ),
    "texts.nii.gz": lambda p: p.write_bytes(
        gzip.compress(nifti_of((64,) * 3, offset=352 + 2**28)) + zeros_packed(GZIP)
    ),
    "deflated-dicom": deflated_dicom,
    "sides.zarr": lambda p: zarr_of(p, (10**6, 10**6), (1000, 1000)),
    "tiny.zarr": lambda p: zarr_of(p, (10**4, 10**4), (1, 1)),
    "huge-tiny.zarr": lambda p: zarr_of(p, (10**6, 10**6), (16, 16), levels=2),
    "levels.zarr": endless_pyramid,
    "metadata.zarr": metadata_bomb,
    "chunk.zarr": lambda p: zarr_of(p, (30000, 30000), (30000, 30000)),
    "wide.zarr": lambda p: zarr_of(p, (15000, 15000), (15000, 15000), "f8"),
    "zlib.zarr": lambda p: packed_bomb(p, zeros_packed(), Zlib()),
    "gzip.zarr": lambda p: packed_bomb(p, zeros_packed(GZIP), GZip()),
    "zstd.zarr": lambda p: packed_bomb(p, rle_zstd(), Zstd()),
    "blosc.zarr": lambda p: packed_bomb(p, Blosc().encode(np.zeros(2**29, "u1")), Blosc()),
    "lz4.zarr": lambda p: packed_bomb(p, LZ4().encode(np.zeros(2**29, "u1")), LZ4()),
    "zstd3.zarr": lambda p: packed_bomb(p, rle_zstd(), ZstdCodec(), zarr_format=3),
    "twice.zarr": lambda p: packed_bomb(
        p, gzip.compress(zeros_packed(GZIP)), (GzipCodec(), GzipCodec()), zarr_format=3
    ),
    "shards.zarr": shards_bomb,
    "sharded-tiny.zarr": lambda p: zarr_of(
        p, (10**4, 10**4), (1, 1), zarr_format=3, shards=(10**4, 10**4), compressors=None
    ),
    "nested.zarr": nested_shards,
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_memory(name: str, tmp_path: Path) -> None:
    """A real process: at most 128 MB beyond what reading takes anyway."""
    BOMBS[name](tmp_path / name)
    command = [sys.executable, "-W", "ignore", "-c", READ, str(tmp_path / name)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout
    taken, end = out.split(" ", 1)
    assert int(taken) < 128, out
    assert end.startswith("refused") or name == "data.png"


@pytest.mark.parametrize("record", [b"[" * 10**6, b'{"napari-cdal": "' + b" " * 2**27 + b'"}'])
def test_a_run_json_that_is_no_record_of_ours(record: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(record)
    assert not is_results_folder(tmp_path)


def test_links_and_dots_lead_nowhere(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    Image.fromarray(PIXELS).save(outside / "secret.png")
    Image.fromarray(PIXELS).save(inside / "mine.png")
    (inside / "out.png").symlink_to(outside / "secret.png")
    (inside / "dots.png").symlink_to("../out/secret.png")
    (inside / "same.png").symlink_to("mine.png")
    (inside / "folder").symlink_to(outside)
    skipped: list[CdalError] = []
    found = find_sources(inside, on_skip=skipped.append)
    assert [path.name for path in found] == ["mine.png", "same.png"]
    assert {e.path.name for e in skipped if e.path} == {"out.png", "dots.png", "folder"}


PICKLED = b"cos\nmkdir\n(V%s\ntR."


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_a_zarr_runs_no_code(place: str, tmp_path: Path) -> None:
    """zarr 2 knows a codec that unpickles."""
    zarr_of(tmp_path / "a.zarr", (64, 64), (64, 64))[:] = 1
    file = tmp_path / "a.zarr" / "0" / ".zarray"
    pickle = Pickle().get_config()
    changed = {"filters": [pickle], "compressor": None} if place == "filters" else {place: pickle}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    (tmp_path / "a.zarr" / "0" / "0.0").write_bytes(PICKLED % bytes(tmp_path / "made"))
    with pytest.raises(CdalError):
        open_source(tmp_path / "a.zarr").read()
    assert not (tmp_path / "made").exists()


def _kinds(more: dict[str, Any]) -> str:
    """Names that are the same in every process, which zarr's own descriptions are not."""
    every = [
        each for value in more.values() for each in (value if type(value) is tuple else [value])
    ]
    return "-".join(
        str(each) if type(each) in (int, type(None)) else type(each).__name__ for each in every
    )


@pytest.mark.parametrize(
    "more",
    [
        {"compressors": None},
        *({"compressors": packer} for packer in (Blosc(), GZip(), LZ4(), Zlib(), Zstd())),
        {"zarr_format": 3, "compressors": None},
        {"zarr_format": 3, "compressors": (BloscCodec(), Crc32cCodec())},
        {"zarr_format": 3, "compressors": GzipCodec()},
        {"zarr_format": 3, "filters": TransposeCodec(order=(1, 0)), "compressors": ZstdCodec()},
        {"zarr_format": 3, "compressors": ZstdCodec(), "shards": (128, 256)},
    ],
    ids=_kinds,
)
def test_sound_zarrs_are_read(more: dict[str, Any], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**16, (300, 500), np.uint16)
    zarr_of(tmp_path / "a.zarr", (300, 500), (32, 64), "<u2", **more)[:] = pixels
    source = open_source(tmp_path / "a.zarr")
    assert np.array_equal(source.read(), pixels)
    assert np.array_equal(source.read(0, (slice(30, 170), slice(3, 4))), pixels[30:170, 3:4])
    assert np.array_equal(source.level_array()[::7, 5:9].compute(), pixels[::7, 5:9])


def test_large_chunks_are_read_one_by_one(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**8, (5000, 6001), np.uint8)
    zarr_of(tmp_path / "a.zarr", pixels.shape, (4096, 4096))[:] = pixels
    source = open_source(tmp_path / "a.zarr")
    box = (slice(4000, 4200), slice(10, 6001))
    assert np.array_equal(source.read(0, box), pixels[box])


def test_a_zarr_reads_nothing_outside_of_itself(tmp_path: Path) -> None:
    zarr_of(tmp_path / "good.zarr", (64, 64), (64, 64))[:] = PIXELS
    assert np.array_equal(open_source(tmp_path / "good.zarr").read(), PIXELS)
    for name, changed in (("chunk.zarr", "0/0.0"), ("level.zarr", "0")):
        shutil.copytree(tmp_path / "good.zarr", tmp_path / name)
        target = tmp_path / name / changed
        elsewhere = tmp_path / f"{name}-elsewhere"
        target.rename(elsewhere)
        target.symlink_to(elsewhere)
        with pytest.raises(CdalError, match="leads out of it"):
            open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("trick", "said"), [("link", "leads out of the slide"), ("name", "names files outside")]
)
def test_a_mrxs_reads_nothing_outside_of_its_folder(tmp_path: Path, trick: str, said: str) -> None:
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "in" / "a.mrxs").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "secret.dat").write_bytes(b"secret")
    name = "../../secret.dat" if trick == "name" else "Data0000.dat"
    (folder / "Slidedat.ini").write_text(f"[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = {name}\n")
    if trick == "link":
        (folder / "Data0000.dat").symlink_to(tmp_path / "secret.dat")
    with pytest.raises(CdalError, match=said):
        open_source(tmp_path / "in" / "a.mrxs")


def test_an_ome_tiff_reads_nothing_in_other_folders(tmp_path: Path) -> None:
    """Its XML may name other files: beside it, but nowhere else."""
    (tmp_path / "in").mkdir()
    with tifffile.TiffWriter(tmp_path / "other.ome.tif", ome=True) as tiff:
        tiff.write(PIXELS, metadata={"axes": "YX"})
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:11111111-1111-1111-1111-111111111111"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="64" '
        'SizeC="1" SizeZ="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" PlaneCount="1"><UUID FileName="{}">'
        "urn:uuid:22222222-2222-2222-2222-222222222222</UUID></TiffData></Pixels></Image></OME>"
    )
    for name in ("../other.ome.tif", str(tmp_path / "other.ome.tif")):
        path = tmp_path / "in" / "a.ome.tif"
        tifffile.imwrite(path, PIXELS * 0, description=xml.format(name), metadata=None)
        with pytest.raises(CdalError, match="another folder"):
            open_source(path)
    shutil.copy(tmp_path / "other.ome.tif", tmp_path / "in")
    path = tmp_path / "in" / "b.ome.tif"
    tifffile.imwrite(path, PIXELS * 0, description=xml.format("other.ome.tif"), metadata=None)
    assert np.array_equal(open_source(path).read(), PIXELS)


def test_writing_replaces_a_link_and_follows_none(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "run.json").symlink_to(mine)
    (tmp_path / f".run.json.{os.getpid()}.tmp").symlink_to(mine)
    write_aside(tmp_path / "run.json", b"{}")
    assert mine.read_text() == "mine"
    assert (tmp_path / "run.json").read_bytes() == b"{}"
    assert not (tmp_path / "run.json").is_symlink()
