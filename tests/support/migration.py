"""One victim on its way from one "node" to another through a relay, dialect `stream`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.criu import Criu, Node, Run
from tests.support.daemons import Relay
from tests.support.polling import until
from tests.support.victims import Victim

DECIDE_SECONDS = 20.0
"""From the end of criu to the decision at both sides."""

REFUSE_SECONDS = 7.0
"""From the death of a daemon or of the link to the end of criu dump, with --link-timeout 2."""

SILENT_SECONDS = 0.5
"""A cache that serves does so at once."""


class Migration:
    """A namespace with a directory at each side.

    @ivar source: images directory of the dump.
    @ivar target: images directory of the restore.
    """

    def __init__(self, relay: Relay, criu: Criu, victim: Victim, namespace: str = "web") -> None:
        self.relay = relay
        self.namespace = namespace
        self.source = relay.directory(f"a/{namespace}")
        self.target = relay.directory(f"b/{namespace}")
        self.victim = victim
        self._criu = criu

    def start(self, cache: Sequence[str] = (), proxy: Sequence[str] = ()) -> None:
        """Start both daemons with this namespace's directories and more options, and wait for the link."""
        self.relay.start_cache("--stream", str(self.target), *cache)
        self.relay.start_proxy("--stream", str(self.source), *proxy)
        self.relay.linked()

    def attach(self, *options: str) -> None:
        """Attach its directories to daemons that run; `options` are for the proxy."""
        for role, directory, more in (("cache", self.target, ()), ("proxy", self.source, options)):
            done = self.relay.command("attach", str(directory), self.namespace, *more, at=role)
            assert (done.returncode, done.stderr) == (0, "")

    def dump(self, *options: str, script: Path | None = None, within: Sequence[str] = (), **environment: str) -> Run:
        """Begin to dump, with `criu-relay-action` unless another script is given."""
        action = ("--action-script", str(script or self.relay.action))
        return self._criu.dump(
            self.victim.pid, self.source, "--stream", *action, *options, within=within, **environment
        )

    def dump_unguarded(self, *options: str) -> Run:
        """Begin to dump without an action script."""
        return self._criu.dump(self.victim.pid, self.source, "--stream", *options)

    def restore(self, *options: str, script: bool = True, within: Sequence[str] = ()) -> Node:
        """Begin to restore, in the victim's place."""
        return self._criu.restore(self.target, self.victim.directory, *self._restoring(script), *options, within=within)

    def restore_copy(self, name: str = "copy") -> Node:
        """Begin to restore beside the victim: in a copy of its directory, where it finds the file `pause`."""
        home = self.victim.directory.with_name(name)
        shutil.copytree(self.victim.directory, home)
        (home / "pause").touch()
        return self._criu.restore(self.target, home, *self._restoring(True), original=self.victim.directory)

    def _restoring(self, script: bool) -> Sequence[str]:
        return ("--stream", "--action-script", str(self.relay.action)) if script else ("--stream",)

    def wait(self, at: str = "cache", seconds: float = DECIDE_SECONDS) -> tuple[int, str]:
        """`criu-relay wait`: its exit status, and what it says."""
        done = self.relay.command("wait", self.namespace, "--timeout", str(seconds), at=at)
        return done.returncode, done.stderr.strip()

    def committed(self) -> None:
        """Both sides say that it is committed."""
        for role in ("proxy", "cache"):
            assert self.wait(role) == (0, ""), role

    def aborted(self, *roles: str) -> str:
        """The sides that still run say that it is aborted, each with a reason; the reason of the last."""
        reason = ""
        for role in roles or ("proxy", "cache"):
            status, reason = self.wait(role)
            assert status == 1, (role, status, reason)
            assert reason.startswith("criu-relay: "), (role, reason)
            assert reason.count("\n") == 0, (role, reason)
        return reason

    def written(self, count: int) -> None:
        """Wait until the proxy has so many bytes of the dump that is open."""
        until(
            lambda: self._bytes() >= count, 30.0, f"{count} bytes at the proxy", lambda: f"(there are {self._bytes()})"
        )

    def _bytes(self) -> int:
        for found in self.relay.get("/v1/namespaces", at="proxy"):
            if found["name"] == self.namespace:
                count: int = found["bytes"]
                return count
        return 0

    def waiting(self) -> None:
        """Wait until a restore waits at the cache."""

        def found() -> list[Any]:
            entries = self.relay.get("/v1/status", at="cache")["waiting"]
            return [entry for entry in entries if entry["namespace"] == self.namespace]

        until(found, 20.0, f"a restore of {self.namespace} waits at the cache")

    def moved(self, before: dict[str, Any], node: Node) -> None:
        """The restored process is the one that was dumped: its memory, its count; and nothing is left at the source."""
        assert not self.victim.alive
        after = node.ask()
        assert after["digest"] == before["digest"]
        assert after["pid"] == before["pid"]
        assert after["count"] > before["count"]
        assert node.counts_on() > after["count"]

    def lives_on(self, before: dict[str, Any]) -> None:
        """The victim is as it was before a dump that failed."""
        assert self.victim.settled()
        after = self.victim.ask()
        assert after["digest"] == before["digest"]
        assert after["count"] > before["count"]
        self.victim.counts_on()

    def not_served(self, seconds: float = SILENT_SECONDS) -> None:
        """The cache gives nobody an image of it: it says so, or lets one wait for the next dump, at least so long."""
        try:
            path = f"/v1/namespaces/{self.namespace}/images/inventory.img"
            status, body = self.relay.cache.request("GET", path, timeout=seconds)
        except TimeoutError:
            return
        assert status in (404, 409), (status, body[:200])

    def left_behind(self) -> None:
        """Stop both daemons; what they leave: no socket, no record of a decision, no file but criu's statistics.

        @raise AssertionError: there is more.
        """
        self.relay.stop()
        assert list((self.relay.base / "state").rglob("permitted/*")) == []
        for directory in (self.source, self.target):
            assert {path.name for path in directory.iterdir()} <= {"stats-dump", "stats-restore"}
