"""`make demo`: what it says, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.leftovers import processes_in
from tests.support.criu import find_criu

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo"
SECONDS = 120
"""Far more than it takes."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """The directory for temporary files of a demo; afterwards it must be empty, and nobody at work in it.

    Its path is short: the sockets of CRIU lie in it.
    """
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as name:
        place = Path(name)
        yield place
        assert list(place.iterdir()) == []
        assert processes_in(place) == {}


def begin(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(folder), "CRIU": find_criu() or "", **variables}
    return subprocess.Popen(
        [sys.executable, str(DEMO), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(demo: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Exit status, lines of standard output, standard error."""
    try:
        out, err = demo.communicate(timeout=SECONDS)
    finally:
        if demo.poll() is None:
            demo.terminate()
    return demo.returncode, out.splitlines(), err


@pytest.mark.needs_criu
def test_migrates(folder: Path) -> None:
    status, lines, err = finish(begin(folder, "--size", "24M"))
    assert (status, err) == (0, ""), err
    assert lines[-1].startswith("migrated: 24 MiB in ")
    shown = "\n".join(lines)
    for step in ("criu dump begins", "frozen since count", "committed", "it runs again", "memory unchanged", "cpu"):
        assert step in shown


def test_relays_where_criu_cannot_run(folder: Path) -> None:
    status, lines, err = finish(begin(folder, "--size", "5M", CRIU="/bin/false"))
    assert (status, err) == (0, ""), err
    assert "no process is migrated: " in "\n".join(lines)
    assert lines[-1].startswith("relayed: 5 MiB in ")


@pytest.mark.needs_criu
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["are linked", "waits for the images", "it runs again"])
def test_interrupted(folder: Path, moment: str, number: signal.Signals) -> None:
    demo = begin(folder, "--size", "8M")
    assert demo.stdout is not None
    for line in demo.stdout:
        if moment in line:
            break
    demo.send_signal(number)
    status, _, err = finish(demo)
    assert status == 130
    assert err.strip() == "interrupted"


@pytest.mark.needs_criu
def test_failed_dump(folder: Path, tmp_path: Path) -> None:
    criu = tmp_path / "criu"
    criu.write_text(f'#!/bin/sh\n[ "$1" != dump ] || {{ echo no dump today >&2; exit 3; }}\nexec {find_criu()} "$@"\n')
    criu.chmod(0o755)
    status, lines, err = finish(begin(folder, "--size", "8M", CRIU=str(criu)))
    assert status == 1
    assert err.splitlines()[-1].startswith("failed: criu dump ended with status 3")
    assert "no dump today" in err
    assert "--- the end of criu-relay-proxy.log" in err
    assert not lines[-1].startswith("migrated")


@pytest.mark.parametrize("size", ["0", "much", "-1", ""])
def test_wrong_size(folder: Path, size: str) -> None:
    status, _, err = finish(begin(folder, f"--size={size}"))
    assert status == 2
    assert f"--size {size}" in err
