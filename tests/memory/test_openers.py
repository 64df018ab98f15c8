"""Restores that wait for one commit, and one that reads slowly: real daemons, real sockets."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from tests.remote_images.pair import LABEL, Pair
from tests.support.daemons import Relay
from tests.support.remote_client import RestoreSide

MIB = 1 << 20
SOCKETS, EACH = 5, 200
"""A socket takes 256 clients at a time."""

DESCRIPTORS = 3 * SOCKETS * EACH
"""Ours for each opener: its connection, and a pipe for the one whose turn it is; the cache has both."""


@pytest.fixture
def descriptors() -> Iterator[None]:
    """So many for ourselves and for daemons that are started from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
def test_a_thousand_openers_wake_at_the_commit_with_the_right_bytes(relay: Relay) -> None:
    pair = Pair(relay)
    pair.start()
    sides = [RestoreSide(relay.directory(f"b/{number}"), LABEL) for number in range(SOCKETS)]
    for side in sides:
        directory = str(side.path.parent)
        assert relay.command("attach", directory, "web", "--dialect", "images").returncode == 0
    images = {"pages-1.img": os.urandom(9000), "pages-2.img": os.urandom(100), "empty.img": b"", "missing.img": None}
    wanted = [name for _ in range(EACH // len(images)) for name in images]
    openers = [(side, name, side.ask(name)) for side in sides for name in wanted]
    assert len(openers) == 1000
    pair.waiting(len(openers))
    pair.dumped({name: data for name, data in images.items() if data is not None})
    for side, name, connection in openers:
        assert side.take(connection) == images[name]
    assert pair.status("cache")["waiting"] == []
    pair.alive()


def test_a_reader_of_one_byte_at_a_time_costs_nobody_anything(relay: Relay) -> None:
    """While it has hardly begun, others dump and restore; the proxy keeps no more than its window."""
    slow, other = Pair(relay, "slow"), Pair(relay, "other")
    window = 4 * MIB
    slow.start(cache=("--memory", "64M"), proxy=("--window", str(window)))
    other.attach()
    data = os.urandom(8 * MIB)
    slow.dumped({"pages-1.img": data})
    with slow.restore().ask("pages-1.img") as connection:
        assert connection.reply() == 0
        reading = connection.pass_pipe("read")
    got = os.read(reading, 1)
    moved = os.urandom(MIB)
    with other.dump().dump() as dump:
        pipe = dump.begin("pages-1.img")
        for _ in range(24):
            view = memoryview(moved)
            while view:
                view = view[os.write(pipe, view) :]
            got += os.read(reading, 1)
            assert other.status("proxy")["memory"]["used"] <= window
        os.close(pipe)
    other.commits()
    dump.finish()
    assert other.status("proxy")["memory"]["used"] == 0
    other.restored({"pages-1.img": moved * 24})
    while piece := os.read(reading, MIB):
        got += piece
    os.close(reading)
    assert got == data
    slow.alive()
