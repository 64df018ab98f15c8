"""A cache and a proxy with a namespace for remote images."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any

from tests.support.daemons import Refused, Relay
from tests.support.polling import until
from tests.support.remote_client import DumpSide, RestoreSide

LABEL = "/var/lib/images/1"
"""What criu would be given as -D."""


class Pair:
    """A namespace at both sides; its dumps are copies, as there is no task that could be gone."""

    def __init__(self, relay: Relay, name: str = "web") -> None:
        self.relay = relay
        self.name = name
        self.source = relay.directory(f"a/{name}")
        self.target = relay.directory(f"b/{name}")

    def start(self, cache: Sequence[str] = (), proxy: Sequence[str] = (), copy: bool = True) -> None:
        """Start both, wait for the link, and attach."""
        self.relay.start_cache("--images", str(self.target), *cache)
        self.relay.start_proxy(*proxy)
        self.attach_proxy(copy)
        self.relay.linked()

    def attach_proxy(self, copy: bool = True) -> None:
        """Attach the proxy's directory."""
        options = ("--copy",) if copy else ()
        done = self.relay.command("attach", str(self.source), self.name, "--dialect", "images", *options, at="proxy")
        assert (done.returncode, done.stderr) == (0, "")

    def attach(self) -> None:
        """Attach the directories of both sides to daemons that run."""
        for at, directory in (("cache", self.target), ("proxy", self.source)):
            body = {"directory": str(directory), "namespace": self.name, "dialect": "images", "copy": at == "proxy"}
            status, answer = self.relay.at(at).request("POST", "/v1/attachments", body)
            assert status == 200, answer

    def give_up(self) -> None:
        """Detach them, and throw away what is left of the namespace."""
        for at, directory in (("proxy", self.source), ("cache", self.target)):
            status, answer = self.relay.at(at).request("DELETE", f"/v1/attachments?directory={directory}")
            assert status == 200, answer
            self.relay.at(at).request("DELETE", f"/v1/namespaces/{self.name}")

    def dump(self, label: str = LABEL) -> DumpSide:
        """A criu dump."""
        return DumpSide(self.source, label)

    def restore(self, label: str = LABEL) -> RestoreSide:
        """A criu restore."""
        return RestoreSide(self.target, label)

    def commit(self, *options: str) -> tuple[int, str]:
        """What the action script does at post-dump: exit status and what it says."""
        done = self.relay.command("commit", self.name, "--timeout", "20", *options, at="proxy")
        return done.returncode, done.stderr.strip()

    def commits(self) -> None:
        """Commit, which must succeed."""
        assert self.commit() == (0, "")

    def moved(self, images: dict[str, bytes], label: str = LABEL) -> None:
        """A dump of these images, its commit, and a restore that reads them all."""
        self.dumped(images, label)
        self.restored(images, label)

    def dumped(self, images: dict[str, bytes], label: str = LABEL) -> None:
        """A dump of these images, and its commit."""
        with self.dump(label).dump() as dump:
            for name, data in images.items():
                dump.write(name, data)
        self.commits()
        dump.finish()

    def restored(self, images: dict[str, bytes], label: str = LABEL) -> None:
        """A restore that reads these images."""
        restore = self.restore(label)
        labels = restore.labels()
        assert labels is not None and label in labels
        assert restore.read("inventory.img") == b"inventory of " + label.encode()
        for name, data in images.items():
            assert restore.read(name) == data, name
        assert restore.read("apparmor.img") is None
        restore.finish()

    def status(self, at: str = "proxy") -> dict[str, Any]:
        """What a daemon says of itself."""
        found: dict[str, Any] = self.relay.get("/v1/status", at)
        return found

    def images(self, at: str = "proxy") -> dict[str, dict[str, Any]]:
        """The images of the newest snapshot as a daemon sees them."""
        found = self.relay.get(f"/v1/namespaces/{self.name}", at)
        return {image["name"]: image for image in found["snapshots"][-1]["images"]}

    def complete(self, name: str, at: str) -> None:
        """Wait until an image is complete at a daemon."""

        def found() -> bool:
            with contextlib.suppress(Refused):
                return bool(self.images(at).get(name, {}).get("complete"))
            return False

        until(found, 10.0, f"{name} is complete at the {at}")

    def ask_to_commit(self, root: int, seconds: float = 10.0) -> tuple[int, dict[str, Any]]:
        """What the action script of a move does: HTTP status and the answer."""
        path = f"/v1/namespaces/{self.name}/commit?timeout={seconds}"
        status, data = self.relay.proxy.request("POST", path, {"root": root, "criu": os.getpid()})
        return status, json.loads(data)

    def bytes(self, at: str) -> int:
        """The bytes of the namespace that have arrived."""
        return sum(found["bytes"] for found in self.relay.get("/v1/namespaces", at) if found["name"] == self.name)

    def waiting(self, count: int) -> None:
        """Wait until so many opens wait at the cache."""

        def found() -> bool:
            opens = self.status("cache")["waiting"]
            return sum(one["namespace"] == self.name for one in opens) == count

        until(found, 10.0, f"{count} opens wait at the cache")

    def not_served(self, name: str) -> None:
        """The cache gives nobody that image: it says so, or lets one wait for the next dump."""
        try:
            status, _ = self.relay.cache.request("GET", f"/v1/namespaces/{self.name}/images/{name}", timeout=1.0)
        except TimeoutError:
            return
        assert status in (404, 409)

    def alive(self) -> None:
        """Whatever the test did not end itself lives, and nothing had a defect to log."""
        for daemon in self.relay.daemons:
            assert daemon.running or daemon.ended, daemon.tail()
            assert "Traceback" not in daemon.text(), daemon.tail()
