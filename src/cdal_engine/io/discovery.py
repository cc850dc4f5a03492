"""Which files are inputs, and which reader opens each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

from ..errors import CdalError
from .records import is_results_folder
from .source import Source

__all__ = ["files_of", "find_sources", "open_source"]

_PNG_JPEG = {".png", ".jpg", ".jpeg"}
_TIFF = {".tif", ".tiff", ".svs", ".ndpi", ".scn", ".bif"}
_OPENSLIDE = {".mrxs", ".vms", ".vmu", ".svslide"}
_NIFTI = {".nii", ".nii.gz"}
_DICOM = {".dcm", ".dicom"}
_FILES = _PNG_JPEG | _TIFF | _OPENSLIDE | _NIFTI
_READ = sorted(_FILES | _DICOM | {".zarr"})
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BY_ITSELF = "give what it leads to by itself"
_ZARR_FILES = ("zarr.json", ".zattrs", ".zgroup")


def open_source(path: Path) -> Source:
    """Open an image, slide or volume by what it holds, whatever its suffix says.

    Raises
    ------
    CdalError
        If it is none, or is damaged.
    """
    if path.is_dir():
        return _open_folder(path)
    start = _start(path)
    suffix = _suffix(path)
    # A .mrxs file starts as the JPEG of an overview that may show the slide's label.
    if suffix in _OPENSLIDE:
        from .slides import open_slide

        return open_slide(path)
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        from .images import open_image

        return open_image(path)
    if start.startswith(_TIFF_STARTS):
        from .tiff import open_tiff

        return open_tiff(path)
    if start[128:132] == b"DICM":
        from .dicom import open_dicom

        return open_dicom(path)
    if start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0" or _is_packed(start, suffix):
        from .nifti import open_nifti

        return open_nifti(path)
    if suffix in _FILES | _DICOM:
        other = "DICOM" if suffix in _DICOM else "NIfTI" if suffix in _NIFTI else None
        reason = f"is named {suffix} but holds no {other or 'PNG, JPEG or TIFF'}"
        raise CdalError(reason, "check what the file really is", path)
    raise CdalError(
        f"files of type {suffix or 'unknown'} are not read", f"use {', '.join(_READ)}", path
    )


def _open_folder(path: Path) -> Source:
    if _is_zarr(path):
        from .zarr_images import open_zarr

        return open_zarr(path)
    if is_results_folder(path):
        raise CdalError("holds results of cdal, not input", "give the image itself", path)
    from .dicom import dicom_files, open_dicom

    if dicom_files(path):
        return open_dicom(path)
    raise CdalError("is a folder", "use `cdal batch` for the files in it", path)


def _start(path: Path) -> bytes:
    """First bytes of a file."""
    try:
        if path.exists() and not path.is_file():
            raise CdalError("is no regular file", "give an image or slide", path)
        with path.open("rb") as file:
            start = file.read(352)
    except OSError as error:
        raise CdalError(f"cannot be read: {error.strerror}", "check the path", path) from None
    if not start:
        raise CdalError("the file is empty (0 bytes)", "copy or export it again", path)
    return start


def _suffix(path: Path) -> str:
    """Suffix in small letters; `.nii.gz` is one."""
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def _is_packed(start: bytes, suffix: str) -> bool:
    return suffix == ".nii.gz" and start.startswith(b"\x1f\x8b")


def _is_zarr(folder: Path) -> bool:
    named = folder.suffix.lower() == ".zarr"
    return named or any((folder / name).is_file() for name in _ZARR_FILES)


def find_sources(
    folder: Path,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    on_skip: Callable[[CdalError], None] | None = None,
) -> list[Path]:
    """Inputs below `folder`, in alphabetical order: one for each slide, image and volume.

    A .zarr folder is one, and so is a folder with a DICOM slide or series; of several series in a
    folder one file stands for each. The folder beside a .mrxs file belongs to it.
    Hidden folders and folders of results are left out.

    Parameters
    ----------
    folder : Path
    include, exclude : iterable of str
        Patterns of file names, or of paths relative to `folder`.
    on_skip : callable, optional
        Called with what is left out that may hold inputs, as an error: folders that cannot be
        listed, links to folders, which are not followed, and links that lead out of `folder`.

    Raises
    ------
    CdalError
        If `folder` itself is no folder, or holds results.
    """
    if not folder.is_dir():
        raise CdalError("no such folder", "check the path", folder)
    if is_results_folder(folder):
        raise CdalError("holds results of cdal, not input", "give the folder of the images", folder)
    skip = on_skip or (lambda error: None)

    def unlistable(error: OSError) -> None:
        reason = f"cannot be listed: {error.strerror}"
        skip(CdalError(reason, "check its rights", error.filename))

    include, exclude = list(include) or ["*"], list(exclude)

    def matches(path: Path, patterns: list[str]) -> bool:
        names = (path.name, path.relative_to(folder).as_posix())
        return any(fnmatch(name, pattern) for name in names for pattern in patterns)

    found = []
    for parent, folders, files in os.walk(folder, onerror=unlistable):
        here = Path(parent)
        for name in folders:
            if (here / name).is_symlink():
                skip(CdalError("is a link to a folder", _BY_ITSELF, here / name))
        paths, folders[:] = _inputs_in(here, folders, files)
        for path in paths:
            hidden = path.name.startswith(".")
            if hidden or not matches(path, include) or matches(path, exclude):
                continue
            if not (path.is_file() or path.is_dir()):
                skip(CdalError("is no regular file, or a broken link", "check it", path))
            elif path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                skip(CdalError("is a link that leads out of the folder", _BY_ITSELF, path))
            else:
                found.append(path)
    return sorted(found)


def _inputs_in(here: Path, folders: list[str], files: list[str]) -> tuple[list[Path], list[str]]:
    """Inputs right in a folder, and the names of the folders to look into."""
    below = [n for n in folders if not n.startswith(".") and not is_results_folder(here / n)]
    whole = {n for n in below if not (here / n).is_symlink() and _is_zarr(here / n)}
    beside = {Path(n).stem for n in files if _suffix(Path(n)) == ".mrxs"}
    names = [n for n in files if _suffix(Path(n)) in _FILES]
    paths = [here / n for n in (*names, *whole)] + _dicom_inputs(here, files)
    return paths, [n for n in below if n not in whole | beside]


def files_of(path: Path) -> list[Path]:
    """Files that an input consists of, to tell whether it has changed."""
    if _suffix(path) == ".mrxs":
        return [path, *(file for file in path.with_suffix("").rglob("*") if file.is_file())]
    if not path.is_dir():
        return [path]
    if _is_zarr(path):
        return [file for file in path.rglob("*") if file.is_file()]
    from .dicom import dicom_files

    return dicom_files(path)


def _dicom_inputs(folder: Path, files: list[str]) -> list[Path]:
    """DICOM inputs among these files of a folder: one for each series."""
    maybe = {"", *_DICOM, ".ima"}
    if not any(_suffix(Path(n)) in maybe or _suffix(Path(n))[1:].isdigit() for n in files):
        return []
    from .dicom import dicom_inputs

    return dicom_inputs(folder)
