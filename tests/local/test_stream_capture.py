"""`--stream` at the proxy."""

from __future__ import annotations

import os
import socket

import pytest
from zope.interface.verify import verifyObject

from criu_relay.errors import Conflict
from criu_relay.interfaces import IDumpClient, Mode
from criu_relay.local import stream_capture
from tests.local.bench import Bench, Client, wanted


def offer(client: Client, name: str) -> int:
    """Offer an image.

    @return: where to write it.
    """
    client.send(wanted(name))
    return client.pass_pipe("write")


def test_an_image_comes_through_its_pipe(bench: Bench) -> None:
    client = bench.connect("capture")
    pipe = offer(client, "files.img")
    os.write(pipe, b"hello ")
    bench.loop.until(lambda: bench.dump.opened)
    (snapshot, name, mode, sink) = bench.dump.opened[0]
    assert (snapshot, name, mode) == ("", "files.img", Mode.REPLACE)
    os.write(pipe, b"world")
    bench.loop.until(lambda: sink.data == b"hello world")
    assert not sink.over
    os.close(pipe)
    bench.loop.until(lambda: sink.ended)
    verifyObject(IDumpClient, bench.dump.clients[0])
    assert bench.dump.unsettled() == []
    client.close()
    bench.loop.until(lambda: bench.dump.ends)
    assert bench.dump.gone == bench.dump.ends == bench.dump.clients
    assert len(bench.doors["capture"]) == 0
    assert bench.log() == []


def test_an_image_without_a_byte_is_complete(bench: Bench) -> None:
    client = bench.connect("capture")
    os.close(offer(client, "empty.img"))
    bench.loop.until(lambda: bench.dump.opened and bench.dump.sink("empty.img").ended)
    assert bench.dump.sink("empty.img").data == b""


def test_several_pipes_at_once_end_in_any_order(bench: Bench) -> None:
    client = bench.connect("capture")
    pipes = {name: offer(client, name) for name in ("seccomp.img", "files.img", "pages-1.img")}
    bench.loop.until(lambda: len(bench.dump.opened) == 3)
    for name in ("pages-1.img", "seccomp.img", "files.img"):
        os.write(pipes[name], name.encode())
        os.close(pipes[name])
        bench.loop.until(lambda name=name: bench.dump.sink(name).ended)
        assert bench.dump.sink(name).data == name.encode()


def test_each_byte_alone(bench: Bench) -> None:
    client = bench.connect("capture")
    for byte in wanted("core-1.img"):
        client.send(bytes([byte]))
        bench.loop.until(lambda: bench.dump.clients and bench.dump.unsettled() == ["half a message of criu"])
    pipe = client.pass_pipe("write")
    bench.loop.until(lambda: bench.dump.opened)
    assert bench.dump.unsettled() == ["the pipe of core-1.img"]
    os.close(pipe)
    bench.loop.until(lambda: bench.dump.sink("core-1.img").ended)


def test_what_was_not_read_yet_is_unsettled(bench: Bench) -> None:
    client = bench.connect("capture")
    assert bench.listeners["capture"].unsettled() == "a connection of criu that was not accepted yet"
    bench.loop.until(lambda: bench.dump.clients)
    assert bench.listeners["capture"].unsettled() is None
    assert bench.dump.unsettled() == []
    client.send(wanted("a.img"))
    assert bench.dump.unsettled() == ["a message of criu that was not read yet"]


def test_a_full_image_stops_its_writer(bench: Bench) -> None:
    bench.dump.limit = 10_000
    client = bench.connect("capture")
    pipe = offer(client, "pages-1.img")
    bench.loop.until(lambda: bench.dump.opened)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += os.write(pipe, b"x" * 4096)
            bench.loop.turns(3)
    sink = bench.dump.sink("pages-1.img")
    assert len(sink.data) == 10_000
    assert sent <= 10_000 + (1 << 20)
    assert bench.dump.unsettled() == ["the pipe of pages-1.img"]
    sink.widen(1 << 40)
    os.close(pipe)
    bench.loop.until(lambda: sink.ended)
    assert len(sink.data) == sent


def test_pipes_outlive_the_connection(bench: Bench) -> None:
    client = bench.connect("capture")
    pipe = offer(client, "pages-1.img")
    client.close()
    bench.loop.until(lambda: bench.dump.ends)
    assert bench.dump.unsettled() == ["the pipe of pages-1.img"]
    assert len(bench.doors["capture"]) == 1
    os.write(pipe, b"late")
    os.close(pipe)
    bench.loop.until(lambda: bench.dump.sink("pages-1.img").ended)
    assert bench.dump.sink("pages-1.img").data == b"late"
    assert len(bench.doors["capture"]) == 0


def test_too_many_pipes_wait_in_the_socket(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_capture, "MAX_PIPES", 2)
    client = bench.connect("capture")
    pipes = [offer(client, f"{number}.img") for number in range(5)]
    bench.loop.turns()
    assert len(bench.dump.opened) == 2
    assert "a message of criu that was not read yet" in bench.dump.unsettled()
    for pipe in pipes:
        os.close(pipe)
    bench.loop.until(lambda: len(bench.dump.opened) == 5 and all(sink.ended for *_, sink in bench.dump.opened))


