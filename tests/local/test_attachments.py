"""Attaching to directories."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from criu_relay.errors import Conflict, Forbidden, Invalid, NotFound, RelayError
from criu_relay.interfaces import IDumpListener, Peer
from criu_relay.local.attachments import Attachments, cache_dialects, proxy_dialects
from criu_relay.local.listener import Door
from tests.local.bench import Client
from tests.local.fakes import FakeDump, FakeRestores
from tests.local.loop import Loop


class Side:
    """One side's attachments, with fakes behind them."""

    def __init__(self, loop: Loop) -> None:
        self.dumps: dict[tuple[str, bool], FakeDump] = {}
        self.restores: dict[str, FakeRestores] = {}
        self.proxy = Attachments(loop, proxy_dialects(loop, self.dump_of))
        self.cache = Attachments(loop, cache_dialects(loop, self.restores_of))

    def dump_of(self, namespace: str, copy: bool) -> FakeDump:
        return self.dumps.setdefault((namespace, copy), FakeDump())

    def restores_of(self, namespace: str) -> FakeRestores:
        return self.restores.setdefault(namespace, FakeRestores())


@pytest.fixture
def side(loop: Loop) -> Iterator[Side]:
    side = Side(loop)
    yield side
    side.proxy.stop()
    side.cache.stop()
    loop.turns()


SOCKETS = [
    ("proxy", "stream", "streamer-capture.sock"),
    ("proxy", "images", "img-proxy.sock"),
    ("cache", "stream", "streamer-serve.sock"),
    ("cache", "images", "img-cache.sock"),
]


@pytest.mark.parametrize("which, dialect, name", SOCKETS)
def test_the_socket_of_each_dialect(
    side: Side, loop: Loop, directory: Path, which: str, dialect: str, name: str
) -> None:
    attachments: Attachments = getattr(side, which)
    attachment = attachments.attach(str(directory), "web", dialect)
    path = directory / name
    assert stat.S_ISSOCK(path.lstat().st_mode) and stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert attachment.described() == {
        "directory": str(directory),
        "namespace": "web",
        "dialect": dialect,
        "copy": False,
        "device": directory.stat().st_dev,
        "inode": directory.stat().st_ino,
        "socket": str(path),
    }
    assert list(attachments) == [attachment]
    verifyObject(IDumpListener, attachment.listener)
    assert attachment.listener.unsettled() is None
    client = Client(path)
    assert attachment.listener.unsettled() is not None
    loop.until(lambda: attachment.listener.unsettled() is None)
    client.close()
    loop.turns()
    assert attachments.detach(str(directory)) == [attachment]
    assert not path.exists()
    assert len(attachments) == 0


def test_the_namespace_is_the_directorys_own_name(side: Side, directory: Path) -> None:
    (directory / "web").mkdir()
    (directory / "link").symlink_to("web")
    attachment = side.proxy.attach(f"{directory}/link/../link/", copy=True)
    assert attachment.namespace == "web"
    assert attachment.directory == str(directory / "web")
    assert attachment.copy
    assert list(side.dumps) == [("web", True)]


def test_both_dialects_of_a_directory_and_several_directories_of_a_namespace(side: Side, directory: Path) -> None:
    (directory / "other").mkdir()
    side.proxy.attach(str(directory), "web", "stream")
    side.proxy.attach(str(directory), "web", "images")
    side.proxy.attach(str(directory / "other"), "web", "stream")
    side.cache.attach(str(directory), "web", "stream")
    assert len(side.proxy) == 3
    assert len(side.proxy.detach(str(directory))) == 2
    assert [attachment.directory for attachment in side.proxy] == [str(directory / "other")]
    assert sorted(os.listdir(directory)) == ["other", "streamer-serve.sock"]


def test_stop_removes_every_socket(side: Side, loop: Loop, directory: Path) -> None:
    side.proxy.attach(str(directory), "web", "stream")
    side.proxy.attach(str(directory), "web", "images")
    done = side.proxy.stop()
    loop.until(lambda: done.called)
    assert os.listdir(directory) == []


