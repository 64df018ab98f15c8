"""What a command of a test left running."""

from __future__ import annotations

from pathlib import Path


def processes_in(folder: Path) -> dict[int, str]:
    """The processes that name a folder in their command line: pid -> command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            # It ended meanwhile.
            continue
        if str(folder) in line:
            found[int(entry.parent.name)] = line
    return found
