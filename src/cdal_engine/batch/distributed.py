"""Inputs on the workers of a dask cluster, one task at a time on a worker.

A task is an input or, of a large slide, what is to be done of one block: see `shared`.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import distributed
from dask.system import CPU_COUNT
from distributed import Client, Future, KilledWorker, LocalCluster
from distributed.security import Security

from .. import __version__
from ..errors import CdalError, DiskFull
from ..segmenter import Progress
from .provenance import Input, Parameters, Record, circumstances
from .run import Outcome, Sharing, failed, in_rounds
from .shared import SharedSlide, Step, StepDone, share
from .workers import Loaded, Loading, Run, input_task, loaded_by, step_task

__all__ = ["RESOURCE", "Loading", "cluster_at", "local_cluster", "run_on"]

RESOURCE = "cdal"  # of a worker: how many inputs it takes at once
_LOOK = 5.0  # seconds between looks whether there still are workers
_PATIENCE = 60.0  # seconds without any worker after which a run ends
_LOST = "what is finished is kept: start it again, and run the same command to go on"

_log = logging.getLogger(__name__)
if not _log.isEnabledFor(logging.DEBUG):  # a lost connection is reported in a line
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Start worker processes on this machine, which share its processors.

    They listen on the loopback interface, and to this process alone: a certificate made for the
    occasion keeps other users of the machine out.

    Parameters
    ----------
    workers : int
    """
    level = logging.WARNING if _log.isEnabledFor(logging.DEBUG) else logging.CRITICAL
    with (
        # An input that killed two workers is not given to a third.
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=max(1, CPU_COUNT // workers),
            host="127.0.0.1",
            # Dask serves its pages in any case; not on its one port, which another run may have.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            security=Security.temporary(),
            silence_logs=level,
            memory_limit=None,
            resources={RESOURCE: 1},
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def cluster_at(address: str) -> Iterator[Client]:
    """Connect to a scheduler; dask's own configuration says with which certificates.

    Raises
    ------
    CdalError
        If none answers.
    """
    try:
        client = Client(address)
    except (OSError, ValueError, TypeError) as error:
        raise CdalError(
            f"no dask scheduler answers at {address}: {error or type(error).__name__}",
            "start one with `dask scheduler`, and give the address that it prints",
        ) from None
    with client:
        yield client


def run_on(
    client: Client,
    inputs: Iterable[Input],
    loading: Loading,
    digest: str,
    out: Path,
    parameters: Parameters,
    restart: bool = False,
    sharing: Sharing | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Segment each input on some worker and yield how it ended, as they end.

    Parameters
    ----------
    client : distributed.Client
    inputs : iterable of Input
    loading : Loading
    digest : str
        Of the model that every worker must have.
    out : Path
        Folder that every worker must see.
    parameters : Parameters
    restart : bool
        As of `run`.
    sharing : Sharing, optional
    progress : callable, optional
        Of the blocks of a slide that workers share.

    Raises
    ------
    CdalError
        If the workers are not as they must be, or all are gone, or the disk is full.
    """
    name = f"cdal-{secrets.token_hex(8)}"  # several runs may use one cluster
    run = Run(name, parameters, restart, sharing or Sharing())
    inputs = [replace(item, folder=Path(os.path.abspath(item.folder))) for item in inputs]
    try:
        alike = _load(client, name, loading, digest, Path(os.path.abspath(out)))

        def one_round(items: Iterable[Input], wait: float) -> Iterator[Outcome]:
            return _Window(client, run, alike, wait, progress).outcomes(items)

        yield from in_rounds(inputs, one_round)
    finally:
        # Tells the tasks still running to stop, and frees the model.
        with suppress(Exception):  # the scheduler may be what was lost
            if client.status == "running":
                client.unregister_worker_plugin(name)


def _load(client: Client, name: str, loading: Loading, digest: str, out: Path) -> bool:
    """Have each worker load the model; refuse workers that could not do the work.

    Returns whether there are several, all of which answer with the same bits.
    """
    if not _workers(client):
        count = len(client.scheduler_info(n_workers=-1)["workers"])
        raise CdalError(
            f"none of the {count} workers has the resource {RESOURCE}",
            f"start each with `dask worker ADDRESS --resources {RESOURCE}=1`",
        )
    try:
        client.register_plugin(Loaded(loading), name=name)
        states = client.run(_state, name, out, digest, workers=_workers(client))
    except Exception as error:  # what a worker raises when it cannot even import this
        _log.debug("workers", exc_info=True)
        raise CdalError(
            f"the workers cannot run this: {type(error).__name__}: {error}",
            f"install napari-cdal {__version__} and the same Python packages on each",
        ) from None
    wrong = {worker: state for worker, (state, _) in states.items() if state}
    if wrong:
        each = "; ".join(f"{worker}: {state}" for worker, state in wrong.items())
        raise CdalError(f"{len(wrong)} of {len(states)} workers cannot work: {each}")
    found = [circumstances for _, circumstances in states.values()]
    return len(found) > 1 and all(each == found[0] for each in found)


def _workers(client: Client) -> list[str]:
    """Addresses of the workers that take inputs."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return [a for a, worker in workers.items() if worker["resources"].get(RESOURCE, 0) >= 1]


def _state(name: str, out: Path, digest: str, dask_worker: Any) -> tuple[str, Record]:
    """What is wrong with a worker, and what its answers' bits depend on."""
    loaded = loaded_by(dask_worker, name)
    state = loaded.state(out, digest)
    return state, {} if state else circumstances(loaded.segmenter)


@dataclass(eq=False)
class _Slide:
    """A slide that workers share; `held` is closed when it has ended."""

    item: Input
    key: str
    steps: SharedSlide
    held: ExitStack


@dataclass(frozen=True)
class _Task:
    """What is under way: an input, or a step of a slide."""

    item: Input
    slide: _Slide | None = None
    step: Step | None = None


class _Window:
    """As many tasks under way as there are workers: no more wait at a worker that may die.

    Parameters
    ----------
    client : distributed.Client
    run : Run
    share : bool
        Whether large slides are shared.
    wait, progress
        Of `attempt` and `run_on`.
    """

    def __init__(
        self, client: Client, run: Run, share: bool, wait: float, progress: Progress | None
    ) -> None:
        self._client, self._run, self._share, self._wait = client, run, share, wait
        self._progress = progress
        self._under_way: dict[Future[Any], _Task] = {}
        self._slides: list[_Slide] = []
        self._seen = time.monotonic()  # when there were workers

    def outcomes(self, items: Iterable[Input]) -> Iterator[Outcome]:
        """Segment inputs and yield how they ended."""
        left = iter(items)
        try:
            while True:
                for _ in range(self._room()):
                    task = self._next(left)
                    if task is not None:
                        self._submit(task)
                if not self._under_way:
                    return
                for future in self._ended():
                    outcome = self._outcome(future, self._under_way.pop(future))
                    if outcome is not None:
                        yield outcome
        finally:
            if self._under_way:
                self._client.cancel(list(self._under_way), force=True)
            for slide in self._slides:
                slide.held.close()

    def _room(self) -> int:
        if self._client.status != "running":
            raise CdalError("the connection to the dask scheduler was lost", _LOST)
        workers = len(_workers(self._client))
        if workers:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _PATIENCE:
            raise CdalError("all workers of the dask cluster are gone", _LOST)
        # At least one: workers may be on their way back.
        return max(workers, 1) - len(self._under_way)

    def _next(self, left: Iterator[Input]) -> _Task | None:
        """A step of a slide that was begun, or else the next input."""
        for slide in self._slides:
            step = slide.steps.next_step()
            if step is not None:
                return _Task(slide.item, slide, step)
        item = next(left, None)
        return None if item is None else _Task(item)

    def _submit(self, task: _Task) -> None:
        work: tuple[Any, ...] = (input_task, self._run, task.item, self._wait, self._share)
        if task.slide is not None:
            slide = task.slide
            work = (step_task, self._run, task.item, slide.key, slide.steps.identity, task.step)
        future = self._client.submit(
            *work,
            key=f"{task.item.path.name}-{secrets.token_hex(8)}",
            resources={RESOURCE: 1},
            pure=False,
        )
        self._under_way[future] = task

    def _ended(self) -> list[Future[Any]]:
        """Wait until some task has ended, but no longer than a look takes."""
        with suppress(TimeoutError, CancelledError):  # cancelled: the connection is lost
            distributed.wait(list(self._under_way), _LOOK, "FIRST_COMPLETED")
        return [future for future in self._under_way if future.done()]

    def _outcome(self, future: Future[Any], task: _Task) -> Outcome | None:
        """How an input ended; None if it has not."""
        if future.status == "cancelled":
            raise CdalError("the connection to the dask scheduler was lost", _LOST)
        try:
            found = future.result()
            if task.slide is not None and task.slide in self._slides:
                return self._stepped(task.slide, task.step, found)
            return self._begun(found) if isinstance(found, Outcome) else None
        except DiskFull:
            raise
        except CdalError as error:
            failure = error
        except KilledWorker as error:
            reason = f"{error.allowed_failures + 1} workers died while working on it"
            failure = CdalError(
                reason, "look at their logs; memory may not suffice: use fewer workers"
            )
        except Exception as error:
            reason = f"its worker failed: {type(error).__name__}: {error}"
            failure = CdalError(reason, "look at its log")
        if task.slide is None:
            return Outcome(task.item, error=failure.at(task.item.path))
        if task.slide not in self._slides:  # it failed before
            return None
        outcome = failed(task.item, failure)
        self._end(task.slide)
        return outcome

    def _begun(self, outcome: Outcome) -> Outcome | None:
        """Share a slide that the worker which opened it found large."""
        if outcome.shared is None:
            return outcome
        held, item = ExitStack(), outcome.input
        steps = held.enter_context(share(item, outcome.shared))
        if steps is None:
            held.close()
            return Outcome(item, held=True)
        self._slides.append(_Slide(item, secrets.token_hex(8), steps, held))
        return None

    def _stepped(self, slide: _Slide, step: Step | None, done: StepDone) -> Outcome | None:
        assert step is not None
        record = slide.steps.ended(step, done)
        if record is None:
            if self._progress is not None:
                self._progress(*slide.steps.finished)
            return None
        self._end(slide)
        return Outcome(slide.item, run=record)

    def _end(self, slide: _Slide) -> None:
        self._slides.remove(slide)
        slide.held.close()
