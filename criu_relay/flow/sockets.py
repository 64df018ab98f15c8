"""The socket under a link: which it is, and how the kernel treats it."""

from __future__ import annotations

import socket
from typing import Any

TCP = (socket.AF_INET, socket.AF_INET6)
"""Families of a link over a network."""

KEEPALIVE_SECONDS = 3
"""A link that is idle for so long is probed by the kernel, and again this often: a dead host is found within 10 s."""

KEEPALIVE_PROBES = 2
"""Unanswered, after the first silence of that length."""

USER_TIMEOUT = 30.0
"""Seconds: a peer whose kernel does not acknowledge sent data for so long is dead, when nobody says another time."""


def socket_of(transport: Any) -> socket.socket | None:
    """The stream socket under a transport, when bytes may be moved on it directly."""
    handle = getattr(transport, "getHandle", lambda: None)()
    if isinstance(handle, socket.socket) and hasattr(transport, "startWriting"):
        return handle
    return None


def tune(connection: socket.socket, user_timeout: float = USER_TIMEOUT) -> None:
    """Small frames leave at once, and a peer that is gone is noticed (tcp(7)); nothing for other families.

    @param user_timeout: seconds that sent data may go unacknowledged by the peer's kernel.
    """
    if connection.family not in TCP:
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(user_timeout * 1000))
