"""What `criu-relay status` and `criu-relay images` print."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from criu_relay.admin.text import note, size, span, table
from criu_relay.wire.names import plain

#: The states of a namespace whose bytes still move.
MOVING = ("open", "sealing", "sealed")

NAMESPACE_HEADS = ["NAMESPACE", "STATE", "BYTES:", "IMAGES:", "RATE:", "AGE:"]


def status(answer: dict[str, Any]) -> list[str]:
    """Everything, as lines."""
    uptime = span(answer["uptime_s"])
    lines = [plain(f"criu-relay-{answer['role']} {answer['version']}, pid {answer['pid']}, up {uptime}")]
    lines += _link(answer["link"])
    memory = answer["memory"]
    lines.append(f"memory {size(memory['used'])} of {size(memory['limit'])}, {size(memory['recycled'])} recycled")
    lines += _hops(answer["hops"])
    for block in (_attachments(answer), _namespaces(answer), _waiting(answer)):
        lines += ["", *block] if block else []
    if not answer["namespaces"] and not answer["attachments"]:
        lines += ["", "nothing is attached: criu-relay attach DIR makes a directory that CRIU can use"]
    return lines


def _link(link: dict[str, Any]) -> Iterator[str]:
    endpoint = f" {link['endpoint']}" if link["endpoint"] else ""
    paced = f", at most {size(link['rate'])}/s" if link.get("rate") else ""
    yield plain(f"link {link['state']}{endpoint}{paced}")
    if link["error"]:
        yield from note("", link["error"])
    rows = [[one["name"], one["address"], span(one["since_s"]), size(one["bytes"]), one["io"]] for one in link["peers"]]
    if rows:
        yield from table(["PEER", "ADDRESS", "FOR:", "BYTES:", "IO"], rows)


def _hops(hops: dict[str, dict[str, int]]) -> list[str]:
    """Which ways bytes moved, on a line or more; none before the first."""
    parts = [
        f"{hop} {', '.join(f'{way} {size(count)}' for way, count in ways.items())}"
        for hop, ways in hops.items()
        if ways
    ]
    return note("moved: ", "; ".join(parts))


def _attachments(answer: dict[str, Any]) -> list[str]:
    rows = [
        [one["directory"], one["namespace"], one["dialect"], "copy" if one["copy"] else ""]
        for one in answer["attachments"]
    ]
    return table(["DIRECTORY", "NAMESPACE", "DIALECT", ""], rows) if rows else []


def rate(namespace: dict[str, Any]) -> float:
    """Bytes per second from the beginning of a generation to its decision, or until now."""
    lasted = namespace["age_s"] - (namespace["decided_s"] or 0.0)
    return float(namespace["bytes"] / lasted) if lasted > 0 else 0.0


def eta(namespace: dict[str, Any], per_second: float) -> float | None:
    """Seconds until everything that is expected is there; None: that cannot be told."""
    expected = namespace["expected"]
    return max(0, expected - namespace["bytes"]) / per_second if expected and per_second > 0 else None


def namespace_row(one: dict[str, Any]) -> list[str]:
    """A namespace in a table with L{NAMESPACE_HEADS}."""
    state = one["state"] + (" copy" if one["copy"] else "")
    return [one["name"], state, size(one["bytes"]), str(one["images"]), f"{size(rate(one))}/s", span(one["age_s"])]


def _namespaces(answer: dict[str, Any]) -> list[str]:
    rows = [namespace_row(one) for one in answer["namespaces"]]
    notes = [_figures(one) + note("", one["reason"]) + note("-> ", one["hint"]) for one in answer["namespaces"]]
    if not rows:
        return []
    head, *lines = table(NAMESPACE_HEADS, rows)
    return [head, *(line for row, more in zip(lines, notes, strict=True) for line in (row, *more))]


def _figures(namespace: dict[str, Any]) -> list[str]:
    """What became of its bytes, when that is more than that they are held."""
    figures = {name: count for name, count in namespace.get("memory", {}).items() if count}
    if not figures or set(figures) == {"held"}:
        return []
    return note("", ", ".join(f"{name} {size(count)}" for name, count in figures.items()))


def _waiting(answer: dict[str, Any]) -> list[str]:
    rows = [[one["namespace"], one["image"], str(one["pid"] or "-"), span(one["seconds"])] for one in answer["waiting"]]
    return table(["WAITS FOR", "IMAGE", "PID:", "SINCE:"], rows) if rows else []


def images(namespaces: list[dict[str, Any]]) -> list[str]:
    """The images of namespaces, as lines."""
    lines: list[str] = []
    for namespace in namespaces:
        lines += [""] if lines else []
        lines.append(plain(f"{namespace['name']}: {namespace['state']}, {size(namespace['bytes'])}"))
        lines += _figures(namespace)
        several = len(namespace["snapshots"]) > 1
        rows = [
            [
                f"{snapshot['index']}/{image['name']}" if several else image["name"],
                size(image["size"]),
                "" if image["complete"] else "being written",
                image["digest"] or "",
            ]
            for snapshot in namespace["snapshots"]
            for image in snapshot["images"]
        ]
        if rows:
            lines += table(["IMAGE", "BYTES:", "", "DIGEST"], rows)
    return lines or ["no namespaces"]


def progress(namespace: dict[str, Any], per_second: float) -> str:
    """A namespace on its way, on one line."""
    expected = namespace["expected"]
    of = f" of {size(expected)}" if expected else ""
    line = f"{namespace['name']} {namespace['state']} {size(namespace['bytes'])}{of}"
    if namespace["state"] in MOVING:
        line += f" {size(per_second)}/s"
        if (left := eta(namespace, per_second)) is not None:
            line += f" ETA {span(left)}"
    elif namespace["reason"]:
        line += f" ({namespace['reason']})"
    return plain(line)
