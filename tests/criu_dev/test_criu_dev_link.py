"""CRIU's own old link at either end: what its image-proxy and image-cache would do, byte for byte."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_relay.errors import Conflict
from criu_relay.link.criu_dev_outlet import RecoveredOldMigration
from criu_relay.wire import criu_dev_link_pb2
from criu_relay.wire.remote_images import encode_snapshots
from tests.remote_images.test_replay import SESSIONS, contents, play, session
from tests.support.daemons import Relay, free_port
from tests.support.polling import until

WRITE, APPEND = 1, 1024
SECONDS = 30.0


class OldImageCache:
    """Takes one connection as `criu image-cache` does: a header must come in one segment, nothing is ever answered.

    @ivar frames: (name, snapshot id, mode, payload) in the order of their arrival.
    @ivar ended: whether the connection ended at a header.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.frames: list[tuple[str, str, int, bytes]] = []
        self.ended: bool | None = None
        self._sizes: dict[tuple[str, str], int] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            try:
                while length := connection.recv(4):
                    body = connection.recv(struct.unpack("<I", length)[0])
                    header = criu_dev_link_pb2.RemoteImage.FromString(body)
                    self._take(connection, header)
                self.ended = True
            except (OSError, EOFError, struct.error):
                self.ended = False

    def _take(self, connection: socket.socket, header: criu_dev_link_pb2.RemoteImage) -> None:
        image = (header.snapshot_id, header.name)
        before = self._sizes.get(image, 0) if header.open_mode == APPEND else 0
        self._sizes[image] = header.size
        payload = b""
        while len(payload) < header.size - before:
            piece = connection.recv(header.size - before - len(payload))
            if not piece:
                raise EOFError
            payload += piece
        self.frames.append((header.name, header.snapshot_id, header.open_mode, payload))

    def join(self) -> None:
        """Wait for the end of the connection."""
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        self._listening.close()


def old_frames(name: str) -> list[tuple[str, str, int, bytes]]:
    """What a recorded dump is on the old link."""
    frames = []
    for row in session(name):
        if row["side"] != "proxy" or row["open_mode"] not in (WRITE, APPEND) or not row["name"]:
            continue
        if row["name"] == "parent":
            # The header is 16 bytes and framed with 4 more; the rest is the pushed entry.
            payload = contents(row["sock_from_client"])[17:]
        else:
            payload = contents(row["pipe_from_client"])
        frames.append((row["name"], row["snapshot_id"], row["open_mode"], payload))
    return frames


def on_the_wire(frames: list[tuple[str, str, int, bytes]]) -> bytes:
    """The bytes that `criu image-proxy` sends."""
    wire, sizes = b"", {}
    for name, label, mode, payload in frames:
        size = len(payload) + (sizes.get((label, name), 0) if mode == APPEND else 0)
        sizes[label, name] = size
        body = criu_dev_link_pb2.RemoteImage(
            name=name, snapshot_id=label, open_mode=mode, size=size
        ).SerializeToString()
        wire += struct.pack("<I", len(body)) + body + payload
    return wire


@pytest.fixture
def cache_port(relay: Relay) -> int:
    """A cache that keeps what a later snapshot has anew, so that everything that was recorded can be read."""
    port, images = free_port(), str(relay.directory("b/web"))
    relay.start_cache("--images", images, "--criu-dev-link", f"tcp:{port}:interface=127.0.0.1", "--dedup", "off")
    return port


@pytest.fixture
def old_cache() -> Iterator[OldImageCache]:
    yield OldImageCache()


