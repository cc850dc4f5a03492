"""The engine in a process of its own: it neither slows the window down nor takes it along."""

from __future__ import annotations

import atexit
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

from cdal_engine.errors import CdalError

__all__ = ["EngineProcess", "Messages", "borrowed", "prepare"]

Stopped = Callable[[], bool]
_PATIENCE = 5  # seconds that a process is given to end by itself
_FLAGS = sum(  # of Windows
    getattr(subprocess, name, 0) for name in ("CREATE_NO_WINDOW", "BELOW_NORMAL_PRIORITY_CLASS")
)
_START = (
    "import sys; sys.path[:] = {}; import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from napari_cdal.engine_server import main; main()"
)  # Ctrl-C in a terminal is for napari


class Messages:
    """Messages, each a word and a value, between a process and the one that started it.

    They are pickled: both ends are this program.
    """

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def send(self, word: str, value: object = None) -> None:
        """Send one; raises `OSError` if the other end is gone."""
        pickle.dump((word, value), self._outgoing, protocol=pickle.HIGHEST_PROTOCOL)
        self._outgoing.flush()

    def receive(self) -> tuple[str, Any]:
        """Wait for one; raises `EOFError` if the other end is gone."""
        try:
            word, value = pickle.load(self._incoming)  # noqa: S301 (of this program, see above)
        except pickle.UnpicklingError as error:  # it ended in the middle of one
            raise EOFError from error
        return word, value


class EngineProcess:
    """A Python process that does one job after another, see `engine_server`.

    Not `multiprocessing`'s: that runs the user's script once more in each process.

    Raises
    ------
    CdalError
        If it cannot be started.
    """

    def __init__(self) -> None:
        path = [entry for entry in sys.path if isinstance(entry, str)]  # scripts add Path objects
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if sys.__stderr__ else subprocess.DEVNULL,  # as in pythonw
                creationflags=_FLAGS,
            )
        except OSError as error:
            raise CdalError(
                f"the engine's process cannot be started: {error}", "close other programs"
            ) from error
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self.messages = Messages(self._process.stdout, self._process.stdin)
        self.patience = threading.Timer(0, self.end)  # of who keeps it, while it has nothing to do

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be given a job."""
        return self._process.poll() is None

    def do(self, job: object, heard: Mapping[str, Callable[..., None]], stopped: Stopped) -> Any:
        """Have it do a job, and wait; return what it says in the end.

        Parameters
        ----------
        job
            What `engine_server` knows how to do.
        heard : mapping
            By word, what is called with what the engine tells meanwhile.
        stopped : callable
            Whether it is to stop: it is asked to when it tells something next.

        Raises
        ------
        RuntimeError
            For what nobody expected there; its traceback is a note.
        EOFError
            If the process ends meanwhile.
        """
        self.messages.send("job", job)
        stopping = False
        while True:
            word, value = self.messages.receive()
            if word == "done":
                return value
            if word == "failed":
                problem, trace = value
                error = RuntimeError(problem)
                error.add_note(f"In the engine's process:\n{trace}")
                raise error
            heard[word](*value)
            if not stopping and stopped():
                self.messages.send("stop")
                stopping = True

    def kill(self) -> None:
        """Have it end at once, whatever it does; whoever borrowed it is told so."""
        self._process.kill()

    def end(self) -> None:
        """Let it go; it ends at once, whatever it does."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was not sent yet cannot be any more
                stream and stream.close()

    def how_it_ended(self, remedy: str) -> CdalError:
        """Say that it is gone, what may have been the cause, and what to do then."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        status = self._process.returncode
        killed = status is not None and status < 0
        cause = "most often for lack of memory" if killed else "the terminal may say why"
        return CdalError(
            f"the engine's process ended (exit status {status}), {cause}; what is shown stays",
            remedy,
        )


_idle: list[EngineProcess] = []  # at most one waits for the next job, with torch loaded
_access = threading.Lock()
_IDLE = 600  # seconds that one waits, before the memory is given back


def _wait(process: EngineProcess) -> None:
    """Have a process wait for the next job, but not for ever."""
    _idle.append(process)
    process.patience = threading.Timer(_IDLE, _end_idle, [process])
    process.patience.daemon = True
    process.patience.start()


def prepare() -> None:
    """Have a process load PyTorch now, so that the next job need not wait for it."""
    with _access, suppress(CdalError):  # the job will say so
        if not _idle:
            _wait(EngineProcess())


@contextmanager
def borrowed(remedy: str) -> Iterator[EngineProcess]:
    """Give a process that nobody else uses; it is kept for the next job unless this one failed.

    Parameters
    ----------
    remedy : str
        What takes less memory, to be said if it ends meanwhile.

    Raises
    ------
    CdalError
        If none can be started, or it ends meanwhile.
    """
    with _access:
        process = _idle.pop() if _idle else None
        if process is not None:
            process.patience.cancel()
    if process is not None and not process.alive:
        process.end()
        process = None
    process = process or EngineProcess()
    try:
        yield process
    except (EOFError, OSError) as error:
        problem = process.how_it_ended(remedy)
        process.end()
        raise problem from error
    except BaseException:
        process.end()
        raise
    with _access:
        if not _idle:
            _wait(process)
            return
    process.end()


def _end_idle(process: EngineProcess) -> None:
    with _access:
        if process in _idle:
            _idle.remove(process)
            process.end()


@atexit.register
def _end_all() -> None:
    for process in [*_idle]:
        process.patience.cancel()
        _end_idle(process)
