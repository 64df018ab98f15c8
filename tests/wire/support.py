"""What the tests of the codecs share: the vectors, an encoder that can do wrong, and sinks."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from criu_relay.errors import ProtocolError
from criu_relay.wire import criu_dev_link_pb2, link_pb2, remote_images_pb2, stream_pb2

ROOT = pathlib.Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "tests/data/wire-vectors.json").read_text())
MODULES = {
    "stream": stream_pb2,
    "remote images": remote_images_pb2,
    "criu-dev link": criu_dev_link_pb2,
    "link": link_pb2,
}

FORBIDDEN_LENGTHS = [16 * 1024 + 1, 1 << 31, (1 << 32) - 1]
"""Length prefixes beyond the limit of every dialect."""


def vectors(section: str) -> list[dict[str, Any]]:
    return [vector for vector in VECTORS if vector["section"] == section]


def message_class(vector: dict[str, Any]) -> type[Message]:
    return getattr(MODULES[vector["section"]], vector["message"])


def title(vector: dict[str, Any]) -> str:
    return f"{vector['section']}, {vector['what']} ({vector['sender']})"


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def bytes_field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def prefix(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def length(value: int) -> bytes:
    return value.to_bytes(4, "little")


def plain(message: Message) -> dict[str, Any]:
    """A message as the vectors have it: bytes in hex, enums by name."""

    def one(field: Any, value: Any) -> Any:
        if field.message_type is not None:
            return plain(value)
        if field.enum_type is not None:
            return field.enum_type.values_by_number[value].name
        return value.hex() if isinstance(value, bytes) else value

    return {
        field.name: [one(field, item) for item in value] if field.is_repeated else one(field, value)
        for field, value in message.ListFields()
    }


def build(message: Message, decoded: dict[str, Any]) -> Message:
    """The inverse of L{plain}."""
    for name, value in decoded.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.message_type is not None and field.is_repeated:
            for item in value:
                build(getattr(message, name).add(), item)
        elif field.message_type is not None:
            getattr(message, name).SetInParent()
            build(getattr(message, name), value)
        elif field.enum_type is not None:
            setattr(message, name, field.enum_type.values_by_name[value].number)
        else:
            setattr(message, name, bytes.fromhex(value) if field.type == field.TYPE_BYTES else value)
    return message


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """C{data} cut at the given places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(places):
        yield data[start:stop]


def outcome(call: Any) -> Any:
    """What a call returns, or ProtocolError when it raised one; anything else that is raised fails the test."""
    try:
        return call()
    except ProtocolError:
        return ProtocolError


class Sink:
    """A sink of C{size} bytes that gives room as its schedule says: at most so many bytes at a time, 0: none now."""

    def __init__(self, size: int, schedule: list[int] | None = None) -> None:
        self.data = bytearray(size)
        self.count = 0
        self.finished = 0
        self.largest = 0
        self.schedule = schedule if schedule is not None else []

    def room(self, remaining: int) -> memoryview | None:
        assert remaining == len(self.data) - self.count, "remaining is wrong"
        most = self.schedule.pop(0) if self.schedule else remaining
        self.largest = max(self.largest, most)
        return memoryview(self.data)[self.count : self.count + most] if most else None

    def filled(self, count: int) -> None:
        assert count > 0
        self.count += count

    def done(self) -> None:
        assert self.count == len(self.data)
        self.finished += 1
