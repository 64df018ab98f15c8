"""Without a criu that works, tests that need it are skipped and say why; in CI they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("ci", "summary", "status"), [("", "1 skipped", 0), ("true", "1 error", 1)])
def test_a_criu_that_does_not_work(ci: str, summary: str, status: int) -> None:
    test = "tests/criu/test_move.py::test_a_restore_that_began_first_waits_for_the_dump"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"CI": ci, "CRIU": "/bin/false"},
    )
    assert (done.returncode, summary in done.stdout) == (status, True), done.stdout
    assert "criu needs root" in done.stdout or "`/bin/false check` fails" in done.stdout
