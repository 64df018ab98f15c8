"""Pages of earlier snapshots that a later one has anew: nobody ever reads them again, so they are given back.

CRIU's own auto-dedup, done as the images come: once a snapshot's pagemap and its pages are here, what it has replaces
what the snapshots before it had of the same addresses.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from criu_relay.errors import ProtocolError, RelayError
from criu_relay.flow.zeros import PAGE
from criu_relay.store.arena import Arena
from criu_relay.store.generation import Generation
from criu_relay.store.image import Image
from criu_relay.store.opened import read_bytes
from criu_relay.store.table import Kind
from criu_relay.wire.pagemap import NAME, PagemapReader, Pages

STEPS_PER_TURN = 200
"""Ranges that are looked at in one turn of the reactor: about 20 us each when pages are given back."""

MAX_RANGES = 1 << 18
"""Ranges of addresses that are kept of one namespace: 1 GiB of pages of which each second was written. More turn it off
for that namespace."""

RANGE_BYTES = 160
"""What the budget counts for one of them: an object, three numbers and its place in a list."""

READ_AT_ONCE = 16 << 10
"""Bytes of a pagemap that are taken apart in one step: about 1,000 entries."""

HEAD_BYTES = 64
"""The magic numbers and the head of a pagemap are in these."""


_OVER = object()


@dataclass(frozen=True, slots=True)
class Live:
    """Pages of a task that no later snapshot has anew.

    @ivar start: number of the first page, by address; `stop`: of the first behind them.
    @ivar image: where they are, from its page number `first` on.
    """

    start: int
    stop: int
    image: Image
    first: int


@dataclass
class Chain:
    """What is live of one pagemap, over all snapshots so far.

    @ivar snapshot: the last one that was taken in.
    """

    snapshot: int = 0
    live: list[Live] = field(default_factory=list)


@dataclass
class Chains:
    """What is known of one namespace.

    @ivar waiting: complete pagemaps by the snapshot and the name of the pages that they tell of.
    @ivar off: something was wrong with it: nothing of it is given back any more.
    @ivar noted: ranges that the budget counts.
    """

    chains: dict[str, Chain] = field(default_factory=dict)
    waiting: dict[tuple[int, str], Image] = field(default_factory=dict)
    off: bool = False
    noted: int = 0

    @property
    def ranges(self) -> int:
        """How many are kept."""
        return sum(len(chain.live) for chain in self.chains.values())


class Superseder:
    """See the module; one for all namespaces."""

    log = Logger()

    def __init__(self, clock: IReactorTime, arena: Arena) -> None:
        self._clock = clock
        self._arena = arena
        self._known: dict[Generation, Chains] = {}
        self._queue: deque[tuple[Generation, Iterator[None]]] = deque()
        self._scheduled = False

    def ended(self, generation: Generation, image: Image) -> None:
        """An image is complete: if it is a pagemap, or the pages of one, they may both be here now."""
        if generation not in self._known and not NAME.fullmatch(image.name):
            return
        known = self._known.setdefault(generation, Chains())
        images = generation.snapshots[image.snapshot - 1].images
        if known.off:
            return
        if NAME.fullmatch(image.name):
            try:
                pages = pages_of(image)
            except RelayError as error:
                self._turn_off(generation, image, error)
                return
            known.waiting[image.snapshot, pages] = image
        else:
            pages = image.name
        found = images.get(pages)
        if (image.snapshot, pages) in known.waiting and found is not None and found.complete:
            pagemap = known.waiting.pop((image.snapshot, pages))
            self._queue.append((generation, self._take_in(generation, known, pagemap, found)))
            self._schedule()

    def sealed(self, generation: Generation) -> None:
        """Nothing more comes: once what is here is taken in, nothing need be known of it."""
        if self._queue:
            self._queue.append((generation, self._forget_later(generation)))
        else:
            self.forget(generation)

    def forget(self, generation: Generation) -> None:
        """It is over."""
        known = self._known.pop(generation, None)
        if known is not None:
            self._arena.forget(known.noted * RANGE_BYTES)

    def _forget_later(self, generation: Generation) -> Iterator[None]:
        self.forget(generation)
        yield

    def _schedule(self) -> None:
        if self._queue and not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        left = STEPS_PER_TURN
        try:
            while self._queue and left:
                generation, work = self._queue[0]
                left -= 1
                if generation not in self._known or next(work, _OVER) is _OVER:
                    self._queue.popleft()
        finally:  # a defect in one's work does not keep the others waiting
            self._schedule()

    def _take_in(self, generation: Generation, known: Chains, pagemap: Image, pages: Image) -> Iterator[None]:
        """In steps: see that the pagemap is well-formed and fits its pages, then give back what they replace."""
        chain = known.chains.setdefault(pagemap.name, Chain())
        try:
            for _ in entries(pagemap, pages):
                yield
            if pagemap.dropped or pages.dropped:
                return
            if known.off or pagemap.snapshot <= chain.snapshot:
                raise ProtocolError("it came a second time, or after that of a later snapshot")
            chain.snapshot = pagemap.snapshot
            yield from replace(chain, pagemap, pages)
            self._note(known)
        except RelayError as error:
            if pagemap.dropped and chain.snapshot < pagemap.snapshot:
                return  # nothing was given back for it: what has replaced it is taken in instead
            self._turn_off(generation, pagemap, error)

    def _note(self, known: Chains) -> None:
        """The budget counts what is known; @raise ProtocolError: that is too much."""
        more = known.ranges - known.noted
        if known.ranges > MAX_RANGES or not self._arena.reserve(max(0, more) * RANGE_BYTES):
            raise ProtocolError(f"{known.ranges} ranges of addresses are too many to remember")
        if more > 0:
            self._arena.note(more * RANGE_BYTES)
        else:
            self._arena.forget(-more * RANGE_BYTES)
        known.noted = known.ranges

    def _turn_off(self, generation: Generation, pagemap: Image, error: RelayError) -> None:
        known = self._known[generation]
        if not known.off:
            known.off = True
            known.chains.clear()
            self._arena.forget(known.noted * RANGE_BYTES)
            known.noted = 0
            self.log.warn(
                "namespace {namespace}: superseded pages are kept: {image} of snapshot {snapshot}: {reason}",
                namespace=generation.namespace, image=pagemap.name, snapshot=pagemap.snapshot, reason=error.reason,
            )  # fmt: skip


def pages_of(pagemap: Image) -> str:
    """The name of the image with the pages that a pagemap tells of.

    @raise ProtocolError: it does not begin like a pagemap.
    """
    reader = PagemapReader()
    reader.feed(read_bytes(pagemap, 0, HEAD_BYTES))
    if reader.pages_id is None:
        raise ProtocolError("it has no head")
    return f"pages-{reader.pages_id}.img"


def entries(pagemap: Image, pages: Image) -> Iterator[list[Pages]]:
    """What a pagemap says, in parts.

    @raise ProtocolError: it is malformed, was replaced, or tells of more or fewer pages than there are.
    """
    reader = PagemapReader()
    for offset in range(0, pagemap.size, READ_AT_ONCE):
        if pagemap.dropped:
            raise ProtocolError("it was replaced while it was taken in")
        yield reader.feed(read_bytes(pagemap, offset, READ_AT_ONCE))
    reader.finish()
    if reader.present * PAGE != pages.size:
        raise ProtocolError(f"it tells of {reader.present} pages, {pages.name} has {pages.size} bytes")


def replace(chain: Chain, pagemap: Image, pages: Image) -> Iterator[None]:
    """Put what a snapshot has in the place of what those before it had, and give that back."""
    old, new, first = chain.live, [], 0
    at = 0
    for part in entries(pagemap, pages):
        for entry in part:
            if not entry.present:
                continue
            index = bisect.bisect_right(old, entry.start, at, key=lambda live: live.stop)
            new += old[at:index]
            at = index
            while at < len(old) and old[at].start < entry.stop:
                one = old[at]
                if one.start < entry.start:
                    new.append(Live(one.start, entry.start, one.image, one.first))
                give_back(one, max(one.start, entry.start), min(one.stop, entry.stop))
                yield
                if one.stop > entry.stop:
                    old[at] = Live(entry.stop, one.stop, one.image, one.first + entry.stop - one.start)
                    break
                at += 1
            if (first + entry.stop - entry.start) * PAGE > pages.size:
                raise ProtocolError("it was changed while it was taken in")
            new.append(Live(entry.start, entry.stop, pages, first))
            first += entry.stop - entry.start
        yield
    chain.live = new + old[at:]


def give_back(live: Live, start: int, stop: int) -> None:
    """These pages of it are superseded."""
    if live.image.complete and not live.image.dropped:
        first = live.first + start - live.start
        live.image.give_up(first, first + stop - start, Kind.SUPERSEDED)
