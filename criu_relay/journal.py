"""A log for systemd's journal: `twistd --logger criu_relay.journal.observer`.

Standard output, a line for each event, with its priority (sd-daemon(3)) and without the time, which the journal has.
"""

from __future__ import annotations

import sys
from typing import TextIO

from twisted.logger import FileLogObserver, LogEvent, LogLevel, eventAsText

PRIORITIES = {LogLevel.debug: 7, LogLevel.info: 6, LogLevel.warn: 4, LogLevel.error: 3, LogLevel.critical: 2}
"""Of syslog(3)."""


def observer(out: TextIO | None = None) -> FileLogObserver:
    """For twistd.

    @param out: by default standard output.
    """
    return FileLogObserver(out or sys.stdout, _lines)


def _lines(event: LogEvent) -> str:
    """Every line of an event has the priority: a line of its own is an entry of its own."""
    priority = PRIORITIES.get(event.get("log_level", LogLevel.info), 6)
    text = eventAsText(event, includeTimestamp=False)
    return "".join(f"<{priority}>{line}\n" for line in text.splitlines())
