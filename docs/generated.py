"""Pages made at every build: the commands' options from the Typer app, the models' cards."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cdal_engine.weights import shipped

_HEADING = re.compile("^(#+ )", re.MULTILINE)

COMMANDS = """# Commands

What `cdal COMMAND --help` says, on one page.

"""
MODELS = """# Models

The models that come with this software, and their cards: what they were trained on, under which
licence, how good they are, and where they fail. `cdal models list` shows them with your own, `cdal
models info NAME` a card.

"""


def write(folder: Path) -> None:
    """Write commands.md and models.md into `folder`."""
    folder.mkdir(exist_ok=True)
    _write(folder / "commands.md", COMMANDS + _commands())
    cards = [_card(model, folder) for model in shipped().values()]
    _write(folder / "models.md", MODELS + "\n".join(_below(card) for card in cards))


def _card(model: Path, folder: Path) -> str:
    """The text of a model's card; its pictures are laid into the model's own folder."""
    text = (model / "CARD.md").read_text("utf-8")
    for picture in model.glob("*.png"):
        (folder / model.name).mkdir(exist_ok=True)
        shutil.copy(picture, folder / model.name)
        text = text.replace(f"]({picture.name})", f"]({model.name}/{picture.name})")
    return text


def _commands() -> str:
    """The options of every command, as Typer describes them."""
    command = [sys.executable, "-m", "typer", "cdal_engine.cli", "utils", "docs", "--name", "cdal"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}
    ended = subprocess.run(command, capture_output=True, check=True, env=environment)
    return _below(ended.stdout.decode())


def _below(text: str) -> str:
    """Move every heading one level down, below the page's own."""
    return _HEADING.sub(r"#\1", text)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text("utf-8") != text:  # unchanged pages are not built again
        path.write_text(text, "utf-8")
