"""The link between proxy and cache: frames; docs/protocol.md, "link"."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from google.protobuf.unknown_fields import UnknownFieldSet

from criu_relay.errors import Invalid, ProtocolError
from criu_relay.wire import link_pb2
from criu_relay.wire.extents import ExtentMemory
from criu_relay.wire.framing import LENGTH
from criu_relay.wire.messages import parse
from criu_relay.wire.names import check_label, check_name, from_peer, plain
from criu_relay.wire.payload import PayloadReader, PayloadSink

__all__ = [
    "ENTRY",
    "MAX_HEADER",
    "MAX_IMAGES",
    "MAX_MIGRATIONS",
    "MAX_PAYLOAD",
    "MAX_RANGE",
    "MAX_RUNS",
    "MAX_SIZE",
    "MAX_SNAPSHOTS",
    "MAX_TEXT",
    "PAGE",
    "VERSION",
    "FrameHandler",
    "FrameReader",
    "PayloadSink",
    "clip",
    "encode",
    "extent_cost",
    "pack_runs",
    "runs_of",
    "without",
]

VERSION = 1
"""Of the link; a peer that says another one is refused."""

MAX_HEADER = 16 * 1024
"""Bytes in a frame's header: room for about 50 images in a closing header."""

MAX_PAYLOAD = 1024 * 1024
"""Bytes in a frame's payload: the size with the best throughput; a small image waits no longer than for one of it."""

FRAMES_TOGETHER = 4
"""Frames of one image that are received at once when they have come: a turn of the reactor moves as many MiB at most of
a link that is faster than its cache, in about a millisecond."""

PAGE = 4096
"""Bytes in a page: zeros are told of in whole ones, and memory is counted in them."""

ENTRY = 16
"""Bytes of the cache's memory that every page of an image costs, besides the page: its number in a table (8), with room
for the table to grow, and the count of its references (4)."""

MAX_RUNS = 1024
"""Runs in an extent: its header stays below 6 KiB, and a MiB of pages that alternate needs 256."""

RUN_SIZE = 4
"""Bytes of a run in an extent's header: u32."""

MAX_RANGE = 64 << 20
"""Bytes of an image in one extent, with its zeros: what a cache knows of them is 256 KiB."""

MAX_TEXT = 4096
"""Bytes in a text for people."""

MAX_SIZE = (1 << 63) - 1
"""Bytes in an image: off_t has no more."""

MAX_MIGRATIONS = 4096
"""Migrations of one proxy that are not decided: what a peer can make a cache remember."""

MAX_SNAPSHOTS = 1024
"""Snapshots of one migration: CRIU keeps a chain of pre-dumps short, as every one of them is read at the restore."""

MAX_IMAGES = 1 << 16
"""Images of one migration: CRIU writes some ten for each task, and a tree has at most some thousand tasks."""

ID_SIZE = 16
"""Bytes in the id of a migration and of an instance: 128 random bits."""

DIGEST_SIZE = 16
"""Bytes in a digest: xxh3-128."""

WHAT = "link frame"


class FrameHandler(Protocol):
    """Who gets the frames."""

    def frame_received(self, frame: link_pb2.Frame) -> PayloadSink | None:
        """A header is complete and valid.

        @param frame: yours until you return: the next extent may come in the same object.
        @return: where its payload goes, if it has one; None: the payload is dropped.
        """


def clip(text: str) -> str:
    """As much of a text as a frame may carry."""
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")


def encode(frame: link_pb2.Frame) -> bytes:
    """Encode a frame: length and header. The caller sets C{frame.payload}, and sends the payload after this.

    @raise Invalid: the header is larger than MAX_HEADER.
    @raise google.protobuf.message.EncodeError: a required field is missing.
    """
    header = frame.SerializeToString()
    if len(header) > MAX_HEADER:
        raise Invalid(f"a frame's header of {len(header)} bytes is too large", hint=f"{MAX_HEADER} are possible")
    return LENGTH.pack(len(header)) + header


def _wrong(field: str, problem: str) -> ProtocolError:
    return ProtocolError(f"{WHAT}: field {field} {problem}")


def _exactly(data: bytes, size: int, field: str) -> None:
    if len(data) != size:
        raise _wrong(field, f"has {len(data)} bytes, not {size}")


def _in_image(offset: int, length: int, field: str) -> None:
    if offset + length > MAX_SIZE:
        raise _wrong(field, f"is {offset}, beyond the largest image")


def _counted_from_1(number: int, field: str) -> None:
    if not number:
        raise _wrong(field, "is 0; they count from 1")


