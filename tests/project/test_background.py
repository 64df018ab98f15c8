"""Daemons that twistd sends into the background: whoever started them hears whether they run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.polling import until

TWISTD = str(Path(sys.executable).with_name("twistd"))
PATIENCE = 30


@pytest.fixture
def port() -> Iterator[int]:
    """One that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def start(
    place: Path, *options: str, foreground: bool = False, kind: str = "criu-relay-cache"
) -> subprocess.CompletedProcess[str]:
    own = [f"--control=unix:{place}/control.sock", "--stream", f"{place}=web", *options]
    how = ["-n", "--pidfile="] if foreground else [f"--pidfile={place}/pid", f"--logfile={place}/log"]
    command = [TWISTD, *how, kind, *own]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_one_that_cannot_start_says_so_and_leaves_nothing(tmp_path: Path, port: int) -> None:
    done = start(tmp_path, "--link", f"tcp:{port}:interface=127.0.0.1")
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["log"]
    assert "cannot start" in (tmp_path / "log").read_text()


def test_in_the_foreground_it_is_one_line(tmp_path: Path, port: int) -> None:
    done = start(tmp_path, "--link", f"tcp:{port}:interface=127.0.0.1", foreground=True)
    assert done.returncode == 1
    [line] = [line for line in (done.stdout + done.stderr).splitlines() if "cannot" in line]
    assert f"cannot start: cannot listen on 127.0.0.1:{port}" in line
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["criu-relay-cache", "criu-relay-proxy"])
def test_a_state_directory_that_cannot_be(tmp_path: Path, kind: str) -> None:
    done = start(tmp_path, "--state", "/proc/none", foreground=True, kind=kind)
    assert done.returncode == 1
    [line] = [line for line in (done.stdout + done.stderr).splitlines() if "cannot" in line]
    assert "cannot start: the state directory /proc/none: " in line
    assert line.endswith(": make room there, or give another --state")
    assert "Traceback" not in done.stdout + done.stderr


def test_one_that_runs(tmp_path: Path) -> None:
    done = start(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGTERM)
    until(lambda: os.listdir(tmp_path) == ["log"], PATIENCE, "it ends, with all that it had")
