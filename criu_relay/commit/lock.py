"""One proxy alone in a state directory: another would decide on the first one's permissions."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from criu_relay.errors import Conflict

NAME = "lock"


class StateLock:
    """Held from its making until the process ends, however it ends (flock(2))."""

    def __init__(self, state: Path) -> None:
        """
        @param state: is there.
        @raise Conflict: another process has it.
        """
        path = state / NAME
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = path.read_text().strip()
            os.close(self._descriptor)
            owner = f"process {pid}" if pid.isdigit() else "another process"
            raise Conflict(f"{state} is in use by {owner}", hint="give each proxy a --state of its own") from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let the next one have it."""
        os.close(self._descriptor)
