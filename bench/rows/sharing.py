"""How the link is shared out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from bench.flows import Flow, flowing
from bench.measure import GB, MIB, Row, Skipped
from bench.relay import Measured, relay
from bench.stage import Stage

RATE = 100 * MIB
"""Bytes per second of --rate 100M/s."""


LOOKS = 3
"""With fewer at what the cache has, what is compared is when the two began."""


def closeness(name: str, reference: str, ratios: Sequence[float], bound: float, gb_per_s: float) -> Row:
    """A row about a ratio that is 1 at best."""
    return Row(
        name=name,
        reference=reference,
        ratio=statistics.median(ratios),
        bound=bound,
        gb_per_s=gb_per_s,
        cpu_s_per_gb={},
        rss_mib={},
        reference_gb_per_s=float("nan"),
    )


def rate(stage: Stage) -> list[Row]:
    """A transfer with a limit."""
    size = stage.plan.paced
    speeds = []
    with relay(stage, proxy=["--rate", f"{RATE // MIB}M/s"]) as ours:
        for _ in range(stage.plan.rounds):
            moved = ours.dump(size)
            speeds.append(size / (moved.held - moved.written.first))
            ours.discard()
    ratios = [1 - abs(speed / RATE - 1) for speed in speeds]
    what = f"{RATE // MIB} MiB/s; here the ratio is 1 - the distance from that"
    return [closeness("rate", what, ratios, 0.95, statistics.median(speeds) / GB)]


def _look(ours: Measured, flows: Sequence[Flow]) -> tuple[float, list[int]]:
    """When, and what the cache has of each."""
    found = {one["name"]: one["bytes"] for one in ours.relay.get("/v1/namespaces")}
    return time.monotonic(), [found.get(flow.namespace, 0) for flow in flows]


def share(stage: Stage) -> list[Row]:
    """Two namespaces, from when both are on their way until the first of them is through."""
    ratios, speeds, size = [], [], stage.plan.size
    with relay(stage) as ours:
        for _ in range(stage.plan.rounds):
            with flowing(ours, [size, size]) as flows:
                looks = []
                while all(flow.running for flow in flows):
                    looks.append(_look(ours, flows))
            both = [(when, have) for when, have in looks if all(have)]
            if len(both) < LOOKS:
                raise Skipped("two flows were through before they could be compared")
            (began, before), (ended, after) = both[0], both[-1]
            moved = [last - first for first, last in zip(before, after, strict=True)]
            ratios.append(min(moved) / max(moved))
            speeds.append(sum(moved) / (ended - began))
    what = "what the one moves / what the other does"
    return [closeness("share", what, ratios, 0.9, statistics.median(speeds) / GB)]
