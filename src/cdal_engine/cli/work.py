"""Carry out `segment` and `batch`: one line an input, progress meanwhile, an exit code after."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CdalError
from .progress import bars, console

if TYPE_CHECKING:
    from ..batch.run import Input, Outcome, Parameters


@dataclass(frozen=True)
class Work:
    """What a command line asks for."""

    inputs: "list[Input]"
    out: Path
    model: str
    device: str
    tile: int | None
    parameters: "Parameters"
    restart: bool


def carry_out(work: Work) -> int:
    """Segment every input and return the exit code of DESIGN's contract: 0, 1 or 130."""
    from ..batch.run import run
    from ..model import Model
    from ..segmenter import Segmenter

    segmenter = Segmenter(Model.load(work.model), work.device, work.tile)
    segmenter.check_options(work.parameters.samples, work.parameters.steps)
    _prepare(work)
    counts = {"done": 0, "already": 0, "failed": 0}
    with bars(len(work.inputs)) as shown:
        try:
            for outcome in run(
                work.inputs,
                segmenter,
                work.parameters,
                work.out,
                restart=work.restart,
                progress=shown.passes,
                on_start=lambda item: shown.start(item.path.name),
            ):
                counts[_print(outcome)] += 1
                shown.finish()
        except KeyboardInterrupt:
            console.print("interrupted: what is finished is kept; run again to go on")
            return 130
    done = f"{counts['done']} segmented"
    already = f", {counts['already']} finished before" if counts["already"] else ""
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    print(f"{done}{already}{failed}; results in {work.out}, overview in {work.out / 'summary.csv'}")
    return 1 if counts["failed"] else 0


def _prepare(work: Work) -> None:
    """Refuse, before the first input, an output folder that cannot be written to."""
    try:
        work.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work.out):
            pass
    except OSError as error:
        raise CdalError(
            f"cannot write results here: {error.strerror}",
            "choose another folder with -o",
            work.out,
        ) from None
    blocked = next((item for item in work.inputs if item.folder.is_file()), None)
    if blocked is not None:
        raise CdalError(
            "a file is where its results folder would be",
            "choose another folder with -o",
            blocked.folder,
        )


def _print(outcome: "Outcome") -> str:
    """Print one input's line and return which count it belongs to."""
    if outcome.already:
        return "already"
    if outcome.error is not None:
        console.print(f"failed: {outcome.error}", markup=False, soft_wrap=True)
        return "failed"
    console.print(describe(outcome.input.path, outcome.run or {}), markup=False, soft_wrap=True)
    return "done"


def describe(path: Path, run: dict[str, Any]) -> str:
    """One line on a finished input, from its run.json."""
    seconds = run["seconds"]["model"]
    assumed = f", {run['mpp_source']}" if str(run["mpp_source"]).startswith("assumed") else ""
    return f"{path.name}: {run['counts']['objects']} objects in {seconds:.1f} s{assumed}"
