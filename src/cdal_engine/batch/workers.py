"""What a worker of a dask cluster holds and does: a model, an input or a step of a slide a task."""

from __future__ import annotations

import logging
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from distributed import WorkerPlugin, get_worker

from ..errors import CdalError
from ..model import Model
from ..segmenter import Segmenter
from .opened import open_input
from .provenance import Input, Parameters, Record
from .run import Outcome, Sharing, attempt
from .shared import Step, StepDone, do_step
from .slide import SlideJob

__all__ = ["Loaded", "Loading", "Run", "input_task", "loaded_by", "step_task"]


@dataclass(frozen=True)
class Run:
    """What stays the same over all tasks of one run; `name` is its plugin's."""

    name: str
    parameters: Parameters
    restart: bool
    sharing: Sharing


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


class Loaded(WorkerPlugin):
    """The model on a worker, and whether its run has been ended."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.job: tuple[str, SlideJob] | None = None  # the slide it last worked on for others

    def setup(self, worker: Any) -> None:
        """Load the model, as the worker starts or this is sent to it."""
        self.ended = threading.Event()
        self.problem = ""
        if self.loading.local:  # Ctrl-C reaches every process of a terminal: the command ends them
            logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # failures are told in a line
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        torch.set_num_threads(worker.state.nthreads)
        try:
            self.segmenter = self.loading.on_worker(worker.name)
        except CdalError as error:  # told by the check before the first input
            self.problem = str(error)

    def teardown(self, worker: Any) -> None:
        """Stop what is under way: the run has ended."""
        self.ended.set()

    def go_on(self, done: int, total: int) -> bool:
        """A progress callback."""
        return not self.ended.is_set()

    def job_of(self, item: Input, run: Run, key: str) -> SlideJob:
        """Open a slide that workers share, once."""
        if self.job is None or self.job[0] != key:
            opened = open_input(item, self.segmenter, run.parameters)
            self.job = key, SlideJob(opened, run.sharing.block)
        return self.job[1]

    def state(self, out: Path, digest: str) -> str:
        """What is wrong here; empty if nothing is."""
        if self.problem:
            return self.problem
        if not out.is_dir():
            return f"{out} is no folder there; the paths must be the same on every machine"
        if self.segmenter.model.digest != digest:
            return f"model {self.loading.model!r} is another one there"
        return ""


def loaded_by(worker: Any, name: str) -> Loaded:
    """What a worker loaded for the run of that name."""
    loaded: Loaded = worker.plugins[name]
    return loaded


def input_task(run: Run, item: Input, wait: float, shared: bool) -> Outcome:
    """What a worker does: one input, whose outcome is small enough to send."""
    loaded = loaded_by(get_worker(), run.name)
    sharing = run.sharing if shared else None
    how = (run.parameters, run.restart, wait, loaded.go_on, sharing)
    return attempt(item, loaded.segmenter, *how)


def step_task(run: Run, item: Input, key: str, identity: Record, step: Step) -> StepDone:
    """What a worker does of a slide that it shares with others."""
    loaded = loaded_by(get_worker(), run.name)
    return do_step(loaded.job_of(item, run, key), identity, step, loaded.go_on)
