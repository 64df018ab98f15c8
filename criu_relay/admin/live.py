"""What `criu-relay status --watch` draws in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from criu_relay.admin.show import MOVING, eta
from criu_relay.admin.text import shortened, size, span
from criu_relay.wire.names import plain

#: Rows of images per namespace: the newest ones, which are those that grow.
IMAGES = 8

#: Columns of a bar.
BAR = 16

#: Columns of the names of namespaces and images, at most.
NAME = 32

#: Failures that are shown: the page and `status --json` have more.
FAILURES = 3

_STYLES = {"aborted": "red", "lost": "red", "held": "yellow", "permitted": "yellow"}


def screen(status: dict[str, Any], details: dict[str, Any], rates: dict[str, float]) -> RenderableType:
    """All of it.

    @param details: namespace -> what the API has of it with its images; for those that move.
    @param rates: migration -> bytes per second.
    """
    parts = [_head(status), _memory(status["memory"]), Text()]
    if status["namespaces"]:
        parts.append(_namespaces(status["namespaces"], details, rates))
    else:
        parts.append(Text("no namespace yet", "dim"))
    for one in status["namespaces"]:
        if one["hint"]:
            parts.append(_text(f"{one['name']}: {one['reason']} -> {one['hint']}", "yellow"))
    for one in status["waiting"]:
        parts.append(_text(f"a restore waits for {one['namespace']} since {span(one['seconds'])}", "yellow"))
    for failed in status["failures"][:FAILURES]:
        parts.append(_text(f"{failed['what']}: {failed['reason']}", "red"))
    return Group(*parts)


def _text(text: str, style: str = "") -> Text:
    """A line with what others may have chosen; it is cut at the edge."""
    return Text(plain(text), style, no_wrap=True, overflow="ellipsis")


def _head(status: dict[str, Any]) -> RenderableType:
    link = status["link"]
    head = _text(f"criu-relay-{status['role']} {status['version']}, up {span(status['uptime_s'])}", "bold")
    style = "green" if link["state"] in ("up", "listening") else "red"
    line = _text(f"link {link['state']} {link['endpoint']}", style)
    for peer in link["peers"]:
        trip = peer.get("round_trip_ms")
        line.append(plain(f", {peer['name']}") + (f" {trip:.1f} ms away" if trip is not None else ""))
    return Group(head, line, *([_text(link["error"], "red")] if link["error"] else []))


def _memory(memory: dict[str, Any]) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(memory["limit"], 1), completed=memory["used"], width=BAR)
    row.add_row("memory", bar, f"{size(memory['used'])} of {size(memory['limit'])}")
    return row


def _namespaces(namespaces: list[dict[str, Any]], details: dict[str, Any], rates: dict[str, float]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    # The one column that gives way: the others are as wide as what is in them.
    table.add_column("NAMESPACE", max_width=NAME)
    table.add_column("STATE", no_wrap=True)
    table.add_column("", width=BAR)
    for name in ("BYTES", "RATE", "LEFT"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in namespaces:
        moving = one["state"] in MOVING
        per_second = rates.get(one["migration"], 0.0)
        left = eta(one, per_second) if moving else None
        table.add_row(
            _text(shortened(one["name"], NAME), "bold"),
            Text(one["state"], _STYLES.get(one["state"], "cyan" if moving else "green")),
            _bar(one),
            size(one["bytes"]) + (f" of {size(one['expected'])}" if one["expected"] else ""),
            f"{size(per_second)}/s" if moving else "",
            span(left) if left is not None else "",
        )
        images = [
            (snapshot["index"], image)
            for snapshot in details.get(one["name"], {"snapshots": []})["snapshots"]
            for image in snapshot["images"]
        ]
        for index, image in images[-IMAGES:]:
            state = "complete" if image["complete"] else "writing"
            name = shortened(f"{index}/{image['name']}", NAME - 2)
            table.add_row(_text(f"  {name}"), Text(state, "dim"), "", size(image["size"]), "", "")
    return table


def _bar(namespace: dict[str, Any]) -> RenderableType:
    state = namespace["state"]
    if state in ("aborted", "lost"):
        return ""
    if state not in MOVING:
        return ProgressBar(total=1, completed=1, width=BAR, finished_style=_STYLES.get(state, "green"))
    expected = namespace["expected"]
    return ProgressBar(
        total=expected, completed=namespace["bytes"], width=BAR, pulse=not expected, complete_style="cyan"
    )
