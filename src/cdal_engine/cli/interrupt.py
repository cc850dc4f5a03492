"""Ctrl-C, and the SIGTERM with which batch systems end jobs."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_received: list[int] = []


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _swallowed_in_silence() -> Iterator[None]:
    """Let Python print no traceback where a callback cannot pass the interruption on.

    A signal may arrive while Python calls a finalizer or the callback of a weak reference: it
    reports what is raised there and goes on. `check` raises it again.
    """
    report = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            report(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = report


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on either signal while the context lasts."""
    _received.clear()

    def handle(number: int, _: FrameType | None) -> None:
        _received.append(number)
        raise KeyboardInterrupt

    with _handling(handle), _swallowed_in_silence():
        yield


def check() -> None:
    """Raise again where a callback swallowed the interruption."""
    if _received:
        raise KeyboardInterrupt


@contextmanager
def deferred(told: Callable[[], None]) -> Iterator[list[int]]:
    """Collect the first signal in a list, calling `told`, and raise on the second only."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        told()

    with _handling(handle):
        yield received
