"""cdal segment: images and slides given by name."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .work import Work, carry_out


def segment(
    images: Annotated[
        list[Path], typer.Argument(help="Images, slides or volumes.", show_default=False)
    ],
    output: options.Out = Path("cdal-out"),
    model: options.Model = "nuclei-he",
    samples: options.Samples = 5,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    tile: options.Tile = None,
    tile_mode: options.TileMode = "overlap",
    mpp: options.Mpp = None,
    save: options.Save = options.DEFAULT_SAVE,
    tissue: options.Tissue = True,
    regions: options.RegionsFile = None,
    restart: options.Restart = False,
) -> None:
    """Segment images, slides and volumes given by name."""
    from ..batch.run import Parameters, input_folders

    asked, only = options.parse_save(save), options.read_regions(regions)
    parameters = Parameters(samples, steps, seed, mpp, tile_mode, asked, tissue, only)
    work = Work(input_folders(images, output), output, model, device, tile, parameters, restart)
    raise typer.Exit(carry_out(work))
