"""`/metrics`: the state of a daemon for Prometheus (text format 0.0.4). docs/metrics.md lists what there is.

Names and units follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from criu_relay.commit.states import State as ProxyState
from criu_relay.counters import BOUNDS
from criu_relay.errors import Cause
from criu_relay.store.generation import State as CacheState

PREFIX = "criu_relay_"

LINK_STATES = ("up", "connecting", "listening", "down", "closed")

PEERS = 100
"""Peers that are shown one by one: every one is a time series, and peers without TLS choose their own names."""

HOPS: Mapping[str, tuple[str, str]] = {
    "criu_bytes_in": ("criu", "in"),
    "criu_bytes_out": ("criu", "out"),
    "link_bytes_in": ("link", "in"),
    "link_bytes_out": ("link", "out"),
}
"""Counter -> hop and direction."""

HOPS_OF = {"proxy": ("criu_bytes_in", "link_bytes_out"), "cache": ("link_bytes_in", "criu_bytes_out")}
"""Role -> the counters of what comes in and of what goes out."""

ABORTS = "aborts_"
"""Counters that begin with this are of L{Cause}s."""

LINKED: Mapping[str, str] = {
    "links_made": "Connections between proxy and cache that came up.",
    "links_lost": "Connections between proxy and cache that ended.",
}
"""Counter of both daemons -> what it counts."""

COUNTED: Mapping[str, Mapping[str, str]] = {
    "cache": {
        **LINKED,
        "images_received": "Images that came over the link whole.",
        "namespaces_begun": "Generations of namespaces that began.",
        "namespaces_committed": "Generations that were committed.",
        "namespaces_aborted": "Generations that were aborted.",
        "namespaces_restored": "Generations whose restored process was reported to run.",
        "namespaces_discarded": "Generations that were thrown away or replaced.",
    },
    "proxy": {
        **LINKED,
        "extents_sent": "Pieces of images handed to the link.",
        "links_resumed": "Broken links that were made again and gone on with.",
        "link_bytes_sent_again": "Bytes that were sent again over a link that was made again.",
        "migrations_committed": "Migrations that were committed.",
        "migrations_aborted": "Migrations that were aborted.",
        "migrations_lost": "Migrations that were committed and that the cache has no more.",
    },
}
"""Role -> counter -> what it counts; one that is not listed is shown all the same."""

TIMED: Mapping[str, str] = {
    "commit": "Proxy: from the question whether criu may go on to the permission. Cache: from held to committed.",
}
"""Histogram -> what it measures."""

_TOO_ODD = re.compile(r"[^a-zA-Z0-9_]")


class StatusCollector(Collector):
    """The metrics of one status."""

    def __init__(self, status: dict[str, Any]) -> None:
        """@param status: what C{IControl.status} gives."""
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """See L{Collector}."""
        status = self._status
        yield _gauge("build_info", "Which daemon this is.", 1, role=status["role"], version=status["version"])
        yield from self._link(status["link"])
        yield from self._memory(status["memory"])
        yield _gauge("attachments", "Directories that CRIU's sockets are bound in.", len(status["attachments"]))
        yield _gauge("waiting_opens", "Opens of restores that wait for a decision.", len(status["waiting"]))
        yield from self._namespaces(status["namespaces"])
        yield from self._counters(status["counters"])
        yield from self._times(status["times"])

    def _link(self, link: dict[str, Any]) -> Iterator[Metric]:
        yield _gauge("link_up", "1: images can travel (proxy: linked; cache: listening).", int(is_ready(self._status)))
        states = {state: int(state == link["state"]) for state in LINK_STATES}
        yield _by_label("link_state", "1 for the state that the link is in.", "state", states)
        yield _gauge("link_peers", "Daemons linked to this one.", len(link["peers"]))
        trips = {
            peer["name"]: peer["round_trip_ms"] / 1000
            for peer in link["peers"][:PEERS]
            if peer.get("round_trip_ms") is not None
        }
        yield _by_label("link_round_trip_seconds", "The last round trip of the link.", "peer", trips)

    def _memory(self, memory: dict[str, Any]) -> Iterator[Metric]:
        yield _gauge("memory_used_bytes", "Image memory that is in use.", memory["used"])
        yield _by_label("memory_bytes", "Image memory by what it is for.", "kind", kinds(memory))
        yield _gauge("memory_limit_bytes", "The budget for image memory.", memory["limit"])

    def _namespaces(self, namespaces: list[dict[str, Any]]) -> Iterator[Metric]:
        names = ProxyState if self._status["role"] == "proxy" else CacheState
        states = Counter({state.value: 0 for state in names})
        states.update(namespace["state"] for namespace in namespaces)
        yield _by_label("namespaces", "Namespaces by the state of their newest generation.", "state", states)
        images = sum(namespace["images"] for namespace in namespaces)
        yield _gauge("images", "Images of the newest generations.", images)
        fates: Counter[str] = Counter()
        for namespace in namespaces:
            fates.update(namespace.get("memory", {}))
        yield _by_label("image_bytes", "Bytes of the newest generations by what became of them.", "kind", fates)

    def _counters(self, counters: dict[str, int]) -> Iterator[Metric]:
        hops = CounterMetricFamily(
            f"{PREFIX}transferred_bytes", "Image bytes by hop and direction.", labels=["hop", "direction"]
        )
        for name in HOPS_OF[self._status["role"]]:
            hops.add_metric(HOPS[name], counters.get(name, 0))
        yield hops
        aborts = CounterMetricFamily(f"{PREFIX}aborts", "Migrations that were given up, by reason.", labels=["reason"])
        for cause in Cause:
            aborts.add_metric([cause.value], counters.get(f"{ABORTS}{cause.value}", 0))
        yield aborts
        # Those of the table from the beginning: what appears with its first event has no rate for it.
        counted = COUNTED[self._status["role"]]
        for name in sorted({*counted, *counters} - set(HOPS)):
            if not name.startswith(ABORTS):
                text = counted.get(name, f"Events of the kind {name}.")
                yield CounterMetricFamily(PREFIX + _TOO_ODD.sub("_", name), text, value=counters.get(name, 0))

    @staticmethod
    def _times(times: dict[str, Any]) -> Iterator[Metric]:
        bounds = [*map(str, BOUNDS), "+Inf"]
        for name, text in TIMED.items():
            found = times.get(name, {"counts": [0] * len(bounds), "total_s": 0.0})
            buckets = list(zip(bounds, accumulate(found["counts"]), strict=True))
            yield HistogramMetricFamily(f"{PREFIX}{name}_seconds", text, buckets=buckets, sum_value=found["total_s"])


def render(status: dict[str, Any]) -> str:
    """The text for what C{IControl.status} gives."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry).decode("utf-8")


def is_ready(status: dict[str, Any]) -> bool:
    """Whether images can travel: the proxy is linked, the cache listens."""
    return status["link"]["state"] in ("up", "listening")


def kinds(memory: dict[str, Any]) -> dict[str, int]:
    """Bytes by kind of memory, from the `memory` of a status: what C{used} is made of, and what waits for use."""
    return {kind: value for kind, value in memory.items() if kind not in ("used", "limit")}


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _by_label(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
