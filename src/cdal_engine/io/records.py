"""run.json, failed.json and the summary built from them: what was done, and how it ended."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from ..errors import CdalError, DiskFull

__all__ = [
    "FAILED",
    "REPORT",
    "RUN",
    "Record",
    "check_summary",
    "forget_failure",
    "is_results_folder",
    "read_run",
    "summary_rows",
    "write_aside",
    "write_failure",
    "write_json",
    "write_summary",
    "writing",
]

_FULL = {errno.ENOSPC, errno.EDQUOT}
RUN = "run.json"
FAILED = "failed.json"
SUMMARY = "summary.csv"
REPORT = "report.html"
_LARGEST = 2**26  # bytes of a record; ours take some thousands
_MARK = "napari-cdal"  # a key of every record: other programs write a run.json, too

Record = dict[str, Any]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report what keeps results from being written to `path` as an error to act on."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"cannot write results here: {os.strerror(error.errno)}",
                "make space, then do the same again",
                path,
            ) from None
        raise CdalError(
            f"cannot write results here: {error.strerror or error}",
            "check space and rights, or choose another folder",
            path,
        ) from None


def write_aside(path: Path, content: bytes) -> None:
    """Write a file whole: aside first, then renamed; by one process at a time."""
    # Of a name of its own: two processes whose lock failed must not write into one.
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for left in path.parent.glob(f".{escape(path.name)}.[0-9]*.tmp"):  # of killed runs
            left.unlink(missing_ok=True)
        with aside.open("xb") as file:  # never through a link that somebody put there
            file.write(content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, record: Record) -> None:
    """Write a record, marked as ours."""
    text = json.dumps({_MARK: record.get("version", ""), **record}, indent=2, allow_nan=False)
    write_aside(path, (text + "\n").encode())


def _read(path: Path) -> Record | None:
    try:
        if path.stat().st_size > _LARGEST:
            return None
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _MARK in record else None


def read_run(folder: Path, finished: bool = True) -> Record | None:
    """Return what run.json in `folder` says; None if there is none of ours.

    Parameters
    ----------
    folder : Path
    finished : bool
        Only if all results had been written.
    """
    record = _read(folder / RUN)
    return record if record is not None and (record.get("finished") or not finished) else None


def is_results_folder(folder: Path) -> bool:
    """Whether `folder` holds results or a training run of ours, which are never input."""
    records = any(_read(folder / name) is not None for name in (RUN, FAILED))
    return records or (folder / "checkpoint.pt").is_file()


def write_failure(folder: Path, path: Path, error: CdalError) -> None:
    """Record why an input failed; earlier results of it stay as they are.

    Raises
    ------
    CdalError
        If that cannot be written either.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        record = {"input": {"path": str(path)}, "error": error.reason, "remedy": error.remedy}
        write_json(folder / FAILED, record)


def forget_failure(folder: Path) -> None:
    """Remove the record of an earlier failure: the input is done."""
    with suppress(OSError):
        (folder / FAILED).unlink(missing_ok=True)


def check_summary(out: Path) -> None:
    """Refuse a summary.csv or report.html in `out` that is not ours, before any work is done.

    Raises
    ------
    CdalError
        If there is one.
    """
    for name, start in _STARTS.items():
        path = out / name
        try:
            ours = not path.exists() or path.read_bytes().startswith(start)
        except OSError:
            ours = False
        if not ours:
            raise CdalError(
                "cdal did not write this file and would replace it",
                "move it away, or choose another folder with -o",
                path,
            )


def summary_rows(out: Path) -> list[dict[str, str]]:
    """What the records below `out` say, a row an input; its keys are some of summary.csv's."""
    return [_row(out, folder) for folder in _results_folders(out)]


def write_summary(out: Path) -> list[dict[str, str]]:
    """Write summary.csv in `out`, a line an input, from the records below it; return its rows.

    Raises
    ------
    CdalError
        If it cannot be written, or one is there that is not ours.
    """
    check_summary(out)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    rows = summary_rows(out)
    writer.writerows(rows)
    with writing(out):
        write_aside(out / SUMMARY, text.getvalue().encode("utf-8", "backslashreplace"))
    return rows


_COLUMNS = (
    "results",
    "status",
    "objects",
    "objects_least",
    "objects_most",
    "area_um2",
    "area_um2_least",
    "area_um2_most",
    "area_mm2",
    "objects_per_mm2",
    "objects_per_mm2_least",
    "objects_per_mm2_most",
    "mpp",
    "mpp_source",
    "agreement",
    "volumes_mm3",
    "class_areas_um2",
    "seconds",
    "model",
    "input",
    "error",
    "remedy",
)
# what our own files begin with, of any version
_STARTS = {
    SUMMARY: ",".join(_COLUMNS[:3]).encode(),
    REPORT: b"<!DOCTYPE html>\n<!-- napari-cdal report -->",
}


def _results_folders(out: Path) -> Iterator[Path]:
    for parent, folders, _ in os.walk(out):
        folders[:] = sorted(name for name in folders if not name.endswith(".zarr"))
        if is_results_folder(Path(parent)):
            yield Path(parent)


def _row(out: Path, folder: Path) -> dict[str, str]:
    """One line of the summary; an input that failed after it succeeded once counts as failed."""
    row = {"results": folder.relative_to(out).as_posix()}
    try:
        return row | _facts(folder)
    except (AttributeError, KeyError, TypeError, ValueError):
        return row | {
            "status": "unknown",
            "error": "its record is damaged",
            "remedy": "--restart makes it anew",
        }


def _facts(folder: Path) -> dict[str, str]:
    failed = _read(folder / FAILED)
    if failed is not None:
        return {
            "status": "failed",
            "error": str(failed.get("error", "")),
            "remedy": str(failed.get("remedy", "")),
            "input": str(failed["input"]["path"]),
        }
    run = read_run(folder)
    if run is None:
        return {"status": "interrupted"}
    counts = run["counts"]
    return {
        "status": "done",
        **{column: _text(counts[column]) for column in ("objects", "area_mm2")},
        **{column: _text(counts.get(column)) for column in ("area_um2", "objects_per_mm2")},
        **_ends("objects", counts.get("objects_interval")),
        **_ends("area_um2", counts.get("area_interval")),
        **_ends("objects_per_mm2", counts.get("objects_per_mm2_interval")),
        "mpp": _text(run["mpp"]),
        "mpp_source": str(run["mpp_source"]),
        "agreement": _text(counts.get("agreement")),
        "volumes_mm3": _sizes(counts.get("volume_mm3", {})),
        "class_areas_um2": _sizes(counts.get("class_area_um2", {})),
        "seconds": f"{_total(run['seconds']):.3f}",
        "model": str(run["model"]["name"]),
        "input": str(run["input"]["path"]),
    }


def _total(seconds: dict[str, float]) -> float:
    """Seconds from begin to end; of earlier versions' records, of all parts, which may overlap."""
    return seconds.get("total", sum(seconds.values()))


def _ends(name: str, interval: list[float] | None) -> dict[str, str]:
    least, most = interval or (None, None)
    return {f"{name}_least": _text(least), f"{name}_most": _text(most)}


def _sizes(classes: dict[str, float]) -> str:
    return "; ".join(f"{name} {_text(size)}" for name, size in classes.items())


def _text(value: float | None) -> str:
    """A number as the summary shows it; nothing for what is not known."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
