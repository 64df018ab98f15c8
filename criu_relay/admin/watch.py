"""`criu-relay status --watch`: the migrations of a daemon as they go on."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

from criu_relay.admin import show
from criu_relay.admin.client import Client, Refused, target
from criu_relay.admin.text import plain, size

#: Seconds between two looks.
INTERVAL = 1.0

#: Top left, and everything below it cleared: ECMA-48.
_REDRAW = "\x1b[H\x1b[J"

#: Lines of images per namespace in a terminal: the newest ones, which are those that grow.
IMAGES = 8


class Watch:
    """Looks once a second, until it is interrupted or the daemon ends."""

    def __init__(self, client: Client, as_json: bool, out: TextIO = sys.stdout) -> None:
        self._client = client
        self._json = as_json
        self._out = out
        self._before: dict[str, tuple[float, int]] = {}
        self._said: dict[str, str] = {}

    def run(self) -> None:
        """Until an exception of the client, or KeyboardInterrupt."""
        while True:
            self.look()
            time.sleep(INTERVAL)

    def look(self) -> None:
        """Ask and print once."""
        status = self._client.call("GET", "/v1/status")
        if self._json:
            lines = [json.dumps(status)]
        elif self._out.isatty():
            lines = [_REDRAW + "\n".join([*show.status(status), "", *self._images(status)])]
        else:
            lines = self._changes(status)
        for line in lines:
            print(line, file=self._out, flush=True)

    def _rate(self, namespace: dict[str, Any], now: float) -> float:
        """Bytes per second since the look before."""
        key = namespace["migration"]
        then, count = self._before.get(key, (now - INTERVAL, namespace["bytes"]))
        self._before[key] = (now, namespace["bytes"])
        return max(0, namespace["bytes"] - count) / max(now - then, 1e-3)

    def _images(self, status: dict[str, Any]) -> list[str]:
        lines, now = [], time.monotonic()
        for namespace in status["namespaces"]:
            if namespace["state"] not in show.MOVING:
                continue
            lines.append(show.progress(namespace, self._rate(namespace, now)))
            try:
                snapshots = self._client.call("GET", target("v1", "namespaces", namespace["name"]))["snapshots"]
            except Refused:
                continue
            images = [(snapshot["index"], image) for snapshot in snapshots for image in snapshot["images"]]
            for index, image in images[-IMAGES:]:
                state = "" if image["complete"] else " ..."
                lines.append(plain(f"    {index}/{image['name']} {size(image['size'])}{state}"))
        return lines

    def _changes(self, status: dict[str, Any]) -> list[str]:
        lines, now, known = [], time.monotonic(), self._said
        self._said = {}
        for namespace in status["namespaces"]:
            line = show.progress(namespace, self._rate(namespace, now))
            self._said[namespace["migration"]] = line
            if known.get(namespace["migration"]) != line:
                lines.append(line)
        return lines
