"""Where the networks run, and what a lack of memory there looks like."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .errors import CdalError

__all__ = [
    "is_out_of_memory",
    "memory_budget",
    "memory_reported",
    "out_of_memory",
    "peak_memory",
    "peak_memory_mb",
    "precision",
    "select_device",
]

_CPU_BUDGET = 2**29


def select_device(name: str = "auto") -> torch.device:
    """Choose a device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises
    ------
    CdalError
        If it is not to be had here.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available()}
    present["mps"] = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if present[kind]))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in present:
        raise CdalError(f"unknown device {name!r}", "use auto, cpu, cuda, cuda:N or mps")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if not present[device.type] or (device.index or 0) >= count:
        raise CdalError(
            f"device {name!r} is not available here",
            "choose auto or cpu; `cdal doctor` shows what is there",
        )
    return device


def memory_budget(device: torch.device) -> tuple[float, int]:
    """Bytes that the networks may take at once, and how many tiles at most share a batch.

    Half of a GPU's memory, whatever else it holds. On the CPU more tiles at once gain nothing, and
    beyond half a GiB fresh memory for each operation costs as much as the operation: five samples
    of 1024 x 1024 took 7.4 s at once and 4.0 s two by two (benchmarks/RESULTS.md).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2, 64
    if device.type == "mps":
        return torch.mps.recommended_max_memory() / 2, 64
    return _CPU_BUDGET, 1


def precision(device: torch.device) -> torch.dtype:
    """Of weights and activations on a device; label maps, noise and probabilities are float32.

    Weights are stored in float16, and a GPU computes in it several times as fast. The CPU stays
    with float32: its answer is the same with and without instructions for reduced precision.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means too little memory: torch raises a RuntimeError on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "alloc" in str(error)


_SMALLER = "crop the image, take fewer samples, or correct its micrometres per pixel"


def out_of_memory(reason: str = "there is not enough memory", remedy: str = _SMALLER) -> CdalError:
    """What to raise, and what can be done, where memory does not suffice."""
    return CdalError(reason, remedy)


@contextmanager
def memory_reported(remedy: str = _SMALLER) -> Iterator[None]:
    """Turn what torch raises for a lack of memory into an error to act on."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(remedy=remedy) from error
        raise


def peak_memory_mb() -> float | None:
    """Largest resident set of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """Measure the most memory taken while the context lasts.

    Yields a function that returns megabytes: of the GPU on CUDA, else of this process; None where
    the system cannot forget what was taken before.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) / 1e6
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is counted anew
    except OSError:
        yield lambda: None
    else:
        yield peak_memory_mb
