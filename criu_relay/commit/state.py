"""The directory of what must outlive a daemon."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from criu_relay.errors import Conflict

MODE = 0o700
"""Whoever could write there could decide on somebody's process."""


@contextlib.contextmanager
def state_directory(state: Path) -> Iterator[Path]:
    """One that is there, made if need be, for its owner alone.

    @raise Conflict: it cannot be made, or what is done with it fails.
    """
    try:
        state.mkdir(MODE, parents=True, exist_ok=True)
        yield state
    except OSError as error:
        hint = "make room there, or give another --state"
        raise Conflict(f"the state directory {state}: {error.strerror or error}", hint=hint) from error


def instance_id(directory: Path) -> bytes:
    """The 16 bytes that name this daemon over its restarts; made on first use.

    @raise OSError: they cannot be kept.
    """
    path = directory / "instance"
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = bytes.fromhex(path.read_text(encoding="ascii").strip())
        if len(found) == 16:
            return found
    made = os.urandom(16)
    directory.mkdir(MODE, exist_ok=True)
    staged = path.with_suffix(".new")
    try:
        staged.write_text(made.hex() + "\n", encoding="ascii")
        staged.rename(path)
    except OSError:
        staged.unlink(missing_ok=True)
        raise
    return made
