"""Binding, taking over and removing unix sockets; real sockets in a real directory."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import defer, protocol
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IListeningPort
from zope.interface.verify import verifyObject

from criu_relay.errors import Conflict, Forbidden, Invalid, NotFound
from criu_relay.flow import unix_listener
from criu_relay.flow.unix_listener import PATH_LIMIT, UnixListener, allowed, bind_unix, peer_of, peer_of_socket
from criu_relay.interfaces import Peer


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.sock")


def leftover(path: str, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(path)


class TestBind:
    def test_listens_unblocking_with_mode_0600(self, path: str) -> None:
        old = os.umask(0)
        try:
            with bind_unix(path) as sock, socket.socket(socket.AF_UNIX) as client:
                assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
                assert stat.S_ISSOCK(os.lstat(path).st_mode)
                assert sock.getblocking() is False
                assert os.get_inheritable(sock.fileno()) is False
                client.connect(path)
        finally:
            os.umask(old)

    def test_never_wider_than_0600(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The mode is right when the file appears, not only afterwards."""
        seen = []
        listen = socket.socket.listen

        def spy(self: socket.socket, backlog: int) -> None:
            seen.append(stat.S_IMODE(os.lstat(path).st_mode))
            listen(self, backlog)

        monkeypatch.setattr(socket.socket, "listen", spy)
        bind_unix(path).close()
        assert seen == [0o600]

    def test_backlog(self, path: str) -> None:
        with bind_unix(path, backlog=1):
            clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
            for client in clients:
                client.setblocking(False)
            codes = [client.connect_ex(path) for client in clients]
            for client in clients:
                client.close()
        assert codes == [0, 0, errno.EAGAIN, errno.EAGAIN]

    def test_longest_path(self, tmp_path: Path) -> None:
        path = os.path.join(tmp_path, "x" * (PATH_LIMIT - len(os.fsencode(tmp_path)) - 1))
        with bind_unix(path), socket.socket(socket.AF_UNIX) as client:
            client.connect(path)

    def test_too_long_path_says_how_long(self, tmp_path: Path) -> None:
        path = os.path.join(tmp_path, "x" * (PATH_LIMIT - len(os.fsencode(tmp_path))))
        with pytest.raises(Invalid, match="at most 107 bytes, this one has 108") as caught:
            bind_unix(path)
        assert "shorter" in caught.value.hint

    def test_length_counts_bytes(self, tmp_path: Path) -> None:
        with pytest.raises(Invalid, match="at most 107 bytes"):
            bind_unix(os.path.join(tmp_path, "é" * 60))

    @pytest.mark.parametrize("path", ["", "a.sock", "/tmp/", "/tmp/a\0b", "\0abstract"])
    def test_not_a_path(self, path: str) -> None:
        with pytest.raises(Invalid, match="not a path for a socket"):
            bind_unix(path)

    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match=r"no directory .*/none"):
            bind_unix(str(tmp_path / "none" / "a.sock"))

    def test_directory_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(NotFound, match="not a directory"):
            bind_unix(str(tmp_path / "file" / "a.sock"))

    def test_not_permitted(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(socket.socket, "bind", refuse)
        with pytest.raises(Forbidden, match="Permission denied"):
            bind_unix(path)


class TestWhatIsThere:
    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    def test_leftover_is_replaced(self, path: str, kind: int) -> None:
        leftover(path, kind)
        with bind_unix(path), socket.socket(socket.AF_UNIX) as client:
            client.connect(path)

    def test_in_use_names_the_process(self, path: str) -> None:
        with bind_unix(path) as sock:
            inode = os.lstat(path).st_ino
            with pytest.raises(Conflict, match=f"in use by process {os.getpid()}$"):
                bind_unix(path)
            assert os.lstat(path).st_ino == inode
            assert sock.accept()

    def test_in_use_by_another_process(self, path: str) -> None:
        code = "import socket,sys; s=socket.socket(1); s.bind(sys.argv[1]); s.listen(); print(flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdin and other.stdout
            other.stdout.readline()
            with pytest.raises(Conflict, match=f"in use by process {other.pid}$"):
                bind_unix(path)
            other.stdin.close()
        bind_unix(path).close()

    def test_full_queue_is_in_use(self, path: str) -> None:
        with bind_unix(path, backlog=0), socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            with pytest.raises(Conflict, match="in use by another process"):
                bind_unix(path)

    def test_datagram_socket_is_in_use(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(path)
            with pytest.raises(Conflict, match="in use by another process"):
                bind_unix(path)

    def test_unknown_pid_is_not_named(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(unix_listener, "peer_of_socket", lambda _: Peer(0, 0, 0))
        with bind_unix(path), pytest.raises(Conflict, match="in use by another process"):
            bind_unix(path)

    def test_symbolic_link_is_refused_even_to_a_leftover(self, tmp_path: Path, path: str) -> None:
        leftover(str(tmp_path / "b.sock"))
        os.symlink(tmp_path / "b.sock", path)
        with pytest.raises(Conflict, match="is a symbolic link"):
            bind_unix(path)
        assert os.path.islink(path)
        assert (tmp_path / "b.sock").exists()

    def test_file_is_refused(self, path: str) -> None:
        Path(path).write_bytes(b"precious")
        with pytest.raises(Conflict, match="is not a socket"):
            bind_unix(path)
        assert Path(path).read_bytes() == b"precious"

    def test_of_two_at_once_one_wins(self, tmp_path: Path, path: str) -> None:
        leftover(path)
        descriptor = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another process has locked"):
            bind_unix(path)
        os.close(descriptor)
        bind_unix(path).close()

    def test_another_that_binds_there_is_waited_for(self, path: str) -> None:
        directory = os.open(os.path.dirname(path), os.O_RDONLY)
        fcntl.flock(directory, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="locked"):
            bind_unix(path, patience=0.02)
        done = threading.Timer(0.1, os.close, [directory])
        done.start()
        bind_unix(path, patience=60.0).close()
        done.join()

    def test_many_race_for_one_leftover(self, path: str) -> None:
        for _ in range(20):
            leftover(path)
            start, won, lost = threading.Barrier(4), [], []

            def race(start: Any = start, won: Any = won, lost: Any = lost) -> None:
                start.wait()
                try:
                    won.append(bind_unix(path))
                except Conflict as error:
                    lost.append(error)

            threads = [threading.Thread(target=race) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert (len(won), len(lost)) == (1, 3)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
            won[0].close()
            os.unlink(path)


class TestPeers:
    def test_pair(self) -> None:
        left, right = socket.socketpair()
        with left, right:
            assert peer_of_socket(left) == Peer(os.getpid(), os.geteuid(), os.getegid())

    def test_allowed(self) -> None:
        me = os.geteuid()
        assert allowed(Peer(1, 0, 0))
        assert allowed(Peer(1, me, 0))
        assert not allowed(Peer(1, me + 4000, 0))
        assert not allowed(Peer(1, me + 4000, 0), {me + 4001})
        assert allowed(Peer(1, me + 4000, 0), {me + 4000})


class Greeter(protocol.Protocol):
    def connectionMade(self) -> None:
        self.factory.peers.append(peer_of(self.transport))  # type: ignore[union-attr]
        assert self.transport
        self.transport.write(b"hello")
        self.transport.loseConnection()


class Greeters(protocol.Factory):
    protocol = Greeter  # type: ignore[assignment]

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.calls: list[str] = []

    def startFactory(self) -> None:
        self.calls.append("start")

    def stopFactory(self) -> None:
        self.calls.append("stop")


class TestUnixListener:
    @pytest.fixture
    def reactor(self) -> EPollReactor:
        return EPollReactor()

    def turn(self, reactor: Any) -> None:
        reactor.runUntilCurrent()
        reactor.doIteration(0)

    def test_interface(self, reactor: Any, path: str) -> None:
        verifyObject(IListeningPort, UnixListener(reactor, path, Greeters()))

    def test_accepts_and_knows_the_peer(self, reactor: Any, path: str) -> None:
        factory = Greeters()
        listener = UnixListener(reactor, path, factory)
        listener.startListening()
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
        assert listener.getHost().name == os.fsencode(path)
        assert not listener.waiting()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            assert listener.waiting()
            self.turn(reactor)
            assert not listener.waiting()
            for _ in range(5):
                self.turn(reactor)
            client.settimeout(5)
            assert client.recv(10) == b"hello"
        assert factory.peers == [Peer(os.getpid(), os.geteuid(), os.getegid())]
        listener.stopListening()
        self.turn(reactor)

    def test_stop_removes_the_file_and_closes(self, reactor: Any, path: str) -> None:
        factory = Greeters()
        listener = UnixListener(reactor, path, factory)
        listener.startListening()
        done: list[object] = []
        defer.maybeDeferred(listener.stopListening).addCallback(done.append)
        assert not os.path.exists(path)
        self.turn(reactor)
        assert done == [None]
        assert factory.calls == ["start", "stop"]
        assert (listener.fileno(), listener.waiting()) == (-1, False)
        with pytest.raises(Conflict):
            listener.getHost()

    def test_stop_leaves_what_is_not_ours(self, reactor: Any, path: str) -> None:
        listener = UnixListener(reactor, path, Greeters())
        listener.startListening()
        os.rename(path, path + ".old")
        with bind_unix(path), socket.socket(socket.AF_UNIX) as client:
            listener.stopListening()
            self.turn(reactor)
            client.connect(path)

    def test_stop_when_the_file_is_gone(self, reactor: Any, path: str) -> None:
        listener = UnixListener(reactor, path, Greeters())
        listener.startListening()
        os.unlink(path)
        done: list[object] = []
        listener.stopListening().addCallback(done.append)
        self.turn(reactor)
        assert done == [None]

    def test_stop_twice_and_before_start(self, reactor: Any, path: str) -> None:
        listener = UnixListener(reactor, path, Greeters())
        done: list[object] = []
        listener.stopListening().addCallback(done.append)
        assert done == [None]

    def test_start_again_after_stop(self, reactor: Any, path: str) -> None:
        listener = UnixListener(reactor, path, Greeters())
        for _ in range(2):
            listener.startListening()
            with pytest.raises(Conflict, match="listened on already"):
                listener.startListening()
            assert os.path.exists(path)
            listener.stopListening()
            self.turn(reactor)
            assert not os.path.exists(path)
