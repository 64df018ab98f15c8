"""Strict parsing: every field of every message, in every wrong way."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from criu_relay.errors import ProtocolError
from criu_relay.wire import link_pb2, stream_pb2
from criu_relay.wire.messages import parse
from tests.wire.support import (
    MODULES,
    VECTORS,
    build,
    bytes_field,
    message_class,
    number_field,
    outcome,
    plain,
    title,
    varint,
)

CLASSES = [
    pytest.param(getattr(module, name), id=f"{section}.{name}")
    for section, module in MODULES.items()
    for name in module.DESCRIPTOR.message_types_by_name
]

UNKNOWN = 1000
"""No message has a field with this number."""


def smallest(field: Any) -> bytes:
    """The field with a valid value."""
    if field.type == field.TYPE_MESSAGE:
        return bytes_field(field.number, valid(field.message_type))
    if field.type in (field.TYPE_STRING, field.TYPE_BYTES):
        return bytes_field(field.number, b"")
    return number_field(field.number, field.enum_type.values[0].number if field.enum_type else 0)


def fields_of(descriptor: Any) -> list[Any]:
    """The fields of a message that can be there at the same time: of a oneof, the first."""
    return [f for f in descriptor.fields if f.containing_oneof is None or f is f.containing_oneof.fields[0]]


def valid(descriptor: Any, without: Any = None) -> bytes:
    """A message with each field, but for one (or the one of its oneof)."""
    return b"".join(smallest(f) for f in fields_of(descriptor) if without is None or not excludes(f, without))


def excludes(one: Any, other: Any) -> bool:
    return one.number == other.number or (
        one.containing_oneof is not None and one.containing_oneof is other.containing_oneof
    )


def places(descriptor: Any, path: str = "", wrap: Any = lambda body: body) -> Iterator[tuple[Any, str, Any]]:
    """Every field of a message and of those nested in it: the field, its path, how to wrap what holds it."""
    for field in descriptor.fields:
        yield field, f"{path}{field.name}", wrap
        if field.type == field.TYPE_MESSAGE:

            def nested(body: bytes, field: Any = field, wrap: Any = wrap, descriptor: Any = descriptor) -> bytes:
                return wrap(valid(descriptor, field) + bytes_field(field.number, body))

            yield from places(field.message_type, f"{path}{field.name}.", nested)


PLACES = [
    pytest.param(parameter.values[0], field, path, wrap, id=f"{parameter.id}:{path}")
    for parameter in CLASSES
    for field, path, wrap in places(parameter.values[0].DESCRIPTOR)
]


def of_type(*types: int) -> list[Any]:
    return [place for place in PLACES if place.values[1].type in types]


NUMBERS = {
    FieldDescriptor.TYPE_UINT32: (1 << 32) - 1,
    FieldDescriptor.TYPE_UINT64: (1 << 64) - 1,
    FieldDescriptor.TYPE_BOOL: 1,
}
"""The types of numbers, with the largest of each."""

WITH_LENGTH = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)


def with_field(field: Any, wrap: Any, raw: bytes) -> bytes:
    """A message that is valid but for what C{raw} is as the one field."""
    return wrap(valid(field.containing_type, field) + raw)


def refused(message: Any, body: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        parse(message, body, "message")
    assert caught.value.reason.startswith("message: ")
    return caught.value.reason


@pytest.mark.parametrize("vector", VECTORS, ids=title)
def test_vectors(vector):
    body = bytes.fromhex(vector["hex"])[4:]
    message = parse(message_class(vector), body, "message")
    assert plain(message) == vector["decoded"]
    assert build(message_class(vector)(), vector["decoded"]).SerializeToString() == body


@pytest.mark.parametrize("vector", VECTORS, ids=title)
def test_cut_at_every_byte(vector):
    """What is left is refused, unless the cut is between fields and nothing required is missing."""
    body = bytes.fromhex(vector["hex"])[4:]
    kind = message_class(vector)
    for cut in range(len(body)):
        try:
            expected = kind.FromString(body[:cut])
            whole = expected.IsInitialized()
        except DecodeError:
            whole = False
        assert outcome(lambda cut=cut: parse(kind, body[:cut], "message")) == (expected if whole else ProtocolError)


@pytest.mark.parametrize("message, field, path, wrap", PLACES)
def test_missing(message, field, path, wrap):
    body = with_field(field, wrap, b"")
    if field.is_required:
        assert f"field {path} is missing" in refused(message, body)
    else:
        parse(message, body, "message")


@pytest.mark.parametrize("message, field, path, wrap", PLACES)
def test_doubled(message, field, path, wrap):
    body = with_field(field, wrap, smallest(field) * 2)
    if field.is_repeated:
        parse(message, body, "message")
    else:
        assert f"field {path} is there twice" in refused(message, body)


@pytest.mark.parametrize("message, field, path, wrap", PLACES)
def test_wrong_wire_type(message, field, path, wrap):
    right = 2 if field.type in WITH_LENGTH else 0
    content = {0: b"\0", 1: bytes(8), 2: b"\0", 3: b"", 4: b"", 5: bytes(4), 6: b"", 7: b""}
    for wire, value in content.items():
        if wire != right:
            raw = varint(field.number << 3 | wire) + value
            assert f"field {path} has the wrong wire type {wire}" in refused(message, with_field(field, wrap, raw))


@pytest.mark.parametrize("message, field, path, wrap", of_type(*NUMBERS))
def test_smallest_and_largest_number(message, field, path, wrap):
    limit = NUMBERS[field.type]
    for value in (0, limit):
        parsed = parse(message, with_field(field, wrap, number_field(field.number, value)), "message")
        for step in path.split("."):
            parsed = getattr(parsed, step)
            parsed = parsed[-1] if isinstance(parsed, list) or hasattr(parsed, "add") else parsed
        assert parsed == value
    reason = refused(message, with_field(field, wrap, number_field(field.number, limit + 1)))
    assert f"field {path} is {limit + 1}" in reason


@pytest.mark.parametrize("message, field, path, wrap", of_type(FieldDescriptor.TYPE_ENUM))
def test_unknown_value_of_an_enum(message, field, path, wrap):
    for value in field.enum_type.values:
        parse(message, with_field(field, wrap, number_field(field.number, value.number)), "message")
    for value in (0, 99, (1 << 64) - 1):
        reason = refused(message, with_field(field, wrap, number_field(field.number, value)))
        assert f"field {path} has the unknown value {value}" in reason


@pytest.mark.parametrize("message, field, path, wrap", of_type(FieldDescriptor.TYPE_STRING))
def test_text_that_is_not_utf8(message, field, path, wrap):
    for data in (b"\xff", b"a\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
        reason = refused(message, with_field(field, wrap, bytes_field(field.number, data)))
        assert f"field {path} is not valid UTF-8" in reason
    parse(message, with_field(field, wrap, bytes_field(field.number, "\0é\u20ac\U0001f600".encode())), "message")


@pytest.mark.parametrize("message, field, path, wrap", of_type(*WITH_LENGTH))
def test_longer_than_what_holds_it(message, field, path, wrap):
    tag = varint(field.number << 3 | 2)
    for length in (1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1):
        assert "ends in the middle" in refused(message, with_field(field, wrap, tag + varint(length)))


@pytest.mark.parametrize("message, field, path, wrap", PLACES)
def test_numbers_that_do_not_end(message, field, path, wrap):
    head = varint(field.number << 3 | (2 if field.type in WITH_LENGTH else 0))
    assert "is too long" in refused(message, with_field(field, wrap, head + b"\x80" * 10 + b"\0"))
    assert "ends in the middle" in refused(message, with_field(field, wrap, head + b"\x80" * 9))
    assert "is too long" in refused(message, with_field(field, wrap, b"\x80" * 6))
    assert "ends in the middle" in refused(message, with_field(field, wrap, b"\x80" * 4))


@pytest.mark.parametrize("message", CLASSES)
def test_unknown_fields_are_ignored(message):
    body = valid(message.DESCRIPTOR)
    known = parse(message, body, "message")
    for wire, value in ((0, varint((1 << 64) - 1)), (1, bytes(8)), (2, b"\3abc"), (5, bytes(4))):
        unknown = varint(UNKNOWN << 3 | wire) + value
        for both in (unknown + body, body + unknown, body + unknown * 2):
            assert plain(parse(message, both, "message")) == plain(known)
        for cut in range(1, len(unknown)):
            assert "ends in the middle" in refused(message, body + unknown[:cut])


@pytest.mark.parametrize("message", CLASSES)
def test_what_is_not_a_field(message):
    body = valid(message.DESCRIPTOR)
    for wire in (3, 4, 6, 7):
        assert f"wire type {wire}" in refused(message, body + varint(UNKNOWN << 3 | wire))
    assert "not the number of a field" in refused(message, body + b"\0\0")
    assert "not the number of a field" in refused(message, body + varint(1 << 32) + b"\0")
    assert "more than 64 bits" in refused(message, body + varint(UNKNOWN << 3) + varint(1 << 64))


def test_two_members_of_a_oneof():
    members = link_pb2.Frame.DESCRIPTOR.oneofs_by_name["body"].fields
    for one in members:
        for other in members:
            reason = refused(link_pb2.Frame, smallest(one) + smallest(other))
            assert f"field {other.name} is there twice, or with another one that excludes it" in reason


def test_a_number_may_be_longer_than_it_must():
    assert parse(stream_pb2.Reply, b"\x88\x00\x81\x80\x00", "reply").exists is True


@given(st.sampled_from(CLASSES), st.binary(max_size=80))
def test_any_bytes(parameter, body):
    """Nothing but a ProtocolError, and what is taken is what protobuf makes of it, complete."""
    message = parameter.values[0]
    parsed = outcome(lambda: parse(message, body, "message"))
    if parsed is not ProtocolError:
        assert parsed == message.FromString(body)
        assert parsed.IsInitialized()


@given(st.sampled_from(VECTORS), st.data())
def test_one_byte_changed(vector, data):
    body = bytearray.fromhex(vector["hex"])[4:]
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    parsed = outcome(lambda: parse(message_class(vector), bytes(body), "message"))
    if parsed is not ProtocolError:
        assert parsed.IsInitialized()
        again = copy.copy(parsed)
        assert parse(message_class(vector), again.SerializeToString(), "message") == parsed
