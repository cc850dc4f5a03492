"""Carry out `segment` and `batch`: one line an input, progress meanwhile, an exit code after."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CdalError, printable
from .progress import bars, console
from .threads import use_available_processors

if TYPE_CHECKING:
    from ..batch.run import Input, Outcome, Parameters
    from ..segmenter import Segmenter


@dataclass(frozen=True)
class Work:
    """What a command line asks for."""

    inputs: "list[Input]"
    out: Path
    model: str
    device: str
    tile: int | None
    parameters: "Parameters"
    restart: bool = False
    skipped: int = 0  # what was found but cannot be input: counted as failed

    def segmenter(self) -> "Segmenter":
        """Load the model onto its device."""
        from ..model import Model
        from ..segmenter import Segmenter

        use_available_processors()
        return Segmenter(Model.load(self.model), self.device, self.tile)


def carry_out(work: Work) -> int:
    """Segment every input and return the exit code of DESIGN's contract: 0 or 1."""
    from ..batch.run import check_options, run

    segmenter = work.segmenter()
    check_options(segmenter, work.parameters)
    _prepare(work)
    counts = {"done": 0, "already": 0, "failed": work.skipped}
    try:
        with bars(len(work.inputs)) as shown:
            for outcome in run(
                work.inputs,
                segmenter,
                work.parameters,
                restart=work.restart,
                progress=shown.passes,
                on_start=lambda item: shown.start(item.path.name),
            ):
                counts[_print(outcome)] += 1
                shown.finish()
    except KeyboardInterrupt:
        _summarise(work)
        console.print("what is finished is kept; run again to go on")
        raise
    summarised = _summarise(work)
    done = f"{counts['done']} segmented"
    already = f", {counts['already']} finished before" if counts["already"] else ""
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    print(printable(f"{done}{already}{failed}; results in {work.out}, overview in summary.csv"))
    return 1 if counts["failed"] or not summarised else 0


def _summarise(work: Work) -> bool:
    """Write summary.csv; whether that went well."""
    from ..batch.lock import LEASE, alone
    from ..io.records import write_summary

    try:
        # One after another, so that the last of several runs that end together sees them all.
        with alone(work.out, wait=LEASE):
            write_summary(work.out)
    except CdalError as error:
        console.print(f"failed: {error}", markup=False, soft_wrap=True)
        return False
    return True


def _prepare(work: Work) -> None:
    """Refuse, before the first input, an output folder that cannot be used."""
    from ..io.records import check_summary

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
    check_summary(work.out)
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
    counts = run["counts"]
    found = f"{counts['objects']} objects"
    if "volume_mm3" in counts:
        found = ", ".join(f"{name} {size:.0f} mm³" for name, size in counts["volume_mm3"].items())
    return printable(f"{path.name}: {found} in {seconds:.1f} s{assumed}")
