"""Preferences > cDAL: what the Segment form starts with, and how much memory a run may take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from napari.settings import get_plugin_settings

from cdal_engine.weights import DEFAULT

__all__ = ["Preferences", "preferences"]


@dataclass(frozen=True)
class Preferences:
    """As declared, with the same defaults, under `configurations` in napari.yaml."""

    device: str = "auto"
    model: str = DEFAULT
    samples: int = 5
    model_folder: str = ""
    memory_gb: int = 8

    @property
    def own_models(self) -> Path | None:
        """Folder of the user's own models; None for the engine's."""
        return Path(self.model_folder).expanduser() if self.model_folder else None

    def wrong(self, models: Collection[str]) -> str:
        """What of them cannot be followed, given the models that there are; empty if nothing."""
        notes = []
        if self.own_models is not None and not self.own_models.is_dir():
            notes.append(f"there is no folder {self.own_models}")
        if self.model not in models:
            notes.append(f"there is no model {self.model!r}")
        return f"Preferences > cDAL: {', and '.join(notes)}; change it there." if notes else ""


def preferences() -> Preferences:
    """Read what the user chose; the defaults where napari does not know the plugin."""
    try:
        chosen = get_plugin_settings("napari-cdal").engine
    except KeyError:  # the widget was made by a script, without the plugin being installed
        return Preferences()
    return Preferences(**{name: getattr(chosen, name) for name in Preferences.__annotations__})
