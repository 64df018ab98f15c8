"""The memory of all images: what the store gives each of them to stand on."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from criu_relay.store.arena import LARGEST, Arena, Region
from criu_relay.store.pages import PageIndex, Pages
from criu_relay.store.policy import Dedup
from criu_relay.store.reclaim import Reclaimer


class Memory:
    """See the module.

    @ivar zeros: what pages of zeros are served from; nothing is ever written to it.
    @ivar stirred: set when something moves (bytes come, are read, are given back), for who waits for that.
    """

    def __init__(self, clock: IReactorTime, arena: Arena, dedup: Dedup = Dedup.ZERO) -> None:
        self.arena = arena
        self.dedup = dedup
        self.stirred = False
        self.pages = Pages(arena)
        self.reclaimer = Reclaimer(clock, self.pages)
        self.zeros = Region(0, LARGEST)
        self._indexes: dict[str, PageIndex] = {}

    def index(self, owner: str) -> PageIndex:
        """Where pages of an owner are found by their content: nobody shares memory with somebody else."""
        if owner not in self._indexes:
            self._indexes = {name: index for name, index in self._indexes.items() if len(index)}
            self._indexes[owner] = PageIndex(self.pages)
        return self._indexes[owner]

    def close(self) -> None:
        """Give everything back; no image may be left."""
        self.zeros.close()
        self.arena.close()
