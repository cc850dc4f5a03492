"""The shipped models, one folder each: config.json, model.safetensors and CARD.md."""

from __future__ import annotations

from pathlib import Path

from ..errors import CdalError

__all__ = ["DEFAULT", "available", "find"]

DEFAULT = "nuclei-he"
_HERE = Path(__file__).parent


def available() -> dict[str, Path]:
    """Folders of the shipped models by name, in alphabetical order."""
    return {path.parent.name: path.parent for path in sorted(_HERE.glob("*/config.json"))}


def find(name_or_path: str | Path) -> Path:
    """Return the folder of a shipped model or of the user's own.

    Raises
    ------
    CdalError
        If it is neither.
    """
    shipped = available()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    folder = Path(name_or_path)
    if (folder / "config.json").is_file():
        return folder
    raise CdalError(
        f"unknown model {str(name_or_path)!r}",
        f"shipped: {', '.join(shipped) or 'none'}; or give a folder with config.json and "
        "model.safetensors",
    )
