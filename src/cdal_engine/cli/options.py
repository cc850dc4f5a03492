"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CdalError

if TYPE_CHECKING:
    from ..io.regions import Regions

SAVE_CHOICES = (
    "labels",
    "probability",
    "uncertainty",
    "attention",
    "samples",
    "geojson",
    "table",
    "solidity",
    "overview",
)

Model = Annotated[str, typer.Option("--model", "-m", help="A model's name, or a model folder.")]
Samples = Annotated[
    int, typer.Option(min=1, max=64, help="Answers drawn and averaged; they show the uncertainty.")
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=16,
        help="Denoising steps: the model's own (default), or 0: one deterministic pass.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**62 - 1, help="Same seed, same result.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Tile = Annotated[
    int | None,
    typer.Option(min=16, help="About the edge of the tiles, in pixels at the model's resolution."),
]
TileMode = Annotated[
    str,
    typer.Option(
        help="Of imported models: overlap, or published (every image brought to one size, tiles "
        "side by side)."
    ),
]
Mpp = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=100.0, help="Micrometres per pixel, where the file is silent or wrong."
    ),
]
Save = Annotated[
    str, typer.Option(help=f"What to write, separated by commas: {', '.join(SAVE_CHOICES)}.")
]
Tissue = Annotated[
    bool,
    typer.Option(
        "--tissue-mask/--no-tissue-mask",
        help="Of slides: look for tissue first, and only there for objects.",
    ),
]
RegionsFile = Annotated[
    Path | None,
    typer.Option(
        "--regions",
        help="Of slides: GeoJSON of polygons, as QuPath exports annotations; only inside them.",
    ),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Do finished inputs again; default is to resume.")
]
Shard = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Only the I-th of N shares of the inputs, for array jobs."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Worker processes on this machine, one GPU each if any."),
]
Scheduler = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Of a dask cluster, whose workers to use.")
]
Out = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]

DEFAULT_SAVE = "labels,table,geojson,overview"


def read_regions(path: Path | None) -> "Regions | None":
    """Read `--regions`; raises `CdalError` if that cannot be."""
    from ..io.regions import read_regions

    return None if path is None else read_regions(path)


def parse_save(text: str) -> tuple[str, ...]:
    """Split `--save`; raises `CdalError` naming what is unknown."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in SAVE_CHOICES]
    if unknown or not names:
        raise CdalError(
            f"--save: unknown {', '.join(unknown)}" if unknown else "--save: nothing to write",
            f"choose from {', '.join(SAVE_CHOICES)}",
        )
    if "solidity" in names and "table" not in names:
        raise CdalError("--save: solidity is a column of the table", "use --save table,solidity")
    return names


def parse_shard(text: str) -> slice:
    """Make `I/N` the slice that picks a share of sorted inputs: every N-th, from the I-th on.

    Raises
    ------
    CdalError
        If there is no such share.
    """
    share, _, shares = text.partition("/")
    if not (share.isdecimal() and shares.isdecimal() and 1 <= int(share) <= int(shares)):
        raise CdalError(f"--shard: no share {text!r}", "of 4 shares, use 1/4 to 4/4")
    return slice(int(share) - 1, None, int(shares))