def _text(message: Any, path: str, *fields: str) -> None:
    """Bound texts for people, and leave nothing in them that a terminal or a log would obey."""
    for field in fields:
        text = getattr(message, field)
        size = len(text.encode())
        if size > MAX_TEXT:
            raise _wrong(f"{path}.{field}", f"has {size} bytes, more than {MAX_TEXT}")
        if not text.isprintable():
            setattr(message, field, plain(text))


def _source(message: Any, path: str) -> None:
    if message.HasField("source"):
        _text(message.source, f"{path}.source", "host", "command", "boot_id")


def _digest(message: Any, path: str) -> None:
    if message.HasField("digest"):
        _exactly(message.digest, DIGEST_SIZE, f"{path}.digest")


def _hello(body: link_pb2.Hello, payload: int) -> None:
    _exactly(body.instance, ID_SIZE, "hello.instance")
    if body.HasField("session"):
        _exactly(body.session, ID_SIZE, "hello.session")
    _text(body, "hello", "name", "software")


def _namespace(body: link_pb2.Namespace, payload: int) -> None:
    from_peer(check_name, body.name, f"{WHAT}: field namespace.name")
    _source(body, "namespace")


def _snapshot(body: link_pb2.Snapshot, payload: int) -> None:
    _counted_from_1(body.index, "snapshot.index")
    from_peer(check_label, body.label, f"{WHAT}: field snapshot.label")


def _image(body: link_pb2.Image, payload: int) -> None:
    _counted_from_1(body.snapshot, "image.snapshot")
    from_peer(check_name, body.name, f"{WHAT}: field image.name")
    _in_image(body.size, 0, "image.size")


