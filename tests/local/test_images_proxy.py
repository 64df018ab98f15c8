"""`--remote` at the proxy."""

from __future__ import annotations

import os
import socket

import pytest
from zope.interface.verify import verifyObject

from criu_relay.errors import Conflict, OutOfMemory
from criu_relay.interfaces import IDumpClient, Mode
from tests.local.bench import LABEL, Bench, Client, drain, framed, opened, text
from tests.local.fakes import FakeSink

FOUND = bytes.fromhex("020000000800")
MISSING = bytes.fromhex("020000000802")
FINISH = bytes.fromhex("060000000a0012001801")


def write(bench: Bench, name: str, label: str = LABEL, mode: int = 1) -> int:
    """Open an image for writing as CRIU does: header, pipe, close.

    @return: where to write it.
    """
    client = bench.connect("proxy")
    client.send(opened(name, label, mode))
    pipe = client.pass_pipe("write")
    client.close()
    return pipe


def push(bench: Bench, *labels: str) -> None:
    """Append to the list of snapshots."""
    client = bench.connect("proxy")
    client.send(opened("parent", "", 1024) + b"".join(framed(text(1, label)) for label in labels))
    client.close()


def answer(bench: Bench, client: Client) -> bytes:
    """Everything up to the end of the connection."""
    bench.loop.until(client.is_over)
    return client.received


def test_a_write(bench: Bench) -> None:
    pipe = write(bench, "files.img")
    os.write(pipe, b"hello")
    os.close(pipe)
    bench.loop.until(lambda: bench.dump.opened and bench.dump.sink("files.img").ended)
    assert bench.dump.opened[0][:3] == (LABEL, "files.img", Mode.REPLACE)
    assert bench.dump.sink("files.img").data == b"hello"
    bench.loop.until(lambda: bench.dump.gone)
    verifyObject(IDumpClient, bench.dump.clients[0])
    assert bench.dump.gone == bench.dump.clients
    assert bench.dump.ends == []
    assert len(bench.doors["proxy"]) == 0
    assert bench.log() == []


