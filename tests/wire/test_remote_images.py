"""`--remote`: every kind of connection, cut and split everywhere, and every order that is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_relay.errors import Invalid, ProtocolError
from criu_relay.wire.framing import frame
from criu_relay.wire.names import MAX_LABEL
from criu_relay.wire.remote_images import (
    MAX_SNAPSHOTS,
    Data,
    DescriptorPassed,
    Finished,
    ImageOpened,
    OpenMode,
    RequestReader,
    SnapshotListPushed,
    SnapshotListReader,
    SnapshotListWanted,
    encode_snapshots,
    reply,
)
from criu_relay.wire.remote_images_pb2 import LocalImage, SnapshotId
from tests.wire.support import FORBIDDEN_LENGTHS, bytes_field, length, number_field, pieces, prefix, vectors

YES, NO = bytes.fromhex("020000000800"), bytes.fromhex("020000000802")


def request(name: str, snapshot_id: str, mode: int) -> bytes:
    return frame(LocalImage(name=name, snapshot_id=snapshot_id, open_mode=mode))


OPENS = {
    "write": (request("core-1.img", "/img", 1), ImageOpened("core-1.img", "/img", OpenMode.WRITE)),
    "append": (request("core-1.img", "/img", 1024), ImageOpened("core-1.img", "/img", OpenMode.APPEND)),
    "read": (request("core-1.img", "/img", 0), ImageOpened("core-1.img", "/img", OpenMode.READ)),
    "write here": (request("core-1.img", "", 1), ImageOpened("core-1.img", "", OpenMode.WRITE)),
    "append here": (request("core-1.img", "", 1024), ImageOpened("core-1.img", "", OpenMode.APPEND)),
    "read here": (request("core-1.img", "", 0), ImageOpened("core-1.img", "", OpenMode.READ)),
    "an image called parent": (request("parent", "/img", 1), ImageOpened("parent", "/img", OpenMode.WRITE)),
    "push": (request("parent", "", 1024), SnapshotListPushed()),
    "list": (request("parent", "", 0), SnapshotListWanted()),
    "end of a dump": (request("", "", 1), Finished(restore=False)),
    "end of a restore": (request("", "", 0), Finished(restore=True)),
}


def opened(kind: str) -> RequestReader:
    reader = RequestReader()
    data, event = OPENS[kind]
    assert reader.feed(data, []) == [event]
    return reader


@pytest.mark.parametrize("data, event", OPENS.values(), ids=OPENS)
def test_split_at_every_byte(data, event):
    for cut in range(len(data)):
        reader = RequestReader()
        assert reader.feed(data[:cut], []) == []
        assert reader.at_boundary is (cut == 0)
        assert reader.feed(data[cut:], []) == [event]


@pytest.mark.parametrize("kind", ["write", "append", "an image called parent"])
def test_a_pipe_follows_a_write(kind):
    reader = opened(kind)
    assert not reader.at_boundary
    assert reader.feed(b"\0", [7]) == [DescriptorPassed(7)]
    assert reader.at_boundary
    assert reader.close() == []
    with pytest.raises(ProtocolError, match="after all that the request allows"):
        reader.feed(b"\0", [8])
    assert reader.close() == [8]


def test_header_and_pipe_in_one_read():
    data, event = OPENS["write"]
    assert RequestReader().feed(data + b"\0", [7]) == [event, DescriptorPassed(7)]


def test_a_pipe_follows_the_answer_to_a_read():
    reader = opened("read")
    assert reader.at_boundary
    assert reader.answer(True) == YES
    assert not reader.at_boundary
    assert reader.feed(b"\0", [7]) == [DescriptorPassed(7)]
    assert reader.at_boundary


@pytest.mark.parametrize("kind, exists, answer", [("read", False, NO), ("list", True, YES), ("list", False, NO)])
def test_nothing_follows_other_answers(kind, exists, answer):
    reader = opened(kind)
    assert reader.answer(exists) == answer
    assert reader.at_boundary
    with pytest.raises(ProtocolError, match="after all"):
        reader.feed(b"x", [])


@pytest.mark.parametrize("kind", OPENS)
def test_only_reads_are_answered_and_only_once(kind):
    reader = opened(kind)
    if kind in ("read", "read here", "list"):
        reader.answer(True)
    with pytest.raises(RuntimeError):
        reader.answer(True)


@pytest.mark.parametrize("kind", ["push", "write here", "append here"])
def test_data_on_the_connection(kind):
    data, event = OPENS[kind]
    assert RequestReader().feed(data + b"\0\1", []) == [event, Data(b"\0\1")]
    reader = opened(kind)
    assert reader.at_boundary
    assert reader.feed(b"\0\0", []) == [Data(b"\0\0")]
    assert reader.feed(b"", []) == []
    with pytest.raises(ProtocolError, match="without its data byte"):
        reader.feed(b"\0", [7])
    assert reader.close() == [7]


@pytest.mark.parametrize(
    "kind, data, descriptors, reason",
    [
        ("write", b"\0", [], "without a descriptor"),
        ("write", b"\1", [5], "byte 01"),
        ("write", b"\0\0", [5], "without a descriptor"),
        ("write", b"", [5], "without its data byte"),
        ("write", b"\0", [5, 6], "2 descriptors"),
        ("read", b"\0", [5], "before the request was answered"),
        ("list", b"\0", [], "before the request was answered"),
        ("end of a dump", b"\0", [], "after all"),
        ("end of a restore", OPENS["read"][0], [], "after all"),
    ],
)
def test_wrong_orders(kind, data, descriptors, reason):
    for together in (False, True):
        reader = RequestReader() if together else opened(kind)
        with pytest.raises(ProtocolError, match=reason):
            reader.feed(OPENS[kind][0] + data if together else data, descriptors)
        with pytest.raises(ProtocolError, match=reason):
            reader.feed(b"", [])
        assert reader.close() == descriptors


MODES_THAT_ARE_NOT = [2, 3, 1023, 1025, 0o101, 0o2001, 1 << 31, (1 << 32) - 1]


@pytest.mark.parametrize("mode", MODES_THAT_ARE_NOT)
def test_wrong_modes(mode):
    for name, snapshot_id in (("core-1.img", "/img"), ("", ""), ("parent", "")):
        with pytest.raises(ProtocolError, match=f"field open_mode is {mode}, neither"):
            RequestReader().feed(request(name, snapshot_id, mode), [])


WRONG = {
    "empty": (b"", "field name is missing"),
    "no snapshot_id": (bytes_field(1, b"a") + number_field(3, 0), "field snapshot_id is missing"),
    "no open_mode": (bytes_field(1, b"a") + bytes_field(2, b""), "field open_mode is missing"),
    "name not UTF-8": (bytes_field(1, b"\xff") + bytes_field(2, b"") + number_field(3, 0), "name is not valid UTF-8"),
    "mode beyond 32 bits": (bytes_field(1, b"") + bytes_field(2, b"") + number_field(3, 1 << 32), "more than"),
}


@pytest.mark.parametrize("body, reason", WRONG.values(), ids=WRONG)
def test_wrong_messages(body, reason):
    with pytest.raises(ProtocolError, match=reason):
        RequestReader().feed(prefix(body), [])


@pytest.mark.parametrize(
    "name, snapshot_id, mode, reason",
    [
        ("..", "/img", 1, "field name"),
        ("a/b", "/img", 1, "field name"),
        ("a\0b", "/img", 0, "field name"),
        ("a\n", "", 0, "field name"),
        ("x" * 256, "/img", 0, "field name"),
        ("", "/img", 1, "field name"),
        ("a", "/img\0", 1, "field snapshot_id"),
        ("a", "/img\n", 1, "field snapshot_id"),
        ("a", "x" * (MAX_LABEL + 1), 1, "field snapshot_id"),
        ("", "", 1024, "field open_mode is 1024"),
        ("parent", "", 1, "field open_mode is 1"),
    ],
)
def test_wrong_values(name, snapshot_id, mode, reason):
    with pytest.raises(ProtocolError, match=reason):
        RequestReader().feed(request(name, snapshot_id, mode), [])


def test_longest_strings():
    data = request("x" * 255, "y" * MAX_LABEL, 0)
    assert RequestReader().feed(data, []) == [ImageOpened("x" * 255, "y" * MAX_LABEL, OpenMode.READ)]


@pytest.mark.parametrize("announced", FORBIDDEN_LENGTHS)
def test_lengths(announced):
    for reader in (lambda data: RequestReader().feed(data, []), SnapshotListReader().feed):
        with pytest.raises(ProtocolError, match=f"{announced} bytes are announced"):
            reader(length(announced))


def test_replies():
    assert (reply(0), reply(2)) == (YES, NO)
    for error in (-1, 1, 3):
        with pytest.raises(Invalid):
            reply(error)


class TestSnapshotList:
    def test_split_at_every_byte(self):
        labels = ["/img/1", "é", "/img/3"]
        data = encode_snapshots(labels)
        for cut in range(len(data) + 1):
            reader = SnapshotListReader()
            assert reader.feed(data[:cut]) + reader.feed(data[cut:]) == labels
            assert reader.finish() == labels

    def test_cut_at_every_byte(self):
        data = encode_snapshots(["/img/1"])
        for cut in range(1, len(data)):
            reader = SnapshotListReader()
            assert reader.feed(data[:cut]) == []
            with pytest.raises(ProtocolError, match="in the middle of a label"):
                reader.finish()

    def test_recorded(self):
        (vector,) = [v for v in vectors("remote images") if v["message"] == "SnapshotId"]
        assert SnapshotListReader().feed(bytes.fromhex(vector["hex"])) == [vector["decoded"]["snapshot_id"]]
        assert encode_snapshots([vector["decoded"]["snapshot_id"]]).hex() == vector["hex"]

    def test_empty(self):
        assert encode_snapshots([]) == b""
        assert SnapshotListReader().finish() == []

    @pytest.mark.parametrize("label", ["", "a\0", "a\n", "x" * (MAX_LABEL + 1)])
    def test_wrong_labels(self, label):
        with pytest.raises(ProtocolError, match="field snapshot_id"):
            SnapshotListReader().feed(frame(SnapshotId(snapshot_id=label)))
        if label:
            with pytest.raises(Invalid, match="snapshot_id"):
                encode_snapshots([label])

    def test_at_most_so_many(self):
        reader = SnapshotListReader()
        reader.feed(encode_snapshots(["/img"]) * MAX_SNAPSHOTS)
        with pytest.raises(ProtocolError, match=f"more than {MAX_SNAPSHOTS}"):
            reader.feed(encode_snapshots(["/img"]))

    @given(
        st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30), max_size=6),
        st.lists(st.integers(0, 300), max_size=8),
    )
    def test_any_labels_in_any_pieces(self, labels, cuts):
        reader = SnapshotListReader()
        got = [label for piece in pieces(encode_snapshots(labels), cuts) for label in reader.feed(piece)]
        assert got == labels == reader.finish()


@given(st.lists(st.tuples(st.binary(max_size=30), st.lists(st.integers(3, 9), max_size=2)), max_size=5), st.booleans())
def test_any_bytes_lose_no_descriptor(reads, write):
    reader = opened("write") if write else RequestReader()
    handed_out = []
    for data, descriptors in reads:
        try:
            events = reader.feed(data, descriptors)
        except ProtocolError:
            continue
        handed_out += [event.descriptor for event in events if isinstance(event, DescriptorPassed)]
    assert sorted(handed_out + reader.close()) == sorted(number for _, numbers in reads for number in numbers)
