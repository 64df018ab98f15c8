"""The memory of all images: what the store gives each of them to stand on."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from criu_relay.flow.zeros import PAGE
from criu_relay.store.arena import Arena
from criu_relay.store.backlog import Backlog
from criu_relay.store.pages import INDEX_ENTRY, PageIndex, Pages
from criu_relay.store.policy import Dedup
from criu_relay.store.reclaim import Reclaimer
from criu_relay.store.region import Region
from criu_relay.store.table import RUN

SHORT = 2
"""Memory is short when less than one in so many bytes of the budget can be reserved: the rest takes what comes until
the pages that wait have been compared, which is done about as fast as they come."""


class Memory:
    """See the module.

    @ivar zeros: what pages of zeros are served from; nothing is ever written to it.
    @ivar stirred: set when something moves (bytes come, are read, are given back), for who waits for that.
    @ivar moves: how often bytes of an image came or were read, for who waits until none do.
    @ivar backlog: images with pages that were not compared when they came.
    """

    def __init__(self, clock: IReactorTime, arena: Arena, dedup: Dedup = Dedup.ZERO) -> None:
        self.arena = arena
        self.dedup = dedup
        self.stirred = False
        self.moves = 0
        self.backlog = Backlog()
        self.pages = Pages(arena)
        self.reclaimer = Reclaimer(clock, self.pages)
        self.zeros = Region(0, RUN * PAGE)
        self._indexes: dict[str, PageIndex] = {}

    @property
    def spare(self) -> int:
        """Bytes that can be promised to who sends: pages that are here, or come, may need entries of the index."""
        if self.dedup is not Dedup.PAGES:
            return self.arena.available
        pages = (self.arena.allocated + self.arena.reserved) // PAGE
        return max(0, self.arena.available - (pages - self.pages.known) * INDEX_ENTRY)

    @property
    def short(self) -> bool:
        """What comes is compared at once: there may be no room for it to wait for that."""
        return self.arena.available < self.arena.limit // SHORT

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
