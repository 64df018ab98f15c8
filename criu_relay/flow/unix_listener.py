"""Unix listening sockets: bound with care, and removed only while they are ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Collection, Iterator
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import Conflict, Forbidden, Invalid, NotFound, RelayError
from criu_relay.interfaces import Peer

#: Length of a path in bytes: sun_path of unix(7) has 108, the last of which ends it.
PATH_LIMIT = 107

#: Who may connect by file mode: the owner. Other users are let in by `allowed`, and need a mode that somebody sets.
MODE = 0o600

#: Connections that may wait to be accepted, when the caller does not say.
BACKLOG = 128

#: Seconds between two looks whether another process has bound its socket.
LOOK_SECONDS = 0.005

#: struct ucred of unix(7): pid, uid, gid.
_CREDENTIALS = struct.Struct("iII")


def bind_unix(path: str, backlog: int = BACKLOG, patience: float = 0.0) -> socket.socket:
    """A listening, non-blocking stream socket at `path`, mode 0600.

    A socket that nobody listens on any more is replaced.

    @param path: absolute, at most L{PATH_LIMIT} bytes; its directory must exist.
    @param patience: seconds to block while another process binds in that directory.
    @raise Invalid: the path is too long, relative or empty, or has a NUL.
    @raise NotFound: there is no such directory.
    @raise Forbidden: the directory cannot be read or written.
    @raise Conflict: something else is there: a listening process (its pid is named when it is known), a symbolic
        link, a file.
    """
    _check(path)
    directory = os.path.dirname(path)
    with _errors(path), _locked(directory, patience):
        _clear(path)
        return _bound(path, backlog)


def _check(path: str) -> None:
    length = len(os.fsencode(path))
    if "\0" in path or not path.startswith("/") or path.endswith("/"):
        raise Invalid(f"not a path for a socket: {path!r}", hint="give an absolute path of a file")
    if length > PATH_LIMIT:
        raise Invalid(
            f"the path of a unix socket has at most {PATH_LIMIT} bytes, this one has {length}: {path}",
            hint="use a directory with a shorter path",
        )


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    """Errors of the operating system in words."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"no directory {os.path.dirname(path)}", hint="make it first") from None
    except NotADirectoryError:
        raise NotFound(f"not a directory: {os.path.dirname(path)}", hint="name a directory") from None
    except PermissionError as error:
        raise Forbidden(
            f"cannot bind {path}: {error.strerror}",
            hint="the daemon's user must be able to read and write its directory",
        ) from None
    except OSError as error:
        raise RelayError(f"cannot bind {path}: {error.strerror}", hint="use another directory") from error


