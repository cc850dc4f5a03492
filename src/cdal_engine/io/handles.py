"""Open files that may be pickled, shared by threads, and inherited by forked processes."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Handle"]


class _Closable(Protocol):
    def close(self) -> Any: ...


T = TypeVar("T", bound=_Closable)


class Handle(Generic[T]):
    """A file opened when first needed and closed with the last reader of it.

    Parameters
    ----------
    opener : callable
        Opens the file; all that is pickled.
    """

    def __init__(self, opener: Callable[[], T]) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._opened: tuple[int, T] | None = None

    def __call__(self) -> T:
        """Return the open file of this process."""
        with self._lock:
            # A forked child shares its parent's file position: it opens one of its own.
            if self._opened is None or self._opened[0] != os.getpid():
                file = self._opener()
                weakref.finalize(self, file.close)
                self._opened = (os.getpid(), file)
            return self._opened[1]

    def forget(self) -> None:
        """Open it anew next time: some libraries refuse a file for good after one error."""
        with self._lock:
            self._opened = None

    def __reduce__(self) -> tuple[type[Handle[T]], tuple[Callable[[], T]]]:
        return type(self), (self._opener,)
