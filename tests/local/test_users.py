"""Whose criu may use the sockets of real daemons."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemons import Relay
from tests.support.polling import until

NOBODY = 65534

CONNECT = """\
import os, socket, sys
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
client = socket.socket(socket.AF_UNIX)
client.settimeout(30)
try:
    client.connect(sys.argv[1])
except PermissionError:
    print("no permission")
    sys.exit()
# A request of the stream dialect; nobody dumps, so that one who may come in waits.
try:
    client.sendall(b"\\x0f\\0\\0\\0\\x0a\\x0dinventory.img")
    client.settimeout(0.5)
    print("closed" if client.recv(1) == b"" else "answered")
except TimeoutError:
    print("waits")
except (BrokenPipeError, ConnectionResetError):
    print("closed")
"""


def connects(path: Path, uid: int) -> str:
    """What a client of another user sees."""
    script = CONNECT.format(uid=uid)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.needs_criu
@pytest.mark.parametrize("options", [(), ("--allow-uid", str(NOBODY))], ids=["not-allowed", "allowed"])
def test_another_user(relay: Relay, options: tuple[str, ...]) -> None:
    """Needs root, as criu does. The file keeps others out, and behind it the daemon looks at who it is."""
    directory = relay.directory("b/web")
    relay.start_cache("--stream", str(directory), *options)
    path = directory / "streamer-serve.sock"
    os.chmod(relay.base, 0o755)
    assert connects(path, NOBODY) == "no permission"
    assert connects(path, 0) == "waits"
    path.chmod(0o666)
    assert connects(path, NOBODY) == ("waits" if options else "closed")
    if not options:
        until(lambda: f"uid {NOBODY}" in relay.cache.text(), 20, "the log tells who", relay.cache.tail)
        assert "may not use this socket" in relay.cache.text()


def test_modes(relay: Relay) -> None:
    directory = relay.directory("b/web")
    cache = relay.start_cache("--stream", str(directory), "--images", str(directory))
    sockets = relay.sockets()
    assert {path.name for path in sockets} == {"cache.sock", "streamer-serve.sock", "img-cache.sock"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o600}
    assert stat.S_IMODE(cache.control.parent.stat().st_mode) == 0o700
