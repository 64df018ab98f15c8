"""`--remote` at the proxy: criu dump writes its images here, and reads its parent's (docs/protocol.md)."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from criu_relay.errors import ProtocolError, RelayError
from criu_relay.interfaces import IDump, IDumpClient, IOpenedImage, Mode
from criu_relay.local.connection import has_unread
from criu_relay.local.images import ImagesConnection
from criu_relay.local.listener import Door
from criu_relay.local.ordering import Arrivals, Turn, Turns
from criu_relay.local.sources import Sources
from criu_relay.wire import remote_images as wire

MODES = {wire.OpenMode.WRITE: Mode.REPLACE, wire.OpenMode.APPEND: Mode.APPEND}


@implementer(IDumpClient)
class ImagesProxy(ImagesConnection):
    """One open by a dump."""

    whole_dump = False

    def __init__(self, reactor: Any, dump: IDump, door: Door, arrivals: Arrivals, turns: Turns) -> None:
        super().__init__(reactor, door, arrivals)
        self._dump = dump
        self._turns = turns
        self._writing: tuple[wire.ImageOpened, Turn] | None = None
        self._lost = False
        self._gone = False
        self._sources = Sources(reactor, self._written)

    def admitted(self) -> None:
        """CRIU connected."""
        super().admitted()
        self._dump.client_connected(self)

    def write(self, request: wire.ImageOpened, descriptor: int, data: bytes) -> None:
        """Read it into the image, after what was written to the same image before."""
        turn = Turn(lambda: self._write_now(request, descriptor, data), descriptor)
        self._writing = request, turn
        self._turns.enter(_image(request), turn)

    def read(self, request: wire.ImageOpened) -> Deferred[IOpenedImage | None]:
        """Answered at once, but when all of the image is written and some of it still in its pipe."""
        return Deferred.fromCoroutine(self._read_in_turn(request))

    async def _read_in_turn(self, request: wire.ImageOpened) -> IOpenedImage | None:
        image = _image(request)
        if self._turns.being_written(image):
            return None
        came: Deferred[None] = Deferred()
        turn = Turn(lambda: came.callback(None))
        self._turns.enter(image, turn)
        try:
            await came
            return await self._dump.read_image(self, request.snapshot_id, request.name)
        finally:
            self._turns.leave(image, turn)

    def list_pushed(self, labels: list[str]) -> None:
        """A dump begins: its own label."""
        self._dump.push_snapshots(self, labels)

    def list_wanted(self) -> Deferred[list[str]]:
        """Everything that was pushed so far."""
        return succeed(self._dump.snapshots())

    def finish(self, restore: bool) -> None:
        """The dump is over, well or not."""
        if restore:
            raise ProtocolError("the end of a restore came to the proxy; restore reads from img-cache.sock")
        self._dump.finished(self)

    def lost(self, clean: bool) -> None:
        """CRIU closed the connection, as it does when it has passed a pipe."""
        self._lost = True
        request = self._request
        if request is not None and request.mode is not wire.OpenMode.READ and self._writing is None:
            self._fail(request, "criu left before it passed its pipe")

    def settled(self) -> None:
        """Tell the dump once nothing of this client is in our hands only."""
        begun = self._writing is None or self._writing[1].begun
        if self._lost and begun and not self._gone:
            self._gone = True
            self._dump.client_gone(self)
        if self._gone and not self._sources and not self._servings:
            self._door.leave(self)

    def drop(self, reason: str) -> None:
        """End the connection, and close its pipe: CRIU gets EPIPE."""
        super().drop(reason)
        self._sources.abort(reason)
        if self._writing is not None and not self._writing[1].begun:
            request, turn = self._writing
            turn.begun = True
            os.close(turn.descriptor)
            self._turns.leave(_image(request), turn)
            self.settled()

    def unsettled(self) -> str | None:
        """What is on its way still."""
        if not self._lost:
            if self._request is None and has_unread([self.socket()]):
                return "a request of criu that was not read yet"
            if not self._reader.at_boundary:
                return "half a request of criu"
            if self._labels is not None:
                return "the list of snapshots"
            if self.delayed:
                return "a request of criu that waits for an earlier one"
        if self._writing is not None and not self._writing[1].begun:
            return f"a second write of {self._writing[0].name}"
        for name in self._sources:
            return f"the pipe of {name}"
        return None

    def _write_now(self, request: wire.ImageOpened, descriptor: int, data: bytes) -> None:
        try:
            sink = self._dump.open_image(self, request.snapshot_id, request.name, MODES[request.mode])
        except RelayError as error:
            os.close(descriptor)
            self._not_begun(error)
            return
        try:
            self._sources.start(request.name, descriptor, sink, data)
        except RelayError as error:
            self._not_begun(error)
            return
        self.settled()

    def _not_begun(self, error: RelayError) -> None:
        self._leave_turn()
        self.refuse(error)

    def _written(self) -> None:
        """The image ended, well or not."""
        self._leave_turn()
        if self._handed_over and self.open:
            self._hang_up()
        self.settled()

    def _leave_turn(self) -> None:
        assert self._writing is not None
        request, turn = self._writing
        self._turns.leave(_image(request), turn)

    def _fail(self, request: wire.ImageOpened, reason: str) -> None:
        """An image was announced and will never be complete."""
        try:
            self._dump.open_image(self, request.snapshot_id, request.name, MODES[request.mode]).fail(reason)
        except RelayError as error:
            self._log.info("{name} was not begun: {reason}", name=request.name, reason=error.reason)


def _image(request: wire.ImageOpened) -> tuple[str, str]:
    return request.snapshot_id, request.name
