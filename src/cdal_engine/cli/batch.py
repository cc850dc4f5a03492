"""cdal batch: every readable image and slide below a folder."""

import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CdalError, printable
from . import options
from .progress import console
from .work import Work, carry_out

if TYPE_CHECKING:
    from ..batch.run import Parameters
    from ..segmenter import Segmenter


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
    tile_mode: options.TileMode = "overlap",
    mpp: options.Mpp = None,
    save: options.Save = options.DEFAULT_SAVE,
    tissue: options.Tissue = True,
    regions: options.RegionsFile = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Only files matching this pattern; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No files matching this pattern; repeatable.")
    ] = None,
    restart: options.Restart = False,
    shard: options.Shard = None,
    workers: options.Workers = None,
    scheduler: options.Scheduler = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be done, and what would fail.")
    ] = False,
) -> None:
    """Segment every readable image, slide and volume below a folder; run again to resume."""
    from ..batch.run import Parameters, input_folders
    from ..io.discovery import find_sources

    asked, only = options.parse_save(save), options.read_regions(regions)
    parameters = Parameters(samples, steps, seed, mpp, tile_mode, asked, tissue, only)
    share = None if shard is None else options.parse_shard(shard)
    skipped: list[CdalError] = []
    paths = find_sources(folder, include or (), exclude or (), skipped.append)
    for error in skipped:
        console.print(f"failed: {error}", markup=False, soft_wrap=True)
    if not paths:
        raise CdalError(
            "no images or slides found", "check the folder, --include, --exclude", folder
        )
    out = output or folder / "cdal-out"
    inputs = input_folders(paths, out, root=folder)
    if share is not None:
        # Sorted alike on every system, so that the shares of all jobs make up the whole.
        inputs = sorted(inputs, key=lambda item: item.folder.as_posix())[share]
    if workers is not None and scheduler is not None:
        raise CdalError("--workers and --scheduler contradict each other", "use one of them")
    work = Work(
        inputs, out, model, device, tile, parameters, restart, len(skipped), workers, scheduler
    )
    if dry_run:
        raise typer.Exit(_list(replace(work, workers=None, scheduler=None)))
    raise typer.Exit(carry_out(work))


def _list(work: Work) -> int:
    """Say of each input what would be done, its pixels not read."""
    from ..batch.estimate import megapixels
    from ..batch.opened import check_source
    from ..batch.provenance import is_finished
    from ..batch.run import check_options
    from ..io.source import sides

    segmenter = work.segmenter()
    check_options(segmenter, work.parameters)
    failures, finished, todo = work.skipped, 0, 0.0
    for item in work.inputs:
        try:
            if not work.restart and is_finished(item, segmenter, work.parameters):
                finished += 1
                typer.echo(printable(f"{item.path}: finished before"))
                continue
            source, resolution = check_source(item.path, segmenter, work.parameters)
        except CdalError as error:
            failures += 1
            typer.echo(f"would fail: {error.at(item.path)}")
            continue
        todo += megapixels(source, resolution, segmenter, work.parameters)
        mpp = "" if resolution.mpp is None else f", {resolution.mpp:.4g} µm/px"
        where = f" ({resolution.source})" if resolution.mpp is not None else ""
        typer.echo(printable(f"{item.path}: {source.kind}, {sides(source.shape)}{mpp}{where}"))
    typer.echo(f"{len(work.inputs)} inputs, {finished} finished before, {failures} would fail")
    if todo:
        typer.echo(_time(todo, segmenter, work.parameters))
    return 1 if failures else 0


def _time(megapixels: float, segmenter: "Segmenter", parameters: "Parameters") -> str:
    """How long the model may take, and how that is known."""
    from ..batch.estimate import rate

    speed = rate(segmenter, parameters)
    left = timedelta(seconds=math.ceil(megapixels / speed))
    return (
        f"about {left} (hours:minutes:seconds) in one process: {megapixels:.1f} megapixels at the "
        f"model's resolution, {speed:.3g} a second on {segmenter.device} (tried on noise); reading "
        "and writing come on top"
    )
