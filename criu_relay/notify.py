"""What a daemon tells systemd: sd_notify(3), the protocol of $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from twisted.logger import Logger


class Notifier:
    """Sends messages to whoever started us; nothing when nobody asked for them.

    @ivar watchdog: seconds within which a sign of life is expected; None: none is.
    """

    log = Logger()

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog = _watchdog(environment)

    @property
    def wanted(self) -> bool:
        """Somebody listens."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """We do our work."""
        self._send(READY="1", STATUS=status)

    def status(self, status: str) -> None:
        """What we do now, on one line."""
        self._send(STATUS=status)

    def alive(self) -> None:
        """A sign of life."""
        self._send(WATCHDOG="1")

    def reloading(self) -> None:
        """We read our configuration again; L{ready} says when that is done."""
        self._send(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))

    def stopping(self, status: str) -> None:
        """We come to our end."""
        self._send(STOPPING="1", STATUS=status)

    def _send(self, **fields: str) -> None:
        if self._address is None:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message.encode(), self._address)
        except OSError as error:
            # Whoever does not read is told nothing: no service may hang on its manager.
            self.log.warn("NOTIFY_SOCKET: {error}", error=error.strerror)


def _address(text: str) -> str | None:
    """A path, or the name of an abstract socket with its NUL; None: neither."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """See sd_watchdog_enabled(3)."""
    text = environment.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdigit()) or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 1e6 or None
