"""`criu-relay status --watch`: the migrations of a daemon as they go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TextIO

from criu_relay.admin import show
from criu_relay.admin.client import Client, Refused, target

#: Seconds between two looks.
INTERVAL = 1.0


class Watch:
    """Looks once a second, until it is interrupted or the daemon ends.

    In a terminal it draws; elsewhere it prints a line when something changes, or with C{as_json} all of each look.
    """

    def __init__(self, client: Client, as_json: bool, out: TextIO) -> None:
        self._client = client
        self._json = as_json
        self._out = out
        self._before: dict[str, tuple[float, int]] = {}
        self._said: dict[str, str] = {}

    def run(self) -> None:
        """Until an exception of the client, or KeyboardInterrupt."""
        if self._json or not self._out.isatty():
            self._repeat(self.look)
            return
        # What draws takes longer to load than all the rest of the command.
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._out)
        if console.is_dumb_terminal:
            self._repeat(self.look)
            return
        with Live(console=console, auto_refresh=False) as live:
            self._repeat(lambda: live.update(self.drawn(), refresh=True))

    @staticmethod
    def _repeat(look: Callable[[], None]) -> None:
        while True:
            look()
            time.sleep(INTERVAL)

    def look(self) -> None:
        """Ask and print once."""
        status = self._client.call("GET", "/v1/status")
        for line in [json.dumps(status)] if self._json else self._changes(status):
            print(line, file=self._out, flush=True)

    def drawn(self) -> Any:
        """Ask once; what rich draws."""
        from criu_relay.admin.live import screen

        status = self._client.call("GET", "/v1/status")
        details = {}
        for namespace in status["namespaces"]:
            if namespace["state"] in show.MOVING:
                try:
                    found = self._client.call("GET", target("v1", "namespaces", namespace["name"]))
                except Refused:
                    continue
                details[namespace["name"]] = found
        return screen(status, details, self._rates(status))

    def _rates(self, status: dict[str, Any]) -> dict[str, float]:
        """Bytes per second since the look before, by migration."""
        now, known = time.monotonic(), self._before
        self._before = {one["migration"]: (now, one["bytes"]) for one in status["namespaces"]}
        return {
            key: max(0, count - known[key][1]) / max(now - known[key][0], 1e-3) if key in known else 0.0
            for key, (_, count) in self._before.items()
        }

    def _changes(self, status: dict[str, Any]) -> list[str]:
        rates, known = self._rates(status), self._said
        self._said = {one["migration"]: show.progress(one, rates[one["migration"]]) for one in status["namespaces"]}
        return [line for key, line in self._said.items() if known.get(key) != line]
