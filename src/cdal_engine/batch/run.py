"""Run a model over many inputs in process, resuming by input; one failure never stops the rest."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from .. import __version__
from ..errors import Cancelled, CdalError
from ..io.discovery import open_source
from ..io.records import read_run, write_failure, write_summary
from ..io.results import ResultsFolder
from ..io.source import Source
from ..segmenter import Progress, Segmentation, Segmenter

__all__ = ["Input", "Outcome", "Parameters", "input_folders", "run", "run_one"]


@dataclass(frozen=True)
class Parameters:
    """What, with the model, decides an input's results; recorded in its run.json."""

    samples: int = 5
    steps: int | None = None  # None: what the model was trained with
    seed: int = 0
    mpp: float | None = None  # overrides what the input says
    save: tuple[str, ...] = ("labels", "table", "geojson", "overview")


@dataclass(frozen=True)
class Input:
    """One file to segment and the folder its results go to."""

    path: Path
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """How one input ended: exactly one of `result`, `error` and `already` is set."""

    input: Input
    run: dict[str, object] | None = None
    error: CdalError | None = None
    already: bool = False


def input_folders(paths: Iterable[Path], out: Path, root: Path | None = None) -> list[Input]:
    """Give each input a folder below `out`, named by its path relative to `root`.

    Without `root` the file's name is enough, unless two inputs share it: then the path relative
    to their common folder.
    """
    paths = list(dict.fromkeys(Path(os.path.abspath(p)) for p in paths))
    if root is None and len({p.name for p in paths}) < len(paths):
        root = Path(os.path.commonpath([p.parent for p in paths]))
    base = None if root is None else Path(os.path.abspath(root))
    return [Input(p, out / (p.name if base is None else p.relative_to(base))) for p in paths]


def run(
    inputs: Iterable[Input],
    segmenter: Segmenter,
    parameters: Parameters,
    out: Path,
    *,
    restart: bool = False,
    progress: Progress | None = None,
    on_start: Callable[[Input], None] | None = None,
) -> Iterable[Outcome]:
    """Segment each input and yield how it ended; at the end, summary.csv is written into `out`.

    Parameters
    ----------
    inputs : iterable of Input
    segmenter : Segmenter
    parameters : Parameters
    out : Path
        Folder of the summary.
    restart : bool
        Do finished inputs again; by default those finished with the same model and parameters are
        skipped.
    progress : callable, optional
        Of the input being worked on.
    on_start : callable, optional
        Called before each input.
    """
    try:
        for item in inputs:
            if on_start is not None:
                on_start(item)
            yield _attempt(item, segmenter, parameters, restart, progress)
    finally:
        write_summary(out)


def _attempt(
    item: Input,
    segmenter: Segmenter,
    parameters: Parameters,
    restart: bool,
    progress: Progress | None,
) -> Outcome:
    try:
        identity = _identity(item.path)
        if not restart and _finished(item, segmenter, parameters, identity):
            return Outcome(item, already=True)
        return Outcome(item, run=_segment(item, segmenter, parameters, identity, progress)[1])
    except Cancelled:
        raise
    except CdalError as error:
        failure = error.at(item.path)
    except MemoryError:
        failure = CdalError("not enough memory", "use --mpp or a smaller image", item.path)
    except OSError as error:
        failure = CdalError(
            str(error.strerror or error), "check the disk and its rights", item.path
        )
    except Exception as error:  # a defect of ours must not cost the other inputs
        failure = CdalError(
            f"{type(error).__name__}: {error}", "unexpected; please report it", item.path
        )
        failure.__cause__ = error
    with suppress(CdalError):  # nothing can be written there, which most likely is what failed
        write_failure(item.folder, item.path, failure)
    return Outcome(item, error=failure)


def run_one(
    item: Input, segmenter: Segmenter, parameters: Parameters, progress: Progress | None = None
) -> tuple[Segmentation, dict[str, object]]:
    """Segment one input, write its results and return them with what run.json records.

    Raises
    ------
    CdalError
        Naming the input, if it cannot be read, segmented or written.
    """
    try:
        return _segment(item, segmenter, parameters, _identity(item.path), progress)
    except CdalError as error:
        raise error.at(item.path) from None


def _segment(
    item: Input,
    segmenter: Segmenter,
    parameters: Parameters,
    identity: dict[str, object],
    progress: Progress | None,
) -> tuple[Segmentation, dict[str, object]]:
    start = time.perf_counter()
    source = open_source(item.path)
    mpp, mpp_source = _resolution(source, parameters.mpp, segmenter)
    with ResultsFolder(item.folder) as folder:
        image = source.read()
        read = time.perf_counter()
        result = segmenter.segment(
            image,
            mpp=mpp,
            samples=parameters.samples,
            steps=parameters.steps,
            seed=parameters.seed,
            keep_samples="samples" in parameters.save,
            attention="attention" in parameters.save,
            on_model_grid=source.kind == "slide",
            progress=progress,
        )
        segmented = time.perf_counter()
        folder.write(source, image, result, mpp, parameters.save)
        model = segmenter.model
        height, width = source.shape
        record = {
            "version": __version__,
            "input": identity
            | {"reader": source.reader, "kind": source.kind, "shape": [height, width]},
            "model": {"name": model.name, "digest": model.digest, "target": model.config.target},
            "parameters": _recorded(parameters),
            "device": str(segmenter.device),
            "mpp": mpp,
            "mpp_source": mpp_source,
            "counts": {
                "objects": len(result.objects["label"]),
                "area_mm2": None if mpp is None else height * width * (mpp / 1000) ** 2,
            },
            "seconds": {
                "read": read - start,
                "model": segmented - read,
                "write": time.perf_counter() - segmented,
            },
            "peak_memory_mb": _peak_memory_mb(),
            "versions": _versions(),
        }
        return result, folder.publish(record)


def _resolution(
    source: Source, override: float | None, segmenter: Segmenter
) -> tuple[float | None, str]:
    """Micrometres per pixel and where they come from: the option, the file, or the model."""
    own = segmenter.model.config.image.mpp
    if override is not None:
        return override, "--mpp"
    if source.mpp is not None or own is None:
        return source.mpp, source.mpp_source
    if source.kind == "slide":
        hint = f"; its magnification says {source.magnification:g}x" if source.magnification else ""
        raise CdalError(
            f"the slide does not say its micrometres per pixel{hint}",
            f"give --mpp, e.g. --mpp {10 / (source.magnification or 40):g}",
            source.path,
        )
    return own, f"assumed: the model's own {own:g} µm"


def _finished(
    item: Input, segmenter: Segmenter, parameters: Parameters, identity: dict[str, object]
) -> bool:
    record = read_run(item.folder)
    if record is None:
        return False
    model, before = record.get("model"), record.get("input")
    return (
        isinstance(model, dict)
        and isinstance(before, dict)
        and model.get("digest") == segmenter.model.digest
        and record.get("parameters") == _recorded(parameters)
        and all(before.get(key) == value for key, value in identity.items())
    )


def _recorded(parameters: Parameters) -> dict[str, object]:
    return asdict(parameters) | {"save": sorted(parameters.save)}


def _identity(path: Path) -> dict[str, object]:
    try:
        status = path.stat()
    except OSError as error:
        raise CdalError(f"cannot be read: {error.strerror}", "check the path", path) from None
    return {"path": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _peak_memory_mb() -> float | None:
    """Largest resident set of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "scipy", "scikit-image", "tifffile")
    return {
        "napari-cdal": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