def sent(port: int, data: bytes, reset: bool = False) -> None:
    """Connect, send, and end."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(data)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("name", SESSIONS)
def test_a_recorded_link_is_taken_and_restored_from(relay: Relay, cache_port: int, name: str) -> None:
    frames = old_frames(name)
    sent(cache_port, on_the_wire(frames))
    assert relay.command("wait", "web", "--timeout", "20").returncode == 0
    for row in session(name):
        if row["side"] == "cache":
            play(relay.directory("b/web") / "img-cache.sock", row, None)


@pytest.mark.parametrize("where", ["in a header", "in a payload", "before the inventory"])
def test_a_link_that_is_cut_aborts(relay: Relay, cache_port: int, where: str) -> None:
    frames = old_frames("single")
    whole = on_the_wire(frames)
    before_inventory = on_the_wire(frames[:-1])
    data = {
        "in a header": before_inventory + whole[len(before_inventory) :][:7],
        "in a payload": whole[:-3],
        "before the inventory": before_inventory,
    }[where]
    sent(cache_port, data)
    done = relay.command("wait", "web", "--timeout", "20")
    assert done.returncode == 1
    assert ("inventory.img" if where == "before the inventory" else "cut") in done.stderr


def test_a_reset_aborts_even_at_a_header(relay: Relay, cache_port: int) -> None:
    frames = old_frames("single")
    with socket.create_connection(("127.0.0.1", cache_port)) as connection:
        connection.sendall(on_the_wire(frames))
        until(lambda: relay.get("/v1/namespaces/web")["images"] == len(frames) - 1, SECONDS, "every image")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert relay.command("wait", "web", "--timeout", "20").returncode == 1


def test_rubbish_closes_that_connection_and_harms_no_other(relay: Relay, cache_port: int) -> None:
    with socket.create_connection(("127.0.0.1", cache_port)) as connection:
        connection.sendall(b"\xff\xff\xff\xff")
        connection.settimeout(SECONDS)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    sent(cache_port, on_the_wire(old_frames("single")))
    assert relay.command("wait", "web", "--timeout", "20").returncode == 0


@pytest.mark.parametrize("name", SESSIONS)
def test_a_recorded_dump_reaches_the_old_cache_as_recorded(relay: Relay, old_cache: OldImageCache, name: str) -> None:
    source = relay.directory("a/web")
    relay.start_proxy("--criu-dev-link", f"tcp:127.0.0.1:{old_cache.port}")
    done = relay.command("attach", str(source), "web", "--dialect", "images", "--copy", at="proxy")
    assert done.returncode == 0, done.stderr
    for row in session(name):
        if row["side"] == "proxy" and row["name"]:
            play(source / "img-proxy.sock", row, None)
    done = relay.command("commit", "web", "--timeout", "20", at="proxy")
    assert (done.returncode, done.stderr) == (0, "")
    old_cache.join()
    assert old_cache.ended is True
    assert sorted(old_cache.frames) == sorted(old_frames(name))
    assert next(frame[0] for frame in old_cache.frames) == "parent"


def test_what_the_old_cache_cannot_take_is_refused(relay: Relay, old_cache: OldImageCache, tmp_path: Path) -> None:
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / "empty.img").touch()
    (directory / "inventory.img").write_bytes(b"inventory")
    relay.start_proxy("--criu-dev-link", f"tcp:127.0.0.1:{old_cache.port}")
    done = relay.command("import", str(directory), "web", at="proxy")
    assert done.returncode == 1
    assert "empty.img has 0 bytes" in done.stderr
    assert (old_cache.frames, old_cache.ended) != ([], True)
    assert "inventory.img" not in [name for name, _, _, _ in old_cache.frames]


@pytest.mark.parametrize("size", [9, 64 << 20])
def test_no_old_cache(relay: Relay, tmp_path: Path, size: int) -> None:
    (tmp_path / "images").mkdir()
    with (tmp_path / "images" / "inventory.img").open("wb") as file:
        file.truncate(size)
    relay.start_proxy("--criu-dev-link", f"tcp:127.0.0.1:{free_port()}")
    done = relay.command("import", str(tmp_path / "images"), "web", at="proxy")
    assert done.returncode == 1
    assert "no link to the old cache" in done.stderr


def test_the_old_cache_gives_nothing_back() -> None:
    with pytest.raises(Conflict, match="gives nothing back"):
        RecoveredOldMigration().discard(1, "pages-1.img", 0, 4096)


def test_the_recorded_list_is_what_is_pushed() -> None:
    row = session("single")[0]
    label = next(row["snapshot_id"] for row in session("single") if row["snapshot_id"])
    assert old_frames("single")[0] == ("parent", "", APPEND, encode_snapshots([label]))
    assert row["name"] == "parent"
