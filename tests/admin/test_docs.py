"""docs/control.md lists what there is: every path, command, variable and status."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from criu_relay import errors
from criu_relay.admin.api import Handlers
from criu_relay.admin.command import parser
from criu_relay.admin.routes import Route


def routes(make: Any) -> list[Route]:
    """Those of the control API."""
    return Handlers(make["control"](), make["page"](make["control"]())).routes()


PAGE = (Path(__file__).parents[2] / "docs" / "control.md").read_text()


def test_every_path(make: Any) -> None:
    for route in routes(make):
        path = route.path.replace("{ns}", "NS").replace("{image}", "NAME")
        if "{snapshot}" in path:
            continue
        assert f"| `{route.method} {path}` |" in PAGE
        row = next(line for line in PAGE.splitlines() if f"`{route.method} {path}`" in line)
        for name in (*route.query, *route.body):
            assert name in row, (path, name)


def test_no_other_path(make: Any) -> None:
    listed = set(re.findall(r"\| `([A-Z]+ /\S+)` \|", PAGE))
    there = {f"{route.method} {route.path}".replace("{ns}", "NS").replace("{image}", "NAME") for route in routes(make)}
    assert listed <= there


def test_every_command() -> None:
    names = re.findall(r"^    ([a-z-]+) ", parser().format_help(), re.MULTILINE)
    assert len(names) == 11
    for name in names:
        assert f"| `{name} " in PAGE


@pytest.mark.parametrize("shape", ["namespace", "status"])
def test_every_key(make: Any, shape: str) -> None:
    for key in make[shape]():
        assert f"`{key}`" in PAGE, key


def test_every_status() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RelayError)]
    for status in {kind.status for kind in kinds} | {405, 413, 503}:
        assert re.search(rf"^\| (\d+, )?{status}( |,)", PAGE, re.MULTILINE), status


def test_every_variable() -> None:
    source = (Path(__file__).parents[2] / "criu_relay" / "admin" / "action.py").read_text()
    for variable in set(re.findall(r"CRIU_RELAY_[A-Z]+", source)):
        assert f"| `{variable}` |" in PAGE
