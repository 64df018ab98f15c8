"""Real daemons with little memory: the budget holds, and whoever waits goes on or is told."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.remote_images.pair import Pair
from tests.support.daemon import Daemon
from tests.support.daemons import Relay
from tests.support.polling import until
from tests.support.remote_client import framed, varint

MIB = 1 << 20
SLACK = 64 * MIB
"""Python, and everything that is no image."""


def taken(daemon: Daemon) -> int:
    """RSS of a daemon (proc_pid_smaps(5)), with all pages of its memfds in place of those that it has mapped."""
    process = Path(f"/proc/{daemon.pid}")
    status = dict(line.split(":") for line in (process / "status").read_text().splitlines())
    resident = sum(int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    memfds = [fd.stat() for fd in (process / "fd").iterdir() if os.readlink(fd).startswith("/memfd:")]
    return resident + sum({memfd.st_ino: memfd.st_blocks * 512 for memfd in memfds}.values())


class Load:
    """Dumps that write at the same time, each in a thread of its own, as processes of CRIU do."""

    def __init__(self, relay: Relay, count: int, size: int) -> None:
        self.pairs = [Pair(relay, name=f"web{number}") for number in range(count)]
        self.data = [os.urandom(MIB) for _ in range(count)]
        self.size = size
        self.threads = [threading.Thread(target=self._dump, args=(number,)) for number in range(count)]

    def start(self) -> None:
        for pair in self.pairs:
            pair.attach()
        for thread in self.threads:
            thread.start()

    def _dump(self, number: int) -> None:
        dump = self.pairs[number].dump(f"/img/{number}")
        try:
            dump.push()
            pipe = dump.begin("pages-1.img")
            try:
                for _ in range(self.size // MIB):
                    view = memoryview(self.data[number])
                    while view:
                        view = view[os.write(pipe, view) :]
            finally:
                os.close(pipe)
            dump.write("inventory.img", b"inventory")
            dump.finish()
        except OSError:
            return  # the dump was given up

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self.threads)


@pytest.fixture
def daemons(relay: Relay) -> Relay:
    return started(relay)


def started(relay: Relay) -> Relay:
    relay.start_cache("--memory", "32M")
    relay.start_proxy("--window", "16M")
    relay.linked()
    return relay


def test_memory_is_bounded_whatever_is_wanted(relay: Relay) -> None:
    """Four times the budget: what fits is held, the rest is given up with a reason, and nothing is exceeded."""
    relay.shorten("criu_relay.store.credit.STALL_SECONDS", 0.5)
    daemons = started(relay)
    load = Load(daemons, 8, 16 * MIB)
    load.start()
    most = used = 0

    def over() -> bool:
        nonlocal most, used
        most = max(most, taken(daemons.cache))
        used = max(used, daemons.get("/v1/status")["memory"]["used"])
        return not load.running

    until(over, 120.0, "every dump has ended, well or not", daemons.cache.tail)
    assert used <= 32 * MIB
    print(f"at most {most / MIB:.1f} MiB")
    assert 32 * MIB < most <= 32 * MIB + SLACK
    states = [daemons.state(pair.name) for pair in load.pairs]
    assert "aborted" in states
    for pair, state in zip(load.pairs, states, strict=True):
        if state == "aborted":
            assert "memory is full" in daemons.get(f"/v1/namespaces/{pair.name}")["reason"]


def test_of_two_that_do_not_fit_one_goes_on(daemons: Relay) -> None:
    load = Load(daemons, 2, 19 * MIB)
    load.start()
    until(lambda: not load.running, 60.0, "both dumps have ended", daemons.cache.tail)
    until(lambda: "aborted" in [daemons.state(pair.name) for pair in load.pairs], 30.0, "one of them is given up")
    [other] = [pair for pair in load.pairs if daemons.state(pair.name) != "aborted"]
    daemons.reach(other.name, "committed")


def test_with_a_place_to_spill_all_of_them_fit(relay: Relay, tmp_path: Path) -> None:
    relay.start_cache("--memory", "32M", "--spill", str(tmp_path))
    relay.start_proxy("--window", "16M")
    relay.linked()
    data = [os.urandom(MIB) * 16 for _ in range(6)]
    pairs = [Pair(relay, name=f"web{number}") for number in range(6)]
    for number, pair in enumerate(pairs):
        pair.attach()
        pair.dumped({"pages-1.img": data[number]})
    figures = [relay.get(f"/v1/namespaces/{pair.name}")["memory"] for pair in pairs]
    assert sum(one["spilled"] for one in figures) >= 60 * MIB
    assert relay.get("/v1/status")["memory"]["used"] <= 32 * MIB
    for number, pair in enumerate(pairs):
        pair.restored({"pages-1.img": data[number]})


def test_a_reader_skips(relay: Relay) -> None:
    """90 % skipped: the cache writes no more than the rest and what a pipe holds."""
    pair = Pair(relay)
    pair.start(proxy=("--window", "16M"))
    data = os.urandom(MIB) * 64
    pair.dumped({"pages-1.img": data})
    connection = pair.restore().ask("pages-1.img")
    with connection:
        assert connection.reply() == 0
        pipe = connection.pass_pipe("read")
        offset, length = 2 * MIB, len(data) * 9 // 10
        connection.send(framed(b"\x08" + varint(offset) + b"\x10" + varint(length)))
        answer = connection.message()
        assert answer == b"\x08" + varint(offset) + b"\x10" + varint(offset + length)
        got = b""
        while piece := os.read(pipe, MIB):
            got += piece
        os.close(pipe)
    assert got == data[:offset] + data[offset + length :]
    served = relay.get("/v1/status")["counters"]["criu_bytes_out"]
    assert served <= len(data) // 10 + MIB


def test_release_gives_memory_back_while_it_is_read(relay: Relay) -> None:
    pair = Pair(relay)
    pair.start(cache=("--memory", "64M", "--release"), proxy=("--window", "16M"))
    data = os.urandom(MIB) * 32
    pair.dumped({"pages-1.img": data})
    restore = pair.restore()
    connection = restore.ask("pages-1.img")
    with connection:
        assert connection.reply() == 0
        pipe = connection.pass_pipe("read")
    got = b""
    while len(got) < len(data):
        got += os.read(pipe, MIB)
        held = relay.get("/v1/namespaces/web")["memory"]["held"]
        assert held <= len(data) - len(got) + 4 * MIB
    os.close(pipe)
    assert got == data
    until(lambda: relay.get("/v1/namespaces/web")["memory"]["released"] == len(data), 10.0, "all is given back")


def test_zeros_do_not_cross_the_link(relay: Relay) -> None:
    pair = Pair(relay)
    pair.start()
    data = os.urandom(MIB) + bytes(62 * MIB) + os.urandom(MIB)
    pair.dumped({"pages-1.img": data})
    [peer] = pair.status("cache")["link"]["peers"]
    assert peer["bytes"] < 4 * MIB
    assert relay.get("/v1/namespaces/web")["memory"]["zero"] == 62 * MIB
    pair.restored({"pages-1.img": data})
