"""Where sockets and state are."""

from __future__ import annotations

import pytest

from criu_relay.admin import rundir


@pytest.mark.parametrize("value", [None, "", "relative", "./x"])
def test_of_the_system(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert rundir.run_directory() == "/run/criu-relay"
    assert rundir.run_directories() == ["/run/criu-relay"]
    assert rundir.state_directory() == "/var/lib/criu-relay"


def test_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/u/state")
    assert rundir.run_directory() == "/run/user/7/criu-relay"
    assert rundir.run_directories() == ["/run/user/7/criu-relay", "/run/criu-relay"]
    assert rundir.state_directory() == "/home/u/state/criu-relay"
    assert rundir.socket_path(rundir.run_directory(), "cache") == "/run/user/7/criu-relay/cache.sock"
