"""Headers of extents as most of them are: that of the one before, but for the offset.

An offset is the last field of such a header, so that all before it are the same bytes. To make or to read them again
would take as long as all else that is done with a header.
"""

from __future__ import annotations

from criu_relay.wire import link_pb2
from criu_relay.wire.framing import LENGTH

_BITS, _MORE = 7, 0x80
"""Of each byte of a varint, seven bits are the number's; the eighth says that there are more."""

DIGITS = 9
"""Bytes of the largest offset of an image: 63 bits."""


def varint(number: int) -> bytes:
    """A number as protobuf writes it: the lowest bits first."""
    made = bytearray()
    while number >= _MORE:
        made.append(number & _MORE - 1 | _MORE)
        number >>= _BITS
    made.append(number)
    return bytes(made)


def number_of(data: bytes) -> int | None:
    """The number, below 2^63, that L{varint} makes these bytes of; None: it makes them of none."""
    if not 0 < len(data) <= DIGITS or data[-1] >= _MORE or (not data[-1] and len(data) > 1):
        return None
    number = data[-1]
    for byte in data[-2::-1]:
        if byte < _MORE:
            return None
        number = number << _BITS | byte & _MORE - 1
    return number


def _frame(migration: bytes, image: int, offset: int, payload: int) -> link_pb2.Frame:
    return link_pb2.Frame(payload=payload, extent=link_pb2.Extent(migration=migration, image=image, offset=offset))


class ExtentEncoder:
    """Makes the headers of one image's extents that have no zeros."""

    def __init__(self, migration: bytes, image: int) -> None:
        self._migration = migration
        self._image = image
        self._payload = self._digits = 0
        self._beginning = b""

    def encode(self, offset: int, payload: int) -> bytes:
        """Length and header of the extent of `payload` bytes from `offset` on."""
        end = varint(offset)
        if payload != self._payload or len(end) != self._digits:
            header = _frame(self._migration, self._image, offset, payload).SerializeToString()
            self._payload, self._digits = payload, len(end)
            self._beginning = LENGTH.pack(len(header)) + header[: -len(end)]
        return self._beginning + end


class ExtentMemory:
    """Knows the header of an extent that was parsed and checked again when it comes with another offset."""

    def __init__(self) -> None:
        self._size = 0
        self._beginning = b""
        self._frame = link_pb2.Frame()
        self._next: int | None = None  # where the extent whose header came last ends; None: that was none we know
        self._goes_on = False  # that one followed another of its image, which had the link for itself

    def keep(self, header: bytes, frame: link_pb2.Frame) -> None:
        """This is one, unless it has more than such a header has or is not encoded as protobuf does it."""
        body = frame.extent
        known = _frame(body.migration, body.image, body.offset, frame.payload)
        if known.SerializeToString() == header:
            self._size, self._frame = len(header), known
            self._beginning = header[: -len(varint(body.offset))]
            self._next = body.offset + frame.payload
            self._goes_on = False

    def again(self, header: bytes) -> link_pb2.Frame | None:
        """The frame of a header, the same object each time; None: it must be parsed. Its offset may be too large."""
        before, self._next = self._next, None
        if len(header) != self._size or not header.startswith(self._beginning):
            return None
        offset = number_of(header[len(self._beginning) :])
        if offset is None:
            return None
        self._frame.extent.offset = offset
        self._next = offset + self._frame.payload
        # Those that were foreseen and have come lie between.
        self._goes_on = before is not None and before <= offset
        return self._frame

    def following(self, most: int) -> list[bytes]:
        """Lengths and headers of the extents that may come behind the one whose header came last, if the image goes on
        with as many bytes in each; at most `most`, and only those whose headers are as long. None where images take
        turns: what is foreseen and does not come costs a copy."""
        if self._next is None or not self._goes_on:
            return []
        beginning = LENGTH.pack(self._size) + self._beginning
        made = [beginning + varint(self._next + number * self._frame.payload) for number in range(most)]
        return [header for header in made if len(header) == LENGTH.size + self._size]
