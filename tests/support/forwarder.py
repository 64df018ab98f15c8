"""A link that can be cut: a TCP port that passes everything on to another, until told not to."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

PIECE = 1 << 18
"""Bytes that are passed on at once."""


class Forwarder:
    """Runs in a thread of its own from its making to L{cut} or L{close}.

    @ivar port: connect here, on 127.0.0.1.
    @ivar passed: bytes that went towards the target.
    """

    def __init__(self, target: int, most: int | None = None) -> None:
        """@param target: a port of 127.0.0.1.
        @param most: stop reading, without closing anything, after so many bytes towards the target.
        """
        self._target = target
        self._most = most
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.passed = 0
        self.full = threading.Event()
        self._sockets: list[socket.socket] = []
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._pass(key.fileobj, *key.data)  # type: ignore[arg-type]

    def _accept(self) -> None:
        ours, _ = self._listener.accept()
        try:
            theirs = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            ours.close()
            return
        self._sockets += [ours, theirs]
        self._selector.register(ours, selectors.EVENT_READ, (theirs, True))
        self._selector.register(theirs, selectors.EVENT_READ, (ours, False))

    def _pass(self, source: socket.socket, sink: socket.socket, forward: bool) -> None:
        size = PIECE
        if forward and self._most is not None:
            size = min(size, self._most - self.passed)
            if size <= 0:
                self._selector.unregister(source)
                self.full.set()
                return
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(size)
            sink.sendall(data)
        if forward:
            self.passed += len(data)
        if not data:
            self._selector.unregister(source)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Close the listener and every connection, with a reset."""
        if self._thread.is_alive():
            self._wake.send(b"x")
            self._thread.join()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
        self._sockets = []
        self._listener.close()

    def close(self) -> None:
        """Cut, and give everything back."""
        self.cut()
        self._selector.close()
        self._wake.close()
        self._woken.close()