def test_attached_twice(side: Side, directory: Path) -> None:
    side.proxy.attach(str(directory), "web")
    with pytest.raises(Conflict, match="attached already"):
        side.proxy.attach(str(directory), "other")
    assert len(side.proxy) == 1
    assert (directory / "streamer-capture.sock").exists()


def test_a_directory_that_is_gone_can_be_detached(side: Side, directory: Path) -> None:
    (directory / "web").mkdir()
    side.proxy.attach(str(directory / "web"))
    (directory / "web" / "streamer-capture.sock").unlink()
    (directory / "web").rmdir()
    side.proxy.detach(str(directory / "web"))
    assert len(side.proxy) == 0


@pytest.mark.parametrize("where", ["", "\0", "nowhere", "a\0b"])
def test_detach_of_what_is_not_attached(side: Side, where: str) -> None:
    with pytest.raises(NotFound):
        side.proxy.detach(where)


@pytest.mark.parametrize(
    "namespace", ["", ".", "..", "a/b", "../x", "a b", "a\nb", "a\0b", "é", "x" * 256, "web\n", "%s", "*"]
)
def test_namespaces_that_are_refused(side: Side, directory: Path, namespace: str) -> None:
    with pytest.raises(Invalid, match="namespace") as caught:
        side.proxy.attach(str(directory), namespace)
    assert "\n" not in caught.value.reason
    assert os.listdir(directory) == []


@pytest.mark.parametrize("name", ["a b", "é", "a\nb"])
def test_a_directory_whose_name_cannot_be_a_namespace(side: Side, directory: Path, name: str) -> None:
    (directory / name).mkdir()
    with pytest.raises(Invalid) as caught:
        side.proxy.attach(str(directory / name))
    assert "NAMESPACE" in caught.value.hint and "\n" not in caught.value.reason
    assert side.proxy.attach(str(directory / name), "web").namespace == "web"


@pytest.mark.parametrize("dialect", ["", "Stream", "page-server", "stream\n"])
def test_dialects_that_do_not_exist(side: Side, directory: Path, dialect: str) -> None:
    with pytest.raises(Invalid, match="dialect") as caught:
        side.proxy.attach(str(directory), "web", dialect)
    assert "images, stream" in caught.value.hint


def test_directories_that_cannot_be_used(side: Side, directory: Path) -> None:
    (directory / "file").touch()
    (directory / "loop").symlink_to("loop")
    for where, error in {
        "": Invalid,
        "a\0b": Invalid,
        str(directory / "nowhere"): NotFound,
        str(directory / "file"): Invalid,
        str(directory / "file" / "below"): NotFound,
        str(directory / "loop"): NotFound,
        str(directory / ("x" * 300)): NotFound,
    }.items():
        with pytest.raises(RelayError) as caught:
            side.proxy.attach(where, "web")
        assert isinstance(caught.value, error) and caught.value.hint and "\n" not in caught.value.reason
    assert len(side.proxy) == 0


@pytest.mark.parametrize("which, dialect, name", SOCKETS)
def test_the_longest_path(side: Side, directory: Path, which: str, dialect: str, name: str) -> None:
    attachments: Attachments = getattr(side, which)
    fits = 107 - len(f"{directory}//{name}")
    for length in (fits, fits + 1):
        (directory / ("x" * length)).mkdir()
    attachment = attachments.attach(str(directory / ("x" * fits)), None, dialect)
    assert len(attachment.socket) == 107
    Client(attachment.socket).close()
    with pytest.raises(Invalid, match="has at most 107 bytes, this one has 108"):
        attachments.attach(str(directory / ("x" * (fits + 1))), None, dialect)
    assert os.listdir(directory / ("x" * (fits + 1))) == []


def test_the_length_of_a_path_is_in_bytes(side: Side, directory: Path) -> None:
    fits = 107 - len(f"{directory}//streamer-capture.sock")
    (directory / ("é" * fits)).mkdir()
    with pytest.raises(Invalid, match="107 bytes"):
        side.proxy.attach(str(directory / ("é" * fits)), "web")