def test_who_cannot_begin_holds_up_nobody_behind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that came with its request were more than there was memory for."""
    refused = []

    def write(sink: FakeSink, data: bytes) -> None:
        refused.append(bytes(data))
        raise OutOfMemory("the window is full")

    with monkeypatch.context() as patch:
        patch.setattr(FakeSink, "write", write)
        client = bench.connect("proxy")
        client.send(opened("log.img", "", 1) + b"too much")
        bench.loop.until(client.is_over)
    assert refused == [b"too much"]
    assert bench.dump.sink("log.img").failed == "the window is full"
    client.close()
    client = bench.connect("proxy")
    client.send(opened("log.img", "", 1) + b"again")
    client.close()
    bench.loop.until(lambda: bench.dump.sink("log.img").ended)
    assert bench.dump.sink("log.img").data == b"again"
    bench.loop.until(lambda: len(bench.doors["proxy"]) == 0)
    assert len(bench.log()) == 1


def test_the_connection_ends_and_the_pipe_goes_on(bench: Bench) -> None:
    pipe = write(bench, "pages-1.img")
    bench.loop.until(lambda: bench.dump.gone)
    assert bench.dump.unsettled() == ["the pipe of pages-1.img"]
    os.close(pipe)
    bench.loop.until(lambda: not bench.dump.unsettled())


@pytest.mark.parametrize("mode, expected", [(1, Mode.REPLACE), (1024, Mode.APPEND)])
def test_an_image_on_the_connection_itself(bench: Bench, mode: int, expected: Mode) -> None:
    client = bench.connect("proxy")
    client.send(opened("log.img", "", mode) + b"first ")
    bench.loop.until(lambda: bench.dump.opened)
    assert bench.dump.opened[0][:3] == ("", "log.img", expected)
    sink = bench.dump.sink("log.img")
    client.send(b"x" * 100_000)
    bench.loop.until(lambda: len(sink.data) == 100_006)
    assert bench.dump.unsettled() == ["the pipe of log.img"]
    client.close()
    bench.loop.until(lambda: bench.dump.gone)
    assert sink.ended and sink.data == b"first " + b"x" * 100_000
    assert bench.dump.unsettled() == []


def test_an_image_without_a_byte_on_the_connection(bench: Bench) -> None:
    client = bench.connect("proxy")
    client.send(opened("log.img", "", 1))
    client.close()
    bench.loop.until(lambda: bench.dump.gone)
    assert bench.dump.sink("log.img").ended and bench.dump.sink("log.img").data == b""


def test_the_list(bench: Bench) -> None:
    push(bench, "one")
    push(bench, "two", "three")
    client = bench.connect("proxy")
    client.send(opened("parent", "", 0))
    assert answer(bench, client) == FOUND + b"".join(framed(text(1, label)) for label in ("one", "two", "three"))
    assert bench.dump.labels == ["one", "two", "three"]


def test_a_list_with_nothing_in_it_is_missing(bench: Bench) -> None:
    client = bench.connect("proxy")
    client.send(opened("parent", "", 0))
    assert answer(bench, client) == MISSING


def test_connections_are_handled_in_the_order_of_their_making(bench: Bench) -> None:
    """All of it is there before the reactor looks once: what was pushed first is read by whoever asks later."""
    for number in range(40):
        push(bench, f"label-{number}")
        client = bench.connect("proxy")
        client.send(opened("parent", "", 0))
        assert answer(bench, client).endswith(framed(text(1, f"label-{number}")))
    assert bench.dump.labels == [f"label-{number}" for number in range(40)]


def test_a_large_header_does_not_fall_behind(bench: Bench) -> None:
    """The first needs several reads, each in another turn; the second must not overtake it."""
    first = bench.connect("proxy")
    header = opened("parent", "", 1024)
    labels = framed(text(1, "x" * 200)) * 500
    first.send(header + labels)
    first.close()
    second = bench.connect("proxy")
    second.send(opened("parent", "", 0))
    assert len(answer(bench, second)) == len(FOUND + labels)


def test_a_silent_client_holds_up_nobody(bench: Bench) -> None:
    silent = [bench.connect("proxy") for _ in range(5)]
    half = bench.connect("proxy")
    half.send(opened("x.img", LABEL, 1)[:9])
    pushing = bench.connect("proxy")
    pushing.send(opened("parent", "", 1024) + framed(text(1, "half"))[:3])
    push(bench, "one")
    client = bench.connect("proxy")
    client.send(opened("parent", "", 0))
    assert answer(bench, client) == FOUND + framed(text(1, "one"))
    bench.loop.advance(9)
    bench.loop.turns()
    assert not silent[0].is_over()
    bench.loop.advance(1)
    for one in [*silent, half, pushing]:
        bench.loop.until(one.is_over)
    assert len(bench.log()) == 7
    assert bench.dump.labels == ["one"]


def test_a_second_write_waits_for_the_first(bench: Bench) -> None:
    first = write(bench, "a.img")
    os.write(first, b"first")
    bench.loop.until(lambda: bench.dump.opened)
    second = write(bench, "a.img", mode=1024)
    os.write(second, b"second")
    os.close(second)
    other = write(bench, "a.img", label="another snapshot")
    os.close(other)
    bench.loop.until(lambda: len(bench.dump.opened) == 2)
    assert bench.dump.opened[1][:2] == ("another snapshot", "a.img")
    bench.loop.turns()
    assert "a second write of a.img" in bench.dump.unsettled()
    assert len(bench.dump.gone) < 3
    os.close(first)
    bench.loop.until(lambda: len(bench.dump.opened) == 3 and bench.dump.sink("a.img").ended)
    assert bench.dump.opened[0][3].ended
    assert bench.dump.opened[2][:3] == (LABEL, "a.img", Mode.APPEND)
    assert bench.dump.sink("a.img").data == b"second"
    bench.loop.until(lambda: len(bench.dump.gone) == 3)


@pytest.mark.parametrize("step", [1, -1])
def test_dropped_while_it_waits_for_the_first(bench: Bench, step: int) -> None:
    first = write(bench, "a.img")
    second = write(bench, "a.img")
    bench.loop.until(lambda: "a second write of a.img" in bench.dump.unsettled())
    for client in bench.dump.clients[::step]:
        client.drop("the link is lost")
    for pipe in (first, second):
        with pytest.raises(BrokenPipeError):
            os.write(pipe, b"x")
        os.close(pipe)
    bench.loop.until(lambda: len(bench.dump.gone) == 2)
    assert [sink.failed for *_, sink in bench.dump.opened] == ["the link is lost"] * (2 if step == 1 else 1)
    assert bench.dump.unsettled() == []
    assert len(bench.doors["proxy"]) == 0


def test_a_read_of_what_is_complete(bench: Bench) -> None:
    data = b"pagemap" * 100_000
    bench.dump.images[LABEL, "pagemap-1.img"] = image = bench.image(data)
    client = bench.connect("proxy")
    client.send(opened("pagemap-1.img", LABEL, 0))
    bench.loop.until(lambda: client.poll() == FOUND)
    pipe = client.pass_pipe("read")
    client.close()
    received = b""

    def ended() -> bool:
        nonlocal received
        piece, end = drain(pipe)
        received += piece
        return end

    bench.loop.until(ended)
    os.close(pipe)
    assert received == data
    assert image.closed == 1
    assert len(bench.doors["proxy"]) == 0


def test_a_read_of_what_is_missing(bench: Bench) -> None:
    client = bench.connect("proxy")
    client.send(opened("pagemap-1.img", LABEL, 0))
    assert answer(bench, client) == MISSING
    assert bench.dump.asked == [(LABEL, "pagemap-1.img")]


def test_a_read_of_what_is_still_written_is_missing_at_once(bench: Bench) -> None:
    pipe = write(bench, "a.img")
    bench.loop.until(lambda: bench.dump.opened)
    client = bench.connect("proxy")
    client.send(opened("a.img", LABEL, 0))
    assert answer(bench, client) == MISSING
    assert bench.dump.asked == []
    os.close(pipe)


def test_a_read_of_what_is_written_and_not_yet_read_from_its_pipe_waits(bench: Bench) -> None:
    bench.dump.limit = 3
    pipe = write(bench, "a.img")
    os.write(pipe, b"written")
    os.close(pipe)
    bench.loop.until(lambda: bench.dump.opened)
    bench.dump.images[LABEL, "a.img"] = bench.image(b"written")
    clients = []
    for _ in range(60):
        clients.append(bench.connect("proxy"))
        clients[-1].send(opened("a.img", LABEL, 0))
        bench.loop.turns(2)
    assert bench.dump.asked == []
    clients[7].close()
    bench.loop.turns()
    bench.dump.sink("a.img").widen(1 << 20)
    for number, client in enumerate(clients):
        if number != 7:
            bench.loop.until(lambda client=client: client.poll() == FOUND)
    assert len(bench.dump.asked) == 59
    assert bench.log() == []


def test_a_read_without_a_label_comes_on_the_connection(bench: Bench) -> None:
    bench.dump.images["", "log.img"] = image = bench.image(b"some text" * 50_000)
    client = bench.connect("proxy")
    client.send(opened("log.img", "", 0))
    assert answer(bench, client) == FOUND + b"some text" * 50_000
    bench.loop.until(lambda: image.closed)


def test_finish(bench: Bench) -> None:
    client = bench.connect("proxy")
    client.send(FINISH)
    assert answer(bench, client) == b""
    assert bench.dump.ends == bench.dump.clients
    assert bench.log() == []


def test_the_finish_of_a_restore_is_refused(bench: Bench) -> None:
    client = bench.connect("proxy")
    client.send(opened("", "", 0))
    assert answer(bench, client) == b""
    assert bench.dump.ends == []
    assert len(bench.log()) == 1


def test_a_connection_without_a_byte(bench: Bench) -> None:
    client = bench.connect("proxy")
    client.close()
    bench.loop.until(lambda: bench.dump.gone)
    assert bench.dump.opened == [] and bench.dump.ends == []
    assert bench.log() == []


@pytest.mark.parametrize("cut", range(1, len(opened("a.img", "dir", 1))))
def test_a_header_that_is_cut(bench: Bench, cut: int) -> None:
    client = bench.connect("proxy")
    client.send(opened("a.img", "dir", 1)[:cut])
    bench.loop.until(lambda: bench.dump.clients and bench.dump.unsettled() == ["half a request of criu"])
    client.close()
    bench.loop.until(lambda: bench.dump.gone)
    assert bench.dump.opened == []
    assert len(bench.log()) == 1
    assert bench.dump.unsettled() == []


@pytest.mark.parametrize("split", range(1, len(opened("a.img", "dir", 1))))
def test_a_header_in_two_parts(bench: Bench, split: int) -> None:
    data = opened("a.img", "dir", 1)
    client = bench.connect("proxy")
    client.send(data[:split])
    bench.loop.turns(3)
    client.send(data[split:])
    os.close(client.pass_pipe("write"))
    bench.loop.until(lambda: bench.dump.opened and bench.dump.sink("a.img").ended)


def test_an_image_whose_pipe_never_comes_fails(bench: Bench) -> None:
    client = bench.connect("proxy")
    client.send(opened("a.img", LABEL, 1))
    client.close()
    bench.loop.until(lambda: bench.dump.gone)
    assert bench.dump.sink("a.img").failed
    late = bench.connect("proxy")
    late.send(opened("b.img", LABEL, 1))
    bench.loop.until(lambda: len(bench.dump.clients) == 2)
    bench.loop.turns()
    bench.loop.advance(10)
    bench.loop.until(late.is_over)
    bench.loop.until(lambda: len(bench.dump.gone) == 2)
    assert bench.dump.sink("b.img").failed


def test_a_read_whose_pipe_never_comes(bench: Bench) -> None:
    bench.dump.images[LABEL, "a.img"] = image = bench.image(b"x")
    client = bench.connect("proxy")
    client.send(opened("a.img", LABEL, 0))
    bench.loop.until(lambda: client.poll() == FOUND)
    bench.loop.advance(10)
    bench.loop.until(client.is_over)
    assert image.closed == 1


@pytest.mark.parametrize(
    "header",
    [
        opened("", LABEL, 1),
        opened("..", LABEL, 1),
        opened("a/b", LABEL, 1),
        opened("a\0b", LABEL, 1),
        opened("a\nb", LABEL, 1),
        opened("x" * 256, LABEL, 1),
        opened(b"\xff", LABEL, 1),
        opened("a.img", "dir\nline", 1),
        opened("a.img", "dir\0", 1),
        opened("a.img", b"\xff", 1),
        opened("a.img", LABEL, 2),
        opened("a.img", LABEL, 1025),
        opened("", "", 1024),
        framed(b""),
        framed(text(1, "a.img") + text(2, LABEL)),
        framed(text(1, "a.img") + b"\x18\x01"),
        framed(text(2, LABEL) + b"\x18\x01"),
        b"\xff\xff\xff\xff",
        b"\x01\x40\x00\x00",
        FINISH + b"x",
        opened("a.img", LABEL, 0) + b"x",
        opened("a.img", LABEL, 1) + b"\0",
        opened("a.img", LABEL, 1) + b"x",
    ],
)
def test_requests_that_are_refused(bench: Bench, header: bytes) -> None:
    client = bench.connect("proxy")
    client.send(header)
    bench.loop.until(client.is_over)
    bench.loop.until(lambda: bench.dump.gone)
    assert not any(sink.ended or not sink.failed for *_, sink in bench.dump.opened)
    assert bench.dump.ends == []
    assert len(bench.log()) == 1 and "\n" not in bench.log()[0]


@pytest.mark.parametrize(
    "labels",
    [
        framed(text(1, "")),
        framed(text(1, "a\nb")),
        framed(text(1, b"\xff")),
        framed(b""),
        b"\xff\xff\xff\xff",
        framed(text(1, "cut"))[:-1],
        framed(text(1, "good")) + framed(text(1, "cut"))[:-1],
        framed(text(1, "x")) * 1025,
    ],
    ids=lambda data: data[:8].hex(),
)
def test_lists_that_are_refused(bench: Bench, labels: bytes) -> None:
    client = bench.connect("proxy")
    client.send(opened("parent", "", 1024) + labels)
    client.socket.shutdown(socket.SHUT_WR)
    bench.loop.until(client.is_over)
    bench.loop.until(lambda: bench.dump.gone)
    assert bench.dump.labels == []
    assert len(bench.log()) == 1


def test_a_read_that_the_dump_refuses_is_missing(bench: Bench) -> None:
    client = bench.connect("proxy")
    bench.loop.until(lambda: bench.dump.clients)
    bench.dump.refuse = Conflict("sealed")
    client.send(opened("a.img", LABEL, 0))
    assert answer(bench, client) == MISSING


def test_a_write_that_the_dump_refuses(bench: Bench) -> None:
    client = bench.connect("proxy")
    bench.loop.until(lambda: bench.dump.clients)
    bench.dump.refuse = Conflict("sealed")
    client.send(opened("a.img", LABEL, 1))
    pipe = client.pass_pipe("write")
    bench.loop.until(client.is_over)
    with pytest.raises(BrokenPipeError):
        os.write(pipe, b"x")
    os.close(pipe)
    assert len(bench.log()) == 1 and "sealed" in bench.log()[0]
    bench.dump.refuse = None
    os.close(write(bench, "a.img"))
    bench.loop.until(lambda: bench.dump.opened and bench.dump.sink("a.img").ended)


def test_a_file_instead_of_a_pipe(bench: Bench) -> None:
    client = bench.connect("proxy")
    client.send(opened("a.img", LABEL, 1))
    file = os.open(bench.directory / "file", os.O_RDWR | os.O_CREAT)
    client.send_descriptor(file)
    os.close(file)
    bench.loop.until(client.is_over)
    bench.loop.until(lambda: bench.dump.gone)
    assert bench.dump.sink("a.img").failed


def test_no_more_clients_than_there_is_room_for(bench: Bench) -> None:
    bench.listen("proxy", limit=3)
    pipes = []
    for number in range(8):
        pipes.append(write(bench, f"{number}.img"))
        bench.loop.turns()
    assert len(bench.dump.clients) == 3
    assert bench.listeners["proxy"].unsettled() is not None
    for pipe in pipes:
        os.close(pipe)
    bench.loop.until(lambda: len(bench.dump.opened) == 8 and all(sink.ended for *_, sink in bench.dump.opened))
    assert bench.listeners["proxy"].unsettled() is None
