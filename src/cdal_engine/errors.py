"""Errors that users read: what came, what was expected, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["Cancelled", "CdalError", "DiskFull", "printable", "together"]


class CdalError(Exception):
    """A failure the user can act on, printed as one line.

    Parameters
    ----------
    reason : str
        What was expected and what came.
    remedy : str, optional
        What to do about it.
    path : Path, optional
        The file or folder concerned.
    """

    def __init__(self, reason: str, remedy: str = "", path: Path | str | None = None) -> None:
        super().__init__(reason, remedy, path)
        self.reason = reason
        self.remedy = remedy
        self.path = Path(path) if path is not None else None

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path is not None else ""
        remedy = f" ({self.remedy})" if self.remedy else ""
        return printable(f"{where}{self.reason}{remedy}")

    def at(self, path: Path | str) -> CdalError:
        """Return the same error naming `path`, unless it names one already."""
        return self if self.path is not None else CdalError(self.reason, self.remedy, path)


class DiskFull(CdalError):
    """There is no space left for results: every other input would end the same way."""


def together(problems: Sequence[CdalError]) -> CdalError:
    """One error that names every problem; a single one as it is."""
    if len(problems) == 1:
        return problems[0]
    each = "; ".join(f"[{n}] {problem}" for n, problem in enumerate(problems, 1))
    return CdalError(f"{len(problems)} problems: {each}")


def printable(text: str) -> str:
    """One line that any terminal and file takes: file names may hold anything."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").splitlines())


class Cancelled(Exception):
    """The progress callback asked to stop."""
