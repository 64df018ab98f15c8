"""CRIU's pagemap-*.img: which pages of a task a snapshot has, and which its parent has.

Two magic numbers, a head, then entries in ascending order of addresses; each message with its length before it. The
pages that are PRESENT follow one another in the pages image in that order.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from criu_relay.errors import ProtocolError
from criu_relay.wire.framing import MessageReader
from criu_relay.wire.pagemap_pb2 import Entry, Head

PAGE = 4096
"""Bytes in a page of the machines that images move between."""

MAGIC = struct.pack("<II", 0x54564319, 0x56084025)
"""What such an image begins with: CRIU's common magic, and that of a pagemap."""

NAME = re.compile(r"pagemap-(shmem-)?[0-9]+\.img")

PARENT, LAZY, PRESENT = 1, 2, 4
"""Flags of an entry: the parent snapshot has the pages; they may be fetched late; this snapshot has them."""

MAX_ADDRESS = 1 << 64

WHAT = "pagemap"


@dataclass(frozen=True)
class Pages:
    """An entry.

    @ivar start: number of its first page (address / 4096); `stop`: of the first one behind it.
    @ivar present: this snapshot has them.
    """

    start: int
    stop: int
    present: bool


class PagemapReader:
    """Takes a pagemap apart as it is fed; keeps no more than one message.

    @ivar pages_id: of the image with the pages; None: not known yet.
    @ivar present: pages of it so far.
    """

    def __init__(self) -> None:
        self.pages_id: int | None = None
        self.present = 0
        self._reader = MessageReader(WHAT)
        self._begun = False
        self._end = 0

    def feed(self, data: bytes) -> list[Pages]:
        """Take some of it.

        @return: the entries that it completed.
        @raise ProtocolError: it is malformed.
        """
        self._reader.feed(data)
        if not self._begun:
            magic = self._reader.take_bytes(len(MAGIC))
            if magic is None:
                return []
            if magic != MAGIC:
                raise ProtocolError(f"{WHAT}: it begins with {magic.hex()}, not with {MAGIC.hex()}")
            self._begun = True
        found = []
        while (body := self._reader.take_message()) is not None:
            try:
                if self.pages_id is None:
                    self.pages_id = Head.FromString(body).pages_id
                    continue
                found.append(self._entry(Entry.FromString(body)))
            except DecodeError:
                raise ProtocolError(f"{WHAT}: a message of {len(body)} bytes cannot be read") from None
        return found

    def finish(self) -> None:
        """That was all.

        @raise ProtocolError: it ended in the middle, or before its head.
        """
        if self._reader.pending or self.pages_id is None:
            raise ProtocolError(f"{WHAT}: it ends in the middle of a message")

    def _entry(self, entry: Entry) -> Pages:
        count = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
        start = entry.vaddr // PAGE
        if entry.vaddr % PAGE or start < self._end or (start + count) * PAGE > MAX_ADDRESS:
            raise ProtocolError(
                f"{WHAT}: an entry of {count} pages is at {entry.vaddr:#x}, after {self._end * PAGE:#x}"
            )
        self._end = start + count
        present = bool(entry.flags & PRESENT) if entry.HasField("flags") else not entry.in_parent
        if present:
            self.present += count
        return Pages(start, start + count, present)
