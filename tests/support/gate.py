"""An action script that stops where a test wants it: before and after it runs `criu-relay-action` at post-dump."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.polling import until

SCRIPT = """\
#!/bin/sh
cd {place} || exit 1
if [ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]; then exit 0; fi
stop_at() {{ : > at.$1; read -r _ < go.$1; }}
echo $$ > pid
stop_at before
{action} &
echo $! > action.pid
wait $!
echo $? > status.new
mv status.new status
stop_at after
exit "$(cat status)"
"""

ARRIVE_SECONDS = 60.0
"""Until criu has written everything, on a loaded machine."""


class Gate:
    """One such script, for one dump.

    @ivar script: give this to criu.
    """

    def __init__(self, place: Path, action: Path) -> None:
        """@param place: a directory that does not exist yet, without blanks in its name.
        @param action: `criu-relay-action`.
        """
        place.mkdir()
        self._place = place
        self.script = place / "action"
        self.script.write_text(SCRIPT.format(place=place, action=action))
        self.script.chmod(0o755)
        self._ways: dict[str, int] = {}
        for stage in ("before", "after"):
            os.mkfifo(place / f"go.{stage}")
            # Both directions, so that what is written stays there until the script reads it.
            self._ways[stage] = os.open(place / f"go.{stage}", os.O_RDWR | os.O_CLOEXEC)

    def arrive(self, stage: str) -> None:
        """Wait until the script stands "before" or "after" criu-relay-action."""
        until((self._place / f"at.{stage}").exists, ARRIVE_SECONDS, f"the action script is at {stage!r}")

    def go(self, stage: str) -> None:
        """Let it go on from there, now or when it comes there."""
        os.write(self._ways[stage], b"\n")

    def close(self) -> None:
        """Let a script that still stands go on to its end."""
        for stage, descriptor in self._ways.items():
            # First the name, or the script would wait for a writer at the next one.
            (self._place / f"go.{stage}").unlink()
            os.close(descriptor)
        self._ways = {}

    @property
    def pid(self) -> int:
        """That of the script."""
        return int((self._place / "pid").read_text())

    @property
    def action(self) -> int:
        """The pid of criu-relay-action."""
        path = self._place / "action.pid"
        return int(until(lambda: path.exists() and path.read_text(), ARRIVE_SECONDS, "criu-relay-action runs"))

    @property
    def status(self) -> int:
        """The exit status of criu-relay-action."""
        return int((self._place / "status").read_text())
