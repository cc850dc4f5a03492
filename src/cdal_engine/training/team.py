"""The devices a run is trained on, a process for each, which together make the steps of one.

Each has its own rows of every batch and of everything drawn for it; gradients are averaged. So a
config means the same training on any number of devices.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor

from ..device import select_device
from ..errors import CdalError

__all__ = ["Team"]

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else each process tells its rank

Prepare = Callable[..., Callable[[], None]]
_PATIENCE = timedelta(days=1)  # with the leader, which validates while the others wait


class _Place(LightningEnvironment):
    """A process's rank, and where all meet: on this computer only."""

    creates_processes_externally = True
    main_address = "127.0.0.1"

    def __init__(self, rank: int, port: int) -> None:
        super().__init__()
        self.rank, self._main_port = rank, port

    @property
    def main_port(self) -> int:
        return self._main_port

    def local_rank(self) -> int:
        return self.rank


class Team:
    """One process among those of a run; by itself with one device.

    Parameters
    ----------
    device : str
        See `select_device`; of several, their kind.
    devices : int
    rank : int
        Which of them this process has. The first leads: it alone reads the clock and writes files.
    port : int
        Where all meet.

    Raises
    ------
    CdalError
        If there are not so many devices.
    """

    def __init__(self, device: str, devices: int = 1, rank: int = 0, port: int = 0) -> None:
        chosen = select_device(device)
        there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(chosen.type, os.cpu_count() or 1)
        if devices > 1 and (devices > there or chosen.index is not None):
            raise CdalError(
                f"{devices} devices of {device!r}, there are {there}",
                "use fewer --devices, and name their kind only, --device cuda or cpu",
            )
        self.name, self.devices, self.rank = device, devices, rank
        self.port = port if rank or devices == 1 else _free_port()
        place = _Place(rank, self.port)
        self.fabric = Fabric(
            accelerator=chosen.type,
            devices=devices if chosen.index is None else [chosen.index],
            precision="bf16-mixed" if chosen.type == "cuda" else "32-true",
            strategy=DDPStrategy(cluster_environment=place, timeout=_PATIENCE)
            if devices > 1
            else "auto",
            plugins=place if devices == 1 else None,
        )
        self.device = self.fabric.device

    @property
    def leads(self) -> bool:
        """Whether this process reads the clock, validates and writes."""
        return self.rank == 0

    def autocast(self, reduced: bool) -> AbstractContextManager[None]:
        """Compute in the device's precision for training, where `reduced` is enough."""
        return self.fabric.autocast() if reduced else nullcontext()

    def rows(self, batch: int) -> range:
        """Which rows of a whole batch are this process's."""
        mine = batch // self.devices
        return range(self.rank * mine, (self.rank + 1) * mine)

    def share(self, draw: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
        """Draw for the whole batch, and keep the rows of `shape` that are this process's."""
        whole = draw((shape[0] * self.devices, *shape[1:]))
        rows = self.rows(len(whole))
        return whole[rows.start : rows.stop]

    def gathered(self, x: Tensor) -> Tensor:
        """Rows (B, ...) of all processes; gradients reach this one's own."""
        if self.devices == 1:
            return x
        rows = self.rows(len(x) * self.devices)
        own = slice(rows.start, rows.stop)
        every = x.new_zeros((len(x) * self.devices, *x.shape[1:]))
        every[own] = x.detach()
        every = self._reduced(every, "sum")
        # Of a mean over all rows each process has its own rows' gradient only: as gradients are
        # averaged later, it counts for all processes.
        every[own] = x.detach() + self.devices * (x - x.detach())
        return every

    def agreed(self, value: float) -> float:
        """What the leader says."""
        if self.devices == 1:
            return value
        said = torch.tensor(value if self.leads else 0.0, dtype=torch.float64, device=self.device)
        return float(self._reduced(said, "sum"))

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over the processes in each tensor's place."""
        own = list(tensors)
        if self.devices == 1 or not own:
            return
        mean = self._reduced(torch.cat([x.reshape(-1) for x in own]), "mean")
        for x, part in zip(own, mean.split([x.numel() for x in own]), strict=True):
            x.copy_(part.view(x.shape))

    def _reduced(self, x: Tensor, by: Literal["mean", "sum"]) -> Tensor:
        reduced = self.fabric.all_reduce(x, reduce_op=by)
        assert isinstance(reduced, Tensor)
        return reduced

    @contextmanager
    def together(self, prepare: Prepare, *arguments: Any) -> Iterator[None]:
        """Work on all devices: the others in processes of their own, which end with the context.

        Each calls `prepare(team, *arguments)`, meets the others, and then calls what that returned.
        Everything is passed to them by pickling, `prepare` by its name.

        Raises
        ------
        CdalError
            If one of them fails before all have met.
        """
        if self.devices == 1:
            yield
            return
        spawn = multiprocessing.get_context("spawn")
        ready = spawn.Barrier(self.devices)
        threads = max(torch.get_num_threads() // self.devices, 1)
        others = []
        for rank in range(1, self.devices):
            place = (self.name, self.devices, rank, self.port)
            what = (place, threads, ready, prepare, arguments)
            others.append(spawn.Process(target=_work, args=what, daemon=True))
        try:
            for process in others:
                process.start()
            while ready.n_waiting < len(others):
                if not all(process.is_alive() for process in others):
                    raise CdalError(
                        "one of the devices' processes failed",
                        "see its error above, or use --devices 1",
                    )
                time.sleep(0.05)
            with _met(self, ready):
                yield
                for process in others:
                    process.join()
        finally:
            for process in others:
                process.kill()  # none writes anything


@contextmanager
def _met(team: Team, ready: Barrier) -> Iterator[None]:
    """Wait for all, and let the processes speak to each other while the context lasts."""
    ready.wait()
    team.fabric.launch()
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _work(
    place: tuple[str, int, int, int],
    threads: int,
    ready: Barrier,
    prepare: Prepare,
    arguments: tuple[Any, ...],
) -> None:
    """What a process other than the leader does."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the leader decides when all end
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_leader, daemon=True).start()
    torch.set_num_threads(threads)
    team = Team(*place)
    work = prepare(team, *arguments)
    with _met(team, ready):
        work()


def _end_with_leader() -> None:
    """Leave nothing behind where the leader was killed, whatever this process waits for."""
    leader = multiprocessing.parent_process()
    assert leader is not None
    leader.join()
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_Place.main_address, 0))
        port: int = probe.getsockname()[1]
        return port
