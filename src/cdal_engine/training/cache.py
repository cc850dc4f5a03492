"""What is learned from, decoded once as far as memory is allowed for it, and read again beyond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from ..config import TrainConfig
from .dataset import Item, Pair, load_pair

__all__ = ["Items"]


class Items(Sequence[Item]):
    """Images and slices at the model's resolution; see `load_pair`.

    The first pairs are kept until `config.cache_mb` is full. Nothing is replaced later: crops are
    drawn at random from everything, so that no pair is likelier to be asked for than another.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.kept: dict[Pair, list[Item]] = {}
        self.bytes_left = config.cache_mb * 10**6
        self._where: list[tuple[Pair, int]] = []

    def add(self, pair: Pair, loaded: list[Item]) -> None:
        """Append the items of a pair, as `load_pair` gave them."""
        self._where += [(pair, index) for index in range(len(loaded))]
        size = sum(tensor.nbytes for item in loaded for tensor in item)
        if size <= self.bytes_left:
            self.kept[pair] = loaded
            self.bytes_left -= size

    def __len__(self) -> int:
        return len(self._where)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        pair, within = self._where[index]
        loaded = self.kept.get(pair) or load_pair(pair, self.config.model, self.config.mpp)
        return loaded[within]
