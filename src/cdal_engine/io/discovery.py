"""Which files are inputs, and which reader opens each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

from ..errors import CdalError
from .records import is_results_folder
from .source import Source

__all__ = ["describe", "find_sources", "open_source"]

_PNG_JPEG = {".png", ".jpg", ".jpeg"}
_TIFF = {".tif", ".tiff", ".svs", ".ndpi", ".scn", ".bif"}
_OPENSLIDE = {".mrxs", ".vms", ".vmu", ".svslide"}
_READ = sorted(_PNG_JPEG | _TIFF | _OPENSLIDE)
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_source(path: Path) -> Source:
    """Open an image or slide by what it holds, whatever its suffix says.

    Raises
    ------
    CdalError
        If it is none, or is damaged.
    """
    if path.is_dir():
        raise CdalError("is a folder", "use `cdal batch` for the files in it", path)
    try:
        if path.exists() and not path.is_file():
            raise CdalError("is no regular file", "give an image or slide", path)
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CdalError(f"cannot be read: {error.strerror}", "check the path", path) from None
    if not start:
        raise CdalError("the file is empty (0 bytes)", "copy or export it again", path)
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        from .images import open_image

        return open_image(path)
    if start.startswith(_TIFF_STARTS):
        from .tiff import open_tiff

        return open_tiff(path)
    if path.suffix.lower() in _OPENSLIDE:
        from .slides import open_slide

        return open_slide(path)
    if path.suffix.lower() in _PNG_JPEG | _TIFF:
        reason = f"is named {path.suffix} but holds no PNG, JPEG or TIFF"
        raise CdalError(reason, "check what the file really is", path)
    raise CdalError(
        f"files of type {path.suffix or 'unknown'} are not read", f"use {', '.join(_READ)}", path
    )


def find_sources(
    folder: Path,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    on_skip: Callable[[CdalError], None] | None = None,
) -> list[Path]:
    """Files below `folder` that are named like images or slides, in alphabetical order.

    Hidden folders and folders of results are left out.

    Parameters
    ----------
    folder : Path
    include, exclude : iterable of str
        Patterns of file names, or of paths relative to `folder`.
    on_skip : callable, optional
        Called with what is left out that may hold inputs, as an error: folders that cannot be
        listed, and links to folders, which are not followed.

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
        for name in folders:
            if Path(parent, name).is_symlink():
                skip(CdalError("is a link to a folder", "give it by itself", Path(parent, name)))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not is_results_folder(Path(parent, name))
        ]
        for path in (Path(parent, name) for name in files):
            named = path.suffix.lower() in _READ and not path.name.startswith(".")
            if not named or not matches(path, include) or matches(path, exclude):
                continue
            if path.is_file():
                found.append(path)
            else:
                skip(CdalError("is no regular file, or a broken link", "check it", path))
    return sorted(found)


def describe(path: Path) -> dict[str, str]:
    """What a file is and how it would be read, for people.

    Raises
    ------
    CdalError
        If it cannot be read; its pixels are decoded to find out.
    """
    source = open_source(path)
    pixels = source.read()
    height, width = source.shape
    power = f"{source.magnification:g}x" if source.magnification else "not in the file"
    mpp = f"{source.mpp:.4g} µm per pixel" if source.mpp else "unknown"
    return {
        "file": str(path),
        "kind": source.kind,
        "reader": source.reader,
        "size": f"{width} x {height}, {source.levels} level(s)",
        "pixels": f"{'grayscale' if pixels.ndim == 2 else 'RGB'}, {pixels.dtype}",
        "resolution": f"{mpp} ({source.mpp_source})",
        "magnification": power,
    }
