"""Remote images, what proxy and cache have in common: one connection per open (docs/protocol.md, "remote images")."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from criu_relay.errors import ProtocolError, RelayError
from criu_relay.flow.ways import CRIU, TAKEN
from criu_relay.interfaces import IOpenedImage
from criu_relay.local.connection import LocalConnection, check_descriptor, close_all
from criu_relay.local.listener import Door
from criu_relay.local.ordering import Arrivals
from criu_relay.local.serving import Servings
from criu_relay.wire import remote_images as wire

PATIENCE = 10.0
"""Seconds for what CRIU sends at once: a header after it connected, a pipe after its header or our answer, the rest of
a list. Only a connection that waits for our answer may be quiet for longer."""

AT_ONCE = 16 << 10
"""Bytes of an image that go with the answer, in the same system call, when its pages come over the connection itself: a
thousand may wait for one commit, and the socket of each has room for so much."""


class ImagesConnection(LocalConnection):
    """One open of an image, or one use of the list, by CRIU."""

    dialect = "images"

    def __init__(self, reactor: Any, door: Door, arrivals: Arrivals) -> None:
        super().__init__(door)
        self._reactor = reactor
        self._arrivals = arrivals
        self._reader = wire.RequestReader()
        self._events: list[wire.Event] = []
        self._again: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None
        self._request: wire.ImageOpened | None = None
        self._labels: wire.SnapshotListReader | None = None
        self._pending: Deferred[Any] | None = None
        self._opened: IOpenedImage | None = None
        self._read: IOpenedImage | None = None
        self._handed_over = False
        self._servings = Servings(self._served)

    def write(self, request: wire.ImageOpened, descriptor: int, data: bytes) -> None:
        """An image is written.

        @param descriptor: where it comes from, ours from now on, whatever happens.
        @param data: what was read of it before.
        @raise RelayError: the client is dropped.
        """
        raise NotImplementedError

    def read(self, request: wire.ImageOpened) -> Deferred[IOpenedImage | None]:
        """An image is asked for.

        @return: errs with, or this raises, L{RelayError}: it is answered as missing.
        """
        raise NotImplementedError

    def list_pushed(self, labels: list[str]) -> None:
        """Labels are to be appended to the list.

        @raise RelayError: the client is dropped.
        """
        raise NotImplementedError

    def list_wanted(self) -> Deferred[list[str]]:
        """The list is asked for.

        @return: errs with, or this raises, L{RelayError}: it is answered as missing.
        """
        raise NotImplementedError

    def finish(self, restore: bool) -> None:
        """CRIU says that it is done.

        @raise RelayError: the client is dropped.
        """
        raise NotImplementedError

    def lost(self, clean: bool) -> None:
        """The connection is over, and all that it brought was handled."""
        raise NotImplementedError

    def settled(self) -> None:
        """CRIU has read an image, or the connection is over."""
        raise NotImplementedError

    @property
    def was_read(self) -> bool:
        """An image is, or was, written to a pipe that came over it."""
        return self._read is not None

    @property
    def delayed(self) -> bool:
        """What it sent is read and not handled yet."""
        return self._again is not None

    def admitted(self) -> None:
        """CRIU connected."""
        self._arrivals.add(self)
        self._expect("a header")

    def received(self, data: bytes, descriptors: list[int]) -> None:
        """Part of a request."""
        self._events.extend(self._reader.feed(data, descriptors))
        if self._events and not self.delayed:
            self._handle()

    def ended(self, clean: bool) -> None:
        """CRIU closed the connection."""
        self._expect(None)
        halfway = not self._reader.at_boundary
        self._forget()
        try:
            if clean and halfway:
                raise ProtocolError("it left in the middle of a message")
            if clean and self._labels is not None:
                self.list_pushed(self._labels.finish())
        except RelayError as error:
            clean = False
            self.refuse(error)
        self._arrivals.discard(self)
        self.lost(clean)
        self.settled()

    def drop(self, reason: str) -> None:
        """End the connection and what came over it."""
        super().drop(reason)
        self._expect(None)
        self._forget()
        self._servings.cancel()

    def _forget(self) -> None:
        """Close what was not used."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        events, self._events = self._events, []
        close_all(event.descriptor for event in events if isinstance(event, wire.DescriptorPassed))
        close_all(self._reader.close())
        if self._pending is not None:
            self._pending.cancel()
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _handle(self) -> None:
        """Handle what was read; before that, what connections made before this one have to say."""
        transport: Any = self.transport
        if self._arrivals.must_wait(self):
            transport.pauseProducing()
            self._again = self._reactor.callLater(0, self._handle_again)
            return
        events, self._events = self._events, []
        while events and self.open:
            self._handle_event(events.pop(0), events)

    def _handle_again(self) -> None:
        self._again = None
        try:
            self._handle()
        except RelayError as error:
            self.refuse(error)
        if self.open and not self.delayed and not self._handed_over:
            transport: Any = self.transport
            transport.resumeProducing()

    def _handle_event(self, event: wire.Event, following: list[wire.Event]) -> None:
        match event:
            case wire.ImageOpened(mode=wire.OpenMode.READ):
                self._begin(event)
                asked = maybeDeferred(self.read, event)
                asked.addCallbacks(self._answer_image, self._missing, (event,), errbackArgs=(event.name,))
                self._pending = asked.addErrback(self._unanswered)
            case wire.ImageOpened(snapshot_id=""):
                self._begin(event)
                data = b"".join(more.data for more in following if isinstance(more, wire.Data))
                following.clear()
                self.write(event, self._hand_over(), data)
            case wire.ImageOpened():
                self._begin(event)
                self._expect(f"the pipe of {event.name}")
            case wire.DescriptorPassed(descriptor):
                self._take(descriptor)
            case wire.SkipWanted(offset, length):
                assert self._read is not None
                self.send(wire.encode_skipped(*self._read.skip(offset, length)))
            case wire.SnapshotListPushed():
                self._labels = wire.SnapshotListReader()
                self._expect("the rest of the list of snapshots")
            case wire.Data(data):
                assert self._labels is not None
                self._labels.feed(data)
            case wire.SnapshotListWanted():
                self._begin(None)
                wanted = maybeDeferred(self.list_wanted)
                wanted.addCallbacks(self._answer_list, self._missing, errbackArgs=("the list of snapshots",))
                self._pending = wanted.addErrback(self._unanswered)
            case wire.Finished(restore):
                self._begin(None)
                self.finish(restore)
                self._hang_up()

    def _begin(self, request: wire.ImageOpened | None) -> None:
        """The request is known: those of connections made after this one need not wait for it."""
        self._arrivals.discard(self)
        self._expect(None)
        self._request = request

    def _take(self, descriptor: int) -> None:
        """A pipe came: the connection has done its work, but for a reader that stays to skip."""
        assert self._request is not None
        self._expect(None)
        opened, self._opened = self._opened, None
        try:
            check_descriptor(descriptor, self._request.name, writing=opened is not None)
        except RelayError:
            close_all([descriptor])
            if opened is not None:
                opened.close()
            raise
        if opened is not None:
            self._read = opened
            self._servings.start(self._request.name, self.who, opened, descriptor)
            return
        self.write(self._request, descriptor, b"")
        if self.open:
            self._hang_up()

    def _hand_over(self) -> int:
        """From now on the image's bytes come or go on our own descriptor of the connection, which is returned."""
        transport: Any = self.transport
        transport.pauseProducing()
        self._handed_over = True
        return os.dup(self.socket())

    def _answer_image(self, opened: IOpenedImage | None, request: wire.ImageOpened) -> None:
        if opened is None:
            self._reply(self._reader.answer(False))
        elif request.snapshot_id:
            self._opened = opened
            self._expect(f"the pipe for {request.name}")
            self.send(self._reader.answer(True))
        elif (data := opened.whole(AT_ONCE)) is not None:
            opened.close()
            TAKEN.add(CRIU, "send", len(data))
            self._reply(self._reader.answer(True) + data)
            self.settled()
        else:
            descriptor = self._hand_over()
            os.write(descriptor, self._reader.answer(True))
            self._servings.start(request.name, self.who, opened, descriptor)

    def _answer_list(self, labels: list[str]) -> None:
        self._reply(self._reader.answer(True) + wire.encode_snapshots(labels) if labels else self._reader.answer(False))

    def _missing(self, failure: Failure, what: str) -> None:
        """It cannot be read, and is answered so."""
        failure.trap(RelayError)
        reason = failure.getErrorMessage()
        self._log.warn("{what} is answered as missing to {who}: {reason}", what=what, who=self.who, reason=reason)
        self._reply(self._reader.answer(False))

    def _unanswered(self, failure: Failure) -> None:
        """Cancelled as the client left, or a defect of ours."""
        if not failure.check(CancelledError):
            self._log.failure("cannot answer {who}", failure, who=self.who)
            self.drop("cannot answer")

    def _reply(self, data: bytes) -> None:
        """The last that is sent; others may wait for the same, and come before the end of this connection."""
        self.send(data)
        self._timer = self._reactor.callLater(0, self._hang_up)

    def _hang_up(self) -> None:
        """End the connection after what was written to it."""
        self._expect(None)
        transport: Any = self.transport
        transport.loseConnection()

    def _served(self) -> None:
        """A pipe, or the connection itself, has all of an image."""
        if self._handed_over and self.open:
            self._hang_up()
        self.settled()

    def _expect(self, what: str | None) -> None:
        """Wait for something that must come soon; None: for nothing any more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._reactor.callLater(PATIENCE, self._too_late, what) if what is not None else None

    def _too_late(self, what: str) -> None:
        self.refuse(ProtocolError(f"{what} did not come within {PATIENCE:g} s"))
