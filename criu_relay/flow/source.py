"""What CRIU writes into pipes and sockets, into memory."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import RelayError
from criu_relay.flow.pipes import DEFAULT_PIPE, enlarge, readable_bytes
from criu_relay.flow.ways import CRIU, TAKEN, Way, read, readv
from criu_relay.interfaces import IImageSink, IPassingSink

BYTES_PER_TURN = 1 << 20
"""What one turn of the reactor moves at most."""

FULL_TIMES = 2
"""A pipe that was full so often carries more than a small image: 64 KiB once are one that is written at once."""

PIECE = 4096
"""Bytes that are taken when nothing waited just before: a copy of so few costs less than room for them."""


@implementer(IPushProducer, IReadDescriptor)
class DescriptorSource:
    """Reads one pipe or socket to its end into one image, pausing while the image has no room."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorFDSet,
        clock: IReactorTime,
        fd: int,
        sink: IImageSink,
        finished: Callable[[], None],
    ) -> None:
        """
        @param clock: of the reactor's turns.
        @param fd: the read end of a pipe, or a stream socket; ours from now on.
        @param finished: called once, at the end or at a failure.
        """
        self._reactor = reactor
        self._clock = clock
        self._soon: IDelayedCall | None = None
        self._fd = fd
        self._sink = sink
        self._finished = finished
        self._full = 0
        self._paused = True
        self._way = Way(CRIU, readv, read)
        self._passing: IPassingSink | None = None
        if IPassingSink.providedBy(sink) and stat.S_ISFIFO(os.fstat(fd).st_mode):
            self._passing = sink

    def start(self) -> None:
        """Begin to read, at once: a small image is often all there, and the reactor need not know of its pipe."""
        os.set_blocking(self._fd, False)
        self._sink.registerProducer(self, True)
        self._paused = False
        self._look()

    @property
    def active(self) -> bool:
        """Not at the end yet."""
        return self._fd >= 0

    def abort(self, reason: str) -> None:
        """Close the descriptor, so that its writer gets EPIPE; the image fails."""
        if self.active:
            self._close()
            self._sink.unregisterProducer()
            self._sink.fail(reason)
            self._finished()

    def resumeProducing(self) -> None:
        """The image has room (again)."""
        if self.active:
            self._paused = False
            if self._passing is not None and self._full >= FULL_TIMES:
                # What was offered has left, and most often there is more: to be told so would take longer.
                self._soon = self._soon or self._clock.callLater(0, self._look)
            else:
                self._reactor.addReader(self)

    def pauseProducing(self) -> None:
        """The image is full: what comes waits in the pipe, and stops its writer there."""
        if self.active:
            self._paused = True
            self._reactor.removeReader(self)

    def stopProducing(self) -> None:
        """The image is not wanted any more."""
        self.abort("the image is not wanted any more")

    def fileno(self) -> int:
        """Our descriptor, -1 when closed."""
        return self._fd

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "image source"

    def _look(self) -> None:
        """Take what waits; what comes later the reactor tells."""
        self._soon = None
        if not self._paused:
            self.doRead()
        if self.active and not self._paused:
            self._reactor.addReader(self)

    def doRead(self) -> None:
        """Something can be read: at most 1 MiB of it, also where it comes in smaller pieces."""
        left = BYTES_PER_TURN
        try:
            while left > 0 and not self._paused and self.active:
                waiting = readable_bytes(self._fd)
                count = self._read(waiting, left) if waiting else self._look_for_end()
                if not count:
                    return
                left -= count
        except BlockingIOError:
            return
        except (OSError, RelayError) as error:
            self.abort(f"cannot read the image: {error}")
        except Exception as error:  # a defect: the reactor is not always there to end what is not read any more
            self._log.failure("an image cannot be read")
            self.abort(f"cannot read the image: {error}")

    def _look_for_end(self) -> int:
        """Nothing waits: that may be the end, which has come with the last bytes of what is small. The bytes that came
        in the meantime."""
        data = os.read(self._fd, PIECE)
        if data:
            TAKEN.add(CRIU, read.__name__, len(data))
            self._sink.write(data)
        else:
            self._close()
            self._sink.unregisterProducer()
            self._sink.end()
            self._finished()
        return len(data)

    def _read(self, waiting: int, most: int) -> int:
        """Read once, of what waits; the bytes read, 0 when there is no room."""
        if waiting >= DEFAULT_PIPE and self._full < FULL_TIMES:
            self._full += 1
            if self._full == FULL_TIMES:
                enlarge(self._fd)
        if self._passing is not None:
            self._paused = True
            self._passing.offer(self._fd, min(waiting, most))
            if self._paused:
                self.pauseProducing()
            return 0
        room = self._sink.reserve(min(waiting, most))
        if room is None:
            self.pauseProducing()
            return 0
        count = self._fill(room.view[:most])
        if count:  # else somebody else has read it
            self._sink.written(count)
        return count

    def _fill(self, view: memoryview) -> int:
        """Read what there is, and what comes meanwhile: a socket gives less at once than goes into one frame."""
        filled = count = self._way(self._fd, view)
        with contextlib.suppress(BlockingIOError):
            while count and filled < len(view):
                count = self._way(self._fd, view[filled:])
                filled += count
        return filled

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave the descriptor up: a pipe's hang-up without a byte left comes as this, not as doRead."""
        if not self.active:
            return
        if reason.check(ConnectionDone) is None:
            self.abort(reason.getErrorMessage())
            return
        self.resumeProducing()
        self.doRead()

    def _close(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self._reactor.removeReader(self)
        os.close(self._fd)
        self._fd = -1