def test_dropped_by_the_dump(bench: Bench) -> None:
    client = bench.connect("capture")
    pipe = offer(client, "pages-1.img")
    bench.loop.until(lambda: bench.dump.opened)
    bench.dump.clients[0].drop("the link is lost")
    assert bench.dump.sink("pages-1.img").failed == "the link is lost"
    with pytest.raises(BrokenPipeError):
        os.write(pipe, b"x")
    bench.loop.until(client.is_over)
    bench.loop.until(lambda: bench.dump.ends)
    os.close(pipe)
    bench.dump.clients[0].drop("twice")


def test_an_image_that_the_dump_refuses(bench: Bench) -> None:
    client = bench.connect("capture")
    bench.loop.until(lambda: bench.dump.clients)
    bench.dump.refuse = Conflict("sealed already")
    pipe = offer(client, "late.img")
    bench.loop.until(client.is_over)
    with pytest.raises(BrokenPipeError):
        os.write(pipe, b"x")
    os.close(pipe)
    assert len(bench.log()) == 1 and "sealed already" in bench.log()[0] and f"pid {os.getpid()}" in bench.log()[0]


def test_a_client_that_the_dump_refuses(bench: Bench) -> None:
    bench.dump.refuse = Conflict("not now")
    client = bench.connect("capture")
    bench.loop.until(client.is_over)
    assert len(bench.log()) == 1


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0b", "a\nb", "a b", "é.img", "x" * 256, b"\xff.img"],
    ids=lambda name: ascii(name)[:12],
)
def test_names_that_are_refused(bench: Bench, name: str) -> None:
    client = bench.connect("capture")
    other = offer(client, "good.img")
    bench.loop.until(lambda: bench.dump.opened)
    client.send(wanted(name))
    bench.loop.until(client.is_over)
    bench.loop.until(lambda: bench.dump.ends)
    assert len(bench.dump.opened) == 1
    assert bench.dump.sink("good.img").failed
    assert len(bench.log()) == 1 and "\n" not in bench.log()[0] and len(bench.log()[0]) < 300
    os.close(other)


def test_the_longest_name(bench: Bench) -> None:
    client = bench.connect("capture")
    os.close(offer(client, "x" * 255))
    bench.loop.until(lambda: bench.dump.opened and bench.dump.opened[0][3].ended)


@pytest.mark.parametrize("prefix", [b"\xff\xff\xff\xff", b"\x01\x40\x00\x00", b"\x00\x00\x00\x80"])
def test_lengths_that_are_refused(bench: Bench, prefix: bytes) -> None:
    client = bench.connect("capture")
    client.send(prefix)
    bench.loop.until(client.is_over)
    assert len(bench.log()) == 1


def test_a_descriptor_must_come_with_its_byte(bench: Bench) -> None:
    client = bench.connect("capture")
    client.send(wanted("a.img") + b"\0")
    bench.loop.until(client.is_over)
    assert not bench.dump.opened


def test_a_descriptor_where_none_belongs_is_closed(bench: Bench) -> None:
    client = bench.connect("capture")
    pipe = client.pass_pipe("write", wanted("a.img")[:5])
    bench.loop.until(client.is_over)
    with pytest.raises(BrokenPipeError):
        os.write(pipe, b"x")
    os.close(pipe)


@pytest.mark.parametrize("bad", ["file", "write end", "directory", "datagram"])
def test_descriptors_that_cannot_be_read(bench: Bench, bad: str) -> None:
    client = bench.connect("capture")
    client.send(wanted("a.img"))
    if bad == "write end":
        os.close(client.pass_pipe("read"))
    else:
        made = {
            "file": lambda: os.open(bench.directory / "file", os.O_RDWR | os.O_CREAT),
            "directory": lambda: os.open(bench.directory, os.O_RDONLY),
            "datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
        }[bad]()
        client.send_descriptor(made)
        os.close(made)
    bench.loop.until(client.is_over)
    assert not bench.dump.opened
    assert len(bench.log()) == 1 and "a.img" in bench.log()[0]


@pytest.mark.parametrize("cut", range(1, len(wanted("a.img")) + 1))
def test_a_client_that_leaves_in_the_middle(bench: Bench, cut: int) -> None:
    client = bench.connect("capture")
    other = offer(client, "good.img")
    client.send(wanted("a.img")[:cut])
    client.close()
    bench.loop.until(lambda: bench.dump.ends)
    assert bench.dump.sink("good.img").failed
    assert len(bench.log()) == 1
    os.close(other)


def test_nothing_of_a_passed_pipe_is_inherited(bench: Bench) -> None:
    client = bench.connect("capture")
    pipe = offer(client, "a.img")
    bench.loop.until(lambda: bench.dump.opened)
    assert not os.get_inheritable(bench.dump.opened[0][3].producer.fileno())
    os.close(pipe)


def test_a_silent_client_holds_up_nobody(bench: Bench) -> None:
    silent = [bench.connect("capture") for _ in range(8)]
    client = bench.connect("capture")
    os.close(offer(client, "a.img"))
    bench.loop.until(lambda: bench.dump.opened and bench.dump.sink("a.img").ended)
    bench.loop.advance(3600)
    bench.loop.turns()
    assert not any(client.is_over() for client in silent)
