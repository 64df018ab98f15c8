"""An image of the store, opened."""

from __future__ import annotations

import os
import socket

import pytest

from criu_relay.errors import Conflict, RelayError
from criu_relay.interfaces import IOpenedImage
from criu_relay.store.arena import SMALLEST
from criu_relay.store.image import Image
from criu_relay.store.opened import OpenedImage
from criu_relay.store.table import Kind
from tests.store.support import Bench, outcome

MIB = 1 << 20


def opened(bench: Bench, data: bytes) -> tuple[OpenedImage, Image]:
    migration = bench.committed(data)
    image = bench.generation(migration).image(1)
    return OpenedImage(bench.reactor, image), image


def test_interface() -> None:
    assert IOpenedImage.implementedBy(OpenedImage)


def test_reading() -> None:
    bench = Bench()
    image, _ = opened(bench, b"0123456789" * MIB)
    assert image.size == 10 * MIB
    assert outcome(image.read(MIB - 2, 5)) == [b"45678"[:0] + (b"0123456789" * MIB)[MIB - 2 : MIB + 3]]
    assert len(outcome(image.read(0, 5 * MIB))[0]) == MIB
    assert outcome(image.read(10 * MIB, 5)) == [b""]


def test_close_counts_once() -> None:
    image, source = opened(Bench(), b"abc")
    assert source.readers == {image}
    image.close()
    image.close()
    assert source.readers == set()


def test_one_that_waits_between_two_reads_keeps_nothing_that_is_discarded() -> None:
    """Such as a client that takes its time: what it has is a copy."""
    bench = Bench()
    image, source = opened(bench, b"abc" * MIB)
    assert len(outcome(image.read(0, MIB))[0]) == MIB
    assert bench.store.discard("web") == 3 * MIB
    assert source.readers == set()
    bench.settle()
    assert bench.arena.used == 0
    [error] = outcome(image.read(MIB, MIB))
    assert isinstance(error, Conflict) and "was discarded" in str(error)
    assert (image.whole(4 * MIB), source.size) == (None, 3 * MIB)
    image.close()


def test_a_server_keeps_the_memory_after_close() -> None:
    bench = Bench()
    image, source = opened(bench, b"abc")
    reading, writing = os.pipe()
    done = outcome(image.serve(writing))
    image.close()
    source.drop()
    bench.settle()
    assert bench.arena.used > 0
    bench.reactor.writers.pop().doWrite()
    assert done == [3]
    assert os.read(reading, 10) == b"abc"
    bench.settle()
    assert bench.arena.used == 0
    os.close(reading)
    os.close(writing)


def test_cancelling_a_server_gives_the_memory_back() -> None:
    bench = Bench()
    image, source = opened(bench, b"abc")
    here, there = socket.socketpair()
    serving = image.serve(here.fileno())
    done = outcome(serving)
    image.close()
    source.drop()
    serving.cancel()
    bench.settle()
    assert len(done) == 1
    assert bench.arena.used == 0
    assert bench.reactor.writers == set()
    here.close()
    there.close()


def test_reading_what_was_discarded_errs() -> None:
    bench = Bench()
    image, source = opened(bench, b"x" * MIB)
    image.close()
    source.discard(0, MIB, Kind.DISCARDED)
    assert isinstance(outcome(image.read(0, 10))[0], Conflict)


def test_a_descriptor_that_is_none_errs() -> None:
    image, source = opened(Bench(), b"x")
    assert isinstance(outcome(image.serve(-1))[0], RelayError)
    assert source.readers == {image}


def test_all_of_a_small_image_at_once() -> None:
    bench = Bench()
    _, source = opened(bench, b"abc")
    served: list[int] = []
    image = OpenedImage(bench.reactor, source, served.append)
    moves = bench.store.memory.moves
    assert image.whole(2) is None
    assert served == [] and bench.store.memory.moves == moves
    assert image.whole(3) == b"abc"
    assert served == [3] and bench.store.memory.moves > moves


def test_what_is_not_all_there_is_not_given_at_once() -> None:
    image, source = opened(Bench(), os.urandom(2 * SMALLEST))
    source.discard(SMALLEST, SMALLEST, Kind.DISCARDED)
    assert image.whole(MIB) is None
    source.discard(0, 2 * SMALLEST, Kind.DISCARDED)
    assert image.whole(MIB) is None


@pytest.mark.parametrize("pattern", ["x", "0", "x0", "0x", "xx0", "x0x", "x00x", "00xx", "0000", "xxxx", "0xx0xx"])
def test_a_few_pages(pattern: str) -> None:
    """Those that lie together are one piece, whether they are looked at one by one or all at once."""
    data = b"".join(bytes(SMALLEST) if page == "0" else os.urandom(SMALLEST) for page in pattern)
    image, source = opened(Bench(), data)
    assert image.whole(MIB) == data
    for page in range(len(pattern)):
        rest = pattern[page:]
        count = len(rest) - len(rest.lstrip(rest[0]))
        assert source.piece(page * SMALLEST).length == count * SMALLEST
