"""What `/metrics` says: the names and units of Prometheus, every state and reason from the beginning."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from criu_relay.admin import metrics
from criu_relay.counters import BOUNDS, Counters
from criu_relay.errors import Cause
from tests.support.tools import needs

ROLES = ("proxy", "cache")

PER_THING = ("criu_relay_link_round_trip_seconds", "criu_relay_image_bytes")
"""Series for what is there, and none when nothing is."""
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Name and values of the labels, in the order of their names -> value."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(value for _, value in sorted(sample.labels.items()))
            assert key not in found, "a series is there twice"
            found[key] = sample.value
    return found


def busy(make: Any, role: str = "cache") -> dict[str, Any]:
    """A status with something of everything."""
    peer = {"name": 'al"p\\ha\n', "instance": "00", "address": "a", "since_s": 1, "bytes": 2, "io": ""}
    answer: dict[str, Any] = make["status"](
        role,
        counters={"link_bytes_in": 7, "criu_bytes_out": 5, "aborts_memory": 2, "odd name-1": 4, "links_made": 1},
        times={"commit": {"counts": [1] * len(BOUNDS) + [2], "total_s": 300.5}},
        namespaces=[
            make["namespace"](state=state, images=3) | {"memory": {"zero": 100}}
            for state in ("held", "committed", "held")
        ],
        waiting=[{"namespace": "web", "image": "i", "pid": 1, "seconds": 2.0}],
    )
    answer["link"]["peers"] = [peer | {"round_trip_ms": 12.5}, peer | {"name": "new", "round_trip_ms": None}]
    return answer


def test_over_http(control: Any, ask: Any) -> None:
    answer = ask("GET", "/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert samples(answer.body.decode())["criu_relay_link_up", ()] == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (("criu_relay_build_info", ("cache", "0.1.0")), 1),
        (("criu_relay_link_up", ()), 1),
        (("criu_relay_link_state", ("up",)), 1),
        (("criu_relay_link_state", ("connecting",)), 0),
        (("criu_relay_link_peers", ()), 2),
        (("criu_relay_link_round_trip_seconds", ('al"p\\ha\n',)), 0.0125),
        (("criu_relay_memory_used_bytes", ()), 3 << 20),
        (("criu_relay_image_bytes", ("zero",)), 300),
        (("criu_relay_memory_bytes", ("recycled",)), 1 << 20),
        (("criu_relay_memory_limit_bytes", ()), 256 << 20),
        (("criu_relay_waiting_opens", ()), 1),
        (("criu_relay_namespaces", ("held",)), 2),
        (("criu_relay_namespaces", ("aborted",)), 0),
        (("criu_relay_images", ()), 9),
        (("criu_relay_transferred_bytes_total", ("in", "link")), 7),
        (("criu_relay_transferred_bytes_total", ("out", "criu")), 5),
        (("criu_relay_aborts_total", ("memory",)), 2),
        (("criu_relay_aborts_total", ("idle",)), 0),
        (("criu_relay_links_made_total", ()), 1),
        (("criu_relay_images_received_total", ()), 0),
        (("criu_relay_odd_name_1_total", ()), 4),
        (("criu_relay_commit_seconds_bucket", ("0.005",)), 1),
        (("criu_relay_commit_seconds_bucket", ("120.0",)), len(BOUNDS)),
        (("criu_relay_commit_seconds_bucket", ("+Inf",)), len(BOUNDS) + 2),
        (("criu_relay_commit_seconds_count", ()), len(BOUNDS) + 2),
        (("criu_relay_commit_seconds_sum", ()), 300.5),
    ],
)
def test_values(make: Any, key: tuple[str, tuple[str, ...]], value: float) -> None:
    assert samples(metrics.render(busy(make)))[key] == value


@pytest.mark.parametrize("role", ROLES)
def test_what_has_not_happened_yet_is_there_as_zero(make: Any, role: str) -> None:
    """A series that begins with its first event has no increase for it."""
    quiet, loud = (
        {key for key in samples(metrics.render(answer)) if key[0] not in PER_THING}
        for answer in (make["status"](role), busy(make, role) | {"counters": {"aborts_memory": 1}})
    )
    assert quiet == loud


def test_peers_are_bounded(make: Any) -> None:
    answer = busy(make)
    peer = answer["link"]["peers"][0]
    answer["link"]["peers"] = [peer | {"name": f"peer{i}"} for i in range(metrics.PEERS + 5)]
    found = samples(metrics.render(answer))
    assert sum(name == "criu_relay_link_round_trip_seconds" for name, _ in found) == metrics.PEERS
    assert found["criu_relay_link_peers", ()] == metrics.PEERS + 5


@pytest.mark.parametrize("role", ROLES)
def test_every_metric_has_help_and_a_place_in_the_page(make: Any, role: str) -> None:
    for family in text_string_to_metric_families(metrics.render(make["status"](role))):
        assert family.documentation
        if family.name.startswith("criu_relay_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert f"`{name}`" in DOCUMENTED, name


def test_the_page_has_every_reason_and_no_other_metric(make: Any) -> None:
    assert [cause.value for cause in Cause if f"| `{cause.value}` |" not in DOCUMENTED] == []
    there = {name for role in ROLES for name, _ in samples(metrics.render(make["status"](role)))}
    there |= {"criu_relay_commit_seconds", "criu_relay_NAME_total", *PER_THING}
    assert set(re.findall(r"`(criu_relay_\w+)`", DOCUMENTED)) <= there


@pytest.mark.parametrize("role", ROLES)
def test_promtool_has_nothing_to_say(make: Any, role: str) -> None:
    promtool = needs("promtool", "prometheus")
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=metrics.render(busy(make, role)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_every_counter_of_the_code_is_in_the_table() -> None:
    """Those with a fixed name; the states of namespaces and migrations and the causes are made of their enums."""
    code = "".join(path.read_text() for path in (Path(metrics.__file__).parents[1]).rglob("*.py"))
    named = set(re.findall(r'ounters\.add\("(\w+)"', code))
    assert "links_made" in named
    assert named <= {*metrics.HOPS, *(name for table in metrics.COUNTED.values() for name in table)}


class TestCounters:
    def test_classes_of_times(self) -> None:
        counters = Counters()
        for seconds in (0.005, 0.006, 500.0):
            counters.took("commit", seconds)
        times = counters.times["commit"]
        assert times.total == pytest.approx(500.011)
        assert {i: count for i, count in enumerate(times.counts) if count} == {0: 1, 1: 1, len(BOUNDS): 1}

    def test_failures_are_bounded(self) -> None:
        counters = Counters(now=lambda: 7.0)
        for number in range(60):
            counters.aborted(f"n{number}", Cause.LINK, "cut")
        assert counters.values == {"aborts_link": 60}
        assert len(counters.failures) == 50
        last = counters.failures[-1]
        assert (last.at, last.what, last.cause, last.reason) == (7.0, "namespace n59", Cause.LINK, "cut")
