"""What the proxy has sent in a session and the cache has not acknowledged: the next link sends it again."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from criu_relay.errors import ProtocolError
from criu_relay.flow.frames import MemfdRange, OutFrame
from criu_relay.link.chunk import Chunk
from criu_relay.link.window import Window
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2
from criu_relay.wire.framing import LENGTH

if TYPE_CHECKING:
    from criu_relay.link.outgoing import OutgoingMigration

GAP = OutFrame(wire.encode(link_pb2.Frame(gap=link_pb2.Gap())))


@dataclass(eq=False, slots=True)
class Sent:
    """One counted frame.

    @ivar frame: as it was sent; None: its payload was passed on and is not here any more.
    @ivar size: of its payload, in bytes.
    @ivar chunk: the memory of its payload.
    @ivar asks: it is answered, and asked again when the answer was lost with its link.
    """

    outgoing: OutgoingMigration
    frame: OutFrame | None
    size: int = 0
    chunk: Chunk | None = None
    asks: bool = False

    def again(self, skip: int) -> OutFrame:
        """The frame without the first C{skip} bytes of its payload; a gap where its migration was given up."""
        if self.outgoing.dead is not None or self.frame is None:
            return GAP
        payload = self.frame.payload
        if not skip or not isinstance(payload, MemfdRange):
            return self.frame
        header = link_pb2.Frame.FromString(self.frame.header[LENGTH.size :])
        offset, runs = wire.without(header.extent, skip)
        header.extent.offset = offset
        if header.extent.HasField("runs"):
            header.extent.runs = wire.pack_runs(runs) or b""
        header.payload -= skip
        return OutFrame(wire.encode(header), MemfdRange(payload.fd, payload.offset + skip, payload.view[skip:]))


class SentLog:
    """The counted frames of one session, in order.

    @ivar session: its 16 bytes.
    """

    def __init__(self, window: Window) -> None:
        self.session = os.urandom(wire.ID_SIZE)
        self._window = window
        self._acknowledged = 0
        self._kept: deque[Sent] = deque()
        self._again: deque[Sent] = deque()
        self._skip = 0

    def add(self, sent: Sent) -> None:
        """This one is handed to the link now."""
        self._kept.append(sent)

    def acknowledged(self, frames: int) -> None:
        """The cache has handled so many of them since the session began.

        @raise ProtocolError: it cannot have, so many were not sent.
        """
        sent = self._acknowledged + len(self._kept) - len(self._again)
        if frames > sent:
            raise ProtocolError(f"ack.frames is {frames}, only {sent} were sent")
        while self._acknowledged < frames:
            self._acknowledged += 1
            self._free(self._kept.popleft(), shared=False)

    def resume(self, frames: int, partial: int) -> None:
        """A new link: what the cache does not have is sent again.

        @param partial: payload bytes that it has of the first of them.
        @raise ProtocolError: it cannot have so much.
        """
        self._again.clear()
        handled = list(self._kept)[: max(0, frames - self._acknowledged)]
        questions = [Sent(sent.outgoing, sent.frame, asks=True) for sent in handled if sent.asks]
        self.acknowledged(frames)
        if partial and (not self._kept or partial >= self._kept[0].size):
            raise ProtocolError(f"resume.partial is {partial}, that frame has no such payload")
        self._kept.extend(questions)
        self._again.extend(self._kept)
        self._skip = partial

    def precedes(self, frames: int) -> bool:
        """The cache has said before that it handled more frames than so many: this is another session of it."""
        return frames < self._acknowledged

    def next_again(self) -> OutFrame | None:
        """The next frame to be sent again; None: there is none."""
        if not self._again:
            return None
        sent, skip, self._skip = self._again.popleft(), self._skip, 0
        frame = sent.again(skip)
        if frame is GAP:
            self._free(sent, shared=True)
        return frame

    def forget(self) -> None:
        """Nothing of what was sent is sent again, although the kernel may still send it; the count begins anew."""
        while self._kept:
            self._free(self._kept.popleft(), shared=True)
        self._again.clear()
        self._acknowledged = self._skip = 0

    def begin(self) -> None:
        """A new session."""
        self.forget()
        self.session = os.urandom(wire.ID_SIZE)

    def _free(self, sent: Sent, shared: bool) -> None:
        chunk, sent.chunk, sent.frame = sent.chunk, None, None
        if chunk is not None:
            self._window.release(chunk, shared)