def test_no_more_are_attached_than_descriptors_allow(
    side: Side, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("criu_relay.local.attachments.ATTACHMENTS", 1)
    side.proxy.attach(str(directory), "web")
    with pytest.raises(Conflict, match="1 directories"):
        side.proxy.attach(str(directory), "web", "images")
    side.proxy.detach(str(directory))
    side.proxy.attach(str(directory), "web", "images")


def test_a_leftover_socket_is_taken_over(side: Side, loop: Loop, directory: Path) -> None:
    path = directory / "streamer-capture.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as leftover:
        leftover.bind(str(path))
        leftover.listen()
    side.proxy.attach(str(directory), "web")
    client = Client(path)
    loop.until(lambda: side.dumps["web", False].clients)
    client.close()
    loop.until(lambda: side.dumps["web", False].gone)


def test_a_socket_in_use_is_left_alone(side: Side, directory: Path) -> None:
    path = directory / "streamer-capture.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Conflict, match=f"in use by .*{os.getpid()}"):
            side.proxy.attach(str(directory), "web")
        assert len(side.proxy) == 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "symlink to a socket", "dangling symlink", "fifo"])
def test_what_is_not_a_socket_is_left_alone(side: Side, directory: Path, kind: str) -> None:
    path = directory / "streamer-capture.sock"
    target = directory / "target"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        if kind == "symlink":
            target.write_text("precious")
        elif kind == "symlink to a socket":
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as leftover:
                leftover.bind(str(target))
        path.symlink_to(target)
    before = path.lstat()
    with pytest.raises(Conflict):
        side.proxy.attach(str(directory), "web")
    assert path.lstat().st_ino == before.st_ino
    assert target.exists() == (kind in ("symlink", "symlink to a socket"))
    assert len(side.proxy) == 0


def test_a_socket_that_replaced_ours_is_left_alone(side: Side, directory: Path) -> None:
    path = directory / "streamer-capture.sock"
    side.proxy.attach(str(directory), "web")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        # Made before ours is unlinked, so that it cannot get the same inode number.
        other.bind(str(directory / "new"))
        (directory / "new").rename(path)
        side.proxy.detach(str(directory))
        assert path.exists()


class TestDoor:
    """Who gets in."""

    @staticmethod
    def door(uid: int, *extra: int, **options: Any) -> Door:
        return Door(extra, identify=lambda transport: Peer(1, uid, uid), **options)

    @pytest.mark.parametrize("uid", [0, os.geteuid(), 4242])
    def test_root_ourselves_and_those_who_may(self, uid: int) -> None:
        assert self.door(uid, 4242).enter("client", None) == Peer(1, uid, uid)

    def test_others_do_not(self) -> None:
        door = self.door(4243, 4242)
        with pytest.raises(Forbidden, match="uid 4243"):
            door.enter("client", None)
        door.leave("client")
        assert len(door) == 0

    def test_full_and_free_again(self) -> None:
        door, calls = self.door(0, limit=2), []
        door.full = lambda: calls.append("full")
        door.free = lambda: calls.append("free")
        for client in ("a", "b", "c"):
            door.enter(client, None)
        assert calls == ["full"]
        door.leave("a")
        door.leave("a")
        assert calls == ["full"]
        door.leave("b")
        assert calls == ["full", "free"]


def test_a_stranger_is_closed_and_logged(loop: Loop, directory: Path) -> None:
    from tests.local.bench import Bench

    bench = Bench(loop, directory)
    try:
        for dialect in ("capture", "serve", "proxy", "cache"):
            bench.peers.append(Peer(77, 54321, 54321))
            client = bench.connect(dialect)
            client.send(b"\0" * 4)
            loop.until(client.is_over)
            assert client.received == b""
            assert "uid 54321" in bench.log()[-1]
        assert len(bench.log()) == 4
        assert bench.dump.clients == [] and bench.restores.begun == []
    finally:
        bench.close()
