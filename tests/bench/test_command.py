"""One row, tiny, with real daemons: what is written, and what is said of rows that cannot be."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from bench import command, processes
from bench.measure import MIB, Row, Skipped
from bench.rows import ASKED, ROWS
from bench.stage import ROOT, Plan, Stage, stage

TINY = Plan(size=2 * MIB, rounds=1)

KEYS = ["name", "reference", "ratio", "bound", "gb_per_s", "cpu_s_per_gb", "rss_mib"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the references are in C: apt-get install gcc libc6-dev")
def test_a_row_is_written_as_its_readers_expect_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "made" / "bench.json"
    with stage(TINY) as staged:
        command.run(staged, ["serve-pipe"], output)
    said = capfd.readouterr()
    found = json.loads(output.read_text())
    assert list(found) == ["machine", "rows"]
    assert {"kernel", "cpu", "cores", "congestion_control", "python"} <= set(found["machine"])
    (made,) = found["rows"]
    assert list(made) == KEYS
    assert made["name"] == "serve-pipe"
    assert made["ratio"] > 0 and made["gb_per_s"] > 0 and made["bound"] == 0.9
    assert set(made["cpu_s_per_gb"]) == set(made["rss_mib"]) == {"proxy", "cache"}
    assert made["rss_mib"]["cache"] > 2
    assert re.search(r"^serve-pipe  \d", said.out, re.MULTILINE)


def test_a_row_that_cannot_be_measured_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def skipped(staged: Stage) -> list[Row]:
        raise Skipped("no gcc: apt-get install gcc libc6-dev")

    def failed(staged: Stage) -> list[Row]:
        raise RuntimeError("it broke\nmore of it")

    monkeypatch.setitem(command.MEASURES, "unix", skipped)
    monkeypatch.setitem(command.MEASURES, "tls", failed)
    with stage(TINY) as staged:
        assert command.run(staged, ["unix", "tls"], tmp_path / "bench.json") == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[-2:] == ["unix: not measured: no gcc: apt-get install gcc libc6-dev", "tls: failed: it broke"]
    assert json.loads((tmp_path / "bench.json").read_text())["rows"] == []


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the references are in C: apt-get install gcc libc6-dev")
def test_the_bare_path_brings_every_byte() -> None:
    """Samples of unequal sizes are refused where they are made."""
    with stage(TINY) as staged:
        made = command.MEASURES["bare"](staged)
    assert [row.name for row in made] == ["bare-pipe-window0", "bare-pipe-window", "bare-unix"]
    assert all(row.ratio > 0 and set(row.cpu_s_per_gb) == {"writer", "proxy", "cache"} for row in made)


def test_what_is_only_asked_for_is_not_measured_by_default() -> None:
    assert not set(ROWS) & set(ASKED)
    assert command.names("unix,bare") == ["unix", "bare"]


def test_the_readme_explains_every_row() -> None:
    text = (ROOT / "bench" / "README.md").read_text()
    explained = {name.partition("@")[0] for name in re.findall(r"^\| `([a-z0-9@-]+)`", text, re.MULTILINE)}
    assert explained == set(ROWS | ASKED)


def test_memory_counts_memfds_once() -> None:
    before = processes.memory(os.getpid())
    memfd = os.memfd_create("test")
    twice = os.dup(memfd)
    try:
        os.write(memfd, b"x" * 8 * MIB)
        grown = processes.memory(os.getpid()) - before
    finally:
        os.close(memfd)
        os.close(twice)
    assert 7 * MIB < grown < 12 * MIB
