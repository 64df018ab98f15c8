"""The units for systemd: it understands them, and the daemons live with what they take away."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.logger import Logger, LogLevel

from criu_relay import lifecycle
from criu_relay.admin.rundir import SYSTEM_RUN, SYSTEM_STATE
from criu_relay.journal import observer
from criu_relay.options import CacheOptions, ProxyOptions
from tests.support.criu import Criu
from tests.support.daemons import Relay
from tests.support.migration import Migration
from tests.support.tools import needs
from tests.support.victims import Victim

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "systemd"
SERVICES = sorted(FOLDER.glob("*.service"))
SOCKETS = sorted(FOLDER.glob("*.socket"))

CAP_SYS_RESOURCE = 1 << 24
"""linux/capability.h"""


def settings(unit: Path) -> dict[str, list[str]]:
    """The settings of a unit; its sections do not share names."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def installed(folder: Path) -> list[str]:
    """The units as they are where `twistd` is the one of these tests."""
    twistd = folder / "twistd"
    twistd.write_text("#!/bin/sh\n")
    twistd.chmod(0o755)
    made = []
    for unit in (*SERVICES, *SOCKETS):
        made.append(str(folder / unit.name))
        Path(made[-1]).write_text(unit.read_text().replace("/usr/bin/twistd", str(twistd)))
    return made


def test_there_are_units_for_both() -> None:
    assert [unit.stem for unit in SERVICES] == ["criu-relay-cache", "criu-relay-proxy"]
    assert len(SOCKETS) == 3


def test_systemd_understands_them(tmp_path: Path) -> None:
    analyze = needs("systemd-analyze", "systemd")
    units = installed(tmp_path)
    done = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_little_is_exposed(unit: Path, tmp_path: Path) -> None:
    analyze = needs("systemd-analyze", "systemd")
    units = {Path(made).name: made for made in installed(tmp_path)}
    command = [analyze, "security", "--offline=true", "--threshold=30", units[unit.name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_the_command_is_one(unit: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its options exist, and so do the directories that it makes."""
    (command,) = settings(unit)["ExecStart"]
    assert command == (
        "/usr/bin/twistd -n --pidfile= --logger criu_relay.journal.observer"
        f" {unit.stem} --config /etc/criu-relay/{unit.stem.rpartition('-')[2]}.toml"
    )
    options = {"criu-relay-cache": CacheOptions, "criu-relay-proxy": ProxyOptions}[unit.stem]()
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    (tmp_path / "empty.toml").touch()
    options.parseOptions(["--config", str(tmp_path / "empty.toml")])
    given = settings(unit)
    assert options.settings().control.startswith(f"unix:/run/{given['RuntimeDirectory'][0]}/")
    assert str(options.settings().state) == f"/var/lib/{given['StateDirectory'][0]}"
    assert float(given["TimeoutStopSec"][0]) > 2 * lifecycle.FINISH_SECONDS


def test_sockets_have_the_names_that_options_look_for() -> None:
    for unit in SOCKETS:
        given = settings(unit)
        (service,) = given["Service"]
        assert (FOLDER / service).exists()
        side = CacheOptions if "cache" in service else ProxyOptions
        assert given["FileDescriptorName"][0] in side.activated


def test_tmpfiles() -> None:
    lines = (FOLDER / "criu-relay.tmpfiles.conf").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert rows == [["d", path, "0700", "root", "root", "-"] for path in (SYSTEM_RUN, SYSTEM_STATE)]


def test_systemd_tmpfiles_takes_them(tmp_path: Path) -> None:
    tmpfiles = needs("systemd-tmpfiles", "systemd")
    command = [tmpfiles, "--create", f"--root={tmp_path}", str(FOLDER / "criu-relay.tmpfiles.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run/criu-relay").stat().st_mode & 0o777 == 0o700


def test_journal() -> None:
    out = io.StringIO()
    log = Logger(namespace="criu_relay.test", observer=observer(out))  # type: ignore[arg-type]
    for level in LogLevel.iterconstants():
        log.emit(level, "two\nlines of {what}", what=level.name)
    log.failure("it broke", failure=_failure())
    lines = out.getvalue().splitlines()
    assert lines[2:4] == ["<6>[criu_relay.test#info] two", "<6>lines of info"]
    priorities = [re.match(r"<(\d)>", line) for line in lines]
    assert all(priorities)
    assert [found[1] for found in priorities[:10] if found] == ["7", "7", "6", "6", "4", "4", "3", "3", "2", "2"]
    assert all(found[1] == "2" for found in priorities[10:] if found)


def _failure() -> object:
    from twisted.python.failure import Failure

    try:
        raise ValueError("why")
    except ValueError:
        return Failure()


@pytest.mark.needs_criu
def test_a_migration_with_the_rights_of_the_service(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> None:
    """Root without the capabilities that the unit takes away, with its files and processes."""
    setpriv = needs("setpriv", "util-linux")
    migration = Migration(relay, criu, victim("memory", 20, 7))
    for unit in SERVICES:
        role = unit.stem.rpartition("-")[2]
        kept = [cap.removeprefix("CAP_").lower() for cap in settings(unit)["CapabilityBoundingSet"][0].split()]
        bounding = f"--bounding-set=-all,+{',+'.join(kept)}"
        within = (setpriv, "--no-new-privs", "--inh-caps=-all", bounding)
        directory = migration.target if role == "cache" else migration.source
        start = relay.start_cache if role == "cache" else relay.start_proxy
        start("--stream", str(directory), within=within)
        status = Path(f"/proc/{relay.at(role).pid}/status").read_text()
        (effective,) = re.findall(r"^CapEff:\s+(\w+)$", status, re.MULTILINE)
        assert int(effective, 16) in (0, CAP_SYS_RESOURCE), "none of root's but this, which a container may not have"
    relay.linked()
    before = migration.victim.ask()
    migration.dump().succeed()
    assert migration.victim.reap() == -9
    migration.committed()
    node = migration.restore()
    node.run.succeed()
    migration.moved(before, node)
