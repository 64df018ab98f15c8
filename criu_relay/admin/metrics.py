"""`/metrics`: the state of a daemon in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any


def render(status: dict[str, Any]) -> str:
    """The text for what C{IControl.status} gives: every counter, and a few gauges."""
    return "".join(f"{line}\n" for line in _lines(status))


def _lines(status: dict[str, Any]) -> Iterator[str]:
    for name, value in sorted(status["counters"].items()):
        yield from _metric(f"{name}_total", "counter", value)
    yield from _metric("uptime_seconds", "gauge", status["uptime_s"])
    yield from _metric("link_up", "gauge", int(is_ready(status)))
    yield from _metric("link_peers", "gauge", len(status["link"]["peers"]))
    for name, value in status["memory"].items():
        yield from _metric(f"memory_{name}_bytes", "gauge", value)
    yield from _metric("attachments", "gauge", len(status["attachments"]))
    yield from _metric("waiting", "gauge", len(status["waiting"]))
    states = Counter(namespace["state"] for namespace in status["namespaces"])
    yield from _metric("namespaces", "gauge", *((f'{{state="{state}"}}', n) for state, n in sorted(states.items())))


def _metric(name: str, kind: str, *values: Any) -> Iterator[str]:
    """A metric: one value, or pairs of labels and value."""
    full = "criu_relay_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
    yield f"# TYPE {full} {kind}"
    for value in values:
        labels, number = value if isinstance(value, tuple) else ("", value)
        yield f"{full}{labels} {number}"


def is_ready(status: dict[str, Any]) -> bool:
    """Whether images can travel: the proxy is linked, the cache listens."""
    return status["link"]["state"] in ("up", "listening")
