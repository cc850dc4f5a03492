"""DICOM: what a file holds, and which files of a folder belong together."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CdalError
from .source import Source

__all__ = ["dicom_files", "dicom_inputs", "is_dicom", "is_uncompressed", "open_dicom", "series_of"]

_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_MAGIC = slice(128, 132)
_STORAGE, _SYNTAX = b"\x02\x00", b"\x10\x00"  # elements: SOP class, transfer syntax
_UNCOMPRESSED = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LONG = {b"OB", b"OW", b"SQ", b"UN", b"UT"}  # types whose length takes 4 bytes
_NO_IMAGES = {"DICOMDIR"}


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM files do."""
    return _start(path)[_MAGIC] == b"DICM"


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _uids(path: Path, element: bytes) -> list[str]:
    """Identifiers in the header's first group, which has one encoding in all files."""
    start, at, found = _start(path), _MAGIC.stop, []
    while start[at : at + 2] == b"\x02\x00":
        long = start[at + 4 : at + 6] in _LONG
        length = start[at + 8 : at + 12] if long else start[at + 6 : at + 8]
        first = at + (12 if long else 8)
        at, of = first + int.from_bytes(length, "little"), start[at + 2 : at + 4]
        if of == element:
            found.append(start[first:at].rstrip(b"\0 ").decode("ascii", "replace"))
    return found


def _holds_slide(path: Path) -> bool:
    return _uids(path, _STORAGE) == [_SLIDE]


def is_uncompressed(path: Path) -> bool:
    """Whether pixels stand in the file as they are."""
    return bool(_UNCOMPRESSED.intersection(_uids(path, _SYNTAX)))


def _is_deflated(path: Path) -> bool:
    """Whether all of a file is packed: a kilobyte may unpack to a megabyte before it is parsed."""
    syntaxes = _uids(path, _SYNTAX)
    return not syntaxes or _DEFLATED in syntaxes


def dicom_files(folder: Path) -> list[Path]:
    """DICOM files in a folder, not below it, by name."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
    except OSError as error:
        raise CdalError(f"cannot be listed: {error.strerror}", "check its rights", folder) from None
    suffixes = ("", ".dcm", ".dicom", ".ima")
    paths = [folder / name for name in names if name not in _NO_IMAGES]
    # Names that are UIDs have no suffix, but dots.
    named = [p for p in paths if p.suffix.lower() in suffixes or p.suffix[1:].isdigit()]
    return [p for p in named if is_dicom(p)]


def dicom_inputs(folder: Path) -> list[Path]:
    """Inputs among the DICOM files of a folder: itself, or one file of each of several series."""
    files = dicom_files(folder)
    if not files:
        return []
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return [folder]
    first: dict[str, Path] = {}
    for path in files:
        first.setdefault(series_of(path), path)
    return [folder] if len(first) == 1 else sorted(first.values())


def series_of(path: Path) -> str:
    """What files of one series have in common; of a damaged one its path: opening it says so."""
    if _is_deflated(path):
        return str(path)
    try:
        import pydicom

        tags = pydicom.dcmread(path, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True)
    except Exception:
        return str(path)
    return str(tags.get("SeriesInstanceUID", ""))


def open_dicom(path: Path) -> Source:
    """Open a slide or a series, by its folder or by one of its files.

    Raises
    ------
    CdalError
        If there is none, there are several, or they are damaged.
    """
    files = dicom_files(path) if path.is_dir() else [path]
    folder = path if path.is_dir() else path.parent
    for other in sorted(folder.iterdir()):  # a slice left out would not be missed at the end
        named = other.suffix.lower() in (".dcm", ".dicom") and not other.name.startswith(".")
        if named and other.is_file() and not is_dicom(other):
            raise CdalError("holds no DICOM, is damaged or truncated", "copy it again", other)
    if not files:
        raise CdalError("the folder holds no DICOM files", "check the path", path)
    for file in dicom_files(folder):  # GDCM looks into all of them
        if _is_deflated(file):
            raise CdalError(
                "is deflated as a whole, or does not say how it is packed",
                "save it with another transfer syntax, or move it away",
                file,
            )
    slides = [file for file in files if _holds_slide(file)]
    if slides:
        from .dicom_slides import open_dicom_slide

        return open_dicom_slide(path, slides)
    from .dicom_series import open_dicom_series

    return open_dicom_series(path)
