"""SCN and BIF, of which there is no real file: imitations that OpenSlide takes for real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from cdal_engine.io.describe import describe
from cdal_engine.io.discovery import open_source

MPP, TILE, SECRET = 0.5, 256, "SECRET-4711"
OPTIONS = {
    "photometric": "rgb",
    "compression": "jpeg",
    "tile": (TILE, TILE),
    "metadata": None,
    "resolution": (1e4 / MPP,) * 2,
    "resolutionunit": "CENTIMETER",
}


def write_scn(path: Path, scan: NDArray) -> None:
    """A Leica slide: the macro image first, the scan somewhere on a canvas of nanometres."""
    macro = np.full((720, 256, 3), 250, np.uint8)

    def image(mag: float, view: str, levels: list[tuple[int, int, int]]) -> str:
        sizes = "".join(
            f'<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{ifd}"/>'
            for r, (h, w, ifd) in enumerate(levels)
        )
        h, w, _ = levels[0]
        return (
            '<image><device model="Leica SCN400" version="1.4"/>'
            f'<pixels sizeX="{w}" sizeY="{h}">{sizes}</pixels><view {view}/><scanSettings>'
            f"<objectiveSettings><objective>{mag}</objective></objectiveSettings>"
            "<illuminationSettings><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    (height, width), nm = scan.shape[:2], int(MPP * 1000)
    canvas = 'sizeX="26564529" sizeY="76734769"'
    place = f'sizeX="{width * nm}" sizeY="{height * nm}" offsetX="5000000" offsetY="9000000"'
    levels = [(height // step, width // step, i) for i, step in enumerate((1, 4), 1)]
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f"<collection {canvas}><barcode>{SECRET}</barcode>"
        + image(0.6, f'{canvas} offsetX="0" offsetY="0"', [(720, 256, 0)])
        + image(20, place, levels)
        + "</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(macro, description=xml, **OPTIONS)
        tiff.write(scan, **OPTIONS)
        tiff.write(scan[::4, ::4], subfiletype=1, **OPTIONS)


def write_bif(path: Path, scan: NDArray) -> None:
    """A Ventana slide: the label first, and where its tiles were stitched."""
    rows, columns = (n // TILE for n in scan.shape[:2])

    def number(row: int, column: int) -> int:  # there and back, from the bottom
        return row * columns + (column if row % 2 == 0 else columns - 1 - column) + 1

    def joints() -> Iterator[tuple[str, int, int]]:
        for row, column in product(range(rows), range(columns)):
            if column + 1 < columns:
                yield "RIGHT", number(row, column), number(row, column + 1)
            if row + 1 < rows:
                yield "UP", number(row, column), number(row + 1, column)

    joined = "".join(
        f'<TileJointInfo FlagJoined="1" Confidence="99" Direction="{way}" Tile1="{one}" '
        f'Tile2="{other}" OverlapX="0" OverlapY="0"/>'
        for way, one, other in joints()
    )
    stitched = (
        '<?xml version="1.0"?><EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" '
        f'AOIIndex="0" NumRows="{rows}" NumCols="{columns}" Width="{TILE}" Height="{TILE}" '
        f'Pos-X="0" Pos-Y="0">{joined}</ImageInfo></SlideStitchInfo>'
        '<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    scanner = (
        f'<?xml version="1.0"?><Metadata><iScan Magnification="20" ScanRes="{MPP}" '
        f'Barcode1D="{SECRET}"/></Metadata>'
    )

    def xmp(text: str) -> dict:
        return {"extratags": [(700, 1, len(text), text.encode(), True)]}

    label = np.zeros((720, 256, 3), np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(label, description="Label Image", **xmp(scanner), **OPTIONS)
        tiff.write(scan, description="level=0 mag=20 quality=90", **xmp(stitched), **OPTIONS)
        half = scan[::2, ::2]
        tiff.write(half, description="level=1 mag=10 quality=90", subfiletype=1, **OPTIONS)


@pytest.mark.parametrize(
    ("write", "vendor", "corner"),
    [(write_scn, "leica", (18000, 10000)), (write_bif, "ventana", (0, 0))],
)
def test_the_scan_is_read_and_nothing_beside_it(
    write: Callable, vendor: str, corner: tuple[int, int], scan: NDArray, tmp_path: Path
) -> None:
    """Where it lies, its resolution and its pixels; neither macro image nor barcode."""
    pixels = scan[900:1412, 1100:1868]
    path = tmp_path / f"a é.{write.__name__[-3:]}"
    write(path, pixels)
    source = open_source(path)
    assert source.reader == f"OpenSlide, {vendor}"
    assert (source.kind, source.mpp, source.magnification) == ("slide", MPP, 20)
    assert len(source.levels) == 2
    box = tuple(slice(at, at + n) for at, n in zip(corner, pixels.shape, strict=False))
    assert source.bounds in (box, None)
    assert np.abs(source.read(0, box).astype(int) - pixels).mean() < 6
    told = dict(describe(path))
    assert told["wrong"] == "nothing found"
    assert SECRET not in str(told)
