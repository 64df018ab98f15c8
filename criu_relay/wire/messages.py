"""Strict parsing of proto2 messages.

Protobuf's Python parser accepts an empty body for a message with required fields, lets the last of a doubled
field win, cuts a uint32 that is too large and takes invalid UTF-8 in strings. None of that may come in from a peer:
L{parse} walks the bytes once along a table made from the message's descriptor, and then has protobuf make the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from criu_relay.errors import ProtocolError

MAX_UINT32 = (1 << 32) - 1
MAX_UINT64 = (1 << 64) - 1
MAX_VARINT = 10
"""Bytes in a varint: 64 bits, 7 in each byte."""
MAX_TAG = 5
"""Bytes in a field's tag: 32 bits, 7 in each byte; protobuf's own parser takes no more."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}

_VARINT_LIMITS = {
    FieldDescriptor.TYPE_UINT32: MAX_UINT32,
    FieldDescriptor.TYPE_UINT64: MAX_UINT64,
    FieldDescriptor.TYPE_BOOL: 1,
    FieldDescriptor.TYPE_ENUM: MAX_UINT64,
}

M = TypeVar("M", bound=Message)


class _Field(NamedTuple):
    """One field of a message.

    @ivar bit: its bit, and that of its oneof, in the set of what was seen; 0 for a repeated one.
    @ivar wire: its wire type, VARINT or LENGTH.
    @ivar limit: the largest value of a varint.
    @ivar values: the values of an enum, else None.
    @ivar text: it is a string.
    @ivar table: that of a nested message, else None.
    """

    name: str
    bit: int
    wire: int
    limit: int
    values: frozenset[int] | None
    text: bool
    table: _Table | None


class _Table(NamedTuple):
    """What may be in a message.

    @ivar fields: by tag (number << 3 | wire type).
    @ivar numbers: names of the fields by number.
    @ivar required: bits of the required fields.
    """

    fields: dict[int, _Field]
    numbers: dict[int, str]
    required: int


def _bits(descriptor: Descriptor) -> Iterator[tuple[FieldDescriptor, int]]:
    """Each field with its bits: one of its own and one that the members of its oneof share."""
    groups = {oneof.name: 1 << len(descriptor.fields) + place for place, oneof in enumerate(descriptor.oneofs)}
    for place, field in enumerate(descriptor.fields):
        oneof = field.containing_oneof
        bit = 1 << place | (groups[oneof.name] if oneof is not None else 0)
        yield field, 0 if field.is_repeated else bit


@cache
def _table(descriptor: Descriptor) -> _Table:
    fields: dict[int, _Field] = {}
    numbers: dict[int, str] = {}
    required = 0
    for field, bit in _bits(descriptor):
        limit = _VARINT_LIMITS.get(field.type, 0)
        wire = VARINT if limit else LENGTH
        text = field.type == FieldDescriptor.TYPE_STRING
        nested = field.type == FieldDescriptor.TYPE_MESSAGE
        if not (limit or text or nested or field.type == FieldDescriptor.TYPE_BYTES):
            raise TypeError(f"{field.full_name}: this type is not supported")
        if limit and field.is_repeated:
            raise TypeError(f"{field.full_name}: repeated numbers are not supported")
        values = frozenset(value.number for value in field.enum_type.values) if field.enum_type is not None else None
        table = _table(field.message_type) if nested else None
        fields[field.number << 3 | wire] = _Field(field.name, bit, wire, limit, values, text, table)
        numbers[field.number] = field.name
        if field.is_required:
            required |= bit
    return _Table(fields, numbers, required)


