"""cdal models: which models there are, what they are for, where they lie."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List and inspect models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A shipped model's name, or a model folder.")]


@app.command("list")
def list_models() -> None:
    """List the shipped models."""
    from ..weights import available

    for name, folder in available().items():
        facts = _facts(folder)
        typer.echo(f"{name:<16} {facts['for']}; {facts['size']}; licence: {facts['licence']}")


@app.command()
def info(name: Name) -> None:
    """Print a model's facts and its card."""
    from ..weights import find

    folder = find(name)
    for key, value in _facts(folder).items():
        typer.echo(f"{key:<10} {value}")
    card = folder / "CARD.md"
    if card.is_file():
        typer.echo("\n" + card.read_text("utf-8", "replace"))


@app.command()
def path(name: Name) -> None:
    """Print the folder a model lies in."""
    from ..weights import find

    typer.echo(find(name))


def _facts(folder: Path) -> dict[str, str]:
    from ..config import read_model_config

    config = read_model_config(folder / "config.json")
    weights = folder / "model.safetensors"
    kind = "RGB" if config.image.channels == 3 else "grayscale"
    resolution = f" at {config.image.mpp:g} µm/px" if config.image.mpp else ""
    size = f"{weights.stat().st_size / 1e6:.1f} MB" if weights.is_file() else "weights missing"
    return {
        "name": folder.name,
        "for": f"{', '.join(config.classes)} in {kind} images{resolution}",
        "target": config.target,
        "steps": str(config.diffusion.steps),
        "size": size,
        "licence": _licence(folder / "CARD.md"),
    }


def _licence(card: Path) -> str:
    """The card's line `Licence: ...`; users' own models may have none."""
    if card.is_file():
        for line in card.read_text("utf-8", "replace").splitlines():
            if line.startswith("Licence:"):
                return line.removeprefix("Licence:").strip()
    return "not stated"
