"""Carry out `segment` and `batch`: one line an input, progress meanwhile, an exit code after."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CdalError, printable
from .progress import Bars, bars, console
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
    workers: int | None = None  # processes of this machine
    scheduler: str | None = None  # address of a dask cluster

    def segmenter(self) -> "Segmenter":
        """Load the model onto its device."""
        from ..model import Model
        from ..segmenter import Segmenter

        use_available_processors()
        device = "cpu" if self.distributed else self.device  # the workers' is theirs to check
        return Segmenter(Model.load(self.model), device, self.tile)

    @property
    def distributed(self) -> bool:
        """Whether workers do it, not this process."""
        return bool(self.workers or self.scheduler)


def carry_out(work: Work) -> int:
    """Segment every input and return the exit code of DESIGN's contract: 0 or 1."""
    from ..batch.run import check_options

    segmenter = work.segmenter()
    check_options(segmenter, work.parameters)
    _prepare(work)
    counts = {"done": 0, "already": 0, "failed": work.skipped}
    stopped, plain = False, 0
    try:
        with bars(len(work.inputs)) as shown:
            for outcome in _outcomes(work, segmenter, shown):
                counts[_print(outcome)] += 1
                plain += outcome.run is not None and outcome.run["input"]["kind"] != "slide"
                shown.finish()
    except KeyboardInterrupt:
        _summarise(work)
        console.print("what is finished is kept; run again to go on")
        raise
    except CdalError as error:  # the disk is full, or the workers are lost
        if counts["done"] + counts["already"] == 0:
            raise
        console.print(f"stopped: {error}", markup=False, soft_wrap=True)
        stopped = True
    if plain and not work.parameters.tissue:
        console.print(f"--no-tissue-mask is for slides: {plain} others count whole without it, too")
    summarised = _summarise(work)
    done = f"{counts['done']} segmented"
    already = f", {counts['already']} finished before" if counts["already"] else ""
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    print(printable(f"{done}{already}{failed}; results in {work.out}, overview in report.html"))
    return 1 if counts["failed"] or stopped or not summarised else 0


def _outcomes(work: Work, segmenter: "Segmenter", shown: Bars) -> "Iterator[Outcome]":
    """Run the inputs in this process or, where asked for, on workers."""
    from ..batch.run import run

    if not work.distributed:
        yield from run(
            work.inputs,
            segmenter,
            work.parameters,
            restart=work.restart,
            progress=shown.passes,
            on_start=lambda item: shown.start(item.path.name),
        )
        return
    try:
        from ..batch.distributed import Loading, cluster_at, local_cluster, run_on
    except ImportError as error:
        raise CdalError(
            f"--workers and --scheduler need {error.name}, which is not installed",
            "pip install 'napari-cdal[cluster]'",
        ) from None
    model = os.path.abspath(work.model) if Path(work.model).is_dir() else work.model
    loading = Loading(model, work.device, work.tile, local=work.scheduler is None)
    shown.start("starting workers")
    cluster = cluster_at(work.scheduler) if work.scheduler else local_cluster(work.workers or 1)
    with cluster as client:
        shown.start("on workers")
        yield from run_on(
            client,
            work.inputs,
            loading,
            segmenter.model.digest,
            work.out,
            work.parameters,
            work.restart,
            progress=shown.passes,
        )


def _summarise(work: Work) -> bool:
    """Write summary.csv and report.html; whether that went well."""
    from ..batch.lock import LEASE, alone
    from ..io.records import write_summary
    from ..io.report import write_report

    try:
        # One after another, so that the last of several runs that end together sees them all.
        with alone(work.out, wait=LEASE):
            write_report(work.out, write_summary(work.out))
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
    root = work.out.resolve()
    outside = next((i for i in work.inputs if not i.folder.resolve().is_relative_to(root)), None)
    if outside is not None:
        raise CdalError(
            f"a link would lead its results out of {work.out}",
            "remove it, or choose another folder with -o",
            outside.folder,
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
    seconds = run["seconds"]["total"]
    assumed = f", {run['mpp_source']}" if str(run["mpp_source"]).startswith("assumed") else ""
    counts = run["counts"]
    found = f"{counts['objects']} objects"
    if counts["objects"] is None:
        areas = counts.get("class_area_um2", {}).items()
        found = ", ".join(f"{name} {size / 1e6:.3g} mm²" for name, size in areas) or "classes"
    if "volume_mm3" in counts:
        found = ", ".join(f"{name} {size:.0f} mm³" for name, size in counts["volume_mm3"].items())
    return printable(f"{path.name}: {found} in {seconds:.1f} s{assumed}")
