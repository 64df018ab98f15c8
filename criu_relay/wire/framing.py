"""CRIU's own framing: u32 little-endian length, then a protobuf message of that many bytes."""

from __future__ import annotations

import struct

from google.protobuf.message import Message

from criu_relay.errors import Invalid, ProtocolError

LENGTH = struct.Struct("<I")
"""CRIU sends the length in host byte order; every machine that CRIU runs images between is little-endian."""

MAX_MESSAGE = 16 * 1024
"""Bytes in a message: the largest one there is has two strings, a 255 byte name and a 4096 byte path."""


TLS_TYPES = range(20, 24)
"""The first byte of a TLS record (RFC 8446, 5.1)."""

TLS_MAJOR = 3
"""The second byte, in all versions."""


def checked_length(length: int, limit: int, what: str) -> int:
    """Check a length prefix before anything is allocated for it.

    @raise ProtocolError: it is larger than C{limit}.
    """
    if length > limit:
        reason = f"{what}: {length} bytes are announced, {limit} are possible"
        if length & 0xFF in TLS_TYPES and length >> 8 & 0xFF == TLS_MAJOR:
            reason += "; it looks like TLS, which both sides must be given, or neither"
        raise ProtocolError(reason)
    return length


def frame(message: Message) -> bytes:
    """Encode one message with its length.

    @raise Invalid: it is larger than MAX_MESSAGE.
    """
    body = message.SerializeToString()
    if len(body) > MAX_MESSAGE:
        raise Invalid(f"a message of {len(body)} bytes is too large", hint=f"{MAX_MESSAGE} are possible")
    return LENGTH.pack(len(body)) + body


class MessageReader:
    """Takes a byte stream apart into messages and raw bytes, as its owner asks for them.

    It holds what it was fed and allocates nothing for what is only announced.

    @param what: what the messages are, for errors ("stream request").
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes fed and not taken."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append what was received."""
        self._buffer += data

    def take_message(self) -> bytes | None:
        """The body of the next message (may be empty); None when it is not all there.

        @raise ProtocolError: it is announced with more than MAX_MESSAGE bytes.
        """
        if len(self._buffer) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._buffer)
        stop = LENGTH.size + checked_length(length, MAX_MESSAGE, self._what)
        if len(self._buffer) < stop:
            return None
        body = bytes(self._buffer[LENGTH.size : stop])
        del self._buffer[:stop]
        return body

    def take_bytes(self, count: int) -> bytes | None:
        """The next C{count} bytes; None when there are fewer."""
        if len(self._buffer) < count:
            return None
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def take_rest(self) -> bytes:
        """Everything that is pending."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data
