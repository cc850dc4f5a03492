"""Runs that share an output folder: each input is one run's at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from ..io.records import writing

__all__ = ["LEASE", "LOCK", "alone"]

LOCK = ".cdal-lock"
LEASE = 60.0  # seconds; a holder on another host that shows no sign of life for longer is dead
_POLL = 0.2  # seconds between looks at a lock that is waited for


@contextmanager
def alone(folder: Path, wait: float = 0.0, lease: float = LEASE) -> Iterator[bool]:
    """Hold a folder while the context lasts; yields False where another run holds it.

    The lock is a file, as it is on network folders that know no other; it names its holder's host,
    process and start. A holder that died on this host is recognised at once, on another host by
    its heartbeat, timed by this process's own clock.

    Parameters
    ----------
    folder : Path
        Made if needed.
    wait : float
        Seconds to wait for another run; to recognise a dead one takes more than `lease`.
    lease : float
        Seconds; the same for all runs.

    Raises
    ------
    CdalError
        If nothing can be written there.
    """
    lock = SoftFileLease(folder / LOCK, lease_duration=lease, thread_local=False)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout, LeaseSettingsMismatch):
            lock.acquire(timeout=wait, poll_interval=_POLL)
    try:
        yield lock.is_locked
    finally:
        with suppress(OSError):
            lock.release()
