"""cdal batch: every readable image and slide below a folder."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CdalError
from . import options
from .work import Work, carry_out


def batch(
    folder: Annotated[Path, typer.Argument(help="Folder of images and slides.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the results. [default: FOLDER/cdal-out]"),
    ] = None,
    model: options.Model = "nuclei-he",
    samples: options.Samples = 5,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    tile: options.Tile = None,
    mpp: options.Mpp = None,
    save: options.Save = options.DEFAULT_SAVE,
    include: Annotated[
        list[str] | None, typer.Option(help="Only files matching this pattern; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No files matching this pattern; repeatable.")
    ] = None,
    restart: options.Restart = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be done, and what would fail.")
    ] = False,
) -> None:
    """Segment every readable image and slide below a folder; run again to resume."""
    from ..batch.run import Parameters, input_folders
    from ..io.discovery import find_sources

    if not folder.is_dir():
        raise CdalError("no such folder", "check the path", folder)
    paths = find_sources(folder, include or (), exclude or ())
    if not paths:
        raise CdalError(
            "no images or slides found", "check the folder, --include, --exclude", folder
        )
    if dry_run:
        raise typer.Exit(_list(paths))
    out = output or folder / "cdal-out"
    parameters = Parameters(samples, steps, seed, mpp, options.parse_save(save))
    inputs = input_folders(paths, out, root=folder)
    raise typer.Exit(carry_out(Work(inputs, out, model, device, tile, parameters, restart)))


def _list(paths: list[Path]) -> int:
    from ..io.discovery import open_source

    failures = 0
    for path in paths:
        try:
            source = open_source(path)
        except CdalError as error:
            failures += 1
            typer.echo(f"would fail: {error.at(path)}")
        else:
            height, width = source.shape
            resolution = f"{source.mpp:.4g} µm/px" if source.mpp else "resolution unknown"
            typer.echo(f"{path}: {source.kind}, {width} x {height}, {resolution}")
    typer.echo(f"{len(paths)} inputs, {failures} would fail")
    return 1 if failures else 0
