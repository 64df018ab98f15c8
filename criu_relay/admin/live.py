"""What `criu-relay status --watch` draws in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
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

#: Columns of the names, at least when one is as long: both its ends tell it from others.
LEAST_NAME = 12

#: Columns between two columns.
GAP = 2

#: What gives way in a terminal that is too narrow, the first one first.
GIVES_WAY = ("", "LEFT", "RATE", "BYTES")

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
        parts.append(_Namespaces(status, details, rates))
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


class _Namespaces:
    """The table, as wide as the terminal allows."""

    def __init__(self, status: dict[str, Any], details: dict[str, Any], rates: dict[str, float]) -> None:
        self._rows = [row for one in status["namespaces"] for row in _rows(one, details.get(one["name"]), rates)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Columns give way until there is room for the names."""
        widths = {head: max(len(head), *(_width(row[head]) for row in self._rows)) for head in self._rows[0]}
        longest = widths.pop("NAMESPACE")
        least = min(longest, LEAST_NAME)
        for head in GIVES_WAY:
            if least + sum(GAP + width for width in widths.values()) > options.max_width:
                del widths[head]
        room = max(least, options.max_width - sum(GAP + width for width in widths.values()))
        name = min(longest, NAME, room)
        fixed = {"": BAR, "STATE": min(widths["STATE"], max(1, options.max_width - name - GAP))}
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("NAMESPACE"[:name], width=name, no_wrap=True)
        for head in widths:
            right = head in ("BYTES", "RATE", "LEFT")
            table.add_column(head, justify="right" if right else "left", no_wrap=True, width=fixed.get(head))
        for row in self._rows:
            shown = row["NAMESPACE"].copy()
            shown.plain = shortened(shown.plain, name)
            table.add_row(shown, *(row[head] for head in widths))
        yield table


def _width(cell: RenderableType) -> int:
    return len(cell) if isinstance(cell, (str, Text)) else BAR


def _rows(one: dict[str, Any], detail: dict[str, Any] | None, rates: dict[str, float]) -> Iterator[dict[str, Any]]:
    """A namespace and its images; head of the column -> what is in it."""
    moving = one["state"] in MOVING
    per_second = rates.get(one["migration"], 0.0)
    left = eta(one, per_second) if moving else None
    yield {
        "NAMESPACE": _text(one["name"], "bold"),
        "STATE": Text(one["state"], _STYLES.get(one["state"], "cyan" if moving else "green")),
        "": _bar(one),
        "BYTES": size(one["bytes"]) + (f" of {size(one['expected'])}" if one["expected"] else ""),
        "RATE": f"{size(per_second)}/s" if moving else "",
        "LEFT": span(left) if left is not None else "",
    }
    images = [
        (snapshot["index"], image)
        for snapshot in (detail or {"snapshots": []})["snapshots"]
        for image in snapshot["images"]
    ]
    for index, image in images[-IMAGES:]:
        state = "complete" if image["complete"] else "writing"
        name = _text(f"  {index}/{image['name']}")
        yield {
            "NAMESPACE": name,
            "STATE": Text(state, "dim"),
            "": "",
            "BYTES": size(image["size"]),
            "RATE": "",
            "LEFT": "",
        }


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
