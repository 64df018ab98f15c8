"""Where the daemons keep their control sockets and their state.

The rule is that of the XDG base directory specification, with the system's directories behind it; a variable that is
not an absolute path counts as unset, as that specification demands.
"""

from __future__ import annotations

import os

#: When there is no XDG_RUNTIME_DIR: daemons of the system.
SYSTEM_RUN = "/run/criu-relay"

#: When there is no XDG_STATE_HOME: daemons of the system.
SYSTEM_STATE = "/var/lib/criu-relay"

#: What listens in the run directory.
ROLES = ("proxy", "cache")


def _ours(variable: str, otherwise: str) -> str:
    base = os.environ.get(variable, "")
    return os.path.join(base, "criu-relay") if base.startswith("/") else otherwise


def run_directory() -> str:
    """Where control sockets are bound: C{$XDG_RUNTIME_DIR/criu-relay}, else C{/run/criu-relay}. Need not exist."""
    return _ours("XDG_RUNTIME_DIR", SYSTEM_RUN)


def run_directories() -> list[str]:
    """Where a control socket may be, the likeliest first.

    CRIU may run with another environment than the daemon, so its action script looks in both.
    """
    return list(dict.fromkeys([run_directory(), SYSTEM_RUN]))


def state_directory() -> str:
    """Where the daemons keep what outlives them: C{$XDG_STATE_HOME/criu-relay}, else C{/var/lib/criu-relay}."""
    return _ours("XDG_STATE_HOME", SYSTEM_STATE)


def socket_path(directory: str, role: str) -> str:
    """The control socket of a role ("proxy" or "cache") in a run directory."""
    return os.path.join(directory, f"{role}.sock")
