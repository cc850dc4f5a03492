"""Progress on the terminal: bars with rate and time left, and plain lines where there is none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from .interrupt import check

console = Console(stderr=True, highlight=False)


class _RateColumn(ProgressColumn):
    """Rate in steps a second, or seconds a step."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


@dataclass
class Bars:
    """An outer bar over inputs and an inner one over the passes of the current input."""

    progress: Progress
    outer: object
    inner: object

    def start(self, name: str) -> None:
        """Show the next input in the inner bar."""
        self.progress.reset(self.inner, description=name, total=None)  # type: ignore[arg-type]

    def passes(self, done: int, total: int) -> bool:
        """Advance the inner bar: an engine progress callback that never cancels."""
        check()
        self.progress.update(self.inner, completed=done, total=total)  # type: ignore[arg-type]
        return True

    def finish(self) -> None:
        """Advance the outer bar."""
        check()
        self.progress.advance(self.outer)  # type: ignore[arg-type]


def _columns() -> list[ProgressColumn]:
    return [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]


@contextmanager
def bars(total: int) -> Iterator[Bars]:
    """Show progress over `total` inputs while the context lasts."""
    with Progress(*_columns(), console=console, transient=True) as progress:
        outer = progress.add_task("images", total=total)
        inner = progress.add_task("", total=None)
        yield Bars(progress, outer, inner)


@contextmanager
def share_bar(description: str) -> Iterator[Callable[[str, float], None]]:
    """Show one bar in per cent; yields what updates its description and share done, 0 to 1."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=1.0)
        yield lambda text, share: progress.update(task, description=text, completed=share)
