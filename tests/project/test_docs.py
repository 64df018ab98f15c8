"""What the pages say is so: their links lead somewhere, their options exist, their commands work."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_relay.options import CacheOptions, ProxyOptions
from tests.project.leftovers import processes_in
from tests.support.criu import find_criu
from tests.support.daemons import free_port
from tests.support.polling import until

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    local = [target for target in targets if target and not target.startswith("http")]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_index_has_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    assert [page.name for page in PAGES if page.name != "index.md" and f"({page.name})" not in index] == ["README.md"]


def test_readme_has_every_option_and_no_other() -> None:
    table = (ROOT / "README.md").read_text().partition("## Options")[2]
    named = set(re.findall(r"^\| `--([a-z-]+)", table, re.MULTILINE))
    options = {name.rstrip("=") for side in (ProxyOptions, CacheOptions) for name in side().longOpt}
    assert named == options - {"help", "version"}


def test_lines_of_the_pages_have_no_trailing_blanks() -> None:
    assert [page.name for page in PAGES if re.search(r"[ \t]$", page.read_text(), re.MULTILINE)] == []


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path, as CRIU's sockets lie in it; whatever runs there is ended."""
    with tempfile.TemporaryDirectory(prefix="docs-", dir="/tmp") as name:
        try:
            yield Path(name)
        finally:
            for pid in processes_in(Path(name)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def script_of(page: str) -> str:
    """The commands of a page: its first part of them."""
    script, *_ = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    return script


def environment(place: Path, *programs: Path) -> dict[str, str]:
    path = ":".join(str(folder) for folder in (Path(sys.executable).parent, *programs))
    return {
        **os.environ,
        "PATH": f"{path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_RUNTIME_DIR": str(place),
        "XDG_STATE_HOME": str(place / "state"),
    }


def test_two_hosts(place: Path) -> None:
    """Both on this one, with a copy that stays here; node A knows node B as localhost."""
    script = script_of("hosts.md")
    port = free_port()
    for there, here in {
        "/run/a": f"{place}/a",
        "/run/b": f"{place}/b",
        "/etc/criu-relay": f"{place}/etc",
        "node-a:": "",
        "node-b": "localhost",
        ":9876": f":{port}",
        "scp ": "cp ",
    }.items():
        assert there in script
        script = script.replace(there, here)
    for name in ("a", "b", "etc"):
        (place / name).mkdir()
    said = place / "said"
    with said.open("w") as file:
        done = subprocess.run(
            ["bash", "-eu", "-c", script], env=environment(place), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            timeout=60, cwd=place,
        )  # fmt: skip
    assert done.returncode == 0, said.read_text()

    def status(role: str) -> str:
        control = place / "criu-relay" / f"{role}.sock"
        return subprocess.run(
            ["criu-relay", "--control", control, "status"], env=environment(place), capture_output=True, text=True
        ).stdout

    until(lambda: "tls send" in status("proxy"), 30, "the link is up", (place / "a" / "proxy.log").read_text)
    assert re.search(r"^localhost .*tls send", status("proxy"), re.MULTILINE)
    assert re.search(r"^node-a .*tls send", status("cache"), re.MULTILINE)


@pytest.mark.needs_criu
def test_the_first_migration(place: Path) -> None:
    """The commands as they stand there, but with directories and a port of their own."""
    script = script_of("start.md")
    port = free_port()
    for there, here in {
        "/run/a": f"{place}/a",
        "/run/b": f"{place}/b",
        "criu-relay-cache --stream": f"criu-relay-cache --link tcp:{port}:interface=127.0.0.1 --stream",
        "criu-relay-proxy --stream": f"criu-relay-proxy --link tcp:127.0.0.1:{port} --stream",
    }.items():
        assert there in script
        script = script.replace(there, here)
    criu = find_criu()
    assert criu is not None
    said = place / "said"
    with said.open("w") as file:
        done = subprocess.run(
            ["bash", "-eu", "-c", script], env=environment(place, Path(criu).parent), stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, timeout=60, cwd=place,
        )  # fmt: skip
    shown = said.read_text()
    assert done.returncode == 0, shown
    assert re.search(r"web +(committed|restored)", shown), shown
    count = place / "a" / "count"
    first = int(count.read_text() or 1)
    # The file is empty for a moment whenever it is written.
    until(lambda: int(count.read_text() or 0) > first, 20, "the count goes on", shown.strip)
