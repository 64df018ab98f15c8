"""`--stream` at the cache."""

from __future__ import annotations

import os

import pytest
from twisted.internet.defer import Deferred

from criu_relay.errors import Conflict, RelayError
from criu_relay.local import stream_serve
from tests.local.bench import Bench, Client, drain, wanted
from tests.local.fakes import FakeOpened, FakeRestore

YES = bytes.fromhex("020000000801")
NO = bytes.fromhex("020000000800")


def asked(bench: Bench, client: Client, name: str) -> FakeRestore:
    """Ask for an image; the question has arrived."""
    before = len(bench.restores.begun[0].asked) if bench.restores.begun else 0
    client.send(wanted(name))
    bench.loop.until(lambda: bench.restores.begun and len(bench.restores.begun[0].asked) > before)
    return bench.restores.begun[0]


def read(bench: Bench, client: Client, name: str, data: bytes) -> tuple[int, FakeOpened]:
    """Ask, get a yes, and pass a pipe.

    @return: where to read it, and the image.
    """
    restore = asked(bench, client, name)
    image = bench.image(data)
    client.received = b""
    restore.asked[-1][2].callback(image)
    bench.loop.until(lambda: client.poll() == YES)
    return client.pass_pipe("read"), image


def collect(bench: Bench, pipe: int) -> bytes:
    """All of what a pipe brings."""
    data = b""

    def ended() -> bool:
        nonlocal data
        piece, end = drain(pipe)
        data += piece
        return end

    bench.loop.until(ended)
    os.close(pipe)
    return data


def test_an_open_waits_and_is_then_answered_and_served(bench: Bench) -> None:
    client = bench.connect("serve")
    restore = asked(bench, client, "inventory.img")
    assert restore.peer is not None and restore.peer.pid == os.getpid()
    assert restore.asked[0][:2] == (None, "inventory.img")
    bench.loop.turns()
    assert client.poll() == b""
    image = bench.image(b"the inventory")
    restore.asked[0][2].callback(image)
    bench.loop.until(lambda: client.poll() == YES)
    assert collect(bench, client.pass_pipe("read")) == b"the inventory"
    assert image.closed == 1
    assert restore.over == 0
    client.close()
    bench.loop.until(lambda: restore.over)
    assert restore.over == 1
    assert bench.log() == []


def test_what_does_not_exist(bench: Bench) -> None:
    client = bench.connect("serve")
    asked(bench, client, "apparmor.img").asked[0][2].callback(None)
    bench.loop.until(lambda: client.poll() == NO)
    pipe, _ = read(bench, client, "pstree.img", b"tree")
    assert collect(bench, pipe) == b"tree"


def test_an_image_without_a_byte(bench: Bench) -> None:
    client = bench.connect("serve")
    pipe, image = read(bench, client, "empty.img", b"")
    assert collect(bench, pipe) == b""
    assert image.closed == 1


def test_requests_go_on_while_pipes_are_full(bench: Bench) -> None:
    """CRIU reads the head of pagemap-N, then asks for pages-M: serving one after the other would never end."""
    client = bench.connect("serve")
    large = bytes(range(256)) * 4096
    pagemap, _ = read(bench, client, "pagemap-1.img", large)
    bench.loop.turns()
    pages, _ = read(bench, client, "pages-1.img", large[::-1])
    assert collect(bench, pages) == large[::-1]
    assert collect(bench, pagemap) == large


def test_a_reader_may_leave_early(bench: Bench) -> None:
    client = bench.connect("serve")
    pipe, image = read(bench, client, "nftables-1.img", b"x" * (1 << 20))
    bench.loop.turns()
    os.close(pipe)
    bench.loop.until(lambda: image.closed)
    pipe, _ = read(bench, client, "next.img", b"next")
    assert collect(bench, pipe) == b"next"
    assert bench.log() == []


def test_pipes_outlive_the_connection(bench: Bench) -> None:
    client = bench.connect("serve")
    data = b"x" * (1 << 20)
    pipe, _ = read(bench, client, "pages-1.img", data)
    client.close()
    bench.loop.turns()
    restore = bench.restores.begun[0]
    assert restore.over == 0
    assert collect(bench, pipe) == data
    bench.loop.until(lambda: restore.over)


