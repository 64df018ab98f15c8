"""`criu-relay status --watch` in a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from typing import Any

from tests.support.polling import readable, until

SECONDS = 60.0


def read(descriptor: int, known: bytearray) -> str:
    """What the terminal has shown so far, with its escape sequences left out."""
    while readable(descriptor):
        try:
            data = os.read(descriptor, 65536)
        except OSError:
            break
        if not data:
            break
        known += data
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", known.decode())


def test_watch(world: Any, make: Any) -> None:
    control = world.start("cache")
    control.state["namespaces"] = [make["namespace"](state="open", bytes=1 << 20, expected=4 << 20, decided_s=None)]
    images = [{"name": "pages-1.img", "size": 4096, "complete": False, "digest": None}]
    control.details["web"] = make["namespace"]() | {"snapshots": [{"index": 1, "label": "", "images": images}]}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "criu_relay.admin.command", "status", "--watch"]
    environment = world.environment | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = bytearray()
        until(lambda: "1.0M of 4.0M" in read(ours, shown), SECONDS, "the first look", lambda: repr(bytes(shown)))
        assert "1/pages-1.img" in read(ours, shown)
        control.state["namespaces"] = [make["namespace"](state="committed")]
        until(lambda: "committed" in read(ours, shown), SECONDS, "the next look", lambda: repr(bytes(shown)))
        process.send_signal(signal.SIGINT)
        until(lambda: [read(ours, shown)] and process.poll() is not None, SECONDS, "it ends")
    assert process.returncode == 130
    assert "Traceback" not in read(ours, shown)
    assert b"\x1b[?25h" in shown, "the cursor is back"
    os.close(ours)
