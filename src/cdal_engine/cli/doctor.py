"""cdal doctor: what is installed, and how a file would be read."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable

_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-image",
    "tifffile",
    "imagecodecs",
    "zarr",
    "openslide-python",
    "wsidicom",
    "nibabel",
    "SimpleITK",
    "monai",
    "lightning-fabric",
    "napari",
)


def doctor(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A file, or a folder of DICOM or .zarr, to look into.", show_default=False
        ),
    ] = None,
) -> None:
    """Show versions, devices and models; or what a file is and how it would be read."""
    if file is not None:
        raise typer.Exit(_look_into(file))
    import torch

    from .. import __version__
    from ..device import select_device
    from ..weights import available

    typer.echo(f"napari-cdal {__version__}, Python {platform.python_version()}, {sys.platform}")
    for name in _PACKAGES:
        try:
            typer.echo(f"  {name:<18} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            typer.echo(f"  {name:<18} not installed")
    typer.echo(f"cores {os.cpu_count()}, torch threads {torch.get_num_threads()}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    typer.echo(f"cuda: {', '.join(gpus) or 'none'}; mps: {torch.backends.mps.is_available()}")
    typer.echo(f"--device auto means {select_device('auto')}")
    typer.echo(f"models: {', '.join(available()) or 'none'}")


def _look_into(file: Path) -> int:
    """Print what a file is; 1 where its pixels cannot be read."""
    from ..io.describe import describe

    lines = describe(file)
    for key, value in lines:
        typer.echo(printable(f"{key:<14} {value}"))
    return 0 if lines[-1] == ("wrong", "nothing found") else 1
