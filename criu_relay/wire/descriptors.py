"""What CRIU's two dialects have in common: messages, and one byte 00 that carries a descriptor.

Linux ends a read of a unix stream socket after the bytes that carried a descriptor (unix(7), SCM_RIGHTS), so a
descriptor always belongs to the last byte of the data that it came with.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Generic, TypeVar

from criu_relay.errors import ProtocolError
from criu_relay.wire.framing import MessageReader

CARRIER = b"\0"
"""The byte that CRIU sends a descriptor with."""

MAX_DESCRIPTORS = 1
"""Descriptors that one byte may carry: CRIU passes one pipe at a time."""

E = TypeVar("E")


class DescriptorReader(abc.ABC, Generic[E]):
    """A state machine that makes events of the bytes and descriptors of one connection.

    It owns the descriptors from L{feed} on until an event hands them out.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._reader = MessageReader(what)
        self._descriptors: list[int] = []
        self._error: ProtocolError | None = None

    def feed(self, data: bytes, descriptors: Sequence[int] = ()) -> list[E]:
        """Take what one read of the socket gave.

        @param descriptors: those that came with it; owned by the reader from now on, even when it raises.
        @return: what happened, in order. Descriptors in it belong to the caller.
        @raise ProtocolError: the peer is wrong. The reader is of no further use: every later call raises it again,
            and L{close} gives the descriptors back.
        """
        self._descriptors.extend(descriptors)
        if self._error is not None:
            raise self._error
        try:
            if len(self._descriptors) > MAX_DESCRIPTORS:
                raise self._wrong(f"{len(self._descriptors)} descriptors came at once, CRIU passes one")
            self._reader.feed(data)
            events = self._advance()
            if self._descriptors:
                raise self._wrong("a descriptor came without its data byte 00")
        except ProtocolError as error:
            self._error = error
            raise
        return events

    @property
    @abc.abstractmethod
    def at_boundary(self) -> bool:
        """Nothing is half received."""

    def close(self) -> list[int]:
        """The connection is over.

        @return: descriptors that came and were not handed out, for the caller to close.
        """
        left, self._descriptors = self._descriptors, []
        return left

    @abc.abstractmethod
    def _advance(self) -> list[E]:
        """The events that the bytes so far make.

        Nothing may be raised after a descriptor was taken: it would be lost. L{_take_descriptor} sees to it.
        """

    def _wrong(self, problem: str) -> ProtocolError:
        return ProtocolError(f"{self._what}: {problem}")

    def _take_descriptor(self) -> int | None:
        """The descriptor that must come next; None when it is not there yet. Nothing is pending after it."""
        carrier = self._reader.take_bytes(len(CARRIER))
        if carrier is None:
            return None
        if carrier != CARRIER:
            raise self._wrong(f"byte {carrier.hex()} came where 00 carries a descriptor")
        if not self._descriptors or self._reader.pending:
            raise self._wrong("the data byte 00 came without a descriptor")
        return self._descriptors.pop()

    def _refuse_data(self, when: str) -> None:
        """Nothing may be pending now."""
        if self._reader.pending:
            raise self._wrong(f"data came {when}")
