"""cdal models: which there are, what they are for, where they lie; import of a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CdalError

app = typer.Typer(help="List, inspect and import models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A model's name, or a model folder.")]


@app.command("list")
def list_models() -> None:
    """List the shipped models and your own."""
    from ..weights import available

    for name, folder in available().items():
        try:
            facts = _facts(folder)
        except CdalError as error:  # of one model: the others are listed
            typer.echo(f"{name:<16} {error}")
            continue
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


@app.command("import")
def import_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(help="Generator's weights, a .pth file.", show_default=False)
    ],
    parameters: Annotated[
        Path, typer.Option(help="JSON file that it was trained with.", show_default=False)
    ],
    name: Annotated[
        str, typer.Option("--name", "-n", help="Of the new model.", show_default=False)
    ],
    discriminator: Annotated[
        Path | None,
        typer.Option(help="Discriminator's weights, a .pth file, for the attention map."),
    ] = None,
) -> None:
    """Make a released cDAL checkpoint a model of your own; nothing is replaced."""
    from ..published import import_model

    folder = import_model(checkpoint, parameters, name, discriminator)
    typer.echo(f"imported to {folder}; `cdal models info {name}` says what to know of it")
    typer.echo(f"use it with --model {name}")


def _facts(folder: Path) -> dict[str, str]:
    from ..config import read_model_config

    config = read_model_config(folder / "config.json")
    weights = folder / "model.safetensors"
    kind = "RGB" if config.image.channels == 3 else "grayscale"
    resolution = f" at {config.image.mpp:g} µm/px" if config.image.mpp else ""
    size = f"{weights.stat().st_size / 1e6:.1f} MB" if weights.is_file() else "weights missing"
    tile = config.network.fixed_tile
    depends = f"depends on it: {tile} x {tile} pixels, always" if tile else "does not depend on it"
    return {
        "name": folder.name,
        "for": f"{', '.join(config.classes)} in {kind} images{resolution}",
        "target": config.target,
        "generator": config.network.architecture,
        "steps": str(config.diffusion.steps),
        "tile": f"the answer {depends}",
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
