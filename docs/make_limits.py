#!/usr/bin/env python3
"""Writes docs/limits.md from the constants in the code: each with its value, and the reason that stands beside it.

docs/make_limits.py           writes the page
docs/make_limits.py --check   exits 1 when the page is not what it would write
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("limits.md")
ROOT = PAGE.parent.parent
sys.path.insert(0, str(ROOT))

INTRODUCTION = """\
# Limits

Written from the constants in the code by `python docs/make_limits.py`. Peers and clients are taken to be hostile:
what they send is bounded, and a length is compared with its limit before anything is allocated for it.

What a proxy or a cache does wrong on a link is answered by an error frame that says what it was, and its link is
closed; what a client of CRIU's sockets does wrong drops that client, and its reason is in the log. Others do not
notice.

Memory has options: `--memory` at the cache and `--window` at the proxy, in bytes; so has time: `--link-timeout` and
`--idle`.
"""

SECTIONS: dict[str, list[str]] = {
    "The link: how many": [
        "link.services.GREETINGS",
        "link.sessions.SESSIONS",
        "wire.link.MAX_MIGRATIONS",
        "wire.link.MAX_SNAPSHOTS",
        "wire.link.MAX_IMAGES",
        "link.connection.QUEUED_CONTROL_FRAMES",
        "link.connection.QUEUED_CONTROL_BYTES",
    ],
    "The link: how long": [
        "wire.link.MAX_HEADER",
        "wire.link.MAX_PAYLOAD",
        "wire.link.FRAMES_TOGETHER",
        "wire.link.MAX_TEXT",
        "wire.link.MAX_SIZE",
        "wire.names.MAX_NAME",
        "wire.names.MAX_LABEL",
        "wire.names.MAX_HOST",
    ],
    "The link: seconds": [
        "link.connection.GREETING_SECONDS",
        "link.connection.FLUSH_SECONDS",
        "link.liveness.BEAT_SECONDS",
        "link.liveness.SILENT_BEATS",
        "flow.sockets.USER_TIMEOUT",
        "flow.sockets.KEEPALIVE_SECONDS",
        "flow.sockets.KEEPALIVE_PROBES",
        "link.services.LAST_RETRY",
        "link.outlet.LINK_GRACE",
    ],
    "What a daemon remembers": [
        "store.store.NAMESPACES",
        "commit.dumps.NAMESPACES",
        "store.namespace.HISTORY",
        "commit.dumps.HISTORY",
        "commit.records.KEPT",
        "store.namespace.WAITING_OPENERS",
        "store.namespace.WOKEN_PER_TURN",
    ],
    "CRIU's sockets": [
        "local.attachments.ATTACHMENTS",
        "local.listener.MAX_CLIENTS",
        "local.listener.BACKLOG",
        "local.stream_capture.MAX_PIPES",
        "local.images.PATIENCE",
        "wire.framing.MAX_MESSAGE",
        "wire.descriptors.MAX_DESCRIPTORS",
        "wire.remote_images.MAX_SNAPSHOTS",
        "flow.unix_listener.PATH_LIMIT",
    ],
    "The control API": [
        "admin.request.LONGEST_BODY",
        "admin.api.SILENCE",
        "admin.page.WATCHERS",
    ],
    "CRIU's own link": [
        "wire.criu_dev_link.MAX_SIZE",
        "wire.criu_dev_link.MAX_IMAGES",
        "wire.criu_dev_link.OLD_MAX_SIZE",
    ],
}
"""Constants of criu_relay, by what they bound."""


def reason(module: str, name: str) -> str:
    """What the source says of a constant: the string behind it, or the comment before it."""
    text = (ROOT / "criu_relay" / f"{module.replace('.', '/')}.py").read_text()
    lines = text.splitlines()
    body = ast.parse(text).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name) or node.targets[0].id != name:
            continue
        match following:
            case ast.Expr(value=ast.Constant(value=str(said))):
                return " ".join(said.split())
        said = ""
        for line in reversed(lines[: node.lineno - 1]):
            if not line.startswith("#"):
                break
            said = f"{line.lstrip('#: ')} {said}"
        if said:
            return said.strip()
    raise LookupError(f"{module}.{name} has no reason beside it")


def row(constant: str) -> str:
    """One constant."""
    module, _, name = constant.rpartition(".")
    value = getattr(importlib.import_module(f"criu_relay.{module}"), name)
    words = reason(module, name).replace("L{", "`").replace("}", "`")
    return (
        f"| `{constant}` | {value:g} | {words} |"
        if isinstance(value, float)
        else f"| `{constant}` | {value} | {words} |"
    )


def page() -> str:
    """The page as it should be."""
    parts = [INTRODUCTION]
    for title, constants in SECTIONS.items():
        parts.append(
            "\n".join([f"## {title}\n", "| limit | value | why |", "| --- | --- | --- |", *map(row, constants)])
        )
    return "\n".join([parts[0], "\n\n".join(parts[1:]), ""])


def main(arguments: list[str]) -> int:
    """Write or check the page; the exit status."""
    if arguments == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != page():
            print("docs/limits.md is not what the code says: run docs/make_limits.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
