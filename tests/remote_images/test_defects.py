"""What the first implementation of remote images got wrong, D1 to D12; each was reproduced on the running program."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from criu_relay.values import available_memory
from tests.remote_images.pair import LABEL, Pair
from tests.support.daemons import Relay
from tests.support.faults import UP, Fault, Faults
from tests.support.remote_client import APPEND, header, read_all, write_all

PAGE = 4096


@contextlib.contextmanager
def task() -> Iterator[subprocess.Popen[bytes]]:
    """The root task of a dump; killed at the end, as criu would."""
    with subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


IMAGES = {
    "files.img": b"files",
    "empty.img": b"",
    "pages-1.img": os.urandom(1 << 20) + bytes(100_000),
    "core-1.img": b"c" * PAGE,
}


def test_D01_a_second_append_to_the_list_adds_to_it(pair: Pair) -> None:
    first, second = pair.dump("/img/1"), pair.dump("/img/2")
    with first.dump():
        first.write("pages-1.img", b"first")
    with second.dump():
        second.write("pages-1.img", b"second")
    assert second.labels() == ["/img/1", "/img/2"]
    pair.commits()
    second.finish()
    restore = pair.restore("/img/2")
    assert restore.labels() == ["/img/1", "/img/2"]
    assert restore.read("pages-1.img", "/img/1") == b"first"
    assert restore.read("pages-1.img", "/img/2") == b"second"
    restore.finish()


def test_D02_an_image_without_a_byte_swallows_nothing(pair: Pair) -> None:
    images = {f"{number}.img": b"" if number % 2 else b"%d" % number for number in range(8)}
    pair.dumped(images)
    for name in images:
        assert pair.images("cache")[name]["complete"]
    pair.restored(images)


def test_D03_an_image_of_exactly_4_GiB(relay: Relay) -> None:
    """The contents are a block that repeats with a period which no buffer has, so that misplaced bytes show."""
    size = 1 << 32
    if available_memory() < size + (2 << 30):
        pytest.skip(f"not enough memory for an image of {size} bytes")
    pair = Pair(relay)
    pair.start(cache=("--memory", str(size + (64 << 20))))
    period = (1 << 20) + 17
    pattern = os.urandom(period) * 2
    with pair.dump().dump() as dump:
        pipe = dump.begin("pages-1.img")
        left = size
        while left:
            left -= os.write(pipe, memoryview(pattern)[(size - left) % period :][:left])
        os.close(pipe)
        dump.write("after.img", b"after")
    pair.commits()
    dump.finish()
    assert pair.images("cache")["pages-1.img"]["size"] == size
    restore = pair.restore()
    with restore.ask("pages-1.img") as connection:
        assert connection.reply() == 0
        pipe = connection.pass_pipe("read")
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
    done = 0
    while piece := os.read(pipe, 1 << 20):
        assert pattern.startswith(piece, done % period), f"wrong bytes near {done}"
        done += len(piece)
    os.close(pipe)
    assert done == size
    assert restore.read("after.img") == b"after"
    restore.finish()
    pair.alive()


@pytest.mark.parametrize("pages", [1, 2, 16, 256, 1024])
def test_D04_an_image_of_whole_pages_is_complete_when_it_is_closed(pair: Pair, pages: int) -> None:
    data = os.urandom(pages * PAGE)
    dump = pair.dump()
    dump.push()
    dump.write("pages-1.img", data)
    for role in ("proxy", "cache"):
        pair.complete("pages-1.img", role)
    assert pair.images("cache")["pages-1.img"]["size"] == len(data)
    assert dump.read("pages-1.img") == data


def test_D05_an_image_closed_just_before_finish_is_not_lost(pair: Pair) -> None:
    """Without a commit by a script, FINISH is what seals."""
    for run in range(46):
        label = f"/img/{run}"
        dump = pair.dump(label)
        dump.push()
        dump.write("inventory.img", b"inventory of " + label.encode())
        dump.write("pages-1.img", b"%d" % run * 10_000)
        dump.write("last.img", b"%d" % run)
        dump.finish()
        status, answer = pair.relay.proxy.request("POST", f"/v1/namespaces/{pair.name}/wait?timeout=20")
        assert status == 200, answer
        pair.restored({"pages-1.img": b"%d" % run * 10_000, "last.img": b"%d" % run}, label)


def test_D06_nothing_is_permitted_that_the_cache_does_not_hold(relay: Relay) -> None:
    pair = Pair(relay)
    pair.start(proxy=("--link-timeout", "2"), copy=False)
    with task() as root:
        with pair.dump().dump() as dump:
            dump.write("pages-1.img", IMAGES["pages-1.img"])
        relay.cache.kill()
        status, answer = pair.ask_to_commit(root.pid)
    assert status in (409, 502, 504)
    assert answer["error"]
    relay.reach("web", "aborted", at="proxy")
    dump.finish()


def test_D06_a_task_is_gone_before_its_images_are_served(relay: Relay) -> None:
    """The permission comes when the cache holds everything; the commit when the task is gone."""
    pair = Pair(relay)
    pair.start(copy=False)
    with task() as root:
        with pair.dump().dump() as dump:
            dump.write("pages-1.img", IMAGES["pages-1.img"])
        waiting = pair.restore().ask("pages-1.img")
        status, answer = pair.ask_to_commit(root.pid)
        assert (status, answer["state"]) == (200, "permitted")
        assert answer["held"] == sum(image["size"] for image in pair.images("cache").values())
        assert waiting.silent(0.2)
    relay.reach("web", "committed", at="proxy")
    dump.finish()
    assert pair.restore().take(waiting) == IMAGES["pages-1.img"]
    pair.alive()


@pytest.mark.parametrize("most", [10_000, 1_000_000, 5_000_000])
def test_D07_a_truncated_image_is_never_served(relay: Relay, faulty: Callable[..., Faults], most: int) -> None:
    pair = Pair(relay)
    link = faulty(relay.port, Fault("stall", UP, most))
    pair.start(("--link-timeout", "1"), ("--link", f"tcp:127.0.0.1:{link.port}", "--link-timeout", "1"))
    waiting = pair.restore().ask("pages-1.img")
    pair.waiting(1)
    dump = pair.dump()
    dump.push()
    pipe = dump.begin("pages-1.img")
    relay.reach("web", "open")
    with pytest.raises(BrokenPipeError):
        for _ in range(8):
            os.write(pipe, os.urandom(1 << 20))
            if link.hit("stall"):
                link.cut()
                relay.reach("web", "aborted", at="proxy")
    os.close(pipe)
    assert pair.commit("--timeout", "2")[0] in (1, 3)
    dump.finish()
    with waiting:
        assert waiting.reply() == 2
    assert relay.state("web") == "aborted"
    pair.not_served("pages-1.img")
    pair.alive()


def test_D08_a_second_write_replaces_and_an_append_adds(pair: Pair) -> None:
    with pair.dump().dump() as dump:
        dump.write("a.img", b"a long first version")
        dump.write("a.img", b"second")
        dump.write("b.img", b"head ")
        dump.write("b.img", b"tail", APPEND)
        dump.write("c.img", b"new", APPEND)
        for number in range(10):
            dump.write("d.img", b"%d" % number, APPEND)
        dump.write("e.img", b"gone")
        dump.write("e.img", b"")
    pair.commits()
    dump.finish()
    pair.restored({"a.img": b"second", "b.img": b"head tail", "c.img": b"new", "d.img": b"0123456789", "e.img": b""})


def test_D08_the_second_writer_waits_for_the_first(pair: Pair) -> None:
    with pair.dump().dump() as dump:
        first = dump.begin("a.img")
        os.write(first, b"first")
        second = dump.begin("a.img", APPEND)
        os.write(second, b" second")
        os.close(second)
        os.close(first)
    pair.commits()
    dump.finish()
    pair.restored({"a.img": b"first second"})


def test_D08_the_same_name_in_two_snapshots_is_two_images(pair: Pair) -> None:
    for label in ("/img/1", "/img/2"):
        with pair.dump(label).dump() as dump:
            dump.write("pages-1.img", label.encode() * 1000)
    pair.commits()
    dump.finish()
    restore = pair.restore("/img/2")
    for label in ("/img/1", "/img/2"):
        assert restore.read("pages-1.img", label) == label.encode() * 1000
    restore.finish()


def test_D08_the_same_dump_again_replaces_the_first(pair: Pair) -> None:
    for version in (b"one", b"two"):
        pair.dumped({"a.img": version, version.decode(): version})
        pair.restored({"a.img": version})
    assert pair.restore().read("one") is None


def test_D09_every_reader_that_waits_is_woken(pair: Pair) -> None:
    restore = pair.restore()
    readers = [restore.ask("pages-1.img") for _ in range(20)]
    missing = [restore.ask("missing.img") for _ in range(5)]
    lists = [restore.ask_labels() for _ in range(5)]
    pair.waiting(30)
    pair.dumped(IMAGES)
    for reader in readers:
        assert restore.take(reader) == IMAGES["pages-1.img"]
    for reader in missing:
        assert restore.take(reader) is None
    for reader in lists:
        assert restore.take_labels(reader) == [LABEL]
    restore.finish()


def test_D10_a_reader_that_leaves_takes_nothing_with_it(pair: Pair) -> None:
    restore = pair.restore()
    readers = [restore.ask("pages-1.img") for _ in range(10)]
    pair.waiting(10)
    for reader in readers[::2]:
        reader.socket.close()
    pair.waiting(5)
    with pair.dump().dump() as dump:
        dump.write("pages-1.img", IMAGES["pages-1.img"])
        readers[1].socket.close()
    pair.commits()
    dump.finish()
    for reader in readers[3::2]:
        assert restore.take(reader) == IMAGES["pages-1.img"]
    with restore.ask("pages-1.img") as gone:
        assert gone.reply() == 0
    with restore.ask("pages-1.img") as early:
        assert early.reply() == 0
        os.close(early.pass_pipe("read"))
    assert restore.read("pages-1.img") == IMAGES["pages-1.img"]
    restore.finish()


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 64, b"\0" * 64, b"\x04\0\0\0\xff\xff\xff\xff", b"GET / HTTP/1.0\r\n\r\n", b"\x01\x40\0\0"],
    ids=["ones", "zeros", "no message", "http", "too long"],
)
def test_D11_a_bad_header_ends_its_connection_and_no_other(pair: Pair, garbage: bytes) -> None:
    with pair.dump().dump() as dump:
        dump.write("files.img", b"files")
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", pair.relay.port), 5) as stranger:
                stranger.sendall(garbage)
                received = read_end(stranger)
            assert len(received) < 4096
        for side in (pair.dump(), pair.restore()):
            for _ in range(5):
                with side.connect() as connection:
                    connection.send(garbage)
                    assert connection.rest() == b""
        dump.write("core-1.img", b"core")
    assert pair.status("cache")["link"]["state"] == "up"
    assert pair.status("proxy")["counters"]["links_made"] == 1
    pair.commits()
    dump.finish()
    pair.restored({"files.img": b"files", "core-1.img": b"core"})


def read_end(sock: socket.socket) -> bytes:
    """Everything up to the end of a connection, however it ends."""
    data = b""
    try:
        while piece := sock.recv(4096):
            data += piece
    except ConnectionResetError:
        pass
    return data


def test_D12_an_end_instead_of_a_header(pair: Pair) -> None:
    whole = header("x.img", LABEL, 1)
    for _ in range(10):
        pair.dump().connect().socket.close()
        pair.restore().connect().socket.close()
        socket.create_connection(("127.0.0.1", pair.relay.port), 5).close()
    for cut in range(1, len(whole)):
        for side in (pair.dump(), pair.restore()):
            with side.connect() as connection:
                connection.send(whole[:cut])
    assert pair.name not in {found["name"] for found in pair.relay.get("/v1/namespaces", "proxy")}
    pair.moved(IMAGES)
    assert set(pair.images("cache")) == {*IMAGES, "inventory.img"}


def test_D12_an_end_instead_of_a_pipe_is_not_an_image_without_a_byte(pair: Pair) -> None:
    dump = pair.dump()
    dump.push()
    with dump.opened("files.img", LABEL, 1):
        pass
    pair.relay.reach(pair.name, "aborted", at="proxy")
    dump.finish()
    pair.moved(IMAGES)


def test_what_is_read_back_while_it_is_dumped(pair: Pair) -> None:
    """A dump looks at its parent: at once, missing when it is not complete."""
    with pair.dump("/img/1").dump() as parent:
        parent.write("pages-1.img", IMAGES["pages-1.img"])
    dump = pair.dump("/img/2")
    dump.push()
    assert dump.read("pages-1.img", "/img/1") == IMAGES["pages-1.img"]
    assert dump.read("nothing.img", "/img/1") is None
    assert dump.read("pages-1.img", "/img/2") is None
    assert dump.read("pages-1.img", "/img/3") is None
    pipe = dump.begin("pages-1.img")
    os.write(pipe, b"half")
    assert dump.read("pages-1.img") is None
    write_all(pipe, b" whole")
    assert dump.read("pages-1.img") == b"half whole"
    with dump.ask("pages-1.img", "/img/1") as connection:
        assert connection.reply() == 0
        early = connection.pass_pipe("read")
    assert os.read(early, 10) == IMAGES["pages-1.img"][:10]
    os.close(early)


def test_an_image_without_a_snapshot_goes_over_its_connection(pair: Pair) -> None:
    with pair.dump().dump() as dump:
        dump.write_here("note.img", IMAGES["pages-1.img"])
    with dump.ask("note.img", "") as connection:
        assert connection.reply() == 0
        assert connection.rest() == IMAGES["pages-1.img"]


def test_two_readers_of_one_image_do_not_disturb_each_other(pair: Pair) -> None:
    pair.dumped(IMAGES)
    restore = pair.restore()
    slow, quick = restore.ask("pages-1.img"), restore.ask("pages-1.img")
    pipes = []
    for connection in (slow, quick):
        assert connection.reply() == 0
        pipes.append(connection.pass_pipe("read"))
        connection.socket.close()
    head = os.read(pipes[0], 100)
    assert read_all(pipes[1]) == IMAGES["pages-1.img"]
    assert head + read_all(pipes[0]) == IMAGES["pages-1.img"]
    restore.finish()
