"""A client of the control API, on nothing but sockets.

It runs in CRIU's action script, while the task is frozen: what it imports is part of the freeze, and http.client alone
takes longer to load than all the rest. It speaks HTTP/1.0, whose answers end with the connection.

>>> Client("/run/criu-relay/cache.sock").call("GET", "/v1/status")["role"]
'cache'
"""

from __future__ import annotations

import json
import os
import select
import socket

#: As in typing, which takes 3 ms to load and is only needed for its names.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Bytes of the headers of an answer; ours have less than 500.
LONGEST_HEADERS = 16 * 1024

#: Bytes of a JSON answer: some 100,000 images with their digests.
LONGEST_ANSWER = 64 << 20

#: Bytes of an image that are sent or received at once.
PIECE = 1 << 20

#: Seconds that a daemon may take for what it can answer at once; a busy one takes milliseconds.
PATIENCE = 30.0

#: Seconds on top of a time-out that the daemon itself keeps, so that its answer comes first.
GRACE = 5.0

#: Seconds until a signal is heeded that came just before a call that waits: Python sees it when the call returns.
HEED = 1.0

#: What may stand in a path as it is, of bytes: RFC 3986, "unreserved".
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Unreachable(Exception):
    """No daemon answers at the socket; the text says why.

    @ivar absent: nothing listens there (otherwise what listens does not answer as it should).
    @ivar barred: why the socket cannot be got at, so that nobody knows what listens there; else empty.
    """

    def __init__(self, reason: str, absent: bool = False, barred: str = "") -> None:
        super().__init__(reason)
        self.absent = absent
        self.barred = barred


class Broken(Unreachable):
    """The daemon did not send all of an image."""


class Unanswered(Unreachable):
    """A daemon is there and did not answer within the time."""


