"""Reading { length, header, payload }: what the link and the old link have in common.

Payload goes straight into the memory that it is for: L{PayloadReader.buffers} says where the next received bytes go.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

from criu_relay.errors import ProtocolError
from criu_relay.wire.foreseen import Foreseen, RunSink, same_place
from criu_relay.wire.framing import LENGTH, checked_length

LARGE = 64 << 10
"""Behind a payload of so many bytes no more is received with it than a header like its own takes: the beginning of
another payload that came there would have to be copied to its place, which is worth a system call for small ones."""


class PayloadSink(Protocol):
    """Where the payload of one frame goes."""

    def room(self, remaining: int) -> memoryview | None:
        """Where the next payload bytes go.

        May be asked for again before anything is filled; the latest answer counts.

        @param remaining: payload bytes that are still to come; of a longer view, what is beyond them is written to only
            for frames that are foreseen.
        @return: writable memory; None or nothing: no room now, and the reader stops until it is called again.
        """

    def filled(self, count: int) -> None:
        """The first C{count} bytes of the room asked for last are there."""

    def done(self) -> None:
        """The payload is all there. Called once; not when the connection breaks first."""


R = TypeVar("R")
P = ParamSpec("P")


def _guarded(step: Callable[Concatenate[PayloadReader, P], R]) -> Callable[Concatenate[PayloadReader, P], R]:
    """Raise what was raised before, remember what is raised now, and refuse to be entered twice."""

    def guarded(self: PayloadReader, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._error is not None:
            raise self._error
        if self._busy:
            raise RuntimeError("the reader is already reading")
        self._busy = True
        try:
            return step(self, *args, **kwargs)
        except Exception as error:
            self._error = error
            raise
        finally:
            self._busy = False

    functools.update_wrapper(guarded, step)
    return guarded


class PayloadReader(abc.ABC):
    """Takes a stream of headers with payloads apart. Not re-entrant, but for C{feed(b"")}, which then does nothing.

    One buffer for headers is allocated at the start; nothing is allocated for what is only announced. After it has
    raised once, every call raises the same again.

    @param limit: the largest header, bytes.
    """

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._scratch = memoryview(bytearray(LENGTH.size + limit))
        self._start = self._end = 0  # of what is in scratch and not handled
        self._sink: PayloadSink | None = None
        self._size = self._remaining = 0  # payload bytes of the frame, and of those to come or in scratch
        self._offered = 0  # bytes of the sink's room that buffers() gave out
        self._beyond = memoryview(b"")  # room of the sink behind those
        self._foreseen: Foreseen | None = None  # what buffers() gave out behind those
        self._behind = len(self._scratch)  # bytes that are received behind the payload
        self._kept = bytearray()  # fed, but there was no place for it
        self._busy = False
        self._error: Exception | None = None

    @abc.abstractmethod
    def _header(self, body: bytes) -> tuple[int, PayloadSink | None]:
        """A header is complete.

        @return: its payload's length, and where that goes; None: it is dropped.
        """

    def _following(self, most: int) -> Sequence[bytes]:
        """Headers, with their lengths, that are foreseen behind the one that came last: as long as that one, for
        payloads as large, in order. None unless its sink is a L{RunSink}. Something else may come.

        @param most: how many of them at most.
        """
        return ()

    @property
    def at_boundary(self) -> bool:
        """Nothing is half received: neither a header nor a payload."""
        return not (self._remaining or self._end > self._start or self._kept)

    def buffers(self) -> list[memoryview]:
        """Where the next received bytes go, in order; made for recvmsg_into.

        @return: empty: the sink has no room; stop reading until it has, then call again.
        """
        if self._kept:
            self.feed(b"")
            if self._kept:
                return []
        return self._buffers()

    @_guarded
    def received(self, count: int) -> None:
        """C{count} bytes were put into what L{buffers} gave last.

        @raise ProtocolError: the peer is wrong.
        """
        self._received(count)

    def feed(self, data: bytes) -> None:
        """Take received bytes, for callers that have them already.

        What a sink has no room for is kept: stop reading when L{stalled}, and go on with C{feed(b"")}.

        @raise ProtocolError: the peer is wrong.
        """
        if not self._busy or data:
            self._feed(data)

    @_guarded
    def _feed(self, data: bytes) -> None:
        if self._kept:
            self._kept += data
            data, self._kept = bytes(self._kept), bytearray()
        self._take(data)

    def _take(self, data: bytes) -> None:
        left = memoryview(data)
        while (buffers := self._offer()) and left:
            count = 0
            for buffer in buffers:
                part = left[count : count + len(buffer)]
                buffer[: len(part)] = part
                count += len(part)
            self._received(count)
            left = left[count:]
        self._kept += left

    @property
    def awaited(self) -> int:
        """Bytes of a payload that are still to come; 0: a header is next."""
        return self._remaining

    @property
    def stalled(self) -> bool:
        """Bytes wait for room in a sink."""
        return bool(self._kept) or (self._remaining > 0 and self._end > self._start)

    @_guarded
    def _buffers(self) -> list[memoryview]:
        buffers = self._offer()
        if len(self._beyond) >= self._size >= LARGE:
            most = min(len(self._beyond) // self._size, len(self._scratch) // self._behind - 1)
            headers = self._following(most)
            if headers:
                self._foreseen = Foreseen(headers, self._size, self._beyond, self._scratch)
                return [buffers[0], *self._foreseen.places()]
        return buffers

    def _offer(self) -> list[memoryview]:
        self._offered, self._beyond, self._foreseen = 0, self._beyond[:0], None
        if self._end > self._start:
            self._handle()
        if self._remaining and self._end > self._start:
            return []
        if self._start:
            self._scratch[: self._end - self._start] = self._scratch[self._start : self._end]
            self._end -= self._start
            self._start = 0
        scratch = self._scratch[self._end :]
        if not self._remaining or self._sink is None:
            return [scratch]
        room = self._sink.room(self._remaining)
        if not room:
            return []
        self._offered, self._beyond = min(len(room), self._remaining), room[self._remaining :]
        return [room[: self._offered], scratch[: self._behind]] if self._offered == self._remaining else [room]

    def _received(self, count: int) -> None:
        filled = min(count, self._offered)
        if self._foreseen is not None and count > filled:
            self._received_run(self._foreseen, filled, count - filled)
            return
        if self._end + count - filled > len(self._scratch):
            raise ValueError(f"{count} bytes are more than the buffers hold")
        self._offered = 0
        self._end += count - filled
        if filled:
            self._filled(filled)
        if self._end > self._start:
            self._handle()

    def _received_run(self, run: Foreseen, filled: int, count: int) -> None:
        """The rest of a payload and `count` bytes behind it, where frames were foreseen."""
        if count > run.most:
            raise ValueError(f"{filled + count} bytes are more than the buffers hold")
        self._offered = 0
        sink = cast(RunSink, self._sink)
        self._filled(filled)
        frames = run.whole(count)
        if not (frames and sink.follow(frames, run.size)):
            frames = 0
        count -= frames * run.frame
        if count <= run.length or (count < run.frame and run.came(frames)):
            self._start = frames * run.length
            self._end = self._start + min(count, run.length)
            self._handle()
            if count > run.length:
                self._placed(run.beginning(frames, count - run.length))
        else:
            self._take(run.copied(frames, count))

    def _placed(self, data: memoryview) -> None:
        """The beginning of a payload lies where it was foreseen: that is its place, unless its sink has another."""
        room = self._sink.room(self._remaining) if self._sink is not None else data
        if room and len(room) >= len(data) and same_place(room, data):
            self._filled(len(data))
        else:
            self._take(bytes(data))

    def _filled(self, count: int) -> None:
        """Payload bytes are where they belong."""
        self._remaining -= count
        sink = self._sink
        if sink is not None:
            sink.filled(count)
            if not self._remaining:
                self._sink = None
                sink.done()

    def _handle(self) -> None:
        """Handle what is in scratch, as far as it goes."""
        while self._end > self._start:
            if self._remaining:
                if not self._move_payload():
                    return
            elif not self._take_header():
                return

    def _move_payload(self) -> bool:
        """Move payload from scratch to its sink; False: it has no room."""
        count = min(self._remaining, self._end - self._start)
        if self._sink is not None:
            room = self._sink.room(self._remaining)
            if not room:
                return False
            count = min(count, len(room))
            room[:count] = self._scratch[self._start : self._start + count]
        self._start += count
        self._filled(count)
        return True

    def _take_header(self) -> bool:
        """Take one header out of scratch; False: it is not all there."""
        available = self._end - self._start - LENGTH.size
        if available < 0:
            return False
        (length,) = LENGTH.unpack_from(self._scratch, self._start)
        checked_length(length, self._limit, self._what)
        if not length:
            raise ProtocolError(f"{self._what}: its length is 0")
        if available < length:
            return False
        start = self._start + LENGTH.size
        self._start = start + length
        self._size, self._sink = self._header(bytes(self._scratch[start : self._start]))
        self._remaining = self._size
        self._behind = LENGTH.size + length if self._remaining >= LARGE else len(self._scratch)
        if not self._remaining and self._sink is not None:
            sink, self._sink = self._sink, None
            sink.done()
        return True
