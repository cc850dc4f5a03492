"""The `cdal` command: one module a command; heavy libraries are imported inside commands."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import CdalError
from . import batch, compare, demo, doctor, evaluate, models, segment, train
from .interrupt import interruptible

__all__ = ["app", "main"]

NOT_STARTED, INTERRUPTED = 2, 130

app = typer.Typer(
    help="Segment medical images with few-step conditional diffusion (cDAL).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("segment")(segment.segment)
app.command("batch")(batch.batch)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.add_typer(models.app, name="models")
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"napari-cdal {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line; every failure is one line, and a traceback only with --debug."""
    debug = "--debug" in sys.argv
    if debug:  # accepted anywhere
        sys.argv = [arg for arg in sys.argv if arg != "--debug"]
        logging.basicConfig()
        logging.getLogger("cdal_engine").setLevel(logging.DEBUG)
    for name in ("tifffile",) if debug else ("tifffile", "tornado", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they log, we report in a line
    try:
        with interruptible():
            app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # Typer makes this of Ctrl-C and says nothing
            typer.echo("interrupted", err=True)
        raise
    except CdalError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(NOT_STARTED)
    except Exception as error:
        if debug:
            raise
        typer.echo(f"unexpected {type(error).__name__}: {error} (--debug shows where)", err=True)
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main()
