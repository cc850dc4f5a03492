"""Ctrl-C at a moment at which Python can pass no exception on."""

import signal
import sys
import weakref

import pytest

from cdal_engine.cli.interrupt import check, interruptible


class _Held:
    """Something a weak reference can point to."""


def test_an_interruption_swallowed_by_a_callback_is_raised_by_the_next_check(
    capfd: pytest.CaptureFixture,
) -> None:
    held = _Held()
    reference = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGINT))
    with interruptible():
        del held  # what the callback raises is reported by Python, and goes no further
        assert reference() is None
        with pytest.raises(KeyboardInterrupt):
            check()
    assert capfd.readouterr().err == ""


def test_other_failures_of_callbacks_are_still_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_type))
    held = _Held()
    reference = weakref.ref(held, lambda _: 1 / 0)
    with interruptible():
        del held
    assert reference() is None
    assert reported == [ZeroDivisionError]
