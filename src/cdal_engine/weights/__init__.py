"""Models by name: the shipped ones beside this file and the user's own, a folder each.

A folder holds config.json, model.safetensors and CARD.md.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from platformdirs import user_data_path

from ..errors import CdalError

__all__ = ["DEFAULT", "available", "find", "folder_for", "shipped", "user_folder"]

DEFAULT = "nuclei-he"
_HERE = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?")  # Windows' own


def shipped() -> dict[str, Path]:
    """Folders of the shipped models by name, in alphabetical order."""
    return _models_in(_HERE)


def user_folder() -> Path:
    """Where the user's own models lie: `$CDAL_MODELS`, or `models` in the user's data folder."""
    chosen = os.environ.get("CDAL_MODELS")
    return Path(chosen) if chosen else user_data_path("napari-cdal", appauthor=False) / "models"


def available(own: Path | None = None) -> dict[str, Path]:
    """Folders of all models by name: the shipped ones, then the user's in `own`."""
    users = _models_in(user_folder() if own is None else own)
    return shipped() | users | shipped()  # the shipped names are theirs alone


def folder_for(name: str, own: Path | None = None) -> Path:
    """Return the folder that a new model of the user's would have, in `own` if given.

    Raises
    ------
    CdalError
        If `name` cannot be a folder's or is taken.
    """
    if not _NAME.fullmatch(name) or name.endswith(".") or _RESERVED.fullmatch(name):
        raise CdalError(
            f"{name!r} cannot be a model's name",
            "use letters, digits, dots, - and _, a letter or digit first",
        )
    folder = (user_folder() if own is None else own) / name
    if name in shipped() or folder.exists():
        raise CdalError(
            f"there is a model {name!r} already",
            "choose another name" if name in shipped() else f"choose another, or remove {folder}",
        )
    return folder


def find(name_or_path: str | Path) -> Path:
    """Return the folder of a model by name, or of any by its folder.

    Raises
    ------
    CdalError
        If it is neither.
    """
    models = available()
    if str(name_or_path) in models:
        return models[str(name_or_path)]
    folder = Path(name_or_path)
    if (folder / "config.json").is_file():
        return folder
    raise CdalError(
        f"unknown model {str(name_or_path)!r}",
        f"there are: {', '.join(models) or 'none'}; or give a folder with config.json and "
        "model.safetensors",
    )


def _models_in(folder: Path) -> dict[str, Path]:
    found = sorted(folder.glob("[!.]*/config.json"))  # a dot: an import that was interrupted
    return {path.parent.name: path.parent for path in found}
