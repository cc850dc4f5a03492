"""Inputs on the workers of a dask cluster: an input a task, one task at a time on a worker."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import distributed
import torch
from dask.system import CPU_COUNT
from distributed import Client, Future, KilledWorker, LocalCluster, WorkerPlugin, get_worker
from distributed.security import Security

from .. import __version__
from ..errors import CdalError, DiskFull
from ..model import Model
from ..segmenter import Segmenter
from .provenance import Input, Parameters
from .run import Outcome, attempt, in_rounds

__all__ = ["RESOURCE", "Loading", "cluster_at", "local_cluster", "run_on"]

RESOURCE = "cdal"  # of a worker: how many inputs it takes at once
_LOOK = 5.0  # seconds between looks whether there still are workers
_PATIENCE = 60.0  # seconds without any worker after which a run ends
_LOST = "what is finished is kept: start it again, and run the same command to go on"

_log = logging.getLogger(__name__)
if not _log.isEnabledFor(logging.DEBUG):  # a lost connection is reported in a line
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Loading:
    """What a worker loads, once; `local` workers are this command's own, numbered from 0."""

    model: str
    device: str
    tile: int | None
    local: bool = False

    def on_worker(self, name: Any) -> Segmenter:
        """Load the model; of several GPUs the one that belongs to a local worker's number."""
        device, gpus = self.device, torch.cuda.device_count()
        if self.local and gpus > 1 and device in ("auto", "cuda"):
            device = f"cuda:{int(name) % gpus}"
        return Segmenter(Model.load(self.model), device, self.tile)


class _Loaded(WorkerPlugin):
    """The model on a worker, and whether its run has been ended."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading

    def setup(self, worker: Any) -> None:
        self.ended = threading.Event()
        self.problem = ""
        if self.loading.local:  # Ctrl-C reaches every process of a terminal: the command ends them
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        torch.set_num_threads(worker.state.nthreads)
        try:
            self.segmenter = self.loading.on_worker(worker.name)
        except CdalError as error:  # told by the check before the first input
            self.problem = str(error)

    def teardown(self, worker: Any) -> None:
        self.ended.set()

    def state(self, out: Path, digest: str) -> str:
        """What is wrong here; empty if nothing is."""
        if self.problem:
            return self.problem
        if not out.is_dir():
            return f"{out} is no folder there; the paths must be the same on every machine"
        if self.segmenter.model.digest != digest:
            return f"model {self.loading.model!r} is another one there"
        return ""


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
            dashboard_address=None,
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

    Raises
    ------
    CdalError
        If the workers are not as they must be, or all are gone, or the disk is full.
    """
    name = f"cdal-{secrets.token_hex(8)}"  # several runs may use one cluster
    inputs = [replace(item, folder=Path(os.path.abspath(item.folder))) for item in inputs]
    try:
        _load(client, name, loading, digest, Path(os.path.abspath(out)))

        def one_round(items: Iterable[Input], wait: float) -> Iterator[Outcome]:
            return _Window(client, name).run(items, parameters, restart, wait)

        yield from in_rounds(inputs, one_round)
    finally:
        # Tells the tasks still running to stop, and frees the model.
        with suppress(Exception):  # the scheduler may be what was lost
            if client.status == "running":
                client.unregister_worker_plugin(name)


def _load(client: Client, name: str, loading: Loading, digest: str, out: Path) -> None:
    """Have each worker load the model; refuse workers that could not do the work."""
    if not _workers(client):
        count = len(client.scheduler_info(n_workers=-1)["workers"])
        raise CdalError(
            f"none of the {count} workers has the resource {RESOURCE}",
            f"start each with `dask worker ADDRESS --resources {RESOURCE}=1`",
        )
    try:
        client.register_plugin(_Loaded(loading), name=name)
        states = client.run(_state, name, out, digest, workers=_workers(client))
    except Exception as error:  # what a worker raises when it cannot even import this
        _log.debug("workers", exc_info=True)
        raise CdalError(
            f"the workers cannot run this: {type(error).__name__}: {error}",
            f"install napari-cdal {__version__} and the same Python packages on each",
        ) from None
    wrong = {worker: state for worker, state in states.items() if state}
    if wrong:
        each = "; ".join(f"{worker}: {state}" for worker, state in wrong.items())
        raise CdalError(f"{len(wrong)} of {len(states)} workers cannot work: {each}")


def _workers(client: Client) -> list[str]:
    """Addresses of the workers that take inputs."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return [a for a, worker in workers.items() if worker["resources"].get(RESOURCE, 0) >= 1]


def _state(name: str, out: Path, digest: str, dask_worker: Any) -> str:
    return _loaded(dask_worker, name).state(out, digest)


def _loaded(worker: Any, name: str) -> _Loaded:
    loaded: _Loaded = worker.plugins[name]
    return loaded


def _task(name: str, item: Input, parameters: Parameters, restart: bool, wait: float) -> Outcome:
    """What a worker does: one input, whose outcome is small enough to send."""
    loaded = _loaded(get_worker(), name)

    def go_on(done: int, total: int) -> bool:
        return not loaded.ended.is_set()

    return attempt(item, loaded.segmenter, parameters, restart, wait, go_on)


class _Window:
    """As many inputs under way as there are workers: no more wait at a worker that may die."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name
        self._under_way: dict[Future[Outcome], Input] = {}
        self._seen = time.monotonic()  # when there were workers

    def run(
        self, items: Iterable[Input], parameters: Parameters, restart: bool, wait: float
    ) -> Iterator[Outcome]:
        left = iter(items)
        try:
            while True:
                for _ in range(self._room()):
                    item = next(left, None)
                    if item is not None:
                        self._submit(item, parameters, restart, wait)
                if not self._under_way:
                    return
                for future in self._ended():
                    yield self._outcome(future)
        finally:
            if self._under_way:
                self._client.cancel(list(self._under_way), force=True)

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

    def _submit(self, item: Input, parameters: Parameters, restart: bool, wait: float) -> None:
        future = self._client.submit(
            _task,
            self._name,
            item,
            parameters,
            restart,
            wait,
            key=f"{item.path.name}-{secrets.token_hex(8)}",
            resources={RESOURCE: 1},
            pure=False,
        )
        self._under_way[future] = item

    def _ended(self) -> list[Future[Outcome]]:
        """Wait until some task has ended, but no longer than a look takes."""
        with suppress(TimeoutError, CancelledError):  # cancelled: the connection is lost
            distributed.wait(list(self._under_way), _LOOK, "FIRST_COMPLETED")
        return [future for future in self._under_way if future.done()]

    def _outcome(self, future: Future[Outcome]) -> Outcome:
        item = self._under_way.pop(future)
        if future.status == "cancelled":
            raise CdalError("the connection to the dask scheduler was lost", _LOST)
        try:
            outcome: Outcome = future.result()
        except DiskFull:
            raise
        except KilledWorker as error:
            reason = f"{error.allowed_failures + 1} workers died while working on it"
            remedy = "look at their logs; memory may not suffice: use fewer workers"
            return Outcome(item, error=CdalError(reason, remedy, item.path))
        except Exception as error:
            reason = f"its worker failed: {type(error).__name__}: {error}"
            return Outcome(item, error=CdalError(reason, "look at its log", item.path))
        return outcome
