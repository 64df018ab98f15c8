"""`--remote` at the cache: criu restore reads its images here (docs/protocol.md, "remote images")."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred

from criu_relay.errors import ProtocolError
from criu_relay.interfaces import IOpenedImage
from criu_relay.local.images import ImagesConnection
from criu_relay.local.listener import Door
from criu_relay.local.ordering import Arrivals
from criu_relay.local.pins import Pin, Pins
from criu_relay.wire import remote_images as wire


class ImagesCache(ImagesConnection):
    """One open by a restore; it waits until its namespace is decided."""

    def __init__(self, reactor: Any, door: Door, arrivals: Arrivals, pins: Pins) -> None:
        super().__init__(reactor, door, arrivals)
        self._pins = pins
        self._pin: Pin | None = None
        self._lost = False

    def write(self, request: wire.ImageOpened, descriptor: int, data: bytes) -> None:
        """Nobody writes to a cache."""
        os.close(descriptor)
        raise ProtocolError(f"{request.name} is written to the cache; dump writes to img-proxy.sock")

    def read(self, request: wire.ImageOpened) -> Deferred[IOpenedImage | None]:
        """Answered when the namespace is decided."""
        pin = self._pinned()
        return pin.restore.open(request.snapshot_id, request.name).addCallback(self._found, pin, request)

    def _found(
        self, opened: IOpenedImage | None, pin: Pin, request: wire.ImageOpened
    ) -> IOpenedImage | Deferred[IOpenedImage | None] | None:
        if opened is None:
            return pin.restore.snapshots().addCallback(pin.missing, request.snapshot_id)
        pin.served()
        return opened

    def list_pushed(self, labels: list[str]) -> None:
        """Nobody writes to a cache."""
        raise ProtocolError("a snapshot is pushed to the cache; dump pushes to img-proxy.sock")

    def list_wanted(self) -> Deferred[list[str]]:
        """Answered when the namespace is decided."""
        pin = self._pinned()
        return pin.restore.snapshots().addCallback(pin.listed)

    def finish(self, restore: bool) -> None:
        """The restore is done."""
        if not restore:
            raise ProtocolError("the end of a dump came to the cache; dump writes to img-proxy.sock")
        if self.peer is not None:
            self._pins.finish(self.peer)

    def lost(self, clean: bool) -> None:
        """CRIU closed the connection; it may still read from its pipe."""
        self._lost = True
        self._door.leave(self)

    def settled(self) -> None:
        """Let go of the restore once nothing is read any more."""
        if (self._lost or self.was_read) and not self._servings and self._pin is not None:
            self._pin.leave()
            self._pin = None

    def _pinned(self) -> Pin:
        if self._pin is None:
            assert self.peer is not None
            self._pin = self._pins.enter(self.peer)
        return self._pin
