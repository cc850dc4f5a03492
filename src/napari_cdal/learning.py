"""A lesson done by the engine: a model fine-tuned on corrections, kept if it is better."""

from __future__ import annotations

from collections.abc import Callable

from cdal_engine.errors import Cancelled, CdalError

from .jobs import Learned, Lesson

__all__ = ["learned"]


def learned(lesson: Lesson, report: Callable[[dict[str, float]], None]) -> Learned:
    """Fine-tune a model, and make the new one a model of the user's if it is better.

    Parameters
    ----------
    lesson : Lesson
    report : callable
        Called with each row of the training's curves; raising `Cancelled` stops it.

    Raises
    ------
    CdalError
        What the user can act on; that it was stopped before the first step.
    """
    try:
        from cdal_engine.corrections.learn import held_out, learn, publish
    except ImportError as error:
        remedy = "pip install 'napari-cdal[train]'"
        raise CdalError(f"training needs {error.name}", remedy) from error
    data, run, chosen = lesson.folder / "data", lesson.folder / "run", held_out(lesson.stems)
    try:
        found = learn(data, run, lesson.model, chosen, lesson.device, lesson.minutes, report)
    except Cancelled:
        raise CdalError("stopped before anything was learned") from None
    scores = str(found.outcome)
    if not found.outcome.better:
        return Learned(lesson, None, scores, found.stopped)
    card = f"{lesson.start}, fine-tuned on corrected regions; {scores}."
    folder = publish(found, lesson.name, card, lesson.own)
    return Learned(lesson, folder, scores, found.stopped)
