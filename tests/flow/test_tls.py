"""Frames under TLS on a descriptor of our own, against Python's TLS and against OpenSSL's own programs."""

from __future__ import annotations

import os
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure

from criu_relay.flow.channel import Channel
from criu_relay.flow.frames import BYTES_PER_TURN, COPIED_PAYLOAD, MemfdRange, OutFrame, PipeRange
from criu_relay.flow.tls import CHUNK, RECORD, STEP, TlsChannel
from criu_relay.store.arena import Arena
from tests.flow.support import MIB, no_descriptor_left
from tests.flow.tls_peer import Pair, Paused, Reactor, User, as_bytes
from tests.support.certificates import Authority
from tests.support.polling import readable, until

SEED = 7


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with no_descriptor_left():
        yield


@pytest.fixture(autouse=True, params=["read", "recv_into"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With OpenSSL's own SSL_read, and as if pyOpenSSL hid it."""
    if request.param == "recv_into":
        monkeypatch.setattr(Binding, "lib", object())
    chosen: str = request.param
    return chosen


@pytest.fixture
def memory() -> Iterator[Callable[[bytes], MemfdRange]]:
    arena = Arena(64 * MIB, keep=0)
    made = []

    def payload(data: bytes) -> MemfdRange:
        extent = arena.force(len(data))
        made.append(extent)
        extent.view[: len(data)] = data
        return MemfdRange(extent.fd, extent.offset, extent.view[: len(data)])

    yield payload
    for extent in made:
        arena.free(extent)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def some_frames(memory: Callable[[bytes], MemfdRange]) -> list[OutFrame]:
    return [
        OutFrame(b"control-1"),
        OutFrame(b"fetched", b"bytes of python"),
        OutFrame(b"small", memory(b"s" * 100)),
        OutFrame(b"edge", memory(b"e" * COPIED_PAYLOAD)),
        OutFrame(b"large", memory(b"l" * (COPIED_PAYLOAD + 1))),
        OutFrame(b"control-2"),
        OutFrame(b"largest", memory(os.urandom(MIB))),
        OutFrame(b"last", memory(b"z" * (COPIED_PAYLOAD + 14_000))),
    ]


def test_interfaces(pair: Pair, way: str) -> None:
    assert IReadWriteDescriptor.implementedBy(TlsChannel)
    channel: Channel = pair.channel
    assert channel.path == f"tls send, tls {way}"
    assert pair.channel.logPrefix()


@pytest.mark.parametrize("server", [False, True])
def test_both_ways(tmp_path: Path, memory: Any, server: bool) -> None:
    frames = some_frames(memory)
    expected = b"".join(map(as_bytes, frames))
    pair = Pair(tmp_path, frames, server=server).shake()
    assert not pair.transport.reading
    assert pair.user.secured_times == 1
    data = os.urandom(3 * MIB)
    pair.send(data)
    pair.channel.wake()
    pair.run(lambda: len(pair.peer_plain) >= len(expected) and len(pair.user.data) >= len(data))
    assert pair.peer_plain == expected
    assert pair.user.data == data
    assert pair.user.ends == []
    assert pair.user.drains >= 1
    assert pair.reactor.writers == []
    pair.close()


def test_nothing_is_sent_before_the_handshake(pair: Pair) -> None:
    pair.user.frames.append(OutFrame(b"secret"))
    pair.channel.start()
    pair.channel.wake()
    for _ in range(3):
        pair.reactor.advance(0)
        for writer in list(pair.reactor.writers):
            writer.doWrite()
    assert pair.user.given == []
    assert pair.reactor.writers == []
    pair.run(lambda: pair.user.secured_times)
    pair.channel.wake()
    pair.run(lambda: pair.peer_plain == b"secret")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_sliced(tmp_path: Path, memory: Any, size: int) -> None:
    """Ciphertext that comes and leaves a few bytes at a time, the handshake too."""
    frames = [OutFrame(b"head", memory(os.urandom(COPIED_PAYLOAD + 4000))), OutFrame(b"tail")]
    expected = b"".join(map(as_bytes, frames))
    pair = Pair(tmp_path, frames)
    pair.slice = size
    pair.shake()
    data = os.urandom(3000)
    pair.send(data)
    pair.channel.wake()
    pair.run(lambda: len(pair.peer_plain) >= len(expected) and len(pair.user.data) >= len(data))
    assert pair.peer_plain == expected
    assert pair.user.data == data
    pair.close()


@pytest.mark.parametrize("sizes", [[1], [3, 2], [RECORD - 1], [RECORD], [RECORD + 1], [100_000]])
def test_any_buffers(tmp_path: Path, sizes: list[int]) -> None:
    pair = Pair(tmp_path, sizes=sizes).shake()
    data = os.urandom(20_000 if sizes[0] < 100 else 300_000)
    pair.send(data)
    pair.run(lambda: len(pair.user.data) >= len(data))
    assert pair.user.data == data
    pair.close()


def test_cut_at_any_place(tmp_path: Path, memory: Any) -> None:
    """What had come is what was sent, the end is told once, and nothing stays open."""
    places = random.Random(SEED)
    data = os.urandom(40_000)
    for _ in range(60):
        frames = [OutFrame(b"h", memory(b"x" * 100_000))]
        expected = as_bytes(frames[0])
        pair = Pair(tmp_path, frames)
        most, passed = places.randrange(45_000), 0
        pair.slice = 700
        pair.channel.start()
        pair.send(data)
        pair.channel.wake()

        def count(part: bytes) -> bytes:
            nonlocal passed
            passed += len(part)
            return part

        pair.spoil = count
        for _ in range(200):
            if passed >= most:
                break
            pair.turn()
        pair.theirs.close()
        for _ in range(20):
            pair.reactor.advance(0)
            for descriptor in [*pair.reactor.readers, *pair.reactor.writers]:
                if descriptor.fileno() >= 0:
                    descriptor.doRead()
        assert len(pair.user.ends) == 1
        assert data.startswith(pair.user.data)
        assert expected.startswith(pair.peer_plain)
        assert pair.reactor.readers == pair.reactor.writers == []
        assert pair.reactor.getDelayedCalls() == []
        pair.ours.close()


def test_a_changed_byte_anywhere_ends_it(tmp_path: Path) -> None:
    """In the handshake and after it: not a byte that was not sent comes out."""
    data = bytes(range(256)) * 4
    for place in range(0, 3600, 37):
        pair = Pair(tmp_path)
        passed = 0

        def change(part: bytes, place: int = place) -> bytes:
            nonlocal passed
            at = place - passed
            passed += len(part)
            if 0 <= at < len(part):
                part = part[:at] + bytes([part[at] ^ 0x20]) + part[at + 1 :]
            return part

        pair.spoil = change
        pair.channel.start()
        pair.send(data)
        for _ in range(30):
            try:
                pair.turn()
            except OSError:
                break
        assert data.startswith(pair.user.data)
        if passed > place:
            assert pair.user.data != data
        pair.close()
    assert place < passed + 4000


def test_a_full_socket(pair: Pair, memory: Any) -> None:
    """A peer that does not read: it waits, keeps what it has encrypted, and goes on where it was."""
    frames = [OutFrame(b"h", memory(os.urandom(MIB))) for _ in range(4)]
    pair.user.frames += frames
    expected = b"".join(map(as_bytes, frames))
    pair.shake()
    pair.peer_reads = False
    pair.channel.wake()
    for _ in range(10):
        pair.turn()
    assert pair.reactor.writers == [pair.channel]
    assert len(pair.user.given) == 1
    pair.send(b"the other way is free")
    pair.run(lambda: pair.user.data == b"the other way is free")
    pair.peer_reads = True
    pair.run(lambda: len(pair.peer_plain) >= len(expected))
    assert pair.peer_plain == expected


def test_a_turn_of_writing_is_bounded(pair: Pair, memory: Any) -> None:
    pair.shake()
    pair.user.frames += [OutFrame(b"h", memory(bytes(MIB))) for _ in range(4)]
    sent: list[int] = []

    class Counting:
        def __init__(self, real: socket.socket) -> None:
            self.real = real

        def send(self, data: memoryview) -> int:
            sent.append(len(data))
            return len(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    real, pair.channel._socket = pair.channel._socket, Counting(pair.channel._socket)  # type: ignore[assignment]
    pair.channel.wake()
    pair.channel.doWrite()
    assert BYTES_PER_TURN <= sum(sent) < BYTES_PER_TURN + 2 * CHUNK
    assert max(sent) <= CHUNK + 4096
    assert pair.reactor.writers == [pair.channel]
    pair.channel._socket = real


def test_a_turn_of_reading_is_bounded_and_the_rest_comes_by_itself(tmp_path: Path) -> None:
    """Bytes in OpenSSL's buffer wake nobody."""
    pair = Pair(tmp_path, sizes=[1000]).shake()
    pair.reactor.advance(0)
    data = os.urandom(100_000)
    pair.send(data)
    pair.turn_peer()
    turns: list[int] = []
    while len(pair.user.data) < len(data):
        before = len(pair.user.data)
        if readable(pair.ours):
            pair.channel.doRead()
            # While a rest waits for the reactor's clock, the socket gets no turn of its own.
            count = len(pair.user.data)
            pair.channel.doRead()
            assert not pair.reactor.getDelayedCalls() or len(pair.user.data) == count
        else:
            assert pair.reactor.getDelayedCalls() or pair._from_peer or pair._to_encrypt
            pair.reactor.advance(0)
        turns.append(len(pair.user.data) - before)
        pair.turn_peer()
    assert pair.user.data == data
    assert max(pair.user.turns) <= BYTES_PER_TURN // STEP * 1000
    pair.close()


def test_large_turns_are_bounded(tmp_path: Path) -> None:
    pair = Pair(tmp_path).shake()
    data = os.urandom(5 * MIB)
    pair.send(data)
    pair.run(lambda: len(pair.user.data) >= len(data))
    assert pair.user.data == data
    assert max(pair.user.turns) <= BYTES_PER_TURN + CHUNK
    pair.close()


def test_the_user_is_told_of_a_turn_not_of_each_record(tmp_path: Path) -> None:
    """Also of what came before a byte that was changed."""
    pair = Pair(tmp_path).shake()
    told: list[int] = []
    received = pair.user.received
    pair.user.received = lambda count: (told.append(count), received(count))  # type: ignore[method-assign, func-returns-value]
    for _ in range(10):
        pair.peer.write(b"x" * 100)
    pair.turn_peer()
    pair.turn()
    assert told == [1000]
    for _ in range(10):
        pair.peer.write(b"y" * 100)
    pair.spoil = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    pair.turn_peer()
    pair.turn()
    assert told == [1000, 900]
    assert pair.user.data == b"x" * 1000 + b"y" * 900
    assert len(pair.user.ends) == 1
    pair.close()


def test_tiny_records_do_not_make_a_longer_turn(tmp_path: Path) -> None:
    pair = Pair(tmp_path).shake()
    for _ in range(1000):
        pair.peer.write(b"x")
    pair.turn_peer()
    pair.channel.doRead()
    assert sum(pair.user.turns) <= BYTES_PER_TURN // STEP
    pair.run(lambda: len(pair.user.data) == 1000)
    pair.close()


# Payloads that wait in a pipe


def test_a_payload_in_a_pipe(pair: Pair) -> None:
    read, write = os.pipe()
    data = os.urandom(50_000)
    os.write(write, data)
    taken: list[int] = []
    pair.user.frames += [OutFrame(b"head", PipeRange(read, len(data), lambda: taken.append(1))), OutFrame(b"tail")]
    pair.shake()
    pair.channel.wake()
    pair.run(lambda: len(pair.peer_plain) >= len(data) + 8)
    assert pair.peer_plain == b"head" + data + b"tail"
    assert taken == [1]
    os.close(read)
    os.close(write)


def test_an_abandoned_pipe(pair: Pair) -> None:
    """Its descriptor may be somebody else's by now: the peer gets zeros in its place, to throw away."""
    taken: list[int] = []
    payload = PipeRange(-1, 3 * CHUNK + 5, lambda: taken.append(1))
    payload.abandon()
    pair.user.frames += [OutFrame(b"head", payload), OutFrame(b"tail")]
    pair.shake()
    pair.channel.wake()
    pair.run(lambda: len(pair.peer_plain) >= 3 * CHUNK + 13)
    assert pair.peer_plain == b"head" + bytes(3 * CHUNK + 5) + b"tail"
    assert taken == []


def test_memory_may_be_used_again_once_it_is_encrypted(pair: Pair, memory: Any) -> None:
    """What waits for the socket is ciphertext: no page of the window is referred to."""
    payload = memory(b"A" * CHUNK)
    pair.user.frames.append(OutFrame(b"", payload))
    pair.shake()
    pair.peer_reads = False
    pair.channel.wake()
    for _ in range(3):
        pair.turn()
    payload.view[:] = b"B" * CHUNK
    pair.peer_reads = True
    pair.run(lambda: len(pair.peer_plain) == CHUNK)
    assert pair.peer_plain == b"A" * CHUNK


# The end


def test_stop_says_goodbye(pair: Pair) -> None:
    pair.shake()
    pair.channel.stop()
    assert pair.channel.fileno() == -1
    assert pair.reactor.readers == pair.reactor.writers == []
    pair.ours.close()
    for _ in range(3):
        pair.turn_peer()
    assert pair.peer_ended
    assert pair.user.ends == []
    pair.channel.stop()
    pair.channel.wake()
    assert pair.reactor.writers == []


def test_stop_reading_goes_on_writing(pair: Pair) -> None:
    pair.shake()
    pair.channel.stop_reading()
    pair.send(b"unheard")
    pair.user.frames.append(OutFrame(b"the last words"))
    pair.channel.wake()
    pair.run(lambda: pair.peer_plain == b"the last words")
    assert pair.user.data == b""


def test_a_peer_that_says_goodbye(pair: Pair) -> None:
    pair.shake()
    pair.send(b"all")
    pair.run(lambda: pair.user.data == b"all")
    with pytest.raises(ssl.SSLWantReadError):
        pair.peer.unwrap()
    pair.turn_peer()
    pair.channel.doRead()
    assert pair.user.ends == [None]
    assert pair.channel.fileno() == -1


def test_given_up_by_the_reactor(pair: Pair) -> None:
    pair.shake()
    lost = ConnectionLost()
    pair.channel.connectionLost(Failure(lost))
    assert pair.user.ends == [lost]
    pair.channel.connectionLost(Failure(lost))
    assert pair.user.ends == [lost]


def test_the_user_stops_in_the_middle_of_a_turn(tmp_path: Path) -> None:
    pair = Pair(tmp_path, sizes=[10]).shake()
    received = pair.user.received

    def stop(count: int) -> None:
        received(count)
        pair.channel.stop()

    pair.user.received = stop  # type: ignore[method-assign]
    pair.send(b"x" * 1000)
    for _ in range(5):
        pair.turn()
    assert len(pair.user.data) == 10
    assert pair.user.ends == []
    pair.close()


def test_without_a_buffer_it_stops_reading(pair: Pair) -> None:
    pair.shake()
    pair.user.sizes = []
    pair.send(b"abc")
    for _ in range(5):
        pair.turn()
    assert pair.reactor.readers == []
    assert pair.user.data == b""


# OpenSSL's own programs


class Program:
    """`openssl s_client` or `s_server` and a channel, on a real TCP connection."""

    def __init__(self, directory: Path, server: bool, memory: Any) -> None:
        """@param server: the channel is the server's."""
        program = shutil.which("openssl")
        assert program, "install openssl"
        authority = Authority(directory)
        shown = authority.issue("theirs")
        files = ["-cert", shown.certificate, "-key", shown.key, "-CAfile", authority.path]
        self.sent = os.urandom(MIB)
        self.frames = [OutFrame(b"head", memory(self.sent)), OutFrame(b"tail")]
        self.user = User([], [1 << 20])
        self.reactor = Reactor()
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if server:
            command = ["s_client", "-connect", f"127.0.0.1:{port}", "-verify_return_error"]
        else:
            listener.close()
            command = [
                "s_server",
                "-accept",
                f"127.0.0.1:{port}",
                "-Verify",
                "1",
                "-verify_return_error",
                "-naccept",
                "1",
            ]
        self.output = directory / "said"
        with self.output.open("wb") as said:
            self.process = subprocess.Popen(
                [program, *command, *map(str, files), "-tls1_3"],
                stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if server:
            listener.settimeout(30)
            self.socket, _ = listener.accept()
            listener.close()
        else:
            until(lambda: b"ACCEPT" in self.output.read_bytes(), 30, "openssl listens")
            self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.setblocking(False)
        self.handshake = authority.issue("ours").credentials(not server).handshake()
        self.channel = TlsChannel(self.reactor, Paused(), self.socket, self.handshake.session, self.user)
        self.channel.start()

    def say(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        def look() -> Any:
            self.reactor.advance(0)
            for descriptor in [*self.reactor.readers, *self.reactor.writers]:
                if descriptor in self.reactor.readers and readable(self.socket):
                    descriptor.doRead()
                if descriptor in self.reactor.writers:
                    descriptor.doWrite()
            return condition()

        until(look, 60, what, lambda: f"{self.user.ends} {self.output.read_bytes()[-500:]!r}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.channel.stop()
        self.socket.close()


@pytest.mark.parametrize("server", [True, False], ids=["s_client", "s_server"])
def test_openssl(tmp_path: Path, memory: Any, server: bool) -> None:
    """Data both ways, and a change of keys in the midst of it that asks us to change ours too."""
    program = Program(tmp_path, server, memory)
    try:
        program.until(lambda: program.user.secured_times, "the handshake")
        program.say(b"one\n")
        program.until(lambda: program.user.data.endswith(b"one\n"), "the first line")
        program.say(b"K\n")
        # What openssl reads together with its command is lost.
        program.until(lambda: b"two" in program.user.data or program.say(b"two\n"), "a line after it")
        # Not before: openssl writes what it says of its command in the midst of what it receives.
        program.user.frames += program.frames
        program.channel.wake()
        sent = b"head" + program.sent + b"tail"
        program.until(lambda: sent in program.output.read_bytes(), "all of our data")
        assert program.user.ends == []
        assert b"K" not in program.user.data
        program.process.kill()
        program.until(lambda: program.user.ends, "the end")
    finally:
        program.close()


def test_an_error_of_openssl_is_told(pair: Pair) -> None:
    pair.channel.start()
    pair.theirs.send(b"this is no TLS at all")
    pair.channel.doRead()
    [error] = pair.user.ends
    assert isinstance(error, SSL.Error)
    assert pair.user.secured_times == 0