@contextlib.contextmanager
def _locked(directory: str, patience: float) -> Iterator[None]:
    """Alone in `directory`: of two that find the same leftover, the second must not remove the first one's socket."""
    end = time.monotonic() + patience
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while not _lock(descriptor):
            if time.monotonic() >= end:
                raise Conflict(f"another process has locked {directory}", hint="try again")
            time.sleep(LOOK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear(path: str) -> None:
    """Remove a leftover socket; refuse anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a socket"
        raise Conflict(f"{path} is {kind}", hint="remove it, or use another directory")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
        if code == errno.ECONNREFUSED:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        pid = peer_of_socket(probe).pid if code == 0 else 0
    # EAGAIN (its queue is full) and EPROTOTYPE (it is of another type) come from a living socket as well.
    if code in (0, errno.EAGAIN, errno.EPROTOTYPE):
        owner = f"process {pid}" if pid else "another process"
        raise Conflict(f"{path} is in use by {owner}", hint="stop that process, or use another directory")
    raise OSError(code, os.strerror(code))


def _bound(path: str, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode of the socket is that of the file which bind makes (unix(7)): never wider, not for a moment.
        os.fchmod(sock.fileno(), MODE)
        sock.bind(path)
        try:
            sock.listen(backlog)
        except OSError:
            os.unlink(path)
            raise
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def peer_of_socket(sock: socket.socket) -> Peer:
    """Who is at the other end of a connected unix socket; for a client, who called listen."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(data))


def peer_of(transport: Any) -> Peer:
    """Who is at the other end of a transport of a unix socket (anything with C{getHandle})."""
    return peer_of_socket(transport.getHandle())


def allowed(peer: Peer, extra_uids: Collection[int] = ()) -> bool:
    """Whether a peer may use a socket of ours: root, the user that we are, and `extra_uids` may."""
    return peer.uid in (0, os.geteuid()) or peer.uid in extra_uids


class _Port(unix.Port):
    """Twisted's port on a socket that listens already, without its handling of the file.

    C{reactor.adoptStreamPort} would set mode 0666, listen again with another backlog, and remove at its end whatever
    lies at the path by then.
    """

    def __init__(self, sock: socket.socket, factory: IProtocolFactory, reactor: Any) -> None:
        super().__init__(sock.getsockname(), factory, reactor=reactor)
        self._listening = sock
        self._users = factory

    def startListening(self) -> None:
        """Accept from now on."""
        # What Twisted accepts and closes with when the process is out of descriptors; every port of its own does this.
        tcp._reservedFD.reserve()
        self._users.doStart()
        self.socket = self._listening
        self.fileno = self.socket.fileno  # type: ignore[method-assign]
        self.connected = True
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket and leave the file alone."""
        tcp.Port.connectionLost(self, reason)


def inherited_listener(reactor: Any, descriptor: int, factory: IProtocolFactory) -> IListeningPort:
    """Accepts on a unix socket that listens already and whose file is somebody else's.

    @param descriptor: of the socket; duplicated.
    """
    sock = socket.socket(fileno=os.dup(descriptor))
    sock.setblocking(False)
    port: IListeningPort = _Port(sock, factory, reactor)
    port.startListening()
    return port


@implementer(IListeningPort)
class UnixListener:
    """Accepts on a unix socket, and removes its file at the end when it is still the one that was bound.

    >>> listener = UnixListener(reactor, "/run/criu-relay/cache.sock", factory)
    >>> listener.startListening()

    @ivar path: where the socket is.
    """

    def __init__(
        self, reactor: Any, path: str, factory: IProtocolFactory, backlog: int = BACKLOG, patience: float = 0.0
    ) -> None:
        """Nothing is bound yet; see L{bind_unix} for `path` and `patience`."""
        self.path = path
        self._reactor = reactor
        self._factory = factory
        self._backlog = backlog
        self._patience = patience
        self._port: _Port | None = None
        self._file: tuple[int, int] | None = None

    def startListening(self) -> None:
        """Bind, and accept from now on.

        @raise RelayError: see L{bind_unix}.
        """
        if self._port is not None:
            raise Conflict(f"{self.path} is listened on already")
        sock = bind_unix(self.path, self._backlog, self._patience)
        self._file = _identity(self.path)
        self._port = _Port(sock, self._factory, self._reactor)
        self._port.startListening()

    def stopListening(self) -> Deferred[None]:
        """Remove the file and close the socket; fires when it is closed. Accepted connections stay open."""
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        if self._file is not None and _identity(self.path) == self._file:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._file = None
        stopped = port.stopListening()
        return stopped if isinstance(stopped, Deferred) else succeed(None)

    def getHost(self) -> Any:
        """The address, a L{twisted.internet.address.UNIXAddress}; only while it listens."""
        if self._port is None:
            raise Conflict(f"{self.path} is not listened on")
        return self._port.getHost()

    def fileno(self) -> int:
        """The listening descriptor; -1 when there is none."""
        return -1 if self._port is None else self._port.socket.fileno()

    def waiting(self) -> bool:
        """Whether a connection waits to be accepted."""
        if self._port is None:
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode of what lies at `path`; None: nothing does, or it cannot be seen."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
