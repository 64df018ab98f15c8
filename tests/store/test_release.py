"""Images are given back as they are read (--release), when nobody asks for them (--ttl), and readers are reset."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from criu_relay.errors import Conflict
from criu_relay.flow.zeros import PAGE
from criu_relay.store.generation import State
from criu_relay.store.namespace import RELEASED_FROM
from criu_relay.store.table import Kind
from tests.store.support import ALICE, MIB, Bench, outcome


def data_of(size: int) -> bytes:
    return b"".join(number.to_bytes(8, "big") for number in range(1, size // 8 + 1))


def opened_of(bench: Bench, restore: Any = None, name: str = "pages-1.img") -> Any:
    restore = restore or bench.store.namespace("web").begin(None)
    return outcome(restore.open(None, name))[0]


class Served:
    """An image on its way into a socket or pipe."""

    def __init__(self, bench: Bench, opened: Any, kind: str = "pipe") -> None:
        self.bench = bench
        if kind == "pipe":
            self.theirs, self.ours = os.pipe()
        else:
            self.theirs, self.ours = (end.detach() for end in socket.socketpair())
        os.set_blocking(self.theirs, False)
        self.results = outcome(opened.serve(self.ours))
        opened.close()

    def turn(self) -> bytes:
        """One turn of the server, and what it wrote."""
        for writer in list(self.bench.reactor.writers):
            writer.doWrite()
        self.bench.settle()
        data = b""
        while True:
            try:
                piece = os.read(self.theirs, MIB)
            except BlockingIOError:
                return data
            if not piece:
                return data
            data += piece

    def close(self) -> None:
        os.close(self.theirs)
        os.close(self.ours)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("size", [4 * MIB, 3 * MIB + 8])
def test_bytes_that_were_read_are_given_back(kind: str, size: int) -> None:
    bench = Bench(release=True)
    data = data_of(size)
    bench.committed(data)
    served = Served(bench, opened_of(bench), kind)
    got = b""
    while not served.results:
        got += served.turn()
        assert bench.arena.allocated <= len(data) - len(got) + 2 * MIB
    got += served.turn()
    assert got == data
    bench.settle()
    assert bench.arena.allocated == 0
    figures = bench.store.accounts().of[bench.store.known("web")]
    assert figures["released"] == size
    if kind == "pipe":
        assert bench.arena.recycled == 0, "what a pipe referred to is given to the kernel"
    served.close()


def test_without_release_nothing_is_given_back() -> None:
    bench = Bench()
    bench.committed(data_of(MIB))
    served = Served(bench, opened_of(bench), "socket")
    while not served.results:
        served.turn()
    assert bench.arena.allocated == MIB
    served.close()


def test_a_second_restore_is_refused() -> None:
    bench = Bench(release=True)
    bench.committed(data_of(MIB))
    restore = bench.store.namespace("web").begin(None)
    served = Served(bench, opened_of(bench, restore), "socket")
    refused = opened_of(bench)
    assert isinstance(refused, Conflict)
    assert "is restored already" in refused.reason
    while not served.results:
        served.turn()
    restore.finished()
    assert isinstance(opened_of(bench), Conflict)
    served.close()


def test_a_restore_that_read_nothing_can_be_tried_again() -> None:
    bench = Bench(release=True)
    bench.committed(data_of(MIB))
    restore = bench.store.namespace("web").begin(None)
    opened_of(bench, restore).close()
    restore.finished()
    opened_of(bench).close()


def test_small_images_stay() -> None:
    bench = Bench(release=True)
    bench.committed(data_of(RELEASED_FROM - 8))
    restore = bench.store.namespace("web").begin(None)
    for _ in range(2):
        served = Served(bench, opened_of(bench, restore), "socket")
        got = b""
        while not served.results:
            got += served.turn()
        assert got + served.turn() == data_of(RELEASED_FROM - 8)
        served.close()


def test_what_was_released_cannot_be_read_again() -> None:
    bench = Bench(release=True)
    bench.committed(data_of(MIB))
    restore = bench.store.namespace("web").begin(None)
    served = Served(bench, opened_of(bench, restore), "socket")
    while not served.results:
        served.turn()
    again = Served(bench, opened_of(bench, restore), "socket")
    assert again.turn() == b""
    assert "given back as they were read" in again.results[0].reason
    served.close()
    again.close()


def test_zeros_and_what_is_skipped_count_as_released() -> None:
    bench = Bench(release=True)
    data = data_of(MIB) + bytes(MIB) + data_of(MIB)
    migration = bench.committed(data)
    opened = opened_of(bench)
    served = Served(bench, opened, "socket")
    assert opened.skip(MIB // 2, 2 * MIB) == (MIB // 2, MIB // 2 + 2 * MIB)
    got = b""
    while not served.results:
        got += served.turn()
    assert got + served.turn() == data[: MIB // 2] + data[MIB // 2 + 2 * MIB :]
    assert bench.generation(migration).image(1).table.pages[Kind.RELEASED] == 3 * MIB // PAGE
    served.close()


# Time


def test_a_namespace_that_nobody_asks_for_is_discarded() -> None:
    bench = Bench(ttl=100.0)
    bench.committed(data_of(MIB))
    bench.clock.advance(99)
    assert bench.store.known("web").state is State.COMMITTED
    opened = opened_of(bench)
    bench.clock.advance(99)
    assert bench.store.known("web").state is State.COMMITTED
    bench.clock.advance(50)
    assert bench.store.known("web").state is State.COMMITTED, "it is being read"
    opened.close()
    bench.clock.advance(2)
    assert bench.store.known("web").state is State.DISCARDED
    assert "100 s" in bench.store.known("web").reason
    bench.settle()
    assert bench.arena.used == 0


def test_no_time_by_default() -> None:
    bench = Bench()
    bench.committed(data_of(MIB))
    bench.clock.advance(1e7)
    assert bench.store.known("web").state is State.COMMITTED


# Discarding what is read


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("what", ["range", "image", "namespace"])
def test_a_reader_of_what_is_discarded_is_reset(kind: str, what: str) -> None:
    bench = Bench()
    data = data_of(4 * MIB)
    bench.committed(data)
    served = Served(bench, opened_of(bench), kind)
    got = served.turn()
    assert 0 < len(got) < len(data)
    if what == "range":
        bench.store.discard_image("web", None, "pages-1.img", 3 * MIB, MIB)
    elif what == "image":
        bench.store.discard_image("web", None, "pages-1.img", 0, None)
    else:
        bench.store.discard("web")
    assert "was discarded" in served.results[0].reason
    assert data.startswith(got + served.turn()), "what was in the pipe, and no zeros"
    bench.settle()
    assert bench.arena.allocated == (3 * MIB if what == "range" else 0)
    served.close()


def test_a_reader_that_is_beyond_what_is_discarded_goes_on() -> None:
    bench = Bench()
    data = data_of(4 * MIB)
    bench.committed(data)
    served = Served(bench, opened_of(bench), "socket")
    got = b""
    while len(got) < 2 * MIB:
        got += served.turn()
    bench.store.discard_image("web", None, "pages-1.img", 0, MIB)
    while not served.results:
        got += served.turn()
    assert got + served.turn() == data
    served.close()


def test_a_console_that_reads_is_told() -> None:
    bench = Bench()
    bench.committed(data_of(4 * MIB))
    opened = opened_of(bench)
    bench.store.discard("web")
    assert isinstance(outcome(opened.read(0, 10))[0], Conflict)
    assert isinstance(outcome(opened.serve(0))[0], Conflict)
    opened.close()
    bench.settle()
    assert bench.arena.used == 0


def test_a_proxy_discards_a_range_of_what_it_sent() -> None:
    bench = Bench()
    migration = bench.begin()
    bench.write(migration, data_of(MIB))
    bench.store.discard_range(ALICE, migration, 1, 0, MIB // 2)
    bench.settle()
    assert bench.arena.allocated == MIB // 2
    assert bench.seal(migration) == MIB, "sizes and digests are those of the whole"


# Figures


def test_figures_add_up() -> None:
    from criu_relay.store.policy import Dedup

    bench = Bench(64 * MIB, dedup=Dedup.PAGES)
    page = data_of(PAGE)
    contents = {"one": page * 10 + bytes(20 * PAGE) + b"end", "two": page * 5 + data_of(MIB), "three": data_of(MIB)}
    for name, data in contents.items():
        bench.committed(data, name)
    bench.store.discard_image("two", None, "pages-1.img", 5 * PAGE, 3 * PAGE)
    bench.store.known("two").at(None, "pages-1.img")[1].discard(8 * PAGE, PAGE, Kind.SUPERSEDED)
    bench.settle()
    opened = bench.begin("open")
    bench.write(opened, data_of(MIB) + b"x", end=False)
    bench.committed(b"gone" * PAGE, "gone")
    bench.store.restored("gone")
    bench.settle()
    accounts = bench.store.accounts()
    for generation, figures in accounts.of.items():
        assert sum(figures.values()) == generation.total, (generation.namespace, figures)
    memory = accounts.memory
    assert memory["used"] == memory["images"] + memory["room"] + memory["index"] + memory["credit"]
    by_name = {generation.namespace: figures for generation, figures in accounts.of.items()}
    assert by_name["one"] == dict.fromkeys(by_name["one"], 0) | {
        "held": PAGE + 3, "shared": 9 * PAGE, "zero": 20 * PAGE,
    }  # fmt: skip
    assert by_name["two"]["discarded"] == 3 * PAGE
    assert by_name["two"]["superseded"] == PAGE
    assert by_name["gone"]["released"] == 4 * PAGE
    held = sum(figures["held"] for figures in by_name.values())
    assert memory["images"] - held == 2 * PAGE - len(b"end") - len(b"x"), "two pages are not full"
