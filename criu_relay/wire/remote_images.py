"""CRIU's `--remote` dialect: what comes over one connection; docs/protocol.md, "remote images"."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable
from dataclasses import dataclass

from criu_relay.errors import Invalid, ProtocolError
from criu_relay.wire import remote_images_pb2
from criu_relay.wire.descriptors import DescriptorReader
from criu_relay.wire.framing import MessageReader, frame
from criu_relay.wire.messages import parse
from criu_relay.wire.names import check_label, check_name, from_peer

REQUEST = "local image request"
SKIP = "skip"

SNAPSHOT_LIST = "parent"
"""The name, with an empty snapshot_id, of the list of snapshots."""

ERROR_NONE = 0
ERROR_MISSING = 2
"""ENOENT: no such image, the only error that the dialect has."""

MAX_SIZE = (1 << 63) - 1
"""Bytes in an image: off_t has no more."""

MAX_SNAPSHOTS = 1024
"""Labels in a list: CRIU pushes one a time, and a migration has one for each pre-dump; 4 MiB at the very most."""


class OpenMode(enum.IntEnum):
    """Linux open flags of the C library that CRIU sends; compared for equality, not as bits."""

    READ = 0
    WRITE = 1
    APPEND = 1024


@dataclass(frozen=True)
class ImageOpened:
    """An image is opened.

    READ: answer; WRITE and APPEND: no answer. Then a DescriptorPassed follows, or, when snapshot_id is empty, the
    data goes over the connection itself.
    """

    name: str
    snapshot_id: str
    mode: OpenMode


@dataclass(frozen=True)
class SnapshotListPushed:
    """Labels to append to the list follow as L{Data}, for a L{SnapshotListReader}."""


@dataclass(frozen=True)
class SnapshotListWanted:
    """The list is asked for: answer, then send L{encode_snapshots}."""


@dataclass(frozen=True)
class Finished:
    """CRIU is done with everything; `restore`: a restore is, else a dump."""

    restore: bool


@dataclass(frozen=True)
class DescriptorPassed:
    """The pipe of the image that was opened: its read end for a write, its write end for a read."""

    descriptor: int


@dataclass(frozen=True)
class SkipWanted:
    """The reader of the image does not want these bytes of it: answer with L{encode_skipped}."""

    offset: int
    length: int


@dataclass(frozen=True)
class Data:
    """Bytes of the image, or of the list, that was opened."""

    data: bytes


Event = ImageOpened | SnapshotListPushed | SnapshotListWanted | Finished | DescriptorPassed | SkipWanted | Data


class _State(enum.Enum):
    """What comes next; the value completes "data came ..." where nothing may."""

    HEADER = "header"
    ANSWER = "before the request was answered"
    DESCRIPTOR = "descriptor"
    DATA = "data"
    SKIPS = "skips"
    OVER = "after all that the request allows"


def open_mode(value: int, what: str) -> OpenMode:
    """The mode that a number on the wire stands for.

    @raise ProtocolError: none.
    """
    try:
        return OpenMode(value)
    except ValueError:
        raise ProtocolError(f"{what}: field open_mode is {value}, neither 0, 1 nor 1024") from None


class RequestReader(DescriptorReader[Event]):
    """One connection: a header, and what its mode says comes after it."""

    def __init__(self) -> None:
        super().__init__(REQUEST)
        self._state = _State.HEADER
        self._answered = self._passed = _State.OVER

    @property
    def at_boundary(self) -> bool:
        """Nothing is half received: no part of a header, no pipe that is still to come."""
        return self._state is not _State.DESCRIPTOR and not self._reader.pending

    def answer(self, exists: bool) -> bytes:
        """Answer a read.

        @param exists: False ends the exchange.
        @return: the bytes to send.
        @raise RuntimeError: no read waits for an answer.
        """
        if self._state is not _State.ANSWER:
            raise RuntimeError("no read waits for an answer")
        self._state = self._answered if exists else _State.OVER
        return reply(ERROR_NONE if exists else ERROR_MISSING)

    def _advance(self) -> list[Event]:
        events: list[Event] = []
        if self._state is _State.HEADER:
            body = self._reader.take_message()
            if body is None:
                return events
            events.append(self._opened(parse(remote_images_pb2.LocalImage, body, REQUEST)))
        if self._state is _State.DATA:
            if self._reader.pending:
                events.append(Data(self._reader.take_rest()))
        elif self._state is _State.DESCRIPTOR:
            descriptor = self._take_descriptor()
            if descriptor is not None:
                self._state = self._passed
                events.append(DescriptorPassed(descriptor))
        elif self._state is _State.SKIPS:
            while (body := self._reader.take_message()) is not None:
                events.append(self._skip(parse(remote_images_pb2.Skip, body, SKIP)))
        else:
            self._refuse_data(self._state.value)
        return events

    def _opened(self, header: remote_images_pb2.LocalImage) -> Event:
        """The event of a header; sets what comes next."""
        snapshot_id = from_peer(check_label, header.snapshot_id, f"{REQUEST}: field snapshot_id")
        mode = open_mode(header.open_mode, REQUEST)
        if not header.name and not snapshot_id:
            if mode is OpenMode.APPEND:
                raise self._wrong("field open_mode is 1024, but the end of a dump has 1 and that of a restore 0")
            self._state = _State.OVER
            return Finished(restore=mode is OpenMode.READ)
        name = from_peer(check_name, header.name, f"{REQUEST}: field name")
        passes_pipe = bool(snapshot_id)
        if mode is OpenMode.READ:
            self._state = _State.ANSWER
            self._answered = _State.DESCRIPTOR if passes_pipe else _State.OVER
            self._passed = _State.SKIPS
        else:
            self._state = _State.DESCRIPTOR if passes_pipe else _State.DATA
        if passes_pipe or name != SNAPSHOT_LIST:
            return ImageOpened(name, snapshot_id, mode)
        if mode is OpenMode.WRITE:
            raise self._wrong("field open_mode is 1, but the list of snapshots is only appended to (1024)")
        return SnapshotListWanted() if mode is OpenMode.READ else SnapshotListPushed()

    def _skip(self, message: remote_images_pb2.Skip) -> SkipWanted:
        if message.offset + message.length > MAX_SIZE:
            raise ProtocolError(f"{SKIP}: field offset is {message.offset}, beyond the largest image")
        return SkipWanted(message.offset, message.length)


def encode_skipped(start: int, stop: int) -> bytes:
    """Encode the answer to a skip: from, to."""
    return frame(remote_images_pb2.Skipped(**{"from": start, "to": stop}))


@functools.cache
def reply(error: int) -> bytes:
    """Encode the answer to a read: 0, or 2 (ENOENT).

    Use L{RequestReader.answer} where there is one: it also knows what comes next.

    @raise Invalid: another number, which CRIU does not expect.
    """
    if error not in (ERROR_NONE, ERROR_MISSING):
        raise Invalid(f"error {error} is not possible in a reply", hint="0 or 2 are")
    return frame(remote_images_pb2.LocalImageReply(error=error))


def encode_snapshots(labels: Iterable[str]) -> bytes:
    """Encode the list of snapshots: a framed SnapshotId for each label.

    @raise Invalid: a label is not valid.
    """
    return b"".join(
        frame(remote_images_pb2.SnapshotId(snapshot_id=check_label(label, "snapshot_id"))) for label in labels
    )


class SnapshotListReader:
    """Decodes a list of snapshots, as it comes in."""

    def __init__(self) -> None:
        self._reader = MessageReader("snapshot list")
        self._labels: list[str] = []

    def feed(self, data: bytes) -> list[str]:
        """Take some of the list.

        @return: the labels that it completed.
        @raise ProtocolError: it is wrong, or has more than MAX_SNAPSHOTS labels.
        """
        self._reader.feed(data)
        before = len(self._labels)
        while (body := self._reader.take_message()) is not None:
            if len(self._labels) == MAX_SNAPSHOTS:
                raise ProtocolError(f"snapshot list: it has more than {MAX_SNAPSHOTS} labels")
            label = parse(remote_images_pb2.SnapshotId, body, "snapshot list").snapshot_id
            if not label:
                raise ProtocolError("snapshot list: field snapshot_id is empty")
            self._labels.append(from_peer(check_label, label, "snapshot list: field snapshot_id"))
        return self._labels[before:]

    def finish(self) -> list[str]:
        """All labels, oldest first.

        @raise ProtocolError: the list ended within a label.
        """
        if self._reader.pending:
            raise ProtocolError("snapshot list: it ends in the middle of a label")
        return self._labels
