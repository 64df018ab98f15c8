"""Manual pages and completions: up to date, well formed, and of use in the real shells."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from criu_relay.admin.command import parser
from criu_relay.options import CacheOptions, ProxyOptions
from tests.support.polling import readable, until
from tests.support.tools import needs

ROOT = Path(__file__).resolve().parents[2]
MAKE = ROOT / "docs" / "make_manual.py"
PAGES = sorted((ROOT / "docs" / "man").iterdir())
COMPLETIONS = ROOT / "conf" / "completions"

SECONDS = 60.0


def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, **options)  # type: ignore[call-overload, no-any-return]


def test_they_are_what_the_code_says() -> None:
    checked = run(sys.executable, str(MAKE), "--check")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_what_is_out_of_date_is_found(tmp_path: Path) -> None:
    for name in ("docs", "conf"):
        (tmp_path / name).mkdir()
    for source in (MAKE, MAKE.with_name("manual_texts.py")):
        (tmp_path / "docs" / source.name).write_text(source.read_text())
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = str(tmp_path / "docs" / MAKE.name)
    assert run(sys.executable, script, env=environment).returncode == 0
    assert run(sys.executable, script, "--check", env=environment).returncode == 0
    page = tmp_path / "docs" / "man" / "criu-relay.1"
    page.write_text(page.read_text() + "\n")
    checked = run(sys.executable, script, "--check", env=environment)
    assert checked.returncode == 1
    assert "docs/man/criu-relay.1 is not up to date" in checked.stderr


def test_there_is_one_for_each_command() -> None:
    assert [page.name for page in PAGES] == [
        "criu-relay-action.1", "criu-relay-cache.8", "criu-relay-proxy.8", "criu-relay.1",
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_well_formed(page: Path) -> None:
    mandoc = needs("mandoc", "mandoc")
    said = run(mandoc, "-T", "lint", "-W", "warning", str(page)).stdout.splitlines()
    assert [line for line in said if "missing date" not in line] == []


def shown(page: str) -> str:
    """A page as a terminal shows it, without its emphasis."""
    text = run(needs("mandoc", "mandoc"), "-T", "ascii", str(ROOT / "docs" / "man" / page)).stdout
    while "\b" in text:
        at = text.index("\b")
        text = text[: at - 1] + text[at + 1 :]
    return text


@pytest.mark.parametrize("side", [ProxyOptions, CacheOptions])
def test_pages_of_services_have_every_option(side: type[ProxyOptions] | type[CacheOptions]) -> None:
    text = shown(f"criu-relay-{side.role}.8")
    for name in side().longOpt:
        assert f"--{name.rstrip('=')}" in text


def test_the_page_of_the_command_has_every_command() -> None:
    text = shown("criu-relay.1")
    for line in parser().format_help().splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            assert f"   {line.split()[0]} [options]" in text, line


BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
compopt() { :; }
if [[ $1 == twistd ]]; then _criu_relay_twistd; else _criu_relay; fi
printf '%s\\n' "${COMPREPLY[@]}"
"""

STATUS = """#!/bin/sh
echo '{
  "link": {
    "peers": [
      {
        "name": "not-a-namespace"
      }
    ]
  },
  "namespaces": [
    {
      "name": "web",
      "state": "open"
    },
    {
      "name": "web-2",
      "state": "open"
    }
  ]
}'
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a `criu-relay` that knows two namespaces, and with a subdirectory and a file."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "criu-relay"
    command.write_text(STATUS)
    command.chmod(0o755)
    (tmp_path / "dumps").mkdir()
    (tmp_path / "dumps.toml").touch()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    return {"PATH": f"{place}/bin:{os.environ['PATH']}", "HOME": str(place), "TERM": "dumb", "LANG": "C.UTF-8"}


CASES = [
    ("criu-relay sta", ["status"]),
    ("criu-relay status --w", ["--watch"]),
    ("criu-relay attach --dialect im", ["images"]),
    ("criu-relay wait we", ["web", "web-2"]),
    ("criu-relay detach dum", ["dumps"]),
    ("twistd criu-relay-cache --mem", ["--memory"]),
    ("twistd criu-relay-proxy --stream dum", ["dumps"]),
    ("twistd criu-relay-proxy --config dumps.", ["dumps.toml"]),
]


@pytest.mark.parametrize(("line", "words"), CASES)
def test_bash(place: Path, line: str, words: list[str]) -> None:
    arguments = [str(COMPLETIONS / "criu-relay.bash"), *line.split()]
    done = run(needs("bash", "bash"), "-c", BASH, "bash", *arguments, env=environment(place), cwd=place)
    assert (sorted(done.stdout.split()), done.stderr) == (words, "")


@pytest.mark.parametrize(("line", "words"), CASES)
def test_fish(place: Path, line: str, words: list[str]) -> None:
    script = f"source {COMPLETIONS}/criu-relay.fish; complete -C '{line}'"
    done = run(needs("fish", "fish"), "--no-config", "-c", script, env=environment(place), cwd=place)
    found = [entry.partition("\t")[0].rstrip("/") for entry in done.stdout.splitlines()]
    assert (sorted(found), done.stderr) == (words, "")


@pytest.mark.parametrize(("line", "words"), [case for case in CASES if case[0].startswith("criu-relay")])
def test_zsh(place: Path, line: str, words: list[str]) -> None:
    """In a terminal: it completes nowhere else."""
    ours, theirs = pty.openpty()
    command = [needs("zsh", "zsh"), "-f", "-i"]
    said = b""

    def output() -> str:
        nonlocal said
        while readable(ours):
            said += os.read(ours, 65536)
        return said.decode(errors="replace")

    with contextlib.ExitStack() as stack:
        stack.callback(os.close, ours)
        zsh = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(place), cwd=place)
        stack.callback(zsh.wait)
        stack.callback(zsh.kill)
        os.close(theirs)
        setup = f"PS1=; fpath=({COMPLETIONS} $fpath); autoload -Uz compinit; compinit -u -D; echo be''gun\n"
        os.write(ours, setup.encode())
        until(lambda: "begun" in output(), SECONDS, "zsh is there", output)
        os.write(ours, f"{line}\t".encode())
        wanted = line.rpartition(" ")[0] + " " + os.path.commonprefix(words) if len(words) > 1 else words[0]  # noqa: RUF071
        until(lambda: wanted in output().rpartition("begun")[2], SECONDS, f"it completes to {wanted!r}", output)
