"""Migrations on their way out: their images, the closing header behind them, and what the cache said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xxhash
from twisted.internet.defer import Deferred
from zope.interface import implementer

from criu_relay.errors import Aborted, Conflict, LinkLost, RelayError
from criu_relay.interfaces import IImageSink, IOpenedImage, IOutgoing, Mode
from criu_relay.link.credit import SendCredit
from criu_relay.link.fetch import FetchedImage, Fetches
from criu_relay.link.images import OutgoingImage, PassedImage, QueuedImage
from criu_relay.link.window import Window
from criu_relay.wire import link_pb2

SUMMARIES_PER_FRAME = 48
"""An image summary takes at most 300 bytes (a name of 255), a header 16 KiB."""


@implementer(IOutgoing)
class OutgoingMigration:
    """One migration at the sending end; see L{IOutgoing}.

    @ivar id: its 16 bytes.
    @ivar namespace: its name; "" when it is not known any more.
    @ivar told: the cache has been sent something of it.
    @ivar credit: what it may send.
    @ivar closed: the closing header is on its way.
    @ivar held: the cache has verified all of it.
    """

    def __init__(
        self,
        migration: bytes,
        namespace: str,
        window: Window,
        fetches: Fetches,
        ready: Callable[[QueuedImage], None],
        control: Callable[[OutgoingMigration, link_pb2.Frame], None],
        deliver: Callable[[bytes, bool, str], Deferred[str]],
        lost: Callable[[RelayError], None],
    ) -> None:
        """
        @param ready: puts an image on the scheduler's round.
        @param control: sends a frame before image data.
        @param lost: the migration cannot go on.
        """
        self.id = migration
        self.namespace = namespace
        self.window = window
        self._labels = xxhash.xxh3_128()
        self.told = False
        self.held = False
        self.closed = False
        self.dead: RelayError | None = None
        self.images: dict[tuple[int, str], QueuedImage] = {}
        self.fetches = fetches
        self._ready = ready
        self._control = control
        self._deliver = deliver
        self._lost = lost
        self._numbers = 0
        self._sealing: Deferred[int] | None = None
        self._closing: list[link_pb2.Frame] = []
        self._round: set[QueuedImage] = set()
        self.credit = SendCredit(window, ready)

    def check(self) -> None:
        """@raise RelayError: the migration cannot go on."""
        if self.dead is not None:
            raise self.dead

    # IOutgoing

    def snapshot(self, index: int, label: str) -> None:
        """See L{IOutgoing.snapshot}."""
        self.check()
        self._labels.update(label.encode() + b"\0")
        self._control(self, link_pb2.Frame(snapshot=link_pb2.Snapshot(migration=self.id, index=index, label=label)))

    def open_image(self, snapshot: int, name: str, mode: Mode) -> IImageSink:
        """See L{IOutgoing.open_image}."""
        self.check()
        image = self.images.get((snapshot, name))
        if image is None or mode is Mode.REPLACE:
            if image is not None and not image.complete:
                raise Conflict(f"image {name} is opened again while it is being written")
            if image is not None:
                image.drop()
            self._numbers += 1
            made = OutgoingImage if self.window.limit else PassedImage
            image = self.images[snapshot, name] = made(self, self._numbers, snapshot, name)
            mode = Mode.REPLACE
        image.begin(mode)
        return image

    def read_image(self, snapshot: int, name: str) -> IOpenedImage | None:
        """See L{IOutgoing.read_image}."""
        image = self.images.get((snapshot, name))
        if image is None or not image.complete:
            return None
        return FetchedImage(self.fetches, image.queue, self.id, image.number, name, image.size)

    def discard(self, snapshot: int, name: str, offset: int, length: int) -> None:
        """See L{IOutgoing.discard}."""
        self.check()
        image = self.images[snapshot, name]
        body = link_pb2.Discard(migration=self.id, image=image.number, offset=offset, length=length)
        image.queue(link_pb2.Frame(discard=body))

    def seal(self, source: dict[str, Any]) -> Deferred[int]:
        """See L{IOutgoing.seal}."""
        self.check()
        rows = [image.summary() for image in self.images.values()]
        starts = range(0, max(len(rows), 1), SUMMARIES_PER_FRAME)
        self._closing = [
            link_pb2.Frame(
                namespace_end=link_pb2.NamespaceEnd(
                    migration=self.id,
                    images=rows[start : start + SUMMARIES_PER_FRAME],
                    last=start + SUMMARIES_PER_FRAME >= len(rows),
                    source=link_pb2.Source(**source),
                    labels=self._labels.digest() if start + SUMMARIES_PER_FRAME >= len(rows) else None,
                )
            )
            for start in starts
        ]
        self._sealing = Deferred()
        sealing = self._sealing
        self._close_when_drained()
        return sealing

    def decide(self, commit: bool, reason: str = "") -> Deferred[str]:
        """See L{IOutgoing.decide}."""
        if not commit:
            self.fail(Aborted(reason), tell=False)
        return self._deliver(self.id, commit, reason)

    # The link's side

    def held_by_cache(self, namespace: str, count: int) -> None:
        """The cache verified everything; under which name it would serve it is for us to verify."""
        if self.namespace not in ("", namespace):
            self.fail(Aborted(f"the cache holds {self.namespace} as {namespace}: the link changed what was sent"))
            return
        self.held = True
        if self._sealing is not None:
            sealing, self._sealing = self._sealing, None
            sealing.callback(count)

    def fail(self, error: RelayError, tell: bool = True) -> None:
        """It cannot go on: nothing more is sent. Who writes an image asks why, so that must be known by then."""
        if self.dead is not None:
            return
        self.dead = error
        self._round.clear()
        self._closing = []
        if self._sealing is not None:
            sealing, self._sealing = self._sealing, None
            sealing.errback(error)
        elif tell:
            self._lost(error)
        self.fetches.give_up_all(self.id, error)
        for image in self.images.values():
            image.drop()
            image.stop()

    def link_lost(self, reason: LinkLost) -> None:
        """The link is gone for good: what is held stays there, everything else is lost with it."""
        if not self.held:
            self.fail(reason)

    # Its images' side

    def image_ready(self, image: QueuedImage) -> None:
        """It has something to send."""
        if self.dead is None and image not in self._round:
            self._round.add(image)
            self._ready(image)

    def image_sent(self, image: QueuedImage) -> None:
        """It has nothing more to send for now."""
        self._round.discard(image)
        self._close_when_drained()

    def _close_when_drained(self) -> None:
        if self._closing and not self._round:
            self.closed = True
            frames, self._closing = self._closing, []
            for frame in frames:
                self._control(self, frame)