def extent_cost(offset: int, data: int, zeros: int = 0) -> int:
    """Bytes of the cache's memory that an extent takes: for each page of the image that begins in it.

    @param data: bytes of payload; C{zeros}: bytes of zeros that are left out of it.
    """
    pages = -(-(offset + data + zeros) // PAGE) - -(-offset // PAGE)
    return pages * ENTRY + (pages - zeros // PAGE) * PAGE


def pack_runs(runs: Sequence[int]) -> bytes | None:
    """The field of an extent; None: there are no zeros to tell of."""
    return struct.pack(f"<{len(runs)}I", *runs) if runs else None


def runs_of(body: link_pb2.Extent) -> tuple[int, ...]:
    """Bytes of payload, of zeros, of payload... of an extent; empty: no zeros."""
    runs = body.runs
    return struct.unpack(f"<{len(runs) // RUN_SIZE}I", runs) if runs else ()


def without(body: link_pb2.Extent, skip: int) -> tuple[int, tuple[int, ...]]:
    """Where an extent goes on behind its first `skip` bytes of payload, and its runs from there; empty: no zeros.

    Zeros belong to the payload that follows them.
    """
    runs, at = list(runs_of(body)), body.offset
    while runs and skip > runs[0]:
        skip -= runs[0]
        at += runs[0] + runs[1]
        del runs[:2]
    if runs:
        runs[0] -= skip
    return at + skip, tuple(runs)


def _extent(body: link_pb2.Extent, payload: int) -> None:
    if len(body.runs) % RUN_SIZE or len(body.runs) > RUN_SIZE * MAX_RUNS:
        raise _wrong("extent.runs", f"has {len(body.runs)} bytes, not {RUN_SIZE} for each of at most {MAX_RUNS} runs")
    runs = runs_of(body)
    if not runs:
        if not payload:
            raise _wrong("payload", "is missing in an extent")
        _in_image(body.offset, payload, "extent.offset")
        return
    if sum(runs) > MAX_RANGE:
        raise _wrong("extent.runs", f"has {sum(runs)} bytes, more than {MAX_RANGE}")
    if sum(runs[::2]) != payload:
        raise _wrong("payload", f"is {payload}, extent.runs has {sum(runs[::2])}")
    _in_image(body.offset, sum(runs), "extent.offset")
    at = body.offset
    for index, count in enumerate(runs):
        if not count and index:
            raise _wrong("extent.runs", "has a 0 that is not its first number")
        if index % 2 and (at % PAGE or count % PAGE):
            raise _wrong("extent.runs", f"has {count} zeros at {at}, which are not whole pages")
        at += count


def _discard(body: link_pb2.Discard, payload: int) -> None:
    _in_image(body.offset, body.length, "discard.offset")


def _image_end(body: link_pb2.ImageEnd, payload: int) -> None:
    _in_image(body.size, 0, "image_end.size")
    _digest(body, "image_end")


def _namespace_end(body: link_pb2.NamespaceEnd, payload: int) -> None:
    for image in body.images:
        _counted_from_1(image.snapshot, "namespace_end.images.snapshot")
        from_peer(check_name, image.name, f"{WHAT}: field namespace_end.images.name")
        _in_image(image.size, 0, "namespace_end.images.size")
        _digest(image, "namespace_end.images")
    if body.HasField("labels"):
        _exactly(body.labels, DIGEST_SIZE, "namespace_end.labels")
    _source(body, "namespace_end")


def _held(body: link_pb2.Held, payload: int) -> None:
    from_peer(check_name, body.name, f"{WHAT}: field held.name")


def _resume(body: link_pb2.Resume, payload: int) -> None:
    if body.partial > MAX_PAYLOAD:
        raise _wrong("resume.partial", f"is {body.partial}, more than {MAX_PAYLOAD}")


def _fetch(body: link_pb2.Fetch, payload: int) -> None:
    if not 1 <= body.length <= MAX_PAYLOAD:
        raise _wrong("fetch.length", f"is {body.length}, not 1 to {MAX_PAYLOAD}")
    _in_image(body.offset, body.length, "fetch.offset")


def _reason(kind: str) -> Callable[[Any, int], None]:
    return lambda body, payload: _text(body, kind, "reason")


_CHECKS: dict[str, Callable[[Any, int], None]] = {
    "hello": _hello,
    "namespace": _namespace,
    "snapshot": _snapshot,
    "image": _image,
    "extent": _extent,
    "image_end": _image_end,
    "namespace_end": _namespace_end,
    "held": _held,
    "fetch": _fetch,
    "discard": _discard,
    "resume": _resume,
    "abort": _reason("abort"),
    "error": _reason("error"),
    "bye": _reason("bye"),
}
"""What a frame's body must be beyond its form, by kind."""

_BODIES = link_pb2.Frame.DESCRIPTOR.oneofs_by_name["body"].fields

_MIGRATION = {
    field.name: field.message_type is not None and "migration" in field.message_type.fields_by_name for field in _BODIES
}
"""Whether a body has a migration id, by kind."""

_PAYLOADS = frozenset({"extent", "fetched"})
"""The kinds that may have a payload."""


def _check(frame: link_pb2.Frame, kind: str) -> None:
    """Check what a known frame says.

    @raise ProtocolError: the reason names the field.
    """
    payload = frame.payload
    if payload and kind not in _PAYLOADS:
        raise _wrong("payload", f"is {payload}, but {kind} has none")
    body = getattr(frame, kind)
    if _MIGRATION[kind] and len(body.migration) != ID_SIZE and (kind != "error" or body.HasField("migration")):
        raise _wrong(f"{kind}.migration", f"has {len(body.migration)} bytes, not {ID_SIZE}")
    check = _CHECKS.get(kind)
    if check is not None:
        check(body, payload)


class FrameReader(PayloadReader):
    """Takes the bytes of a link apart into frames, and puts payloads where the handler says.

    A frame of a kind that we do not know (a newer peer's) is skipped, with its payload.
    """

    def __init__(self, handler: FrameHandler) -> None:
        super().__init__(WHAT, MAX_HEADER)
        self._handler = handler
        self._extents = ExtentMemory()

    def _following(self, most: int) -> Sequence[bytes]:
        """See L{PayloadReader._following}: the image goes on."""
        return self._extents.following(min(most, FRAMES_TOGETHER - 1))

    def _header(self, body: bytes) -> tuple[int, PayloadSink | None]:
        frame = self._extents.again(body)
        if frame is None:
            return self._parsed(body)
        payload = frame.payload
        _in_image(frame.extent.offset, payload, "extent.offset")
        return payload, self._handler.frame_received(frame)

    def _parsed(self, body: bytes) -> tuple[int, PayloadSink | None]:
        frame = parse(link_pb2.Frame, body, WHAT)
        payload = frame.payload
        if payload > MAX_PAYLOAD:
            raise _wrong("payload", f"is {payload}, more than {MAX_PAYLOAD}")
        kind = frame.WhichOneof("body")
        if kind is None:
            if not len(UnknownFieldSet(frame)):
                raise ProtocolError(f"{WHAT}: it has no body")
            return payload, None
        _check(frame, kind)
        if kind == "extent" and payload == MAX_PAYLOAD:  # more like it are to come
            self._extents.keep(body, frame)
        return payload, self._handler.frame_received(frame)
