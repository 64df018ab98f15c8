"""The instrument: a link with faults, over real sockets."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import DOWN, UP, Fault, Faults, Stream

PATIENCE = 20.0
SILENT = 0.2

Joined = Callable[..., tuple[socket.socket, socket.socket]]


@pytest.fixture
def joined() -> Iterator[Joined]:
    """Makes two sockets that are joined by a link with a plan."""
    held: list[Any] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def join(*plan: Fault) -> tuple[socket.socket, socket.socket]:
        faults = Faults(listener.getsockname()[1], *plan)
        near = socket.create_connection(("127.0.0.1", faults.port), PATIENCE)
        far, _ = listener.accept()
        far.settimeout(PATIENCE)
        held.extend((faults, near, far))
        join.faults = faults  # type: ignore[attr-defined]
        return near, far

    yield join
    for one in [*held, listener]:
        one.close()


def read(sock: socket.socket, count: int = 1 << 20) -> bytes:
    """As many bytes, or all until the end."""
    data = b""
    while len(data) < count and (part := sock.recv(count - len(data))):
        data += part
    return data


def silent(sock: socket.socket) -> bool:
    sock.settimeout(SILENT)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE)
    return False


def test_everything_passes_both_ways(joined: Joined) -> None:
    near, far = joined()
    data = bytes(range(256)) * 1024
    near.sendall(data)
    assert read(far, len(data)) == data
    far.sendall(data[::-1])
    far.shutdown(socket.SHUT_WR)
    assert read(near) == data[::-1]
    near.sendall(b"after")
    near.close()
    assert read(far) == b"after"


@pytest.mark.parametrize("at", [1, 7, 10])
def test_a_reset_behind_so_many_bytes(joined: Joined, at: int) -> None:
    near, far = joined(Fault("reset", UP, at))
    near.sendall(b"0123456789")
    assert read(far, at) == b"0123456789"[:at]
    with pytest.raises(ConnectionResetError):
        far.recv(1)
    with pytest.raises(ConnectionResetError):
        near.recv(1)


def test_an_end_of_stream_behind_so_many_bytes(joined: Joined) -> None:
    near, far = joined(Fault("fin", DOWN, 4))
    far.sendall(b"0123456789")
    assert read(near) == b"0123"
    assert read(far) == b""


def test_half_closed(joined: Joined) -> None:
    near, far = joined(Fault("half-close", UP, 4))
    near.sendall(b"0123456789")
    assert read(far) == b"0123"
    far.sendall(b"back")
    assert read(near, 4) == b"back"


@pytest.mark.parametrize("way", [UP, DOWN])
def test_bits_are_changed(joined: Joined, way: str) -> None:
    near, far = joined(Fault("flip", way, 0, 0x20), Fault("flip", way, 3, 1), Fault("flip", way, 9, 1))
    source, sink = (near, far) if way == UP else (far, near)
    for part in (b"012", b"3", b"456789"):
        source.sendall(part)
    assert read(sink, 10) == b"\x1012245678" + b"8"


def test_a_black_hole(joined: Joined) -> None:
    near, far = joined(Fault("hole", UP, 4))
    near.sendall(b"0123456789")
    assert read(far, 4) == b"0123"
    far.sendall(b"back")
    near.close()
    assert silent(far)


def test_a_stall_is_back_pressure(joined: Joined) -> None:
    near, far = joined(Fault("stall", UP, 4))
    near.sendall(b"0123")
    assert read(far, 4) == b"0123"
    far.sendall(b"back")
    assert read(near, 4) == b"back"
    near.settimeout(SILENT)
    with pytest.raises(TimeoutError):
        near.sendall(bytes(64 << 20))
    assert silent(far)


def test_one_byte_at_a_time(joined: Joined) -> None:
    near, far = joined(Fault("slice", UP, 0, 1))
    data = bytes(range(256)) * 4
    near.sendall(data)
    parts = []
    while sum(map(len, parts)) < len(data):
        parts.append(far.recv(4096))
    assert b"".join(parts) == data
    assert len(parts) > 1


def test_latency_and_bandwidth(joined: Joined) -> None:
    near, far = joined(Fault("delay", UP, 0, 0.1), Fault("rate", DOWN, 0, 100_000))
    began = time.monotonic()
    near.sendall(b"x")
    assert read(far, 1) == b"x"
    assert time.monotonic() - began >= 0.1
    began = time.monotonic()
    far.sendall(bytes(30_000))
    assert len(read(near, 30_000)) == 30_000
    assert time.monotonic() - began >= 0.2


def test_now(joined: Joined) -> None:
    near, far = joined()
    near.sendall(b"0123")
    assert read(far, 4) == b"0123"
    joined.faults.now("reset")  # type: ignore[attr-defined]
    with pytest.raises(ConnectionResetError):
        near.recv(1)


def test_only_that_connection(joined: Joined) -> None:
    near, far = joined(Fault("reset", UP, 4, connection=1))
    near.sendall(b"01234567")
    assert read(far, 8) == b"01234567"
    assert not joined.faults.hit("reset")  # type: ignore[attr-defined]


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    faults = Faults(port)
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", faults.port), PATIENCE) as near,
    ):
        near.recv(1)
    faults.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", faults.port), PATIENCE)


def test_as_a_process() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    plan = json.dumps([{"what": "flip", "at": 1, "value": 1}])
    command = [sys.executable, "-m", "tests.support.faults", str(listener.getsockname()[1]), plan]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        near = socket.create_connection(("127.0.0.1", port), PATIENCE)
        far, _ = listener.accept()
        near.sendall(b"000")
        assert read(far, 3) == b"010"
        process.stdin.write(json.dumps({"what": "reset"}) + "\n")
        process.stdin.flush()
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    for one in (near, far, listener):
        one.close()


def test_a_stream_in_memory() -> None:
    stream = Stream(UP, [Fault("flip", UP, 2, 1), Fault("reset", UP, 3), Fault("fin", DOWN, 1), Fault("fin", UP, 3)])
    assert list(stream.take(b"")) == []
    assert list(stream.take(b"00")) == [b"00"]
    assert list(stream.take(b"00")) == [b"1", Fault("reset", UP, 3), Fault("fin", UP, 3), b"0"]
    assert stream.passed == 4


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="give one of"):
        Fault("explode")
