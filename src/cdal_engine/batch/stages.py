"""How far the blocks of a slide are, and what can be done next."""

from __future__ import annotations

from dataclasses import dataclass

from .plan import Block, Plan
from .scratch import Scratch

__all__ = ["Stages"]


@dataclass(frozen=True, eq=False)
class Stages:
    """Maps first, then the objects of a block whose neighbours have theirs, too.

    Attributes
    ----------
    plan : Plan
    scratch : Scratch
    maps_stay : bool
        Whether maps are results, and not only what objects are found in.
    """

    plan: Plan
    scratch: Scratch
    maps_stay: bool

    def finished(self, block: Block) -> bool:
        """Whether a block's objects are found."""
        return self.scratch.has("labels", block) and self.scratch.has("objects", block)

    def lacks_maps(self, block: Block) -> bool:
        """Whether a block's maps are needed, and not there."""
        needed = self.maps_stay or not all(map(self.finished, self.plan.around(block)))
        return needed and not self.scratch.has("maps", block)

    def ready(self, block: Block) -> bool:
        """Whether a block's objects are to be found, and can be."""
        around = self.plan.around(block)
        return not self.finished(block) and all(self.scratch.has("maps", b) for b in around)

    def drop_spent(self, block: Block) -> None:
        """Remove the maps that a block, just finished, was the last to need."""
        if self.maps_stay:
            return
        for near in self.plan.around(block):
            if all(map(self.finished, self.plan.around(near))):
                self.scratch.drop_maps(near)