class Refused(Exception):
    """The daemon answered with an error.

    @ivar status: of HTTP: 400 the call is wrong, 404 no such thing, 409 not in this state or aborted, 504 timed out.
    @ivar reason: one line.
    @ivar hint: one line, or empty.
    """

    def __init__(self, status: int, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.hint = hint


class Client:
    """Calls to one daemon; each has a connection of its own.

    @ivar path: of the control socket.
    """

    def __init__(self, path: str) -> None:
        self.path = path.removeprefix("unix:")

    def is_alive(self) -> bool:
        """Whether something listens at the socket, or may do so."""
        try:
            self.reach()
        except Unreachable as error:
            return not error.absent
        return True

    def reach(self) -> None:
        """Connect, and no more.

        @raise Unreachable: see there.
        """
        self._connect(PATIENCE).close()

    def call(
        self, method: str, target: str, body: Any = None, timeout: float | None = PATIENCE, *, kind: type = dict
    ) -> Any:
        """Make a call with and for JSON.

        @param target: a path as L{target} makes it.
        @param timeout: seconds that the daemon may be silent; None: without end.
        @param kind: of the answer: dict or list. Whoever looks for what one of its dicts lacks gets an Unreachable.
        @raise Unreachable: see there.
        @raise Unanswered: the time is over.
        @raise Refused: see there.
        """
        data = b"" if body is None else json.dumps(body).encode()
        with self._connect(timeout) as sock:
            self._send(sock, _head(method, target, len(data)) + data)
            return _Answer(sock, self.path).value(kind)

    def download(
        self, target: str, descriptor: int, progress: Callable[[int], None] = lambda _: None, what: str = "an image"
    ) -> int:
        """Write an image to a file, as long as that takes.

        @param progress: called with the number of bytes of each piece.
        @param what: the image, as an error names it.
        @return: its size in bytes.
        @raise Broken: the image ends early.
        """
        with self._connect(None) as sock:
            self._send(sock, _head("GET", target, 0))
            return _Answer(sock, self.path).copy(descriptor, progress, what)

    def upload(
        self, target: str, descriptor: int, size: int, progress: Callable[[int], None] = lambda _: None
    ) -> dict[str, Any]:
        """Send a file as an image, as long as that takes.

        @param size: of the file.
        @raise OSError: the file cannot be read, or has become shorter.
        """
        with self._connect(None) as sock:
            self._send(sock, _head("PUT", target, size))
            sent = 0
            while sent < size and not select.select([sock], [], [], 0)[0]:
                try:
                    count = os.sendfile(sock.fileno(), descriptor, sent, min(PIECE, size - sent))
                except (BrokenPipeError, ConnectionResetError):
                    break
                if count == 0:
                    raise OSError("the file has become shorter while it was read")
                sent += count
                progress(count)
            answer: dict[str, Any] = _Answer(sock, self.path).value(dict)
            return answer

    def _connect(self, timeout: float | None) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(PATIENCE)
            sock.connect(self.path)
            sock.settimeout(timeout)
        except (TimeoutError, BlockingIOError):
            sock.close()
            raise Unanswered(f"the daemon at {self.path} accepts no connection") from None
        except OSError as error:
            sock.close()
            absent = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
            why = error.strerror or str(error)
            raise Unreachable(f"{self.path}: {why}", absent, "" if absent else why) from None
        return sock

    @staticmethod
    def _send(sock: socket.socket, data: bytes) -> None:
        try:
            sock.sendall(data)
        except TimeoutError:
            raise Unanswered("the daemon does not read") from None
        except OSError:
            # It may have answered before it had read everything.
            pass


class _Object(dict):  # type: ignore[type-arg]  # typing is not loaded here
    """One of an answer: what it lacks is the fault of whoever answers."""

    def __init__(self, value: dict[str, Any], path: str) -> None:
        super().__init__(value)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise _stranger(self._path)


def _stranger(path: str) -> Unreachable:
    return Unreachable(f"what answers at {path} is not criu_relay")


class _Answer:
    """The answer that comes over a connection; its headers are read here.

    @raise Refused: it is an error.
    """

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._sock = sock
        self._path = path
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > LONGEST_HEADERS:
                raise _stranger(path)
            data += self._some(LONGEST_HEADERS)
        self._rest = data[end + 4 :]
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        version, _, status = first.partition(" ")
        length = headers.get("content-length", "")
        if not version.startswith("HTTP/1.") or not status[:3].isdigit() or not (length.isascii() and length.isdigit()):
            raise _stranger(path)
        self._length = int(length)
        self._rest = self._rest[: self._length]
        if int(status[:3]) != 200:
            self._raise(int(status[:3]))

    def _some(self, most: int) -> bytes:
        while self._sock.gettimeout() is None and not select.select([self._sock], [], [], HEED)[0]:
            pass
        try:
            data = self._sock.recv(most)
        except TimeoutError:
            raise Unanswered("the daemon does not answer") from None
        except OSError as error:
            raise Unreachable(f"the daemon hung up: {error.strerror}") from None
        if not data:
            raise Unreachable("the daemon hung up")
        return data

    def _raise(self, status: int) -> None:
        try:
            said = json.loads(self.whole())
            reason, hint = str(said["error"]), str(said["hint"])
        except (ValueError, KeyError, TypeError):
            reason, hint = f"status {status}", ""
        raise Refused(status, reason, hint)

    def whole(self) -> bytes:
        """All of it."""
        if self._length > LONGEST_ANSWER:
            raise Unreachable(f"an answer of {self._length} bytes")
        pieces, missing = [self._rest], self._length - len(self._rest)
        while missing > 0:
            pieces.append(self._some(min(missing, PIECE)))
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def value(self, kind: type) -> Any:
        """All of it, as JSON."""
        try:
            found = json.loads(self.whole(), object_hook=lambda value: _Object(value, self._path))
        except ValueError:
            raise _stranger(self._path) from None
        if not isinstance(found, kind):
            raise _stranger(self._path)
        return found

    def copy(self, descriptor: int, progress: Callable[[int], None], what: str) -> int:
        """Into a file; the bytes written.

        @raise Broken: it names C{what}.
        """
        data, missing = self._rest, self._length
        while missing > 0:
            try:
                data = data or self._some(min(missing, PIECE))
            except Unreachable:
                raise Broken(f"{what} broke off {missing} bytes before its end: the daemon's log says why") from None
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            missing -= len(data)
            progress(len(data))
            data = b""
        return self._length


def target(*segments: str | int, **query: str | float | None) -> str:
    """A path from its segments, and a query of what is not None.

    >>> target("v1", "namespaces", "web", "wait", timeout=30.0, next=None)
    '/v1/namespaces/web/wait?timeout=30.0'
    """
    path = "".join("/" + _escaped(str(segment)) for segment in segments)
    pairs = "&".join(f"{name}={_escaped(str(value))}" for name, value in query.items() if value is not None)
    return f"{path}?{pairs}" if pairs else path


def _escaped(text: str) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in os.fsencode(text))


def _head(method: str, path: str, length: int) -> bytes:
    return f"{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode("ascii")
