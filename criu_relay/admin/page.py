"""The page at `/`: what a daemon does, for people with a browser. It is live by server-sent events, else static."""

from __future__ import annotations

import functools
import json
import secrets
import time
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from criu_relay.admin.answers import Events, Text
from criu_relay.admin.control import IControl
from criu_relay.admin.history import SAMPLES, History
from criu_relay.admin.metrics import HOPS_OF, is_ready, kinds
from criu_relay.admin.show import MOVING, eta, rate
from criu_relay.admin.text import size, span
from criu_relay.errors import Conflict
from criu_relay.interfaces import Counters

INTERVAL = 1.0
"""Seconds between two samples, and between two events."""

WATCHERS = 32
"""Browsers that are told at a time: each costs a write a second."""

ROWS = 50
"""Rows of a table that are shown: what a person looks through; the command shows all."""

WIDTH, HEIGHT = 600, 120
"""Units of the plot, which is stretched to the width of the page."""

SECTIONS = ("head", "namespaces", "rate", "memory", "link", "waiting", "failures", "attachments")
"""Macros of the template: what is told separately when it changes."""

WRONG = ("aborted", "lost")
"""States of a namespace that went wrong; the others that do not move went well, or wait for somebody."""

WAITING = ("held", "permitted")

POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: nothing but what is in the page, whatever a name in it may look like."""


@functools.cache
def _templates() -> tuple[Any, Any]:
    """The page, and the macros of its sections."""
    # 2 MiB of every daemon, and few are looked at with a browser.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("criu_relay.admin", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"size": size, "span": span, "clock": _clock}
    return made.get_template("page.html"), made.get_template("sections.html").module


class Page(Service):
    """Renders the page, samples the rates, and tells those who watch."""

    log = Logger()

    def __init__(self, control: IControl, counters: Counters, clock: IReactorTime) -> None:
        self._control = control
        self._counters = counters
        self._clock = clock
        self._history = History(control.role)
        self._watchers: list[Events] = []
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock

    def startService(self) -> None:
        """Begin to sample."""
        super().startService()
        self._loop.start(INTERVAL)

    def stopService(self) -> Deferred[None] | None:
        """End every stream of events."""
        self._loop.stop()
        watchers, self._watchers = self._watchers, []
        for events in watchers:
            events.end()
        stopped: Deferred[None] | None = super().stopService()
        return stopped

    def document(self) -> Text:
        """The whole page."""
        nonce = secrets.token_urlsafe(16)
        view = self._view()
        text = _templates()[0].render(sections=self._sections(view), nonce=nonce, title=view["title"])
        headers = {
            "Content-Security-Policy": POLICY.format(nonce=nonce),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        return Text("text/html; charset=utf-8", text, headers)

    def events(self) -> Events:
        """A stream of what changes.

        @raise Conflict: too many watch.
        """
        if len(self._watchers) >= WATCHERS:
            raise Conflict(f"{WATCHERS} pages are open already", hint="close some")
        made = Events(self._data(), self._gone)
        self._watchers.append(made)
        return made

    def _gone(self, events: Events) -> None:
        if events in self._watchers:
            self._watchers.remove(events)

    def _tick(self) -> None:
        self._history.sample(self._clock.seconds(), self._counters.values)
        if self._watchers:
            data = self._data()
            for events in list(self._watchers):
                events.send(data)

    def _data(self) -> str:
        return json.dumps(self._sections(self._view()))

    def _sections(self, view: dict[str, Any]) -> dict[str, str]:
        return {name: str(getattr(_templates()[1], name)(view)) for name in SECTIONS}

    def _view(self) -> dict[str, Any]:
        """What the macros show: the status, put in order and bounded."""
        status = self._control.status()
        received, sent = self._history.rates()
        namespaces = sorted(status["namespaces"], key=_order)
        in_name, out_name = (name.partition("_")[0] for name in HOPS_OF[status["role"]])
        return status | {
            "title": f"criu-relay-{status['role']}",
            "ready": is_ready(status),
            "namespaces": [_row(namespace) for namespace in namespaces[:ROWS]],
            "waiting": status["waiting"][:ROWS],
            "failures": status["failures"][:ROWS],
            "attachments": status["attachments"][:ROWS],
            "peers": status["link"]["peers"][:ROWS],
            "more": {key: max(0, len(status[key]) - ROWS) for key in ("namespaces", "waiting", "attachments")},
            "kinds": list(kinds(status["memory"]).items()),
            "plot": _plot([(f"in, from {in_name}", received), (f"out, to {out_name}", sent)]),
        }


def _order(namespace: dict[str, Any]) -> tuple[bool, float]:
    """What moves comes first, then the youngest."""
    return namespace["state"] not in MOVING, namespace["age_s"]


def _row(namespace: dict[str, Any]) -> dict[str, Any]:
    state = namespace["state"]
    moving = state in MOVING
    kind = "moving" if moving else "wrong" if state in WRONG else "waiting" if state in WAITING else "well"
    return namespace | {
        "kind": kind,
        "rate": rate(namespace),
        "eta": eta(namespace, rate(namespace)) if moving else None,
    }


def _plot(lines: list[tuple[str, list[float]]]) -> dict[str, Any]:
    """Rates as points of an SVG polyline: the newest at the right, the highest at the top."""
    top = max((value for _, values in lines for value in values), default=0.0)
    scale = HEIGHT / top if top else 0.0
    step = WIDTH / (SAMPLES - 1)
    drawn = []
    for name, values in lines:
        left = WIDTH - (len(values) - 1) * step
        points = " ".join(f"{left + i * step:.1f},{HEIGHT - value * scale:.1f}" for i, value in enumerate(values))
        drawn.append({"name": name, "points": points, "now": values[-1] if values else 0.0})
    return {"lines": drawn, "top": top, "width": WIDTH, "height": HEIGHT, "seconds": SAMPLES}


def _clock(at: float) -> str:
    """Seconds since 1970 as the local time of the daemon."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
