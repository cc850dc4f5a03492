"""One process at a time in a folder; a lock that dies with its process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import CdalError

__all__ = ["FolderLock"]


class FolderLock:
    """Hold a folder until released.

    Parameters
    ----------
    folder : Path
        It gets a file `lock`, removed on release.

    Raises
    ------
    CdalError
        If another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT)
        try:
            _lock(self._file)
            if os.fstat(self._file).st_ino != self._path.stat().st_ino:
                raise BlockingIOError  # the holder has just removed it
        except OSError:
            os.close(self._file)
            raise CdalError(
                "another cdal is at work on this input", "wait for it to end", folder.parent
            ) from None

    def release(self) -> None:
        """Let others in; twice is once."""
        if self._file >= 0:
            if sys.platform != "win32":
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


def _lock(file: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