def test_a_client_that_leaves_while_it_waits(bench: Bench) -> None:
    client = bench.connect("serve")
    restore = asked(bench, client, "inventory.img")
    client.close()
    bench.loop.until(lambda: restore.over)
    assert restore.cancelled == ["inventory.img"]
    assert bench.log() == []


def test_a_client_that_leaves_before_it_passes_its_pipe(bench: Bench) -> None:
    client = bench.connect("serve")
    restore = asked(bench, client, "inventory.img")
    image = bench.image(b"x")
    restore.asked[0][2].callback(image)
    bench.loop.until(lambda: client.poll() == YES)
    client.close()
    bench.loop.until(lambda: restore.over)
    assert image.closed == 1


def test_a_request_before_the_answer_ends_it(bench: Bench) -> None:
    client = bench.connect("serve")
    restore = asked(bench, client, "inventory.img")
    client.send(wanted("pstree.img"))
    bench.loop.until(client.is_over)
    bench.loop.until(lambda: restore.over)
    assert restore.cancelled == ["inventory.img"]
    assert len(bench.log()) == 1


def test_an_image_that_cannot_be_read_is_not_called_missing(bench: Bench) -> None:
    client = bench.connect("serve")
    asked(bench, client, "core-1.img").asked[0][2].errback(RelayError("its bytes were given back"))
    bench.loop.until(client.is_over)
    assert client.received == b""
    assert len(bench.log()) == 1 and "given back" in bench.log()[0]


def test_a_service_that_breaks_down(bench: Bench) -> None:
    client = bench.connect("serve")
    pipe, image = read(bench, client, "pages-1.img", b"x" * (1 << 20))
    bench.loop.until(lambda: image.serving is not None)
    assert isinstance(image.serving, Deferred)
    image.serving.errback(RelayError("spilled and lost"))
    assert image.closed == 1
    assert len(bench.log()) == 1 and "pages-1.img" in bench.log()[0]
    os.close(pipe)
    bench.loop.turns()


def test_a_restore_that_cannot_begin(bench: Bench) -> None:
    bench.restores.refuse = Conflict("not here")
    client = bench.connect("serve")
    bench.loop.until(client.is_over)
    assert len(bench.log()) == 1


def test_dropped(bench: Bench) -> None:
    client = bench.connect("serve")
    pipe, image = read(bench, client, "pages-1.img", b"x" * (1 << 20))
    bench.loop.turns()
    bench.protocols[0].drop("stopping")
    bench.loop.until(client.is_over)
    assert image.closed == 1
    assert bench.restores.begun[0].over == 1
    os.close(pipe)


def test_as_many_images_as_anybody_may_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_serve, "MAX_SERVED", 2)
    client = bench.connect("serve")
    pipes = [read(bench, client, f"{number}.img", b"x" * (1 << 20))[0] for number in range(2)]
    pipes.append(read(bench, client, "2.img", b"x")[0])
    bench.loop.until(client.is_over)
    assert all(image.closed == 1 for image in bench.images)
    for pipe in pipes:
        os.close(pipe)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0b", "a\nb", "x" * 256])
def test_names_that_are_refused(bench: Bench, name: str) -> None:
    client = bench.connect("serve")
    client.send(wanted(name))
    bench.loop.until(client.is_over)
    assert bench.restores.begun[0].asked == []
    assert len(bench.log()) == 1


@pytest.mark.parametrize("bad", ["no descriptor", "read end", "file"])
def test_descriptors_that_cannot_be_written(bench: Bench, bad: str) -> None:
    client = bench.connect("serve")
    restore = asked(bench, client, "core-1.img")
    image = bench.image(b"x")
    restore.asked[0][2].callback(image)
    bench.loop.until(lambda: client.poll() == YES)
    if bad == "no descriptor":
        client.send(b"\0")
    elif bad == "read end":
        os.close(client.pass_pipe("write"))
    else:
        file = os.open(bench.directory / "file", os.O_RDWR | os.O_CREAT)
        client.send_descriptor(file)
        os.close(file)
    bench.loop.until(client.is_over)
    bench.loop.until(lambda: image.closed)
    assert image.serving is None
    assert (bench.directory / "file").stat().st_size == 0 if bad == "file" else True
