"""`--remote` at the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from criu_relay.errors import Conflict, RelayError
from criu_relay.interfaces import Peer
from criu_relay.local.images import AT_ONCE
from criu_relay.local.pins import ProcessWatch, parent_of, same_program
from tests.local.bench import LABEL, Bench, Client, drain, framed, opened, text
from tests.local.fakes import FakeOpened, FakeRestore
from tests.support.remote_client import varint

FOUND = bytes.fromhex("020000000800")
MISSING = bytes.fromhex("020000000802")
FINISH = bytes.fromhex("060000000a0012001800")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is told to end, or the test ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        yield child
        child.kill()


def ask(bench: Bench, name: str, label: str = LABEL, peer: Peer | None = None) -> tuple[Client, FakeRestore]:
    """Ask for an image; the question has arrived at a restore."""
    before = sum(len(restore.asked) for restore in bench.restores.begun)
    if peer is not None:
        bench.peers.append(peer)
    client = bench.connect("cache")
    client.send(opened(name, label, 0))
    bench.loop.until(lambda: sum(len(restore.asked) for restore in bench.restores.begun) > before)
    asked = [restore for restore in bench.restores.begun if restore.asked and restore.asked[-1][:2] == (label, name)]
    return client, asked[-1]


def finish(bench: Bench, peer: Peer | None = None) -> None:
    """The restore says that it is done."""
    if peer is not None:
        bench.peers.append(peer)
    client = bench.connect("cache")
    client.send(FINISH)
    bench.loop.until(client.is_over)
    assert client.received == b""


def take(bench: Bench, client: Client) -> bytes:
    """Pass a pipe and read it to its end."""
    bench.loop.until(lambda: client.poll() == FOUND)
    pipe = client.pass_pipe("read")
    client.close()
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
    client, restore = ask(bench, "inventory.img")
    bench.loop.advance(3600)
    bench.loop.turns()
    assert client.poll() == b"" and not client.is_over()
    image = bench.image(b"inventory" * 100_000)
    restore.asked[0][2].callback(image)
    assert take(bench, client) == b"inventory" * 100_000
    assert image.closed == 1
    finish(bench)
    assert restore.over == 1
    assert len(bench.doors["cache"]) == 0
    assert bench.log() == []


def test_an_image_without_a_byte(bench: Bench) -> None:
    client, restore = ask(bench, "empty.img")
    restore.asked[0][2].callback(bench.image(b""))
    assert take(bench, client) == b""


def test_what_is_missing(bench: Bench) -> None:
    client, restore = ask(bench, "apparmor.img")
    restore.labels = [LABEL]
    restore.asked[0][2].callback(None)
    bench.loop.until(client.is_over)
    assert client.received == MISSING
    assert bench.log() == []


def test_an_error_is_answered_as_missing(bench: Bench) -> None:
    client, restore = ask(bench, "core-1.img")
    restore.asked[0][2].errback(RelayError("its bytes were given back"))
    bench.loop.until(client.is_over)
    assert client.received == MISSING
    assert len(bench.log()) == 1 and "given back" in bench.log()[0]


def test_the_list(bench: Bench) -> None:
    client = bench.connect("cache")
    client.send(opened("parent", "", 0))
    bench.loop.until(lambda: bench.restores.begun and bench.restores.begun[0].lists)
    bench.loop.advance(3600)
    assert client.poll() == b""
    bench.restores.begun[0].lists[0].callback(["one", "two"])
    bench.loop.until(client.is_over)
    assert client.received == FOUND + framed(text(1, "one")) + framed(text(1, "two"))


def test_the_list_after_an_abort(bench: Bench) -> None:
    client = bench.connect("cache")
    client.send(opened("parent", "", 0))
    bench.loop.until(lambda: bench.restores.begun and bench.restores.begun[0].lists)
    bench.restores.begun[0].lists[0].callback([])
    bench.loop.until(client.is_over)
    assert client.received == MISSING


def test_a_restore_that_cannot_begin_is_answered(bench: Bench) -> None:
    bench.restores.refuse = Conflict("not here")
    for header in (opened("parent", "", 0), opened("a.img", LABEL, 0)):
        client = bench.connect("cache")
        client.send(header)
        bench.loop.until(client.is_over)
        assert client.received == MISSING


def test_readers_that_leave_while_they_wait(bench: Bench) -> None:
    client, restore = ask(bench, "inventory.img")
    other, _ = ask(bench, "inventory.img")
    lister = bench.connect("cache")
    lister.send(opened("parent", "", 0))
    bench.loop.until(lambda: restore.lists)
    client.close()
    lister.close()
    bench.loop.until(lambda: sorted(restore.cancelled) == ["inventory.img", "the list"])
    restore.asked[1][2].callback(bench.image(b"x"))
    assert take(bench, other) == b"x"
    assert bench.log() == []


def test_a_pipe_that_never_comes(bench: Bench) -> None:
    client, restore = ask(bench, "a.img")
    image = bench.image(b"x")
    restore.asked[0][2].callback(image)
    bench.loop.until(lambda: client.poll() == FOUND)
    bench.loop.advance(9)
    bench.loop.turns()
    assert not client.is_over()
    bench.loop.advance(1)
    bench.loop.until(client.is_over)
    assert image.closed == 1


def test_a_client_that_leaves_before_it_passes_its_pipe(bench: Bench) -> None:
    client, restore = ask(bench, "a.img")
    image = bench.image(b"x")
    restore.asked[0][2].callback(image)
    bench.loop.until(lambda: client.poll() == FOUND)
    client.close()
    bench.loop.until(lambda: image.closed)


def test_a_slow_reader_holds_up_nobody(bench: Bench) -> None:
    slow, restore = ask(bench, "pages-1.img")
    restore.asked[0][2].callback(bench.image(b"x" * (4 << 20)))
    bench.loop.until(lambda: slow.poll() == FOUND)
    pipe = slow.pass_pipe("read")
    bench.loop.turns()
    other, _ = ask(bench, "core-1.img")
    restore.asked[1][2].callback(bench.image(b"core"))
    assert take(bench, other) == b"core"
    finish(bench)
    assert restore.over == 0
    os.close(pipe)
    bench.loop.until(lambda: restore.over)


def skip(offset: int, length: int) -> bytes:
    return framed(b"\x08" + varint(offset) + b"\x10" + varint(length))


def test_a_reader_that_stays_may_skip(bench: Bench) -> None:
    client, restore = ask(bench, "pages-1.img")
    image = bench.image(b"x" * (4 << 20))
    restore.asked[0][2].callback(image)
    bench.loop.until(lambda: client.poll() == FOUND)
    pipe = client.pass_pipe("read")
    answers = b""
    for offset, length in ((100, 50), (1 << 20, 3 << 20), (1 << 62, 1)):
        client.send(skip(offset, length))
        answers += framed(b"\x08" + varint(offset + 1) + b"\x10" + varint(offset + length))
        bench.loop.until(lambda expected=FOUND + answers: client.poll() == expected)
    assert image.skipped == [(100, 50), (1 << 20, 3 << 20), (1 << 62, 1)]
    assert not client.is_over()
    os.close(pipe)
    bench.loop.until(lambda: restore.over or image.closed)
    client.send(skip(5, 5))
    answers += framed(b"\x08\x06\x10\x0a")
    bench.loop.until(lambda: client.poll() == FOUND + answers)
    client.close()
    bench.loop.until(lambda: len(bench.doors["cache"]) == 0)
    assert bench.log() == []


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (skip((1 << 63) - 5, 6), "beyond the largest image"),
        (framed(b"\x08\x05"), "length is missing"),
        (b"\xff\xff\xff\xff", "are possible"),
    ],
)
def test_a_wrong_skip_ends_the_connection(bench: Bench, message: bytes, reason: str) -> None:
    client, restore = ask(bench, "pages-1.img")
    restore.asked[0][2].callback(bench.image(b"x" * (4 << 20)))
    bench.loop.until(lambda: client.poll() == FOUND)
    pipe = client.pass_pipe("read")
    bench.loop.turns()
    client.send(message)
    bench.loop.until(client.is_over)
    os.close(pipe)
    assert reason in "".join(bench.log())


def test_one_process_is_one_restore_until_it_says_finish(bench: Bench, process: subprocess.Popen[bytes]) -> None:
    peer = Peer(process.pid, 0, 0)
    _, first = ask(bench, "a.img", peer=peer)
    _, again = ask(bench, "b.img", peer=peer)
    _, other = ask(bench, "c.img")
    assert first is again and first is not other
    finish(bench, peer)
    _, next_one = ask(bench, "d.img", peer=peer)
    assert next_one is not first
    assert first.over == 0


def test_one_process_is_one_restore_until_it_ends(bench: Bench, process: subprocess.Popen[bytes]) -> None:
    client, restore = ask(bench, "a.img", peer=Peer(process.pid, 0, 0))
    restore.asked[0][2].callback(bench.image(b"x"))
    take(bench, client)
    bench.loop.turns()
    assert restore.over == 0
    process.kill()
    bench.loop.until(lambda: restore.over)
    assert len(bench.pins) == 0


def test_a_forked_task_belongs_to_the_restore_and_another_program_does_not(bench: Bench) -> None:
    _, restore = ask(bench, "a.img")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    other = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        _, forked = ask(bench, "b.img", peer=Peer(child, 0, 0))
        _, foreign = ask(bench, "c.img", peer=Peer(other.pid, 0, 0))
    finally:
        os.close(reading)
        os.close(writing)
        os.waitpid(child, 0)
        other.communicate()
    assert forked is restore
    assert foreign is not restore


def test_an_unknown_process_has_a_restore_for_each_connection(bench: Bench) -> None:
    client, first = ask(bench, "a.img", peer=Peer(0, 0, 0))
    _, second = ask(bench, "b.img", peer=Peer(0, 0, 0))
    assert first is not second
    client.close()
    bench.loop.until(lambda: first.over)
    finish(bench, Peer(0, 0, 0))
    assert second.over == 0


def test_a_process_that_is_gone_already(bench: Bench) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    client, restore = ask(bench, "a.img", peer=Peer(gone.pid, 0, 0))
    assert len(bench.pins) == 0
    client.close()
    bench.loop.until(lambda: restore.over == 1)


def test_processes() -> None:
    assert parent_of(os.getpid()) == os.getppid()
    assert parent_of(2**22 + 1) == 0
    assert same_program(os.getpid(), os.getpid())
    assert not same_program(os.getpid(), 2**22 + 1)
    with pytest.raises(ProcessLookupError):
        ProcessWatch(None, 2**22 - 1, lambda: None)


def test_a_snapshot_that_is_not_in_the_list_is_explained(bench: Bench) -> None:
    for name in ("inventory.img", "pstree.img"):
        client, restore = ask(bench, name, label="img")
        restore.labels = ["/abs/img"]
        restore.asked[-1][2].callback(None)
        bench.loop.until(client.is_over)
        assert client.received == MISSING
    finish(bench)
    assert len(bench.log()) == 1
    assert "'img'" in bench.log()[0] and "literally one of: /abs/img" in bench.log()[0]


def test_a_restore_that_reads_the_list_and_nothing_else_is_explained(bench: Bench) -> None:
    client = bench.connect("cache")
    client.send(opened("parent", "", 0))
    bench.loop.until(lambda: bench.restores.begun and bench.restores.begun[0].lists)
    bench.restores.begun[0].lists[0].callback(["/abs/img"])
    bench.loop.until(client.is_over)
    finish(bench)
    assert len(bench.log()) == 1 and "literally one of: /abs/img" in bench.log()[0]


def test_a_restore_as_it_should_be_is_not_explained(bench: Bench) -> None:
    client = bench.connect("cache")
    client.send(opened("parent", "", 0))
    bench.loop.until(lambda: bench.restores.begun and bench.restores.begun[0].lists)
    bench.restores.begun[0].lists[0].callback([LABEL])
    bench.loop.until(client.is_over)
    client, restore = ask(bench, "inventory.img")
    restore.asked[0][2].callback(bench.image(b"x"))
    assert take(bench, client) == b"x"
    finish(bench)
    assert restore.over == 1
    assert bench.log() == []


def test_a_read_without_a_label_comes_on_the_connection(bench: Bench) -> None:
    client, restore = ask(bench, "log.img", label="")
    image: FakeOpened = bench.image(b"text" * 100_000)
    restore.asked[0][2].callback(image)
    bench.loop.until(client.is_over)
    assert client.received == FOUND + b"text" * 100_000
    bench.loop.until(lambda: image.closed)


@pytest.mark.parametrize("size", [0, 1, AT_ONCE])
def test_a_small_image_comes_with_the_answer(bench: Bench, size: int) -> None:
    """Everybody has it before the first connection is ended."""
    clients = [ask(bench, "log.img", label="")[0] for _ in range(3)]
    images = [bench.image(b"x" * size) for _ in clients]
    [restore] = bench.restores.begun
    for (_, _, fired), image in zip(restore.asked, images, strict=True):
        fired.callback(image)
    assert [client.poll() for client in clients] == [FOUND + b"x" * size] * 3
    assert not any(client.ended for client in clients)
    assert [(image.closed, image.serving) for image in images] == [(1, None)] * 3
    bench.loop.until(lambda: all(client.is_over() for client in clients))
    assert len(bench.doors["cache"]) == 0
    assert bench.log() == []


def test_a_reader_that_leaves_once_it_is_answered(bench: Bench) -> None:
    client, restore = ask(bench, "log.img", label="")
    restore.asked[0][2].callback(bench.image(b"x"))
    client.close()
    bench.loop.until(lambda: len(bench.doors["cache"]) == 0)
    assert bench.log() == []


@pytest.mark.parametrize(
    "data",
    [
        opened("a.img", "", 1) + b"data",
        opened("a.img", "", 1024),
        opened("parent", "", 1024) + framed(text(1, "label")),
        opened("", "", 1),
        opened("..", LABEL, 0),
        opened("a.img", LABEL, 3),
    ],
)
def test_requests_that_are_refused(bench: Bench, data: bytes) -> None:
    client = bench.connect("cache")
    client.send(data)
    client.socket.shutdown(1)
    bench.loop.until(client.is_over)
    assert bench.restores.begun == []
    assert client.received == b""
    assert len(bench.log()) == 1


def test_a_write_of_a_pipe_is_refused(bench: Bench) -> None:
    client = bench.connect("cache")
    client.send(opened("a.img", LABEL, 1))
    pipe = client.pass_pipe("write")
    bench.loop.until(client.is_over)
    with pytest.raises(BrokenPipeError):
        os.write(pipe, b"x")
    os.close(pipe)
    assert len(bench.log()) == 1 and "img-proxy.sock" in bench.log()[0]


def test_impatience(bench: Bench) -> None:
    client, restore = ask(bench, "a.img")
    client.send(b"x")
    bench.loop.until(client.is_over)
    bench.loop.until(lambda: restore.cancelled)
    assert len(bench.log()) == 1