class _Walk:
    """One pass over the bytes of one message."""

    __slots__ = ("body", "what")

    def __init__(self, body: bytes, what: str) -> None:
        self.body = body
        self.what = what

    def _error(self, path: str, name: str, problem: str) -> ProtocolError:
        return ProtocolError(f"{self.what}: field {path}{name} {problem}")

    def _cut(self, path: str) -> ProtocolError:
        where = f" in {path[:-1]}" if path else ""
        return ProtocolError(f"{self.what}: it ends in the middle of a field{where}")

    def _varint(self, position: int, end: int, path: str, longest: int) -> tuple[int, int]:
        """The number at C{position} and where it ends."""
        body = self.body
        value = shift = 0
        stop = position + longest
        while position < end:
            if position == stop:
                raise ProtocolError(f"{self.what}: a number{f' in {path[:-1]}' if path else ''} is too long")
            byte = body[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, position
            shift += 7
        raise self._cut(path)

    def check(self, table: _Table, position: int, end: int, path: str) -> None:
        """Check the bytes from C{position} to C{end} as a message of C{table}; `path` is its name and a dot."""
        body = self.body
        fields = table.fields
        seen = 0
        while position < end:
            tag = body[position]
            position += 1
            if tag > 127:
                tag, position = self._varint(position - 1, end, path, MAX_TAG)
            field = fields.get(tag)
            if field is None:
                position = self._skip(table, tag, position, end, path)
                continue
            name, bit, wire, limit, values, text, nested = field
            if seen & bit:
                raise self._error(path, name, "is there twice, or with another one that excludes it")
            seen |= bit
            if position < end and body[position] < 128:
                value = body[position]
                position += 1
            else:
                value, position = self._varint(position, end, path, MAX_VARINT)
            if wire == VARINT:
                if value > limit:
                    raise self._error(path, name, f"is {value}, more than {limit}")
                if values is not None and value not in values:
                    raise self._error(path, name, f"has the unknown value {value}")
                continue
            stop = position + value
            if stop > end:
                raise self._cut(f"{path}{name}.")
            if nested is not None:
                self.check(nested, position, stop, f"{path}{name}.")
            elif text:
                try:
                    body[position:stop].decode()
                except UnicodeDecodeError:
                    raise self._error(path, name, "is not valid UTF-8") from None
            position = stop
        missing = table.required & ~seen
        if missing:
            name = next(f.name for f in fields.values() if f.bit & missing)
            raise self._error(path, name, "is missing")

    def _skip(self, table: _Table, tag: int, position: int, end: int, path: str) -> int:
        """Where the unknown field with C{tag} ends."""
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise ProtocolError(f"{self.what}: {path}{number} is not the number of a field")
        if number in table.numbers:
            raise self._error(path, table.numbers[number], f"has the wrong wire type {wire}")
        if wire == VARINT:
            value, position = self._varint(position, end, path, MAX_VARINT)
            if value > MAX_UINT64:
                raise self._error(path, str(number), "has more than 64 bits")
            return position
        if wire == LENGTH:
            length, position = self._varint(position, end, path, MAX_VARINT)
            position += length
        elif wire in _FIXED:
            position += _FIXED[wire]
        else:
            raise self._error(path, str(number), f"has the wire type {wire}, which is not supported")
        if position > end:
            raise self._cut(path)
        return position


def parse(message_class: type[M], body: bytes, what: str) -> M:
    """Parse one message, and accept nothing that proto2 does not mean.

    Every required field is there, singular fields and oneofs are there once, wire types are right, uint32 and
    bool are in range, values of enums known, strings UTF-8; nested messages too. Unknown fields are ignored, groups
    (wire types 3 and 4), which proto2 gave up, are refused.

    @param body: all of the message's bytes; the caller has limited their number.
    @param what: what it is, for the error ("link frame").
    @raise ProtocolError: something is wrong; its reason names the field.
    """
    descriptor: Any = message_class.DESCRIPTOR
    _Walk(body, what).check(_table(descriptor), 0, len(body), "")
    try:
        return message_class.FromString(body)
    except DecodeError as error:
        raise ProtocolError(f"{what}: it cannot be parsed ({error})") from None
