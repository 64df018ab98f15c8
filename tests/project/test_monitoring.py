"""The examples for Prometheus and Grafana: they parse, and ask for what there is."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from criu_relay.admin.metrics import render
from criu_relay.commit.states import State as ProxyState
from criu_relay.errors import Cause
from criu_relay.store.generation import State as CacheState
from tests.admin.conftest import status
from tests.support.tools import needs

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "prometheus"
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
QUERIES = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]


def series() -> dict[str, set[str]]:
    """Name -> the names of its labels, of both daemons."""
    found: dict[str, set[str]] = {"up": set()}
    peer = {"name": "a", "round_trip_ms": 1.0}
    for role in ("proxy", "cache"):
        answer = status(role)
        answer["link"]["peers"] = [peer]
        for family in text_string_to_metric_families(render(answer)):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("query", QUERIES)
def test_queries_ask_for_what_there_is(query: str) -> None:
    there = series()
    names = set(re.findall(r"\b(?:criu_relay_\w+|up)\b", query))
    assert names
    assert names <= set(there)
    added = {"job", "instance", "role"}
    for name, labels in re.findall(r"\b(criu_relay_\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)[=!]", labels)) <= there[name] | added, query


def test_values_of_labels_exist() -> None:
    known: dict[str, set[str]] = {
        "state": {state.value for kind in (ProxyState, CacheState) for state in kind},
        "reason": {cause.value for cause in Cause},
        "role": {"proxy", "cache"},
    }
    asked = re.findall(r'(state|reason|role)[=!]~?"([^"]*)"', " ".join(QUERIES))
    assert {label for label, _ in asked} == set(known)
    for label, values in asked:
        assert set(values.split("|")) <= known[label]


def test_every_rule_says_what_to_do() -> None:
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_panels_have_their_own_places() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize(("what", "name"), [("rules", "alerts.yml"), ("config", "prometheus.yml")])
def test_promtool_takes_them(what: str, name: str) -> None:
    promtool = needs("promtool", "prometheus")
    checked = subprocess.run([promtool, "check", what, str(FOLDER / name)], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
